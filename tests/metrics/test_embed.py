"""Agreement of labels in an embedding."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest

from scanpy_scgpt.metrics import Agreement, knn_agreement


def test_separate_groups_agree_and_noise_does_not():
    rng = np.random.default_rng(0)
    labels = np.repeat(["a", "b", "c"], 60)
    centres = np.repeat(10 * np.eye(3), 60, axis=0)
    good = knn_agreement(centres + rng.normal(size=(180, 3)), labels)
    assert good.accuracy == 1
    assert good.macro_f1 == 1
    noise = knn_agreement(rng.normal(size=(180, 3)), labels)
    assert noise.low < 1 / 3 < noise.high + 0.1
    assert noise.low < noise.accuracy < noise.high


def test_same_seed_same_figure():
    rng = np.random.default_rng(1)
    x, labels = rng.normal(size=(90, 4)), rng.integers(3, size=90)
    assert knn_agreement(x, labels) == knn_agreement(x, labels)


def test_bad_input():
    with pytest.raises(ValueError, match="embedding has 3 rows, labels 2"):
        knn_agreement(np.zeros((3, 2)), np.zeros(2))
    with pytest.raises(ValueError, match="1 rows with NaN"):
        knn_agreement(np.array([[np.nan], [1.0]]), np.array([0, 1]))


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA])
def test_cells_without_a_label_are_left_out(missing):
    rng = np.random.default_rng(2)
    x, labels = rng.normal(size=(90, 4)), rng.choice(["a", "b"], size=90)
    expected = knn_agreement(x, labels)
    assert Agreement._fields == ("accuracy", "low", "high", "macro_f1", "n_cells", "n_left_out")
    assert expected[4:] == (90, 0)
    some = [*labels, *[missing] * 7]
    wide = np.concatenate([x, np.full((7, 4), np.nan)])
    for given in (some, pd.Categorical(some), np.array(some, dtype=object)):
        got = knn_agreement(wide, given)
        assert got[:5] == expected[:5]
        assert got.n_left_out == 7


def test_rare_labels_are_kept_in_silence():
    rng = np.random.default_rng(3)
    labels = np.array(["a"] * 30 + ["b"] * 30 + ["rare"] * 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = knn_agreement(rng.normal(size=(62, 3)), labels)
    assert got.n_cells == 62
    with pytest.raises(ValueError, match=r"No label has n_folds=5 cells \(the most frequent has 3\).*Pass n_folds=3"):
        knn_agreement(np.ones((6, 2)), ["a", "b"] * 3)
