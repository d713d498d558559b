"""Cells, or a table of effects, to a screen; features of genes by source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse

from scanpy_scgpt._counts import choose_counts
from scanpy_scgpt._effects import Effects, normalised_rows, pseudobulk_effects, sizes_of, table_effects
from scanpy_scgpt._logging import get_logger
from scanpy_scgpt._perturbation_names import STIMULUS
from scanpy_scgpt._perturbations import CONTROL, NO_LABEL, Perturbations, parse_perturbations
from scanpy_scgpt._validate import check_key
from scanpy_scgpt.datasets import gene_features
from scanpy_scgpt.io import Checkpoint

from ._screen import Conditions, Screen

if TYPE_CHECKING:
    from anndata import AnnData

logger = get_logger(__name__)
SOURCES = ("network", "knowledge", "coexpression")
_TABLE_ROWS = 3  # of a condition in one context: more, and rows are cells
_CONTROLS = 5000  # cells that co-expression is read from
_COMPONENTS, _LEAST = 20, 3  # of co-expression; control cells that it takes
_FEW_CONTROLS = 20


@dataclass(frozen=True)
class Source:
    """How a screen is read from an object.

    Attributes
    ----------
    perturbation_key, control, context_key, batch_key, layer, size_key, p_layer, targets
        As in :class:`SCGPTPerturber`.
    """

    perturbation_key: str
    control: str | Sequence[str] | None = None
    context_key: str | None = None
    batch_key: str | None = None
    layer: str | None = None
    size_key: str | None = None
    p_layer: str | None = None
    targets: Mapping[str, Sequence[str]] | None = None

    def check(self, adata: AnnData) -> None:
        """Columns must be there."""
        for key in (self.perturbation_key, self.context_key, self.batch_key, self.size_key):
            if key is not None:
                check_key(adata.obs, key, where="adata.obs")


@dataclass(frozen=True)
class ReadScreen:
    """A screen, and the cells behind it.

    Attributes
    ----------
    screen
        The effects.
    perturbations
        The column, read.
    contexts
        Context of each row of the object, text, shape `(n_obs,)`.
    is_table
        Whether rows are effects, not cells.
    names
        Canonical name of the parts of each condition.
    """

    screen: Screen
    perturbations: Perturbations
    contexts: np.ndarray
    is_table: bool
    names: Mapping[tuple[str, ...], str]


def read_screen(adata: AnnData, source: Source) -> ReadScreen:
    """Effects of every condition in every context."""
    source.check(adata)
    contexts = _contexts(adata, source)
    column = adata.obs[source.perturbation_key]
    is_table = _is_table(adata, column, contexts)
    genes = adata.var_names if is_table else choose_counts(adata, layer=source.layer, as_values=True).var.index
    given = {"control": source.control, "genes": genes, "targets": source.targets}
    found = parse_perturbations(column, needs_control=not is_table, **given)
    found = replace(found, codes=np.where(contexts == None, NO_LABEL, found.codes).astype(np.int32))  # noqa: E711
    parts = _parts(found, set(map(str, genes)))
    _note_targets(parts, set(map(str, genes)))
    pieces: list[tuple[str, Effects]] = []
    for context in dict.fromkeys(contexts[found.codes >= 0]):
        inside = contexts == context
        codes = np.where(inside & ((found.codes >= 0) | (found.codes == CONTROL)), found.codes, NO_LABEL)
        if not is_table and not (codes == CONTROL).any():
            msg = (
                f"{source.context_key}={context!r} has perturbed cells and no control cell, so no effect can be told. "
                f"Leave it out: adata[adata.obs[{source.context_key!r}] != {context!r}]."
            )
            raise ValueError(msg)
        _check_one_way(found, codes, parts, source)
        n_control = int((codes == CONTROL).sum())
        if not is_table and n_control < _FEW_CONTROLS and source.context_key is not None:
            logger.warning("warning: %s=%r has %d control cells; effects there are uncertain.", source.context_key,
                           context, n_control)  # fmt: skip
        pieces.append((str(context), _effects(adata, replace(found, codes=codes.astype(np.int32)), source, is_table)))
    screen = joined(pieces, parts, tables=is_table)
    if not is_table:
        screen = _with_lone_controls(adata, screen, found, contexts, source)
    alone = [name for name, n in found.n_cells.items() if n == 1]
    if alone and not is_table:
        logger.warning("warning: perturbations of one cell say next to nothing: %s.", ", ".join(alone[:8]))
    names: dict[tuple[str, ...], str] = {}
    for name in found.conditions:  # of a gene that contexts change in several ways the plain name
        names[parts[name]] = name if parts[name] not in names else "+".join(parts[name])
    return ReadScreen(screen, found, contexts, is_table, names)


def _contexts(adata: AnnData, source: Source) -> np.ndarray:
    """Context of each row, text; None for one without."""
    if source.context_key is None:
        return np.full(adata.n_obs, "", dtype=object)
    column = adata.obs[source.context_key]
    contexts = column.astype(str).to_numpy(dtype=object)
    lost = column.isna().to_numpy()
    if lost.any():
        logger.warning(
            "warning: %s cells have no %s and are left out.", f"{int(lost.sum()):,}", repr(source.context_key)
        )
        contexts[lost] = None
    return contexts


def _parts(found: Perturbations, genes: set[str]) -> dict[str, tuple[str, ...]]:
    """Genes of each condition; the condition itself where it has none, marked where a gene has its name."""
    return {
        name: tuple(sorted(x)) or ((name + STIMULUS) if name in genes else name,)
        for name, x in zip(found.conditions, found.targets, strict=True)
    }


def _note_targets(parts: Mapping[str, tuple[str, ...]], genes: set[str]) -> None:
    targets = {part for x in parts.values() for part in x}
    if not targets & genes and any(part.isupper() for part in targets):
        logger.warning(
            "warning: no target is among the %s genes (%s, ...), so what targets do to themselves cannot be learned. "
            "If the genes have other names: adata.var_names = adata.var['gene_symbols'].",
            f"{len(genes):,}",
            next(iter(sorted(genes)), ""),
        )


def _check_one_way(
    found: Perturbations, codes: np.ndarray, parts: Mapping[str, tuple[str, ...]], source: Source
) -> None:
    """A gene may be changed in one way in a context: what CRISPRi and CRISPRa do is not the same."""
    seen: dict[tuple[str, ...], str] = {}
    for i in np.unique(codes[codes >= 0]):
        name = found.conditions[i]
        if parts[name] in seen:
            key = source.perturbation_key
            msg = (
                f"obs[{key!r}] has {seen[parts[name]]!r} and {name!r}, two ways to change the same gene, whose effects "
                "are not the same. Give the way in a column of its own, with controls of each: context_key='way'; or "
                f"leave one out: adata[adata.obs[{key!r}] != ...]."
            )
            raise ValueError(msg)
        seen[parts[name]] = name


def _with_lone_controls(
    adata: AnnData, screen: Screen, found: Perturbations, contexts: np.ndarray, source: Source
) -> Screen:
    """With the means of contexts that have controls and nothing else: effects can be predicted there."""
    controls = dict(screen.controls)
    for context in sorted(set(contexts[found.codes == CONTROL]) - set(controls)):
        rows = np.flatnonzero((contexts == context) & (found.codes == CONTROL))
        mean = values_of(adata, rows, source)[0].mean(axis=0)
        controls[str(context)] = np.asarray(mean, dtype=np.float32).ravel()
    return replace(screen, controls=controls)


def _is_table(adata: AnnData, column: pd.Series, contexts: np.ndarray) -> bool:
    """Few rows of each condition and negative values: a table of fold changes, not cells."""
    rows = pd.Series(column.astype(str).to_numpy()).groupby([column.astype(str).to_numpy(), contexts]).size()
    if rows.max() > _TABLE_ROWS or adata.X is None:
        return False
    values = adata.X.data if sparse.issparse(adata.X) else np.asarray(adata.X)
    return bool(np.nanmin(values) < 0)


def _effects(adata: AnnData, found: Perturbations, source: Source, is_table: bool) -> Effects:  # noqa: FBT001
    if is_table:
        effects = table_effects(adata, found, p_layer=source.p_layer)
        there = np.isin(np.arange(len(found.conditions)), found.codes[found.codes >= 0])
        return effects.take([name for name, ok in zip(found.conditions, there, strict=True) if ok])
    return pseudobulk_effects(adata, found, covariate=source.batch_key, layer=source.layer, size_key=source.size_key)


def joined(pieces: list[tuple[str, Effects]], parts: Mapping[str, tuple[str, ...]], *, tables: bool) -> Screen:
    """Effects of several contexts as one screen; `parts` by the name of the condition."""
    errors = np.concatenate([effects.errors.to_numpy(np.float32) for _, effects in pieces])
    names = [(parts[name], context) for context, effects in pieces for name in effects.deltas.index]
    return Screen(
        Conditions(tuple(x for x, _ in names), tuple(context for _, context in names)),
        np.concatenate([effects.deltas.to_numpy(np.float32) for _, effects in pieces]),
        tuple(map(str, pieces[0][1].deltas.columns)),
        np.concatenate([effects.n_cells.to_numpy(np.float64) for _, effects in pieces]),
        {} if tables else {context: effects.control.to_numpy(np.float32) for context, effects in pieces},
        None if np.isnan(errors).all() else errors,
    )


def gene_sets_table(gene_sets: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Membership of genes in sets; small sets weigh more. float32, genes x sets."""
    genes = sorted({gene for members in gene_sets.values() for gene in members})
    place = pd.Index(genes)
    values = np.zeros((len(genes), len(gene_sets)), dtype=np.float32)
    for column, members in enumerate(gene_sets.values()):
        values[place.get_indexer(list(members)), column] = np.log(1 + len(genes) / max(len(members), 1))
    return pd.DataFrame(values, index=genes, columns=list(gene_sets))


