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
MODES = {"random": 0, "low": 1, "mid": 2, "high": 3}
_MAX_COUNT = 1024  # rows of whole numbers below this go through a histogram instead of a sort


@numba.njit(cache=True, nogil=True, inline="always")
def _interpolate(low, high, fraction):  # pragma: no cover - compiled
    """Linear interpolation with numpy's rounding: the difference is taken in the dtype of the data."""
    step = np.float64(high - low)
    if fraction >= 0.5:
        return np.float64(high) - step * (1.0 - fraction)
    return np.float64(low) + step * fraction


@numba.njit(cache=True, nogil=True)
def _edges_of_counts(values, cumulative, n_distinct, quantiles, edges):  # pragma: no cover - compiled
    n, k = cumulative[n_distinct - 1], 0
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
def _codes(values, codes):  # pragma: no cover - compiled
    """Values as small integers; returns the largest, or `_MAX_COUNT` when not all of them are whole and small."""
    top, n_bad = np.int64(0), 0
    for i in range(values.shape[0]):
        code = np.int32(values[i])
        codes[i] = np.uint16(code)
        top = max(top, np.int64(code))
        n_bad += (code < 0) | (code != values[i])
    return _MAX_COUNT if n_bad else min(top, _MAX_COUNT)


@numba.njit(cache=True, nogil=True)
def _distinct(codes, n, top, histograms, values, cumulative):  # pragma: no cover - compiled
    """Distinct codes and how many are not above each; four histograms, so that equal neighbours do not wait."""
    one, two, three, four = histograms[0], histograms[1], histograms[2], histograms[3]
    for i in range(0, n - 3, 4):
        one[codes[i]] += 1
        two[codes[i + 1]] += 1
        three[codes[i + 2]] += 1
        four[codes[i + 3]] += 1
    for i in range(n - n % 4, n):
        one[codes[i]] += 1
    n_distinct, total = 0, 0
    for x in range(top + 1):
        count = one[x] + two[x] + three[x] + four[x]
        one[x] = two[x] = three[x] = four[x] = 0
        if count:
            total += count
            values[n_distinct], cumulative[n_distinct] = x, total
            n_distinct += 1
    return n_distinct


@numba.njit(cache=True, nogil=True)
def _digit_tables(values, n_distinct, edges, mode, last, width):  # pragma: no cover - compiled
    """For each distinct code the highest digit that may be drawn, and from how many."""
    left, right = 0, 0
    for k in range(n_distinct):
        x = values[k]
        while left < edges.shape[0] and edges[left] < x:
            left += 1
        right = max(left, right)
        while right < edges.shape[0] and edges[right] <= x:
            right += 1
        last[x], width[x] = _range_of(left, right, mode)


@numba.njit(cache=True, nogil=True, inline="always")
def _range_of(left, right, mode):  # pragma: no cover - compiled
    """Highest digit that may be drawn and from how many: all of `left + 1 .. right`, or the one that `mode` says."""
    width = max(right - left, 1)
    if mode == 0:
        return right, width
    if mode == 1:
        return right - (width - 1), 1
    if mode == 2:
        return right - (width - 1) + (width - 1) // 2, 1
    return right, 1


@numba.njit(cache=True, nogil=True)
def workspace_for(n, n_edges):  # pragma: no cover - compiled
    """Buffers of :func:`digits_of_row` for cells of at most `n` genes."""
    return (
        np.zeros((4, _MAX_COUNT), np.int32),
        np.zeros((2, _MAX_COUNT), np.int64),
        np.zeros((2, _MAX_COUNT), np.uint32),
        np.zeros(n_edges, np.float64),
        np.empty(n, np.uint16),
        np.empty(n, np.uint32),
    )


@numba.njit(cache=True, nogil=True)
def digits_of_row(values, gene_ids, cell_key, quantiles, mode, workspace, out):  # pragma: no cover - compiled
    """Digits of the non-zero values of one cell into `out`."""
    histograms, distinct, tables, edges, codes, draws = workspace
    n = values.shape[0]
    if mode == 0:
        for i in range(n):
            draws[i] = hash32(cell_key, np.uint64(gene_ids[i]))
    top = _codes(values, codes)
    if top < _MAX_COUNT:
        n_distinct = _distinct(codes, n, top, histograms, distinct[0], distinct[1])
        _edges_of_counts(distinct[0], distinct[1], n_distinct, quantiles, edges)
        last, width = tables[0], tables[1]
        _digit_tables(distinct[0], n_distinct, edges, mode, last, width)
        if mode == 0:
            for i in range(n):
                drawn = (np.uint64(draws[i]) * np.uint64(width[codes[i]])) >> np.uint64(32)
                out[i] = last[codes[i]] - np.uint32(drawn)
        else:
            for i in range(n):
                out[i] = last[codes[i]]
    else:
        _edges_of_values(np.sort(values), quantiles, edges)
        for i in range(n):
            x = np.float64(values[i])
            last_, width_ = _range_of(np.searchsorted(edges, x, "left"), np.searchsorted(edges, x, "right"), mode)
            out[i] = last_ - np.int64((np.uint64(draws[i]) * np.uint64(width_)) >> np.uint64(32)) * (mode == 0)


@numba.njit(cache=True, nogil=True)
def _bin_kernel(indptr, data, gene_ids, cell_keys, quantiles, mode, out):  # pragma: no cover - compiled
    workspace = workspace_for(np.diff(indptr).max() if indptr.shape[0] > 1 else 0, quantiles.shape[0])
    for r in range(indptr.shape[0] - 1):
        start, stop = indptr[r], indptr[r + 1]
        if stop > start:
            row = slice(start, stop)
            digits_of_row(data[row], gene_ids[row], cell_keys[r], quantiles, mode, workspace, out[row])


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
    _bin_kernel(indptr, values, gene_ids, cell_keys, quantiles, MODES[ties], out)
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
