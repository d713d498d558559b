"""Rows of counts put in their places and looked at, in one pass."""

from __future__ import annotations

import numba
import numpy as np


@numba.njit(cache=True, nogil=True)
def place_rows(
    firsts: np.ndarray,
    lasts: np.ndarray,
    indices: np.ndarray,
    data: np.ndarray,
    places: np.ndarray,
    top: np.generic,
    out_indices: np.ndarray,
    out_data: np.ndarray,
) -> tuple[int, int, bool, bool]:  # pragma: no cover - compiled
    """Copy rows to their places.

    Parameters
    ----------
    firsts, lasts
        First entry of each row in `indices`, and the entry behind its last one; int64, shape `(n_rows,)`.
    indices, data
        Columns and values, shape `(n_entries,)`.
    places
        First entry of each row in the result, int64, shape `(n_rows,)`.
    top
        Largest finite value, of the type of `data`.
    out_indices, out_data
        The result.

    Returns
    -------
    Lowest and highest column; True when the columns of each row ascend; True when no value is negative, infinite or
    NaN.
    """
    zero = top - top
    low, high, all_sorted, all_fine = np.int64(0), np.int64(-1), True, True
    for row in range(places.size):
        start, n, place = firsts[row], lasts[row] - firsts[row], places[row]
        if n == 0:
            continue
        columns, values = indices[start : start + n], data[start : start + n]
        to_columns, to_values = out_indices[place : place + n], out_data[place : place + n]
        is_sorted, is_fine = True, True
        to_columns[0] = columns[0]
        for i in range(1, n):
            is_sorted &= columns[i - 1] < columns[i]
            to_columns[i] = columns[i]
        for i in range(n):
            is_fine &= (zero <= values[i]) & (values[i] <= top)
            to_values[i] = values[i]
        low, high = min(low, np.int64(columns[0])), max(high, np.int64(columns[n - 1]))
        if not is_sorted:
            low, high = min(low, np.int64(columns.min())), max(high, np.int64(columns.max()))
        all_sorted &= is_sorted
        all_fine &= is_fine
    return low, high, all_sorted, all_fine
