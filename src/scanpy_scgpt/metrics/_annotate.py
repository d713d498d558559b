"""How well predicted labels agree with the true ones."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from sklearn.metrics import average_precision_score, roc_auc_score

from scanpy_scgpt._validate import check_one_of

from ._calibration import calibration_error
from ._truth import as_column, check_confidence, check_rows, check_truth, check_whole

Classes = Literal["truth", "both"]
_AT_A_TIME = 2**23  # numbers drawn in one go


class _Compared(NamedTuple):
    """Codes of truth and prediction, `(n_known,)`, among `labels`, those of the truth first; -1 is no answer."""

    labels: np.ndarray
    n_classes: int
    truth: np.ndarray
    predicted: np.ndarray
    known: np.ndarray

    def counts(self) -> np.ndarray:
        """Cells by true and predicted label, the last column without an answer: `(n_classes, n_labels + 1)`."""
        width = len(self.labels) + 1
        flat = self.truth * width + self.predicted % width
        return np.bincount(flat, minlength=self.n_classes * width).reshape(self.n_classes, width)


def _compared(truth: ArrayLike, predicted: ArrayLike) -> _Compared:
    truth, predicted = as_column(truth, name="truth"), as_column(predicted, name="predicted")
    check_rows(truth, predicted, names=("truth", "predicted"))
    found = check_truth(truth)
    answers = predicted[found.known]
    answered = answers.notna().to_numpy()
    given = answers.astype(object).to_numpy()[answered].astype(str).astype(object)
    classes = np.unique(found.labels)
    labels = pd.Index([*classes, *np.setdiff1d(given, classes)], dtype=object)
    codes = np.full(len(answers), -1)
    codes[answered] = labels.get_indexer(given)
    return _Compared(labels.to_numpy(), len(classes), labels.get_indexer(found.labels), codes, found.known)


def _scores(right: np.ndarray, n_predicted: np.ndarray, n_true: np.ndarray) -> dict[str, np.ndarray]:
    """Precision, recall and F1; 0 where nothing was predicted, or nothing is there."""
    return {
        "precision": right / np.maximum(n_predicted, 1),
        "recall": right / np.maximum(n_true, 1),
        "f1": 2 * right / np.maximum(n_predicted + n_true, 1),
    }


def _table(compared: _Compared, *, classes: Classes = "truth") -> pd.DataFrame:
    """Scores and counts of each label; what :func:`per_class` returns."""
    check_one_of(classes, ("truth", "both"), name="classes")
    n_labels = len(compared.labels)
    counts = np.zeros((n_labels, n_labels + 1), dtype=np.int64)
    counts[: compared.n_classes] = compared.counts()
    n_true, n_predicted = counts.sum(axis=1), counts[:, :n_labels].sum(axis=0)
    table = pd.DataFrame(
        {**_scores(counts.diagonal(), n_predicted, n_true), "n_cells": n_true, "n_predicted": n_predicted},
        index=pd.Index(compared.labels, name="label"),
    )
    return (table if classes == "both" else table.iloc[: compared.n_classes]).sort_index()


def per_class(truth: ArrayLike, predicted: ArrayLike, *, classes: Classes = "truth") -> pd.DataFrame:
    """Precision, recall and F1 of each label.

    Parameters
    ----------
    truth
        Label of each cell, shape `(n_cells,)`; NaN or None where there is none: these cells are left out.
    predicted
        Predicted label of each cell, shape `(n_cells,)`; NaN or None is no answer, and wrong.
    classes
        Rows of the table: the labels of `"truth"`, or those of `"both"`; see :func:`annotation`.

    Returns
    -------
    Table with one row per label, sorted, shape `(n_classes, 5)`: `precision` (0 for a label never predicted),
    `recall`, `f1` (float64), `n_cells` (cells of the label) and `n_predicted` (cells given it, int64).

    Raises
    ------
    ValueError
        When lengths or names of cells differ, or no cell has a label.
    """
    return _table(_compared(truth, predicted), classes=classes)


def annotation(
    truth: ArrayLike,
    predicted: ArrayLike,
    *,
    probabilities: pd.DataFrame | None = None,
    classes: Classes = "truth",
    n_bins: int = 15,
) -> pd.Series:
    """Accuracy and macro averages of predicted labels: the figures of :cite:t:`Cui2024`.

    A macro average is the mean over labels, each counting alike; macro F1 is the mean of the F1 scores of the labels.
    With `classes="truth"` these are the labels that occur in `truth`. Cells that were given a label beyond these are
    wrong (the recall of their own label falls), but that label has no score of its own: a reference may know labels
    that the cells here do not have. scikit-learn's default, and with it most published figures, counts such a label as
    a class with precision, recall and F1 of 0; `classes="both"` does that.

    Parameters
    ----------
    truth
        Label of each cell, shape `(n_cells,)`; NaN or None where there is none: these cells are left out.
    predicted
        Predicted label of each cell, shape `(n_cells,)`; NaN or None is no answer, and wrong.
    probabilities
        Probability of each label, shape `(n_cells, n_labels)`, the labels as columns; for the calibration error.
    classes
        Labels that the averages run over: those of `"truth"`, or those of `"both"` truth and prediction.
    n_bins
        Bins of the calibration error.

    Returns
    -------
    Series of float64 with `accuracy`, `macro_precision`, `macro_recall`, `macro_f1`, `n_cells` (with a label),
    `n_classes`, `n_left_out` (without a label), `n_unanswered` (with a label, but no prediction), and
    `calibration_error` if there are probabilities (see :func:`calibration_error`).

    Raises
    ------
    ValueError
        When lengths or names of cells differ, no cell has a label, or a row of `probabilities` is no distribution.
    TypeError
        When `probabilities` is no DataFrame.
    """
    compared = _compared(truth, predicted)
    table = _table(compared, classes=classes)
    found = {
        "accuracy": (compared.truth == compared.predicted).mean(),
        "macro_precision": table["precision"].mean(),
        "macro_recall": table["recall"].mean(),
        "macro_f1": table["f1"].mean(),
        "n_cells": len(compared.truth),
        "n_classes": len(table),
        "n_left_out": int((~compared.known).sum()),
        "n_unanswered": int((compared.predicted < 0).sum()),
    }
    if probabilities is not None:
        found["calibration_error"] = calibration_error(truth, probabilities, n_bins=n_bins)
    return pd.Series(found, dtype=np.float64)


def _drawn_cells(compared: _Compared, *, rng: np.random.Generator, n_boot: int) -> np.ndarray:
    """Macro F1 of draws of cells within each true label: multinomial draws from the rows of the counts."""
    counts, n_classes = compared.counts(), compared.n_classes
    n_true = counts.sum(axis=1)
    found = []
    step = max(_AT_A_TIME // counts.size, 1)
    for start in range(0, n_boot, step):
        size = (min(step, n_boot - start), n_classes)
        drawn = rng.multinomial(n_true, counts / n_true[:, None], size=size)
        n_predicted = drawn.sum(axis=1)[:, :n_classes]
        right = np.diagonal(drawn, axis1=1, axis2=2)
        found.append(_scores(right, n_predicted, n_true)["f1"].mean(axis=1))
    return np.concatenate(found)


def _drawn_groups(compared: _Compared, groups: pd.Series, *, rng: np.random.Generator, n_boot: int) -> np.ndarray:
    """Macro F1 of draws of whole groups, over the labels that a draw has."""
    groups = groups[compared.known]
    if groups.isna().any():
        msg = (
            f"groups has no value for {int(groups.isna().sum()):,} cells with a label. "
            "Leave these cells out: keep = groups.notna(); truth[keep], predicted[keep], groups[keep]."
        )
        raise ValueError(msg)
    codes, names = pd.factorize(groups)
    if len(names) < 2:  # noqa: PLR2004
        msg = f"groups has one value, {names[0]!r}; draws need two groups or more. Leave groups out to draw cells."
        raise ValueError(msg)
    weights = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=n_boot)
    n_classes = compared.n_classes

    def by_group(labels: np.ndarray, kept: np.ndarray) -> np.ndarray:
        flat = codes[kept] * n_classes + labels[kept]
        return np.bincount(flat, minlength=len(names) * n_classes).reshape(len(names), n_classes)

    is_right = compared.truth == compared.predicted
    is_class = (compared.predicted >= 0) & (compared.predicted < n_classes)
    n_true = weights @ by_group(compared.truth, np.ones_like(is_right))
    right = weights @ by_group(compared.truth, is_right)
    n_predicted = weights @ by_group(compared.predicted, is_class)
    scores = _scores(right, n_predicted, n_true)["f1"]
    return (scores * (n_true > 0)).sum(axis=1) / (n_true > 0).sum(axis=1)


def macro_f1_interval(
    truth: ArrayLike,
    predicted: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    confidence: float = 0.95,
    n_boot: int = 1000,
    rng: int | np.random.Generator = 0,
) -> pd.Series:
    """Macro F1 with a bootstrap interval, from draws of cells or of whole groups.

    Cells are drawn with replacement within each true label. Cells of one donor or study are alike, though, and an
    interval from cells says nothing about the next donor: with `groups`, whole groups are drawn with replacement, and
    the macro average of a draw runs over the labels that it has. Quantiles of the draws :cite:p:`Efron1979`.

    Parameters
    ----------
    truth, predicted
        As in :func:`annotation`.
    groups
        Group of each cell, such as its donor, shape `(n_cells,)`.
    confidence
        Level of the interval.
    n_boot
        Number of draws.
    rng
        Seed of the draws, or a generator.

    Returns
    -------
    Series of float64 with `macro_f1` (of all cells, over the labels of `truth`), `low`, `high`, `n_cells` (with a
    label) and `n_units` (cells or groups that were drawn from).

    Raises
    ------
    ValueError
        When lengths or names of cells differ, no cell has a label, or there is one group only.
    """
    check_confidence(confidence)
    check_whole(n_boot, name="n_boot")
    compared, rng = _compared(truth, predicted), np.random.default_rng(rng)
    if groups is None:
        n_units, drawn = len(compared.truth), _drawn_cells(compared, rng=rng, n_boot=n_boot)
    else:
        truth, groups = as_column(truth, name="truth"), as_column(groups, name="groups")
        check_rows(truth, groups, names=("truth", "groups"))
        n_units = groups[compared.known].nunique()
        drawn = _drawn_groups(compared, groups, rng=rng, n_boot=n_boot)
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    macro = _table(compared)["f1"].mean()
    return pd.Series(
        {"macro_f1": macro, "low": low, "high": high, "n_cells": len(compared.truth), "n_units": n_units},
        dtype=np.float64,
    )


def unknown_detection(is_unknown: ArrayLike, score: ArrayLike) -> pd.Series:
    """How well a score tells cells of types that the reference lacks from the others.

    Parameters
    ----------
    is_unknown
        Whether the type of each cell is missing in the reference; bool, shape `(n_cells,)`.
    score
        Score of each cell, higher where it looks more unknown, such as 1 less its confidence; shape `(n_cells,)`.

    Returns
    -------
    Series of float64 with `auroc` (0.5 by chance), `auprc` (average precision as scikit-learn computes it),
    `share_unknown` (the value of `auprc` by chance), `n_unknown` and `n_known`.

    Raises
    ------
    ValueError
        When lengths or names of cells differ, `is_unknown` has other values than True and False, all cells are of one
        kind, or the score has NaN.
    """
    truth, values = as_column(is_unknown, name="is_unknown"), as_column(score, name="score")
    check_rows(truth, values, names=("is_unknown", "score"))
    if not truth.isin([True, False]).all():
        found = truth[~truth.isin([True, False])].iloc[0]
        msg = f"is_unknown holds {found!r}; it needs True and False: is_unknown = ~truth.isin(reference_labels)."
        raise ValueError(msg)
    truth = truth.astype(bool).to_numpy()
    if truth.all() or not truth.any():
        kind = "unknown" if len(truth) and truth.all() else "known"
        msg = (
            f"is_unknown: all {len(truth):,} cells are {kind}, so there is nothing to tell apart. "
            "Add cells of types that the reference has, and of types that it lacks."
        )
        raise ValueError(msg)
    values = values.to_numpy(dtype=np.float64)
    if not np.isfinite(values).all():
        msg = f"score has {int((~np.isfinite(values)).sum()):,} NaN or infinite values. Set them: np.nan_to_num(score)."
        raise ValueError(msg)
    return pd.Series(
        {
            "auroc": roc_auc_score(truth, values),
            "auprc": average_precision_score(truth, values),
            "share_unknown": truth.mean(),
            "n_unknown": truth.sum(),
            "n_known": (~truth).sum(),
        },
        dtype=np.float64,
    )
