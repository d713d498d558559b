"""Vectors of the genes of an AnnData: of the gene table of a network, or of what it gives in the cells of groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from scanpy_scgpt import models
from scanpy_scgpt._counts import CountSource
from scanpy_scgpt._logging import get_logger
from scanpy_scgpt._modalities import own_columns
from scanpy_scgpt._progress import track
from scanpy_scgpt._validate import check_key
from scanpy_scgpt.io import Checkpoint, CheckpointError
from scanpy_scgpt.model import CellTokens, Embedder, GeneContexts
from scanpy_scgpt.tokenizer import GeneMatch, match_genes, require_enough

if TYPE_CHECKING:
    from anndata import AnnData

logger = get_logger(__name__)
ALL = "all cells"


def network_of(model: Any) -> Checkpoint:
    """The network of a model object, or that of a name, folder or checkpoint."""
    return model.to_checkpoint() if hasattr(model, "to_checkpoint") else models.load(model)


def matched(adata: AnnData, checkpoint: Checkpoint, *, gene_symbols: str | None, min_genes: int) -> GeneMatch:
    """What each gene of `var` is in the vocabulary."""
    columns = CountSource("adata", None, adata.var).gene_columns(gene_symbols)
    match = match_genes(adata.var_names, checkpoint.vocab, columns=columns, among=own_columns(adata.var, "rna"))
    require_enough(match, checkpoint.vocab, min_genes=min_genes)
    return match


def table_vectors(checkpoint: Checkpoint, match: GeneMatch) -> np.ndarray:
    """Rows of the gene table, float32, shape `(n_vars, d_model)`; NaN where a gene is not in the vocabulary."""
    return Embedder(checkpoint, device="cpu", precision="fp32", backend="torch").gene_vectors(match.ids)


def group_codes(
    adata: AnnData, groupby: str, groups: Sequence[str] | None, *, min_cells: int
) -> tuple[list[str], np.ndarray]:
    """Names of the groups, and the number of that of each cell, -1 for none.

    Raises
    ------
    KeyError
        When there is no such column.
    ValueError
        When a group is not there, or none has `min_cells` cells.
    """
    check_key(adata.obs, groupby, where="adata.obs")
    column = adata.obs[groupby]
    labels = column.astype(object).where(column.notna(), None).map(str, na_action="ignore").to_numpy(dtype=object)
    there = sorted({label for label in labels if label is not None})
    if not there:
        msg = f"adata.obs[{groupby!r}] has no value in any cell. Name a column with groups."
        raise ValueError(msg)
    named = [groups] if isinstance(groups, str) else groups
    wanted = there if named is None else list(dict.fromkeys(map(str, named)))
    if lacking := [group for group in wanted if group not in there]:
        msg = f"adata.obs[{groupby!r}] has no group {lacking[0]!r}. Groups: {', '.join(map(repr, there)) or 'none'}."
        raise ValueError(msg)
    sizes = {group: int((labels == group).sum()) for group in wanted}
    kept = [group for group in wanted if sizes[group] >= min_cells]
    if small := [group for group in wanted if group not in kept]:
        named = ", ".join(f"{group!r} ({sizes[group]})" for group in small[:5])
        if not kept:
            msg = f"Every group of adata.obs[{groupby!r}] has fewer than min_cells={min_cells} cells: {named}. "
            msg += f"Lower it (min_cells={max(sizes.values(), default=1)}), or name a coarser column."
            raise ValueError(msg)
        logger.warning("grn: groups of fewer than min_cells=%s cells are left out: %s.", min_cells, named)
    if len(kept) == 1 and groups is None:
        logger.warning("grn: adata.obs[%r] has one group, %r: there is nothing to compare it with.", groupby, kept[0])
    number = {group: i for i, group in enumerate(kept)}
    return kept, np.array([number.get(label, -1) for label in labels], dtype=np.int64)


def context_vectors(
    adata: AnnData,
    checkpoint: Checkpoint,
    at: np.ndarray,
    codes: np.ndarray,
    n_groups: int,
    *,
    where: Mapping[str, Any],
    min_genes: int,
    min_cells: int,
    device: str,
    seed: int,
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Mean vectors of genes over the cells of groups, float32, shape `(n_groups, n_vars, d_model)`.

    Beside them the mean over all tokens of a group, shape `(n_groups, d_model)`, and a record.

    Parameters
    ----------
    adata, checkpoint
        Cells and network.
    at
        Positions of the genes asked for; the others have NaN, as has a gene that fewer than `min_cells` cells of a
        group have.
    codes, n_groups
        Of :func:`group_codes`.
    where
        Where the counts are: `layer`, `use_raw`, `gene_symbols`.
    min_genes, min_cells, device, seed
        As in :func:`grn`.

    Raises
    ------
    CheckpointError
        For a network that normalises what enters batch by batch.
    """
    if checkpoint.info.get("domain_norm"):
        msg = (
            f"{checkpoint.label} normalises what enters batch by batch, and tl.grn knows no batches. Leave groupby "
            "out: its gene table can be used."
        )
        raise CheckpointError(msg)
    cells = CellTokens(adata, checkpoint, checkpoint.tokenizer, **where, min_genes=min_genes, seed=seed)
    ids = cells.match.among(adata.var_names).ids[at]
    known = np.unique(ids[ids >= 0])
    contexts = GeneContexts(checkpoint, known, n_groups, device=device)
    with track("grn", total=adata.n_obs) as advance:
        for start, stop in cells.row_blocks():
            contexts.add(cells.block(start, stop), codes[start:stop])
            advance(stop - start)
    means = contexts.means(min_cells=min_cells)
    out = np.full((n_groups, adata.n_vars, means.shape[2]), np.nan, dtype=np.float32)
    out[:, at[ids >= 0]] = means[:, np.searchsorted(known, ids[ids >= 0])]
    return out, contexts.centers(), cells.record()
