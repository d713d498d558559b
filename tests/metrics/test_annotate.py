"""Agreement of predicted and true labels, against scikit-learn and by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    precision_recall_fscore_support,
    roc_auc_score,
)

from scanpy_scgpt.metrics import annotation, calibration_error, macro_f1_interval, per_class, unknown_detection

LABELS = np.array(["B", "T", "NK", "rare"])


@pytest.fixture
def cells():
    """True labels, and predictions of which seven in ten are right; some are of a label that no cell has."""
    rng = np.random.default_rng(0)
    truth = rng.choice(LABELS, size=400, p=[0.5, 0.3, 0.18, 0.02])
    predicted = np.where(rng.random(400) < 0.7, truth, rng.choice([*LABELS, "other"], size=400))
    return truth.astype(object), predicted.astype(object)


@pytest.mark.parametrize("classes", ["truth", "both"])
def test_it_is_what_scikit_learn_computes(cells, classes):
    truth, predicted = cells
    labels = np.unique(truth if classes == "truth" else [*truth, *predicted])
    found = annotation(truth, predicted, classes=classes)
    reference = precision_recall_fscore_support(truth, predicted, labels=labels, average="macro", zero_division=0)
    assert found["accuracy"] == pytest.approx(accuracy_score(truth, predicted))
    macro = found[["macro_precision", "macro_recall", "macro_f1"]].to_numpy()
    np.testing.assert_allclose(macro, reference[:3], atol=1e-12)
    assert found[["n_cells", "n_classes", "n_left_out", "n_unanswered"]].tolist() == [400, len(labels), 0, 0]
    assert "calibration_error" not in found

    table = per_class(truth, predicted, classes=classes)
    each = precision_recall_fscore_support(truth, predicted, labels=labels, average=None, zero_division=0)
    np.testing.assert_allclose(table[["precision", "recall", "f1", "n_cells"]].to_numpy().T, each, atol=1e-12)
    assert table.index.tolist() == labels.tolist()
    assert table["n_predicted"].tolist() == [(predicted == label).sum() for label in labels]


def test_a_label_beyond_the_truth_is_wrong_but_no_class():
    found = annotation(["a", "a", "b", "b"], ["a", "other", "b", "b"])
    assert found["accuracy"] == 0.75
    assert found["macro_f1"] == pytest.approx((2 / 3 + 1) / 2)
    assert found["macro_precision"] == 1
    assert annotation(["a", "a", "b", "b"], ["a", "other", "b", "b"], classes="both")["macro_f1"] == pytest.approx(
        5 / 9
    )


def test_a_label_that_is_never_predicted_counts_as_zero():
    table = per_class(["a", "b"], ["a", "a"])
    assert table.loc["b"].tolist() == [0, 0, 0, 1, 0]


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA])
def test_no_label_and_no_answer(cells, missing):
    truth, predicted = cells
    expected = annotation(truth, predicted)
    wide = annotation([*truth, *[missing] * 5], pd.Categorical([*predicted, *["B"] * 4, missing]))
    assert wide["n_left_out"] == 5
    pd.testing.assert_series_equal(wide.drop("n_left_out"), expected.drop("n_left_out"))

    silent = predicted.copy()
    silent[predicted == "other"] = missing
    found = annotation(truth, silent)
    assert found["n_unanswered"] == (predicted == "other").sum()
    pd.testing.assert_series_equal(found.drop("n_unanswered"), expected.drop("n_unanswered"))


def test_order_and_names_of_labels_do_not_matter(cells):
    truth, predicted = cells
    order = np.random.default_rng(1).permutation(len(truth))
    renamed = {"B": "z", "T": "y", "NK": "x", "rare": "w", "other": "a"}
    expected = annotation(truth, predicted)
    pd.testing.assert_series_equal(annotation(truth[order], predicted[order]), expected)
    series = pd.Series(truth).map(renamed), pd.Series(predicted).map(renamed)
    pd.testing.assert_series_equal(annotation(*series), expected)
    whole = {"B": 3, "T": 1, "NK": 2, "rare": 10, "other": 7}  # numbers and their text are one label
    numbers = pd.Series(truth).map(whole), pd.Series(predicted).map(whole).astype(str)
    pd.testing.assert_series_equal(annotation(*numbers), expected)


def test_calibration_error_is_added(cells):
    truth, predicted = cells
    columns = [*LABELS, "other"]
    probabilities = 0.6 * (predicted[:, None] == np.array(columns)) + 0.08
    table = pd.DataFrame(probabilities, columns=columns)
    found = annotation(truth, predicted, probabilities=table, n_bins=10)
    assert found["calibration_error"] == calibration_error(truth, table, n_bins=10)
    assert found["calibration_error"] == pytest.approx(abs(found["accuracy"] - 0.68))


def test_bad_input():
    with pytest.raises(ValueError, match="truth has 3 entries, predicted 2; both need one per cell"):
        annotation(["a", "b", "c"], ["a", "b"])
    with pytest.raises(ValueError, match=r"truth has no label: all 2 entries are NaN.*truth=adata.obs\['cell_type'\]"):
        annotation([None, np.nan], ["a", "b"])
    with pytest.raises(ValueError, match="truth is empty"):
        annotation([], [])
    with pytest.raises(ValueError, match="classes='all': use one of 'truth', 'both'"):
        annotation(["a"], ["a"], classes="all")
    with pytest.raises(ValueError, match="predicted has 2 dimensions"):
        annotation(["a"], np.array([["a"]]))
    truth = pd.Series(["a", "b"], index=["cell1", "cell2"])
    text = r"entry 0 is 'cell1' in truth, 'cell2' in predicted.*predicted = predicted.loc\[truth.index\]"
    with pytest.raises(ValueError, match=text):
        annotation(truth, truth[::-1])
    assert annotation(truth, truth[::-1].loc[truth.index])["accuracy"] == 1
    assert annotation(truth, ["a", "b"])["accuracy"] == 1


def slow_draws(truth, predicted, *, n_boot, groups=None):
    """Macro F1 of draws, cell by cell."""
    rng, found = np.random.default_rng(5), []
    for _ in range(n_boot):
        if groups is None:
            places = [rng.choice(np.flatnonzero(truth == label), size=(truth == label).sum()) for label in set(truth)]
        else:
            names = np.unique(groups)
            places = [np.flatnonzero(groups == name) for name in rng.choice(names, size=len(names))]
        at = np.concatenate(places)
        found.append(f1_score(truth[at], predicted[at], average="macro", labels=np.unique(truth[at])))
    return np.array(found)


@pytest.mark.parametrize("by_group", [False, True])
def test_the_interval_is_that_of_drawing_cells_or_groups(cells, by_group):
    truth, predicted = cells
    groups = np.array([f"donor {i % 7}" for i in range(len(truth))]) if by_group else None
    found = macro_f1_interval(truth, predicted, groups=groups, n_boot=4000)
    draws = slow_draws(truth, predicted, n_boot=600, groups=groups)
    np.testing.assert_allclose(found[["low", "high"]], np.quantile(draws, [0.025, 0.975]), atol=0.015)
    assert found["macro_f1"] == annotation(truth, predicted)["macro_f1"]
    assert found[["n_cells", "n_units"]].tolist() == [400, 7 if by_group else 400]


def test_the_interval_repeats_and_a_wider_level_is_wider(cells):
    first = macro_f1_interval(*cells, rng=3)
    pd.testing.assert_series_equal(first, macro_f1_interval(*cells, rng=np.random.default_rng(3)))
    wide = macro_f1_interval(*cells, rng=3, confidence=0.99)
    assert wide["low"] < first["low"] < first["macro_f1"] < first["high"] < wide["high"]
    perfect = macro_f1_interval(cells[0], cells[0], groups=np.arange(400) % 5)
    assert perfect[["macro_f1", "low", "high"]].tolist() == [1, 1, 1]


def test_many_labels_are_drawn_in_parts(monkeypatch, cells):
    expected = macro_f1_interval(*cells, n_boot=300)
    monkeypatch.setattr("scanpy_scgpt.metrics._annotate._AT_A_TIME", 1000)
    pd.testing.assert_series_equal(macro_f1_interval(*cells, n_boot=300), expected)


def test_bad_input_of_the_interval(cells):
    truth, predicted = cells
    with pytest.raises(ValueError, match="groups has one value, 'x'; draws need two groups or more"):
        macro_f1_interval(truth, predicted, groups=["x"] * 400)
    with pytest.raises(ValueError, match=r"groups has no value for 1 cells with a label. .*groups.notna\(\)"):
        macro_f1_interval(truth, predicted, groups=["x"] * 399 + [None])
    with pytest.raises(ValueError, match="confidence=95: the level of the interval lies between 0 and 1"):
        macro_f1_interval(truth, predicted, confidence=95)
    with pytest.raises(ValueError, match="n_boot=0: use a whole number of at least 1"):
        macro_f1_interval(truth, predicted, n_boot=0)


def test_unknown_cells():
    rng = np.random.default_rng(2)
    unknown = rng.random(300) < 0.2
    score = rng.normal(size=300) + unknown
    found = unknown_detection(unknown, score)
    assert found["auroc"] == pytest.approx(roc_auc_score(unknown, score))
    assert found["auprc"] == pytest.approx(average_precision_score(unknown, score))
    assert found[["n_unknown", "n_known"]].tolist() == [unknown.sum(), 300 - unknown.sum()]
    assert found["share_unknown"] == pytest.approx(unknown.mean())
    pd.testing.assert_series_equal(unknown_detection(unknown.astype(int), np.exp(score)), found)
    assert unknown_detection(unknown, np.zeros(300))["auroc"] == 0.5


def test_bad_input_of_unknown_cells():
    with pytest.raises(ValueError, match="all 3 cells are known, so there is nothing to tell apart"):
        unknown_detection([False] * 3, np.arange(3))
    with pytest.raises(ValueError, match="all 3 cells are unknown"):
        unknown_detection([True] * 3, np.arange(3))
    with pytest.raises(ValueError, match="is_unknown holds 'B'; it needs True and False"):
        unknown_detection([True, "B"], np.arange(2))
    with pytest.raises(ValueError, match=r"score has 1 NaN or infinite values. Set them: np.nan_to_num\(score\)"):
        unknown_detection([True, False], [0, np.nan])
    with pytest.raises(ValueError, match="is_unknown has 2 entries, score 3"):
        unknown_detection([True, False], [0, 1, 2])
