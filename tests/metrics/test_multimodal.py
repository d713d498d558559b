"""Mixing of modalities, true matches, imputed values."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scanpy_scgpt import metrics


def test_foscttm_against_every_pair():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(70, 3)), rng.normal(size=(70, 3))
    distance = np.linalg.norm(x[:, None] - y[None], axis=2)
    own = np.diag(distance)
    expected = ((distance < own[:, None]).sum() + (distance < own[None]).sum()) / (2 * 70 * 69)
    assert metrics.foscttm(x, y) == pytest.approx(expected)
    assert metrics.foscttm(x, x) == 0
    assert metrics.foscttm(np.ones((9, 2)), np.ones((9, 2))) == pytest.approx(0.5)
    assert metrics.foscttm(x, y) == pytest.approx(0.5, abs=0.1)
    with pytest.raises(ValueError, match=r"first \(70, 3\) and second \(69, 3\)"):
        metrics.foscttm(x, y[1:])


def test_foscttm_takes_no_gaps():
    x = np.random.default_rng(0).normal(size=(20, 3))
    gap = x.copy()
    gap[:5] = np.nan
    with pytest.raises(ValueError, match="first: 5 cells have NaN"):
        metrics.foscttm(gap, x)
    with pytest.raises(ValueError, match="second: 5 cells have NaN"):
        metrics.foscttm(x, gap)
    with pytest.raises(ValueError, match=r"first \(20,\) and second \(20,\)"):
        metrics.foscttm(x[:, 0], x[:, 0])


def test_imputation_goes_by_names():
    rng = np.random.default_rng(0)
    truth = pd.DataFrame(rng.normal(size=(50, 3)), [f"cell{i}" for i in range(50)], list("abc"))
    predicted = truth + rng.normal(size=truth.shape)
    ends = {"lower": predicted - 1, "upper": predicted + 1}
    expected = metrics.imputation(truth, predicted, **ends)
    other = {name: x.iloc[::-1][list("cba")] for name, x in {"predicted": predicted, **ends}.items()}
    pd.testing.assert_frame_equal(metrics.imputation(truth, **other), expected)
    pd.testing.assert_frame_equal(metrics.imputation(sparse.csr_matrix(truth), predicted, **ends), expected)
    for wrong, text in (
        ({"predicted": predicted.rename(columns={"a": "A"})}, "its features are others .*'A'"),
        ({"predicted": predicted.reset_index(drop=True)}, r"its cells are others .*predicted.to_numpy\(\)"),
        ({"upper": None}, "lower is given and upper is not"),
        ({"lower": (predicted - 1).to_numpy()[:, :2]}, r"lower \(50, 2\) and truth \(50, 3\)"),
        ({"lower": predicted.where(predicted > 0)}, "lower: .* cells have NaN"),
    ):
        with pytest.raises(ValueError, match=text):
            metrics.imputation(truth, **{"predicted": predicted, **ends, **wrong})


def test_imputation():
    rng = np.random.default_rng(0)
    truth = pd.DataFrame(rng.normal(size=(200, 3)), columns=["CD3", "CD4", "none"])
    truth["none"] = 1.0
    predicted = truth + rng.normal(size=truth.shape) * [0.1, 10, 1]
    found = metrics.imputation(truth, predicted, lower=predicted - 1, upper=predicted + 1)
    assert found.index.tolist() == ["CD3", "CD4", "none"]
    assert found.loc["CD3", "pearson"] == pytest.approx(np.corrcoef(truth["CD3"], predicted["CD3"])[0, 1])
    assert found.loc["CD4", "spearman"] == pytest.approx(truth["CD4"].corr(predicted["CD4"], method="spearman"))
    assert np.isnan(found.loc["none", "pearson"])
    assert found.loc["CD3", "coverage"] == 1
    assert found.loc["CD4", "coverage"] == pytest.approx((abs(truth["CD4"] - predicted["CD4"]) <= 1).mean())
    assert found["width"].to_numpy() == pytest.approx(2)
    with pytest.raises(ValueError, match="one row per cell"):
        metrics.imputation(truth, predicted.iloc[1:])
    with pytest.raises(ValueError, match="predicted: 1 cells have NaN"):
        metrics.imputation(truth.iloc[:2], predicted.iloc[:2].where([[True] * 3, [False] * 3]))


def test_modality_mixing():
    x = np.random.default_rng(0).normal(size=(200, 2))
    has = np.where(np.arange(200) % 2, "rna", "rna+prot")
    assert metrics.modality_mixing(x, has) > 0.95
    gap = np.where(np.arange(200)[:, None] < 3, np.nan, x)
    for given, kwargs, text in (
        ((gap, has), {}, "embedding: 3 cells have NaN"),
        ((x, has[1:]), {}, r"embedding \(200, 2\) and 199 batches"),
        ((x, has), {"n_neighbors": 0}, "n_neighbors=0"),
    ):
        with pytest.raises(ValueError, match=text):
            metrics.modality_mixing(*given, **kwargs)
    assert metrics.modality_mixing(x + 100 * (has == "rna")[:, None], has) < 0.05
