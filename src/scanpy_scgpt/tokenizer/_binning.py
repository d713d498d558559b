"""Per-cell value bins over CSR rows: the compiled kernel and its plain numpy reference.

The rule (Cui et al. 2024): the non-zero values of a cell are cut at `n_bins - 1` quantile edges
(linear interpolation, as :func:`numpy.quantile`). With `right` the number of edges not above a value and
`left` the number of edges below it, the digit is `right` where the two agree. Where edges fall
together on a value (ties: the rule on shallow counts) every digit of `left + 1 .. right` is valid and `ties` chooses.
"""

from __future__ import annotations

from typing import get_args

import numba
import numpy as np

from scanpy_scgpt._types import Ties

from ._hash import hash32

TIES: tuple[str, ...] = get_args(Ties)
_MODES = {"random": 0, "low": 1, "mid": 2, "high": 3}
_MAX_COUNT = 1024  # rows of whole numbers below this go through a histogram instead of a sort


@numba.njit(cache=True, nogil=True, inline="always")
def _digit(left, right, mode, cell_key, gene_id):  # pragma: no cover - compiled
    width = right - left
    if width <= 1 or mode == 3:
        return right
    if mode == 1:
        return left + 1
    if mode == 2:
        return left + (width + 1) // 2
    draw = hash32(cell_key, np.uint64(gene_id))
    return right - np.int64((np.uint64(draw) * np.uint64(width)) >> np.uint64(32))


@numba.njit(cache=True, nogil=True, inline="always")
def _interpolate(low, high, fraction):  # pragma: no cover - compiled
    """Linear interpolation with numpy's rounding: the difference is taken in the dtype of the data."""
    step = np.float64(high - low)
    if fraction >= 0.5:
        return np.float64(high) - step * (1.0 - fraction)
    return np.float64(low) + step * fraction


@numba.njit(cache=True, nogil=True)
def _edges_of_counts(values, cumulative, n_distinct, n, quantiles, edges):  # pragma: no cover - compiled
    k = 0
    for j in range(quantiles.shape[0]):
        position = (n - 1) * quantiles[j]
        below = int(np.floor(position))
        if below >= n - 1:
            edges[j] = values[n_distinct - 1]
            continue
        while cumulative[k] <= below:
            k += 1
        above = values[k] if cumulative[k] > below + 1 else values[k + 1]
        edges[j] = _interpolate(np.float64(values[k]), np.float64(above), position - below)


@numba.njit(cache=True, nogil=True)
def _edges_of_values(ordered, quantiles, edges):  # pragma: no cover - compiled
    n = ordered.shape[0]
    for j in range(quantiles.shape[0]):
        position = (n - 1) * quantiles[j]
        below = int(np.floor(position))
        if below >= n - 1:
            edges[j] = ordered[n - 1]
        else:
            edges[j] = _interpolate(ordered[below], ordered[below + 1], position - below)


@numba.njit(cache=True, nogil=True)
def _count(row, histogram):  # pragma: no cover - compiled
    """Fill the histogram with whole numbers below `_MAX_COUNT`; the largest of them, or -1 for any other row."""
    top = 0
    for i in range(row.shape[0]):
        x = row[i]
        if not 0 <= x < _MAX_COUNT:
            break
        whole = np.int64(x)
        if whole != x:
            break
        histogram[whole] += 1
        top = max(top, whole)
    else:
        return top
    histogram[:] = 0
    return -1


@numba.njit(cache=True, nogil=True)
def _ranges_of_counts(top, n, histogram, values, cumulative, quantiles, edges, left_of, right_of):  # pragma: no cover
    """Tie range of each count that occurs; empties the histogram."""
    n_distinct, total = 0, 0
    for x in range(top + 1):
        if histogram[x]:
            total += histogram[x]
            values[n_distinct], cumulative[n_distinct] = x, total
            n_distinct += 1
            histogram[x] = 0
    _edges_of_counts(values, cumulative, n_distinct, n, quantiles, edges)
    left, right = 0, 0
    for k in range(n_distinct):
        x = values[k]
        while left < edges.shape[0] and edges[left] < x:
            left += 1
        right = max(left, right)
        while right < edges.shape[0] and edges[right] <= x:
            right += 1
        left_of[x], right_of[x] = left, right


@numba.njit(cache=True, nogil=True)
def _bin_kernel(indptr, data, gene_ids, cell_keys, quantiles, mode, out):  # pragma: no cover - compiled
    histogram = np.zeros(_MAX_COUNT, np.int64)
    left_of, right_of = np.zeros(_MAX_COUNT, np.int64), np.zeros(_MAX_COUNT, np.int64)
    values, cumulative = np.zeros(_MAX_COUNT, np.int64), np.zeros(_MAX_COUNT, np.int64)
    edges = np.zeros(quantiles.shape[0], np.float64)
    for r in range(indptr.shape[0] - 1):
        start, stop = indptr[r], indptr[r + 1]
        if start == stop:
            continue
        top = _count(data[start:stop], histogram)
        if top >= 0:
            _ranges_of_counts(top, stop - start, histogram, values, cumulative, quantiles, edges, left_of, right_of)
            for i in range(start, stop):
                x = np.int64(data[i])
                out[i] = _digit(left_of[x], right_of[x], mode, cell_keys[r], gene_ids[i])
        else:
            _edges_of_values(np.sort(data[start:stop]), quantiles, edges)
            for i in range(start, stop):
                left = np.searchsorted(edges, np.float64(data[i]), side="left")
                right = np.searchsorted(edges, np.float64(data[i]), side="right")
                out[i] = _digit(left, right, mode, cell_keys[r], gene_ids[i])


def bin_rows(
    indptr: np.ndarray, values: np.ndarray, gene_ids: np.ndarray, cell_keys: np.ndarray, *, n_bins: int, ties: Ties
) -> np.ndarray:
    """Bin the values of each cell.

    Parameters
    ----------
    indptr
        Row pointer, shape `(n_cells + 1,)`, int64.
    values
        Non-zero values of the cells, float32 or float64, shape `(indptr[-1],)`.
    gene_ids
        Vocabulary id of each value, same shape; together with `cell_keys` it fixes the random ties.
    cell_keys
        One 64-bit key per cell (see :func:`cell_keys`).
    n_bins
        Number of bins with the one for zero, as in the checkpoint (51): digits are `1 .. n_bins - 1`.
    ties
        Which digit of a tie range: drawn, lowest, middle or highest.

    Returns
    -------
    Digits, uint8, same shape as `values`.
    """
    out = np.zeros(values.shape[0], dtype=np.uint8)
    quantiles = np.linspace(0, 1, n_bins - 1)
    _bin_kernel(indptr, values, gene_ids, cell_keys, quantiles, _MODES[ties], out)
    return out


def bin_row_reference(
    values: np.ndarray, gene_ids: np.ndarray, cell_key: int, *, n_bins: int, ties: Ties
) -> np.ndarray:
    """One cell binned in plain numpy: the definition that the kernel is tested against."""
    edges = np.quantile(values, np.linspace(0, 1, n_bins - 1))
    left, right = np.searchsorted(edges, values, side="left"), np.searchsorted(edges, values, side="right")
    width = right - left
    draw = np.array([hash32(np.uint64(cell_key), np.uint64(g)) for g in gene_ids], dtype=np.uint64)
    chosen = {
        "high": right,
        "low": left + 1,
        "mid": left + (width + 1) // 2,
        "random": right - ((draw * np.maximum(width, 0).astype(np.uint64)) >> np.uint64(32)).astype(np.int64),
    }[ties]
    return np.where(width <= 1, right, chosen).astype(np.uint8)
