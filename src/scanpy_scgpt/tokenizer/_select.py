"""Which genes of a cell enter when it expresses more than the context holds."""

from __future__ import annotations

from typing import get_args

import numba
import numpy as np

from scanpy_scgpt._types import Select

from ._hash import hash32

SELECT: tuple[str, ...] = get_args(Select)
_LEADING = 11  # bits
N_COUNTS = 2**_LEADING


@numba.njit(cache=True, nogil=True)
def _border(scores, n, n_kept, bits, counts):  # pragma: no cover - compiled
    """The `n_kept`-th smallest of `scores[:n]`, numbers of `bits` bits: its leading bits by counting, then a sort."""
    shift = np.uint64(bits - _LEADING)
    counts[:] = 0
    for i in range(n):
        counts[scores[i] >> shift] += 1
    bucket, left = 0, n_kept
    while counts[bucket] < left:
        left -= counts[bucket]
        bucket += 1
    inside, m = np.empty(counts[bucket] + 1, np.uint64), 0
    for i in range(n):
        inside[m] = scores[i]
        m += (scores[i] >> shift) == bucket
    return np.sort(inside[:m])[left - 1]


@numba.njit(cache=True, nogil=True)
def choose(gene_ids, digits, n, cell_key, keep, max_genes, top, scores, counts):  # pragma: no cover - compiled
    """Move the genes of one cell that stay to the front, in their order; returns how many they are."""
    for i in range(n):
        scores[i] = hash32(cell_key, np.uint64(gene_ids[i]))
    bits = 32
    if top or keep.shape[0]:
        bits = 40
        for i in range(n):
            gene = gene_ids[i]
            level = np.uint64(255 - digits[i]) if top else np.uint64(1)
            scores[i] |= level << np.uint64(32)
            if gene < keep.shape[0] and keep[gene]:
                scores[i] = np.uint64(0)
    border = _border(scores, n, max_genes, bits, counts)
    kept = 0
    for i in range(n):
        gene_ids[kept], digits[kept] = gene_ids[i], digits[i]
        kept += (scores[i] <= border) & (kept < max_genes)
    return kept


@numba.njit(cache=True, nogil=True)
def _select_kernel(
    indptr, gene_ids, digits, keep, cell_keys, max_genes, top, out_indptr
):  # pragma: no cover - compiled
    scores, counts = np.empty(np.diff(indptr).max(), np.uint64), np.empty(N_COUNTS, np.int32)
    end = 0
    for r in range(indptr.shape[0] - 1):
        start, n = indptr[r], indptr[r + 1] - indptr[r]
        if n > max_genes:
            row = slice(start, start + n)
            n = choose(gene_ids[row], digits[row], n, cell_keys[r], keep, max_genes, top, scores, counts)
        for i in range(n):  # never ahead of where is read
            gene_ids[end + i], digits[end + i] = gene_ids[start + i], digits[start + i]
        end += n
        out_indptr[r + 1] = end


def select_genes(
    indptr: np.ndarray,
    gene_ids: np.ndarray,
    digits: np.ndarray,
    cell_keys: np.ndarray,
    *,
    max_genes: int,
    select: Select,
    keep: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ragged tokens with at most `max_genes` genes per cell.

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
    Row pointer, gene ids and digits of what stays, in the order of before; the arrays given when every cell fits.
    """
    if indptr.shape[0] < 2 or np.diff(indptr).max() <= max_genes:
        return indptr, gene_ids, digits
    gene_ids, digits, kept = gene_ids.copy(), digits.copy(), np.zeros_like(indptr)
    protected = np.zeros(0, dtype=np.bool_) if keep is None else keep
    _select_kernel(indptr, gene_ids, digits, protected, cell_keys, max_genes, select == "top", kept)
    return kept, gene_ids[: kept[-1]], digits[: kept[-1]]
