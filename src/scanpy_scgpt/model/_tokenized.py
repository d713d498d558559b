"""Registered cells as tokens in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from scanpy_scgpt.data import LabelledCells
from scanpy_scgpt.data.fields import CategoryField
from scanpy_scgpt.io import Checkpoint
from scanpy_scgpt.tokenizer import Tokens, with_zeros

from ._cells import CellTokens

if TYPE_CHECKING:
    from anndata import AnnData
    from scvi.data import AnnDataManager


def part_of(data: object, field: object) -> AnnData:
    """The AnnData of a field: of a MuData the modality that it is registered in."""
    mod = getattr(field, "mod_key", None)
    return data if mod is None else data.mod[mod]


def tokenized(
    manager: AnnDataManager,
    checkpoint: Checkpoint,
    *,
    min_genes: int,
    panel: np.ndarray | None,
    max_length: int,
    expression: bool = False,
    others: Sequence[str] | None = (),
) -> LabelledCells:
    """Tokens and codes of all cells of a data manager.

    Parameters
    ----------
    manager
        With the fields of `setup_anndata` or `setup_mudata`.
    checkpoint
        Whose vocabulary and bins to use.
    min_genes
        Fewest genes that must be found.
    panel
        Vocabulary ids of the genes that enter with value 0 where they are not expressed, or None for none.
    max_length
        Longest sequence with `<cls>`.
    expression
        Keep the counts too, 8 bytes for each that is not zero.
    others
        Genes outside the vocabulary whose counts are kept as well, in columns after it; None for all that there are.

    Raises
    ------
    ValueError
        When the cells of a MuData stand in another order than those of its modality.
    """
    counts = next(field for field in manager.fields if field.registry_key == "X")
    own = getattr(counts, "adata_field", counts)
    adata = part_of(manager.adata, counts)
    if adata is not manager.adata and not adata.obs_names.equals(manager.adata.obs_names):
        msg = (
            f"The cells of mdata.mod[{counts.mod_key!r}] are not in the order of those of mdata, so results would go "
            f"to other cells. Order them: mdata = mdata[mdata.mod[{counts.mod_key!r}].obs_names].copy()."
        )
        raise ValueError(msg)
    config = checkpoint.tokenizer.updated(max_length=max_length)
    settings = {"layer": own.layer, "gene_symbols": own.gene_symbols, "min_genes": min_genes}
    made = CellTokens(adata, checkpoint, config, **settings)
    tokens = Tokens.concatenate(list(made))
    if panel is not None:
        tokens = with_zeros(tokens, panel, max_genes=max_length - 1)
    codes = {}
    for field in manager.fields:
        category = getattr(field, "adata_field", field)
        if isinstance(category, CategoryField) and not category.is_empty:
            codes[category.registry_key] = part_of(manager.adata, field).obs[category.attr_key].to_numpy()
    vocab, measured = checkpoint.vocab, np.unique(made.match.ids[made.match.ids >= 0])
    special = (vocab.pad_id, vocab.cls_id, checkpoint.tokenizer.cls_value)
    if not expression:
        return LabelledCells(tokens, codes, *special, measured=measured)
    ids, others = _with_others(made, len(vocab), others)
    counts = _expression(made, ids, len(vocab) + len(others))
    measured = np.unique(ids[ids >= 0])
    return LabelledCells(tokens, codes, *special, measured=measured, expression=counts, others=others)


def _with_others(cells: CellTokens, n_ids: int, others: Sequence[str] | None) -> tuple[np.ndarray, tuple[str, ...]]:
    """Ids of the genes, those outside the vocabulary numbered on after it, and the names of these."""
    ids = np.array(cells.match.ids)
    names = cells.source.var.index.astype(str)
    unknown = np.flatnonzero(ids < 0)
    others = tuple(dict.fromkeys(names[unknown])) if others is None else tuple(others)
    place = {name: n_ids + i for i, name in enumerate(others)}
    ids[unknown] = [place.get(name, -1) for name in names[unknown]]
    return ids, others


def _expression(cells: CellTokens, ids: np.ndarray, n_ids: int) -> sparse.csr_matrix:
    """Counts by id, CSR float32; values that are logarithms are brought back to a multiple of counts."""
    logged = cells.source.kind() == "log-normalised values"
    known = np.flatnonzero(ids >= 0)
    ones = np.ones(len(known), dtype=np.float32)
    into = sparse.csr_matrix((ones, (known, ids[known])), shape=(len(ids), n_ids))
    blocks = []
    for start, stop in cells.row_blocks():
        block = cells.source.rows(start, stop).astype(np.float32)
        blocks.append(sparse.csr_matrix((block.expm1() if logged else block) @ into))
    return sparse.vstack(blocks, format="csr")