def network_table(checkpoint: Checkpoint) -> pd.DataFrame:
    """Gene vectors of a checkpoint, float32, genes x width."""
    weight = checkpoint.weights["transformer.encoder.genes.embedding.weight"].float().numpy()
    tokens = {token: i for i, token in enumerate(checkpoint.vocab.tokens) if not token.startswith("<")}
    return pd.DataFrame(weight[list(tokens.values())], index=list(tokens))


def coexpression_table(adata: AnnData, read: ReadScreen, source: Source, *, rng: int = 0) -> pd.DataFrame:
    """Components of the genes over control cells, float32, genes x 20."""
    cells = control_values(adata, read, source, most=_CONTROLS, rng=rng)[0]
    mean = np.asarray(cells.mean(axis=0)).ravel()
    n = min(_COMPONENTS, min(cells.shape) - 1)
    centred = sparse.linalg.LinearOperator(
        cells.shape,
        matvec=lambda v: cells @ np.ravel(v) - mean @ np.ravel(v),
        rmatvec=lambda v: cells.T @ np.ravel(v) - mean * np.sum(v),
        dtype=np.float64,
    )
    _, values, loadings = sparse.linalg.svds(centred, k=n, v0=np.ones(min(cells.shape)))
    return pd.DataFrame((loadings.T * values).astype(np.float32), index=list(read.screen.genes))


