"""Ranks of attention scores inside rows, then of these ranks inside columns; numba.

Ranks are doubled, so that the mean rank of equal values is a whole number: of `m` values the smallest has 0, the
largest `2 * (m - 1)`. Sums over cells and heads are exact, whatever the order.
"""

from __future__ import annotations

import numba
import numpy as np

N_BUCKETS = 4096  # of a row; about three for each value of the usual 1,200
_WIDTH = 3.0  # standard deviations that the buckets span on both sides; the outermost take the rest


@numba.njit(cache=True, nogil=True, fastmath=True)
def _buckets(row, n_buckets, buckets):  # pragma: no cover - compiled
    """A bucket for each value of a row; rounding may be the compiler's, as what follows sorts whatever it is given."""
    m, total, square = row.shape[0], np.float32(0), np.float32(0)
    for j in range(m):
        total += row[j]
        square += row[j] * row[j]
    mean, last = total / np.float32(m), np.float32(n_buckets - 1)
    spread = np.float32(_WIDTH) * np.sqrt(max(square / np.float32(m) - mean * mean, np.float32(0)))
    low, scale = mean - spread, last / (np.float32(2) * spread) if spread > 0 else np.float32(0)
    for j in range(m):
        x = (row[j] - low) * scale
        x = x if x > np.float32(0) else np.float32(0)
        buckets[j] = np.int32(x if x < last else last)


@numba.njit(cache=True, nogil=True)
def _place(row, starts, buckets, values, places):  # pragma: no cover - compiled
    """The values of a row bucket by bucket: nearly in order."""
    m, n_buckets = row.shape[0], starts.shape[0] - 1
    starts[:] = 0
    for j in range(m):
        starts[buckets[j] + 1] += 1
    for b in range(n_buckets):
        starts[b + 1] += starts[b]
    for j in range(m):
        place = starts[buckets[j]]
        starts[buckets[j]] = place + 1
        values[place], places[place] = row[j], j


@numba.njit(cache=True, nogil=True)
def _insert(values, places):  # pragma: no cover - compiled
    """Insertion sort: fast, as a value is hardly ever far from its place."""
    for p in range(1, values.shape[0]):
        value = values[p]
        if values[p - 1] > value:
            place, q = places[p], p
            while q > 0 and values[q - 1] > value:
                values[q], places[q] = values[q - 1], places[q - 1]
                q -= 1
            values[q], places[q] = value, place


@numba.njit(cache=True, nogil=True)
def _write(values, places, column):  # pragma: no cover - compiled
    """Doubled ranks of sorted values to their places."""
    m = values.shape[0]
    for p in range(m):
        column[places[p]] = 2 * p
    p = 1
    while p < m:
        if values[p] != values[p - 1]:
            p += 1
            continue
        first, end = p - 1, p + 1  # rare
        while end < m and values[end] == values[first]:
            end += 1
        for q in range(first, end):
            column[places[q]] = first + end - 1
        p = end


@numba.njit(cache=True, nogil=True)
def rank_rows(scores, first, ranks_t):  # pragma: no cover - compiled
    """Doubled ranks of some rows.

    `scores` (n, m) float32: the rows `first : first + n`; fills those columns of `ranks_t` (m, n_rows) uint16.
    """
    n, m = scores.shape
    starts, buckets = np.empty(N_BUCKETS + 1, np.int32), np.empty(m, np.int32)
    values, places = np.empty(m, np.float32), np.empty(m, np.int32)
    for r in range(n):
        _buckets(scores[r], N_BUCKETS, buckets)
        _place(scores[r], starts, buckets, values, places)
        _insert(values, places)
        _write(values, places, ranks_t[:, first + r])


@numba.njit(cache=True, nogil=True)
def rank_columns(ranks_t, total, largest):  # pragma: no cover - compiled
    """Doubled ranks of the row ranks inside each column, by counting.

    `ranks_t` (m, n) uint16, a row for each column of scores; added to `total` (m, n) int64, or put in its place where
    they are larger.
    """
    m, n = ranks_t.shape
    counts = np.empty(2 * m, np.int32)
    for j in range(m):
        counts[:] = 0
        for i in range(n):
            counts[ranks_t[j, i]] += 1
        less = 0
        for b in range(2 * m):
            count = counts[b]
            counts[b] = 2 * less + count - 1
            less += count
        if largest:
            for i in range(n):
                total[j, i] = max(total[j, i], counts[ranks_t[j, i]])
        else:
            for i in range(n):
                total[j, i] += counts[ranks_t[j, i]]
