"""Which genes of a cell enter when it expresses more than the context holds."""

from __future__ import annotations

from typing import get_args

import numba
import numpy as np

from scanpy_scgpt._types import Select

from ._hash import hash32

SELECT: tuple[str, ...] = get_args(Select)


_BUCKETS = 4096


@numba.njit(cache=True, nogil=True)
def _choose_lowest(score, k, shift, counts, chosen):  # pragma: no cover - compiled
    """Mark the `k` lowest scores: whole buckets below the one that holds the last of them, and a part of that one."""
    counts[:] = 0
    for x in score:
        counts[x >> shift] += 1
    below, bucket = 0, 0
    while below + counts[bucket] < k:
        below += counts[bucket]
        bucket += 1
    edge = np.empty(counts[bucket], np.int64)
    n = 0
    for i in range(score.shape[0]):
        at = np.int64(score[i] >> shift)
        if at < bucket:
            chosen[i] = True
        elif at == bucket:
            edge[n] = i
            n += 1
    order = np.argsort(score[edge])
    for i in range(k - below):
        chosen[edge[order[i]]] = True


@numba.njit(cache=True, nogil=True)
def _select_kernel(indptr, gene_ids, digits, keep, cell_keys, max_genes, top, chosen):  # pragma: no cover - compiled
    counts = np.zeros(_BUCKETS, np.int64)
    shift = np.uint64(28 if top else 20)  # scores of 40 bits (digit, then draw) or 32 bits (draw)
    for r in range(indptr.shape[0] - 1):
        start, stop = indptr[r], indptr[r + 1]
        if stop - start <= max_genes:
            chosen[start:stop] = True
            continue
        score = np.empty(stop - start, np.uint64)
        for i in range(stop - start):
            gene = gene_ids[start + i]
            score[i] = hash32(cell_keys[r], np.uint64(gene))
            if top:
                score[i] |= np.uint64(255 - digits[start + i]) << np.uint64(32)
            if gene < keep.shape[0] and keep[gene]:
                score[i] = np.uint64(0)
        _choose_lowest(score, max_genes, shift, counts, chosen[start:stop])


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
