"""Stated probabilities and sets, against slow versions and by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from scanpy_scgpt.metrics import calibration_error, prediction_sets, reliability

LABELS = ["B", "NK", "T"]


@pytest.fixture
def stated():
    """Labels drawn from the stated probabilities: perfectly calibrated."""
    rng = np.random.default_rng(0)
    values = rng.dirichlet([0.7] * 3, size=3000)
    at = (values.cumsum(axis=1) > rng.random((3000, 1))).argmax(axis=1)
    return np.array(LABELS, dtype=object)[at], pd.DataFrame(values, columns=LABELS)


def slow_error(truth, table, *, n_bins):
    top, right = table.max(axis=1).to_numpy(), table.idxmax(axis=1).to_numpy() == truth
    total = 0
    for i in range(n_bins):
        inside = (top > i / n_bins) & (top <= (i + 1) / n_bins)
        if inside.any():
            total += inside.sum() * abs(right[inside].mean() - top[inside].mean())
    return total / len(top)


@pytest.mark.parametrize("n_bins", [1, 10, 15])
def test_calibration_error_is_the_published_one(stated, n_bins):
    truth, table = stated
    assert calibration_error(truth, table, n_bins=n_bins) == pytest.approx(slow_error(truth, table, n_bins=n_bins))


@pytest.mark.parametrize("kind", ["equal_width", "equal_mass"])
def test_what_is_calibrated_has_a_small_error_and_what_is_not_a_large_one(stated, kind):
    truth, table = stated
    assert calibration_error(truth, table, kind=kind) < 0.03
    sharp = table.pow(4)
    sharp = sharp.div(sharp.sum(axis=1), axis=0)
    assert calibration_error(truth, sharp, kind=kind) > 0.1


@pytest.mark.parametrize("kind", ["equal_width", "equal_mass"])
def test_order_of_cells_and_labels_does_not_matter(stated, kind):
    truth, table = stated
    table = table.round(2).assign(T=lambda x: 1 - x["B"] - x["NK"]).clip(lower=0)  # many cells of one confidence
    expected = reliability(truth, table, kind=kind)
    order = np.random.default_rng(1).permutation(len(truth))
    got = reliability(truth[order], table.iloc[order].reset_index(drop=True), kind=kind)
    pd.testing.assert_frame_equal(got, expected)
    pd.testing.assert_frame_equal(reliability(truth, table[["T", "B", "NK"]], kind=kind), expected)


def test_cells_without_a_label_are_left_out_and_a_label_without_a_column_is_wrong(stated):
    truth, table = stated
    expected = calibration_error(truth, table)
    wide = pd.concat([table, pd.DataFrame(np.nan, index=range(4), columns=LABELS)], ignore_index=True)
    assert calibration_error([*truth, None, np.nan, pd.NA, None], wide) == expected
    sure = pd.DataFrame({"B": [0.9] * 4, "T": [0.1] * 4})
    assert calibration_error(["B", "B", "B", "other"], sure) == pytest.approx(0.15)
    assert calibration_error([1, 1], pd.DataFrame({1: [1.0, 1.0], 2: [0.0, 0.0]})) == 0


def test_table_of_reliability(stated):
    truth, table = stated
    found = reliability(truth, table, n_bins=10)
    assert found.columns.tolist() == ["lower", "upper", "n", "confidence", "accuracy", "accuracy_low", "accuracy_high"]
    assert found["n"].sum() == len(truth)
    assert found["n"].dtype == np.int64
    assert found.loc[:2, "n"].tolist() == [0, 0, 0]  # the top of three is above 1/3
    assert found.loc[:2, "confidence":].isna().all(axis=None)
    full = found[found["n"] > 0]
    assert ((full["lower"] < full["confidence"]) & (full["confidence"] <= full["upper"])).all()
    error = (full["n"] * (full["accuracy"] - full["confidence"]).abs()).sum() / full["n"].sum()
    assert error == pytest.approx(calibration_error(truth, table, n_bins=10))
    for row in full.itertuples():
        interval = stats.binomtest(round(row.accuracy * row.n), row.n).proportion_ci(0.95, method="wilson")
        assert (row.accuracy_low, row.accuracy_high) == pytest.approx((interval.low, interval.high))


def test_bins_of_equal_mass(stated):
    truth, table = stated
    assert reliability(truth, table, n_bins=6, kind="equal_mass")["n"].tolist() == [500] * 6
    same = pd.DataFrame({"B": [0.75] * 4, "T": [0.25] * 4})
    assert reliability(["B", "B", "B", "T"], same, n_bins=3, kind="equal_mass")["n"].tolist() == [4, 0, 0]
    assert calibration_error(["B", "B", "B", "T"], same, kind="equal_mass") == 0


def test_half_precision_is_near_enough(stated):
    truth, table = stated
    got = calibration_error(truth, table.astype(np.float16))
    assert got == pytest.approx(calibration_error(truth, table), abs=2e-3)


def test_bad_probabilities(stated):
    truth, table = stated
    with pytest.raises(
        TypeError, match="probabilities is a ndarray; it needs a DataFrame whose columns are the labels"
    ):
        calibration_error(truth, table.to_numpy())
    with pytest.raises(ValueError, match=r"probabilities of 3,000 cells do not sum to 1 \(the first to 2\).*div"):
        calibration_error(truth, 2 * table.clip(upper=0.5).assign(B=0.5, NK=0.25, T=0.25))
    with pytest.raises(ValueError, match=r"of 1 cells are not between 0 and 1 \(the first is -1\).*softmax"):
        calibration_error(["B"], pd.DataFrame({"B": [-1.0], "T": [2.0]}))
    with pytest.raises(ValueError, match=r"of 1 cells are not between 0 and 1 \(the first is nan\)"):
        calibration_error(["B"], pd.DataFrame({"B": [np.nan], "T": [1.0]}))
    with pytest.raises(ValueError, match="probabilities has the label 'B' in two columns"):
        calibration_error(["B"], pd.DataFrame([[0.5, 0.5]], columns=["B", "B"]))
    with pytest.raises(ValueError, match="probabilities has no column"):
        calibration_error(["B"], pd.DataFrame(index=[0]))
    with pytest.raises(ValueError, match="truth has 2 entries, probabilities 3,000"):
        calibration_error(truth[:2], table)
    with pytest.raises(ValueError, match="n_bins=0: use a whole number of at least 1"):
        calibration_error(truth, table, n_bins=0)
    with pytest.raises(ValueError, match="kind='mass': use one of 'equal_width', 'equal_mass'"):
        reliability(truth, table, kind="mass")
    with pytest.raises(ValueError, match="confidence=1: the level"):
        reliability(truth, table, confidence=1)


def test_sets_by_hand():
    sets = pd.DataFrame(
        {"B": [True, False, True, False, True], "T": [False, False, True, True, True]}, index=list("vwxyz")
    )
    found = prediction_sets(pd.Series(["B", "B", "T", "other", None], index=list("vwxyz")), sets)
    assert found["coverage"] == 0.5  # yes, no, yes, no
    assert found["macro_coverage"] == pytest.approx((0.5 + 1 + 0) / 3)
    assert found[["mean_size", "share_empty", "share_single"]].tolist() == [1, 0.25, 0.5]
    assert found[["n_cells", "n_left_out"]].tolist() == [4, 1]
    low, high = stats.beta.ppf(0.025, 2, 3), stats.beta.ppf(0.975, 3, 2)
    assert found[["coverage_low", "coverage_high"]].tolist() == pytest.approx([low, high])


def test_sets_that_hold_all_or_nothing(stated):
    truth, table = stated
    assert prediction_sets(truth, table >= 0)[["coverage", "coverage_high", "mean_size"]].tolist() == [1, 1, 3]
    assert prediction_sets(truth, table > 1)[["coverage", "coverage_low", "share_empty"]].tolist() == [0, 0, 1]
    order = np.random.default_rng(3).permutation(len(truth))
    sets = table > 0.2
    shuffled = prediction_sets(truth[order], sets.iloc[order].reset_index(drop=True)[["T", "NK", "B"]])
    pd.testing.assert_series_equal(shuffled, prediction_sets(truth, sets))


def test_bad_sets(stated):
    truth, table = stated
    with pytest.raises(ValueError, match="sets holds float64; it needs True and False. .*probabilities >= threshold"):
        prediction_sets(truth, table)
    with pytest.raises(TypeError, match="sets is a ndarray"):
        prediction_sets(truth, (table > 0.5).to_numpy())
    with pytest.raises(ValueError, match="name other cells: entry 0 is 'a' in truth, 'b' in sets"):
        prediction_sets(pd.Series(["B"], index=["a"]), pd.DataFrame({"B": [True]}, index=["b"]))
