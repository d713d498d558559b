"""Mean effects of perturbations, from cells by blocks of rows, or from a table of fold changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse, stats

from ._counts import CountSource, choose_counts
from ._logging import get_logger
from ._perturbations import CONTROL, NO_LABEL, Perturbations
from ._validate import check_anndata, check_key

if TYPE_CHECKING:
    from anndata import AnnData

logger = get_logger(__name__)

TARGET_SUM = 1e4
_BLOCK = 2**24  # values of a block of rows, if it were dense
_FEW, _FEW_CONTROLS = 3, 20  # cells from which a variance can be told; control cells of a level
_PRIORS = np.array([0.0, *np.geomspace(0.02, 5, 12)])  # spreads of true fold changes
_FITTED, _ROUNDS = 100_000, 100  # values that the weights of the spreads are fitted to; steps
_LARGE = 1e3  # standard error of a value that says nothing
_TINY = 1e-12


@dataclass(frozen=True, eq=False)
class Effects:
    """Mean effects of perturbations.

    Attributes
    ----------
    means
        Mean log-normalised expression, float64, conditions x genes; of a table of effects the same as `deltas`.
    deltas
        Difference to the mean of the control cells, float64, conditions x genes.
    errors
        Standard errors of `deltas`, float64, conditions x genes; NaN where a table does not tell.
    n_cells
        Number of cells of each condition, int64.
    control
        Mean of the control cells, float64, by gene; zero for a table of effects.
    n_control
        Number of control cells.
    """

    means: pd.DataFrame
    deltas: pd.DataFrame
    errors: pd.DataFrame
    n_cells: pd.Series
    control: pd.Series
    n_control: int

    def take(self, conditions: Sequence[str]) -> Effects:
        """Some of the conditions, in the order asked for."""
        rows = list(conditions)
        return replace(
            self,
            means=self.means.loc[rows],
            deltas=self.deltas.loc[rows],
            errors=self.errors.loc[rows],
            n_cells=self.n_cells.loc[rows],
        )

    def de_genes(
        self, n: int = 20, *, targets: Mapping[str, Sequence[str]] | None = None
    ) -> dict[str, tuple[str, ...]]:
        """Genes with the largest absolute t (of a table without errors: the largest change), by condition.

        Parameters
        ----------
        n
            Number of genes.
        targets
            Genes of each condition that are left out, such as its targets.

        Returns
        -------
        Genes, the most changed first, by condition.
        """
        values = (self.deltas / self.errors.clip(lower=_TINY)).where(self.errors.notna(), self.deltas).abs()
        size = values.fillna(0).to_numpy(copy=True)
        genes = self.deltas.columns
        for row, name in zip(size, self.deltas.index, strict=True):
            places = genes.get_indexer(pd.Index((targets or {}).get(name, ()), dtype=object))
            row[places[places >= 0]] = -1
        order, genes = np.argsort(-size, axis=1, kind="stable")[:, :n], genes.to_numpy()
        return {name: tuple(genes[row]) for name, row in zip(self.deltas.index, order, strict=True)}


def pseudobulk_effects(
    adata: AnnData,
    perturbations: Perturbations,
    *,
    covariate: str | Sequence[str] | None = None,
    layer: str | None = None,
    size_key: str | None = None,
) -> Effects:
    """Mean effect of each perturbation on each gene, with its standard error.

    Counts are scaled to 10,000 per cell and logged; log-normalised values are taken as they are. The matrix is read by
    blocks of rows, also from disk.

    Parameters
    ----------
    adata
        Cells, shape `(n_obs, n_vars)`; not changed.
    perturbations
        Their perturbations, from :func:`scanpy_scgpt.pp.parse_perturbations`.
    covariate
        Column of `.obs`, such as the batch, or several, such as batch and cell type: cells are compared with the
        control cells of their own level (combination of levels), and the differences are averaged, each level with the
        weight of its perturbed cells.
    layer
        Layer with the counts, as in :func:`scanpy_scgpt.pp.tokenize`.
    size_key
        Column of `.obs` with the counts of the whole transcriptome, for cells of which only some genes are kept; their
        sum over the genes by default.

    Returns
    -------
    Means, differences, standard errors and numbers of cells.

    Raises
    ------
    KeyError
        When there is no such column.
    ValueError
        When the cells are not those of `perturbations`, gene names are not unique, values are scaled, or no control
        cell can be compared.
    """
    check_anndata(adata, function="pseudobulk_effects")
    if len(perturbations.codes) != adata.n_obs:
        msg = (
            f"perturbations is about {len(perturbations.codes):,} cells, adata has {adata.n_obs:,}. "
            "Read the column of these cells: parse_perturbations(adata.obs['perturbation'])."
        )
        raise ValueError(msg)
    columns = [covariate] if isinstance(covariate, str) else list(covariate or ())
    for key in columns:
        check_key(adata.obs, key, where="adata.obs")
    source = choose_counts(adata, layer=layer, as_values=True)
    genes = _unique(source.var.index)
    levels, n_levels = np.zeros(adata.n_obs, dtype=np.int64), 1
    if columns:
        levels, names = pd.factorize(pd.MultiIndex.from_frame(adata.obs[columns].astype(object).fillna("unknown")))
        n_levels = len(names)
    sizes = sizes_of(adata, size_key)
    n_groups = (len(perturbations.conditions) + 1) * n_levels
    groups = np.where(perturbations.codes == NO_LABEL, n_groups, (perturbations.codes + 1) * n_levels + levels)
    sums, squares = _sums(source, groups, n_groups, sizes)
    shape = (len(perturbations.conditions) + 1, n_levels, len(genes))
    counts = np.bincount(groups, minlength=n_groups + 1)[:n_groups].reshape(shape[:2])
    return _compared(sums.reshape(shape), squares.reshape(shape), counts, perturbations.conditions, genes)


def _unique(genes: pd.Index) -> pd.Index:
    if not genes.is_unique:
        twice = str(genes[genes.duplicated()][0])
        msg = f"The gene {twice!r} is there twice. Make the names unique: adata.var_names_make_unique()."
        raise ValueError(msg)
    return pd.Index(genes.astype(str), name="gene")


def sizes_of(adata: AnnData, size_key: str | None) -> np.ndarray | None:
    """Counts of the whole transcriptome of each cell, float64; None without a column."""
    if size_key is None:
        return None
    check_key(adata.obs, size_key, where="adata.obs")
    sizes = pd.to_numeric(adata.obs[size_key], errors="coerce").to_numpy(dtype=np.float64)
    bad = ~(np.isfinite(sizes) & (sizes > 0))
    if bad.any():
        found = adata.obs[size_key].iloc[int(np.argmax(bad))]
        msg = (
            f"size_key={size_key!r}: {int(bad.sum()):,} cells have no number above 0, such as {found!r}. It is the "
            f"count of all genes of each cell; leave these cells out, or size_key."
        )
        raise ValueError(msg)
    return sizes


def normalised_rows(source: CountSource, start: int, stop: int, sizes: np.ndarray | None) -> sparse.csr_matrix:
    """Log-normalised values of some rows; values that are logged already as they are."""
    block = source.rows(start, stop).astype(np.float64)
    if source.kind() == "log-normalised values":
        if sizes is not None:
            msg = (
                f"{source.where} holds log-normalised values, which size_key cannot scale any more. "
                "Give the counts, layer='counts', or leave size_key out."
            )
            raise ValueError(msg)
        return block
    total = np.asarray(block.sum(axis=1)).ravel() if sizes is None else sizes[start:stop]
    scale = np.divide(TARGET_SUM, total, out=np.zeros_like(total), where=total > 0)
    block.data *= np.repeat(scale, np.diff(block.indptr))
    np.log1p(block.data, out=block.data)
    return block


def _sums(
    source: CountSource, groups: np.ndarray, n_groups: int, sizes: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Sums of values and of squares by group of cells, float64, shape `(n_groups, n_genes)`."""
    n_genes = source.matrix.shape[1]
    sums, squares = np.zeros((n_groups, n_genes)), np.zeros((n_groups, n_genes))
    step = max(_BLOCK // max(n_genes, 1), 1)
    for start in range(0, source.n_obs, step):
        stop = min(start + step, source.n_obs)
        block = normalised_rows(source, start, stop, sizes)
        own = groups[start:stop]
        rows = np.flatnonzero(own < n_groups)
        places = (np.ones(len(rows)), (own[rows], rows))
        members = sparse.csr_matrix(places, shape=(n_groups, stop - start))
        sums += (members @ block).toarray()
        block.data **= 2
        squares += (members @ block).toarray()
    return sums, squares


def _compared(
    sums: np.ndarray, squares: np.ndarray, counts: np.ndarray, conditions: tuple[str, ...], genes: pd.Index
) -> Effects:
    """Differences inside each level, averaged; row 0 of the sums is the control."""
    n = counts[:, :, None].astype(np.float64)
    means = sums / np.maximum(n, 1)
    spread = np.maximum(squares - n * means**2, 0)  # sum of squared deviations
    pooled = spread.sum(axis=(0, 1)) / max((counts - 1).clip(min=0).sum(), 1)
    variances = np.where(n >= _FEW, spread / np.maximum(n - 1, 1), pooled)
    usable = counts[0] > 0
    kept = counts[1:] * usable
    lost = [name for name, own, all_ in zip(conditions, kept, counts[1:], strict=True) if all_.any() and not own.any()]
    if not kept.any():
        msg = "No condition has control cells to be compared with. Name the control, or leave covariate= out."
        raise ValueError(msg)
    if lost:
        logger.warning("warning: no control cells in the levels of %s; left out.", ", ".join(lost))
    partly = int(counts[1:, ~usable].sum())
    if partly:
        logger.warning(
            "warning: %s perturbed cells lie in %d levels without a control cell, and are left out.",
            f"{partly:,}",
            int((counts[1:].any(axis=0) & ~usable).sum()),
        )
    if len(usable) > 1 and (few := int((usable & (counts[0] < _FEW_CONTROLS)).sum())):
        logger.warning("warning: %d levels have fewer than %d control cells to compare with.", few, _FEW_CONTROLS)
    there = kept.any(axis=1)
    weight = kept[there] / kept[there].sum(axis=1, keepdims=True)
    deltas = np.einsum("cl,clg->cg", weight, means[1:][there] - means[:1])
    noise = variances[1:][there] / np.maximum(n[1:][there], 1) + variances[:1] / np.maximum(n[:1], 1)
    errors = np.sqrt(np.einsum("cl,clg->cg", weight**2, noise))
    names = pd.Index([name for name, ok in zip(conditions, there, strict=True) if ok], name="condition")
    table = {"index": names, "columns": genes}
    return Effects(
        pd.DataFrame(sums[1:][there].sum(axis=1) / np.maximum(n[1:][there].sum(axis=1), 1), **table),
        pd.DataFrame(deltas, **table),
        pd.DataFrame(errors, **table),
        pd.Series(kept[there].sum(axis=1), index=names, name="n_cells", dtype=np.int64),
        pd.Series(sums[0].sum(axis=0) / counts[0].sum(), index=genes, name="control"),
        int(counts[0].sum()),
    )


def table_effects(
    adata: AnnData, perturbations: Perturbations, *, p_layer: str | None = None, clip: float | None = None
) -> Effects:
    """Effects from a table of fold changes, one row per condition.

    Parameters
    ----------
    adata
        Fold changes (logarithms), rows x genes; not changed. Several rows of a condition are averaged.
    perturbations
        What the rows are about, from :func:`scanpy_scgpt.pp.parse_perturbations` with `needs_control=False`.
    p_layer
        Layer with -log10 of two-sided p-values: they tell the standard error of each value, and each is shrunk to the
        mean of its posterior :cite:p:`Stephens2017`; without it values stay as they are.
    clip
        Values of at least this size stand for "no count in one group" and become zero.

    Returns
    -------
    Differences and their standard errors; `control` is zero.

    Raises
    ------
    KeyError
        When there is no such layer.
    ValueError
        When the rows are not those of `perturbations`, or gene names are not unique.
    """
    check_anndata(adata, function="table_effects")
    if len(perturbations.codes) != adata.n_obs:
        msg = f"perturbations is about {len(perturbations.codes):,} rows, adata has {adata.n_obs:,}."
        raise ValueError(msg)
    genes = _unique(adata.var_names)
    values = _dense(adata.X)
    errors = np.full_like(values, np.nan)
    if p_layer is not None:
        if p_layer not in adata.layers:
            msg = f"There is no layer {p_layer!r}. Layers: {', '.join(map(repr, adata.layers)) or 'none'}."
            raise KeyError(msg)
        z = stats.norm.isf(np.clip(10.0 ** -_dense(adata.layers[p_layer]), 1e-300, 1) / 2)
        errors = np.abs(values) / np.maximum(z, 1e-3)
    unknown = np.zeros(values.shape, dtype=bool) if clip is None else np.abs(values) >= clip
    values = np.where(unknown, 0.0, values)
    if p_layer is not None:
        values = _shrunk(values, errors, ~unknown & (values != 0))
    names = pd.Index(perturbations.conditions, name="condition")
    rows = np.flatnonzero(perturbations.codes >= 0)
    n = np.bincount(perturbations.codes[rows], minlength=len(names))
    mean = sparse.csr_matrix(
        (1 / n[perturbations.codes[rows]], (perturbations.codes[rows], rows)), (len(names), len(values))
    )
    deltas = pd.DataFrame(mean @ values, index=names, columns=genes)
    spread = pd.DataFrame(np.sqrt(mean.power(2) @ errors**2), index=names, columns=genes)
    sizes = pd.Series(n, index=names, name="n_cells", dtype=np.int64)
    n_control = int((perturbations.codes == CONTROL).sum())
    return Effects(deltas, deltas, spread, sizes, pd.Series(0.0, index=genes, name="control"), n_control)


def _dense(matrix: object) -> np.ndarray:
    """A table of effects is small: one row per condition."""
    return np.asarray(matrix.toarray() if hasattr(matrix, "toarray") else matrix, dtype=np.float64)


def _shrunk(values: np.ndarray, errors: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Posterior means under a mixture of normals around zero, whose weights are fitted to the table."""
    x, noise = values[known], np.minimum(errors[known], _LARGE) ** 2
    order = np.lexsort((noise, x))  # so that the order of the rows does not matter
    some = order[:: max(len(x) // _FITTED, 1)]
    weights = np.full(len(_PRIORS), 1 / len(_PRIORS))
    density = _density(x[some], noise[some])
    for _ in range(_ROUNDS):
        share = density * weights
        share /= np.maximum(share.sum(axis=1, keepdims=True), _TINY)
        weights = share.mean(axis=0)
    means = np.empty_like(x)
    for start in range(0, len(x), _FITTED):
        part = slice(start, start + _FITTED)
        share = _density(x[part], noise[part]) * weights
        share /= np.maximum(share.sum(axis=1, keepdims=True), _TINY)
        means[part] = x[part] * (share * _PRIORS**2 / (_PRIORS**2 + noise[part, None])).sum(axis=1)
    out = np.zeros_like(values)
    out[known] = means
    return out


def _density(x: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Density of each value for each spread of the prior, up to a factor for each value; shape `(n, n_priors)`."""
    variance = _PRIORS**2 + noise[:, None]
    logged = -0.5 * (np.log(variance) + x[:, None] ** 2 / variance)
    return np.exp(logged - logged.max(axis=1, keepdims=True))