def control_values(
    adata: AnnData, read: ReadScreen, source: Source, *, most: int | None = None, rng: int = 0
) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Log-normalised values of control cells, CSR `(n_controls, n_genes)`, and their rows in the object."""
    return values_of(adata, np.flatnonzero(read.perturbations.codes == CONTROL), source, most=most, rng=rng)


def values_of(
    adata: AnnData, rows: np.ndarray, source: Source, *, most: int | None = None, rng: int = 0
) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Log-normalised values of some cells, CSR float32, and their rows in the object."""
    counts = choose_counts(adata, layer=source.layer, as_values=True)
    if most is not None and len(rows) > most:
        rows = np.sort(np.random.default_rng([rng, 51]).permutation(rows)[:most])
    sizes = sizes_of(adata, source.size_key)
    step, blocks = 20_000, []
    for start in range(0, adata.n_obs, step):
        stop = min(start + step, adata.n_obs)
        own = rows[(rows >= start) & (rows < stop)] - start
        if len(own):
            blocks.append(sparse.csr_matrix(normalised_rows(counts, start, stop, sizes)[own]).astype(np.float32))
    return sparse.vstack(blocks, format="csr"), rows


def usual_features(
    adata: AnnData, read: ReadScreen, source: Source, checkpoint: Checkpoint, names: Sequence[str], *, rng: int = 0
) -> dict[str, pd.DataFrame]:
    """Tables of features by the names of their sources."""
    tables = {}
    for name in names:
        if name == "network":
            tables[name] = network_table(checkpoint)
        elif name == "knowledge":
            tables[name] = gene_features()
        elif name == "coexpression" and not read.is_table and read.perturbations.n_control >= _LEAST:
            tables[name] = coexpression_table(adata, read, source, rng=rng)
    return tables
