"""Two methods on the same seeds, donors or studies."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

from ._truth import as_column, check_confidence, check_rows

_LEAST = 2  # pairs with which a spread can be told


def paired_difference(a: ArrayLike, b: ArrayLike, *, confidence: float = 0.95) -> pd.Series:
    """Mean of `a - b` over pairs, with the interval of Student's t and the number of pairs that each wins.

    A pair is one unit that is independent of the others: a seed, a donor, a study. Cells are no such units.

    Parameters
    ----------
    a, b
        One value per unit, such as the macro F1 of two methods, shape `(n_pairs,)`, in the same order.
    confidence
        Level of the interval.

    Returns
    -------
    Series of float64 with `difference` (mean of `a - b`), `low`, `high`, `n` pairs, and the numbers of pairs where `a`
    is above (`n_above`), below (`n_below`) and equal (`n_equal`).

    Raises
    ------
    ValueError
        When lengths or names of the units differ, there are fewer than two pairs, or a value is NaN.
    """
    check_confidence(confidence)
    first, second = as_column(a, name="a"), as_column(b, name="b")
    check_rows(first, second, names=("a", "b"))
    difference = first.to_numpy(dtype=np.float64) - second.to_numpy(dtype=np.float64)
    if not np.isfinite(difference).all():
        msg = (
            f"a or b is NaN or infinite in {int((~np.isfinite(difference)).sum()):,} pairs. "
            "Find out why, or leave the pairs out: keep = np.isfinite(a - b); a[keep], b[keep]."
        )
        raise ValueError(msg)
    n = len(difference)
    if n < _LEAST:
        msg = f"a and b have {n} pairs; an interval needs 2 or more. Repeat both methods with more seeds or donors."
        raise ValueError(msg)
    half = stats.t.ppf((1 + confidence) / 2, n - 1) * difference.std(ddof=1) / np.sqrt(n)
    mean = difference.mean()
    return pd.Series(
        {
            "difference": mean,
            "low": mean - half,
            "high": mean + half,
            "n": n,
            "n_above": (difference > 0).sum(),
            "n_below": (difference < 0).sum(),
            "n_equal": (difference == 0).sum(),
        },
        dtype=np.float64,
    )
