"""Whether stated probabilities and stated sets of labels hold."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import special, stats

from scanpy_scgpt._validate import check_one_of

from ._truth import as_column, check_confidence, check_probabilities, check_rows, check_table, check_truth, check_whole

Bins = Literal["equal_width", "equal_mass"]


def _edges(confidence: np.ndarray, *, n_bins: int, kind: Bins) -> np.ndarray:
    """Bounds of the bins, `(n_bins + 1,)`; a bin holds its upper bound, not its lower one."""
    check_whole(n_bins, name="n_bins")
    check_one_of(kind, ("equal_width", "equal_mass"), name="kind")
    shares = np.linspace(0, 1, n_bins + 1)
    return shares if kind == "equal_width" else np.quantile(confidence, shares)


def _bins(truth: ArrayLike, probabilities: pd.DataFrame, *, n_bins: int, kind: Bins) -> pd.DataFrame:
    """Number of cells, of right ones, and sum of the top probability per bin; `lower`, `upper` bounds."""
    found, values, labels = check_probabilities(truth, probabilities)
    top = np.minimum(values.max(axis=1), 1)
    right = labels.to_numpy()[values.argmax(axis=1)] == found.labels
    edges = _edges(top, n_bins=n_bins, kind=kind)
    at = np.searchsorted(edges[1:-1], top, side="left")  # cells of one confidence share a bin
    counted = {
        name: np.bincount(at, weights=weights, minlength=n_bins)
        for name, weights in (("n", None), ("right", right), ("total", top))
    }
    return pd.DataFrame({"lower": edges[:-1], "upper": edges[1:], **counted}, index=pd.RangeIndex(n_bins, name="bin"))


def calibration_error(
    truth: ArrayLike,
    probabilities: pd.DataFrame,
    *,
    n_bins: int = 15,
    kind: Bins = "equal_width",
) -> float:
    """Mean distance between how sure the predictions are and how often they are right.

    The expected calibration error of the most likely label :cite:p:`Guo2017`: cells are put into bins by the
    probability of their most likely label; in each bin that probability is compared with the share of right cells; the
    absolute differences are averaged with the number of cells as weight. 0 is perfect. Its value depends on the number
    of bins and, for few cells, is above 0 by chance alone: compare only figures of one setting.

    Parameters
    ----------
    truth
        Label of each cell, shape `(n_cells,)`; NaN or None where there is none: these cells are left out.
    probabilities
        Probability of each label, shape `(n_cells, n_labels)`, the labels as columns; rows sum to 1. Of equal ones the
        first label in the order of the alphabet is the most likely. A cell whose true label has no column is wrong.
    n_bins
        Number of bins.
    kind
        `"equal_width"`: bins between 0 and 1 of one width, as published. `"equal_mass"`: bins of one number of cells
        (cells of one confidence stay together).

    Returns
    -------
    The error, between 0 and 1.

    Raises
    ------
    ValueError
        When lengths or names of cells differ, no cell has a label, or a row is no distribution.
    TypeError
        When `probabilities` is no DataFrame.
    """
    found = _bins(truth, probabilities, n_bins=n_bins, kind=kind)
    return float((found["right"] - found["total"]).abs().sum() / found["n"].sum())


def wilson_interval(n_right: np.ndarray, n: np.ndarray, *, confidence: float) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's score interval of a share; NaN where there is nothing.

    Parameters
    ----------
    n_right, n
        Counts, one shape.
    confidence
        Level.
    """
    z = special.ndtri((1 + confidence) / 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = n_right / n
        middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
        half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return np.maximum(middle - half, 0), np.minimum(middle + half, 1)


def reliability(
    truth: ArrayLike,
    probabilities: pd.DataFrame,
    *,
    n_bins: int = 15,
    kind: Bins = "equal_width",
    confidence: float = 0.95,
) -> pd.DataFrame:
    """How often predictions of each confidence are right: the numbers of a reliability diagram.

    Parameters
    ----------
    truth, probabilities, n_bins, kind
        As in :func:`calibration_error`, whose value is the mean of `|accuracy - confidence|` with the weights `n`.
    confidence
        Level of the intervals.

    Returns
    -------
    Table with one row per bin, shape `(n_bins, 7)`: bounds `lower` (outside the bin) and `upper` (inside), number of
    cells `n` (int64), mean `confidence` and `accuracy` with Wilson's score interval :cite:p:`Wilson1927` from
    `accuracy_low` to `accuracy_high` (float64; NaN in a bin without cells).

    Raises
    ------
    ValueError
        As :func:`calibration_error`, and for a level outside of 0 to 1.
    TypeError
        When `probabilities` is no DataFrame.
    """
    check_confidence(confidence)
    found = _bins(truth, probabilities, n_bins=n_bins, kind=kind)
    low, high = wilson_interval(found["right"].to_numpy(), found["n"].to_numpy(), confidence=confidence)
    cells = found["n"].where(found["n"] > 0)
    return pd.DataFrame(
        {
            "lower": found["lower"],
            "upper": found["upper"],
            "n": found["n"].astype(np.int64),
            "confidence": found["total"] / cells,
            "accuracy": found["right"] / cells,
            "accuracy_low": low,
            "accuracy_high": high,
        }
    )


def prediction_sets(truth: ArrayLike, sets: pd.DataFrame, *, confidence: float = 0.95) -> pd.Series:
    """How often sets of labels hold the true one, and how large they are.

    Parameters
    ----------
    truth
        Label of each cell, shape `(n_cells,)`; NaN or None where there is none: these cells are left out.
    sets
        Whether each label is in the set of each cell: bool, shape `(n_cells, n_labels)`, the labels as columns. The
        set of a cell whose true label has no column does not hold it.
    confidence
        Level of the interval.

    Returns
    -------
    Series of float64 with `coverage` (share of the cells whose set holds their label) and its exact binomial interval
    :cite:p:`Clopper1934` from `coverage_low` to `coverage_high`, `macro_coverage` (mean over the labels of `truth` of
    the coverage of their cells), `mean_size`, `share_empty`, `share_single`, `n_cells` (with a label) and `n_left_out`.

    Raises
    ------
    ValueError
        When lengths or names of cells differ, no cell has a label, or the table has other values than booleans.
    TypeError
        When `sets` is no DataFrame.
    """
    check_confidence(confidence)
    truth, table = as_column(truth, name="truth"), check_table(sets, name="sets")
    check_rows(truth, table, names=("truth", "sets"))
    found = check_truth(truth)
    if not all(pd.api.types.is_bool_dtype(kind) for kind in table.dtypes) or table.isna().to_numpy().any():
        kinds = ", ".join(sorted({str(kind) for kind in table.dtypes}))
        msg = f"sets holds {kinds}; it needs True and False. From probabilities: sets = probabilities >= threshold."
        raise ValueError(msg)
    inside = table.to_numpy(dtype=bool)[found.known]
    column = table.columns.get_indexer(found.labels)
    covered = inside[np.arange(len(column)), column] & (column >= 0)
    size = inside.sum(axis=1)
    low, high = stats.binomtest(int(covered.sum()), len(covered)).proportion_ci(confidence, method="exact")
    return pd.Series(
        {
            "coverage": covered.mean(),
            "coverage_low": low,
            "coverage_high": high,
            "macro_coverage": pd.Series(covered).groupby(found.labels).mean().mean(),
            "mean_size": size.mean(),
            "share_empty": (size == 0).mean(),
            "share_single": (size == 1).mean(),
            "n_cells": len(covered),
            "n_left_out": int((~found.known).sum()),
        },
        dtype=np.float64,
    )
