"""Agreement of labels in an embedding."""

from __future__ import annotations

import numpy as np
import pytest

from scanpy_scgpt.metrics import knn_agreement


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
