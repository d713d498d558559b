"""Which genes of a cell enter when it expresses more than the context holds."""

from __future__ import annotations

from typing import get_args

import numba
import numpy as np

from scanpy_scgpt._types import Select

from ._hash import hash32

SELECT: tuple[str, ...] = get_args(Select)


@numba.njit(cache=True, nogil=True)
def _select_kernel(indptr, gene_ids, digits, keep, cell_keys, max_genes, top, chosen):  # pragma: no cover - compiled
    for r in range(indptr.shape[0] - 1):
        start, stop = indptr[r], indptr[r + 1]
        n = stop - start
        if n <= max_genes:
            chosen[start:stop] = True
            continue
        rank = np.empty(n, np.uint64)
        for i in range(n):
            gene = gene_ids[start + i]
            score = hash32(cell_keys[r], np.uint64(gene))
            if top:
                score = score | (np.uint64(255 - digits[start + i]) << np.uint64(32))
            if gene < keep.shape[0] and keep[gene]:
                score = np.uint64(0)
            rank[i] = score
        order = np.argsort(rank)
        for i in range(max_genes):
            chosen[start + order[i]] = True


def select_genes(
    indptr: np.ndarray,
    gene_ids: np.ndarray,
    digits: np.ndarray,
    cell_keys: np.ndarray,
    *,
    max_genes: int,
    select: Select,
    keep: np.ndarray | None = None,
) -> np.ndarray | None:
    """Mask of the tokens that stay when no cell may hold more than `max_genes`.

    Parameters
    ----------
    indptr, gene_ids, digits
        Ragged tokens of the cells.
    cell_keys
        One 64-bit key per cell, drawn for the purpose of selection.
    max_genes
        Longest cell that is allowed, without `<cls>`.
    select
        `"random"`: a uniform subset that depends on the cell alone; `"top"`: the highest digits, ties drawn.
    keep
        Bool per vocabulary id: genes that always stay (they come first; they count towards `max_genes`).

    Returns
    -------
    Bool array of shape `(n_tokens,)`, or `None` when every cell fits.
    """
    if indptr.shape[0] < 2 or np.diff(indptr).max() <= max_genes:
        return None
    chosen = np.zeros(gene_ids.shape[0], dtype=np.bool_)
    protected = np.zeros(0, dtype=np.bool_) if keep is None else keep
    _select_kernel(indptr, gene_ids, digits, protected, cell_keys, max_genes, select == "top", chosen)
    return chosen
