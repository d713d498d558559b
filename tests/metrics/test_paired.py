"""Paired differences, against scipy."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from scanpy_scgpt.metrics import paired_difference


def test_it_is_the_paired_interval_of_student():
    rng = np.random.default_rng(0)
    a = rng.normal(0.8, 0.1, size=6)
    b = a - rng.normal(0.02, 0.01, size=6)
    b[0], b[1] = a[0], a[1] + 0.1
    found = paired_difference(a, b, confidence=0.9)
    interval = stats.ttest_rel(a, b).confidence_interval(0.9)
    assert found[["difference", "low", "high"]].tolist() == pytest.approx([(a - b).mean(), *interval])
    assert found[["n", "n_above", "n_below", "n_equal"]].tolist() == [6, 4, 1, 1]
    turned = paired_difference(b, a, confidence=0.9)
    assert turned[["difference", "low", "high"]].tolist() == pytest.approx(
        [-found["difference"], *-np.array(interval)[::-1]]
    )


def test_equal_methods_do_not_differ():
    assert paired_difference([0.5, 0.7], [0.5, 0.7])[["difference", "low", "high", "n_equal"]].tolist() == [0, 0, 0, 2]


def test_bad_input():
    with pytest.raises(ValueError, match="a and b have 1 pairs; an interval needs 2 or more"):
        paired_difference([1.0], [2.0])
    with pytest.raises(ValueError, match=r"a or b is NaN or infinite in 1 pairs. .*a\[keep\], b\[keep\]"):
        paired_difference([1.0, np.nan], [2.0, 1.0])
    with pytest.raises(ValueError, match="a has 3 entries, b 2"):
        paired_difference([1, 2, 3], [1, 2])
    a = pd.Series([1.0, 2.0], index=["donor 1", "donor 2"])
    with pytest.raises(ValueError, match=r"entry 0 is 'donor 1' in a, 'donor 2' in b.*b = b.loc\[a.index\]"):
        paired_difference(a, a[::-1])
    with pytest.raises(ValueError, match="confidence=0: the level"):
        paired_difference(a, a, confidence=0)
