"""Checks of a truth beside what is compared with it. Labels are compared as text."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

_SUM_TOLERANCE = 1e-3  # of the probabilities of a cell, which may be in half precision


class Truth(NamedTuple):
    """Labels of the cells that have one (text, shape `(n_known,)`), and which cells these are (`(n_cells,)`)."""

    labels: np.ndarray
    known: np.ndarray


def as_column(values: ArrayLike, *, name: str) -> pd.Series:
    """One value per cell, the index kept where there is one."""
    if not isinstance(values, pd.Series):
        values = np.asarray(values, dtype=object) if isinstance(values, list | tuple) else values
        if np.ndim(values) != 1:
            msg = f"{name} has {np.ndim(values)} dimensions; it needs one value per cell, shape (n_cells,)."
            raise ValueError(msg)
        values = pd.Series(values)
    return values


def check_rows(first: pd.Series, second: pd.Series | pd.DataFrame, *, names: tuple[str, str]) -> None:
    """Both must be about the same cells in the same order, as far as their index tells."""
    one, other = names
    if len(first) != len(second):
        msg = f"{one} has {len(first):,} entries, {other} {len(second):,}; both need one per cell, in the same order."
        raise ValueError(msg)
    if isinstance(first.index, pd.RangeIndex) or isinstance(second.index, pd.RangeIndex):
        return  # no names
    differing = first.index != second.index
    if differing.any():
        at = int(np.flatnonzero(differing)[0])
        msg = (
            f"{one} and {other} name other cells: entry {at:,} is {first.index[at]!r} in {one}, "
            f"{second.index[at]!r} in {other}. Bring them into one order: {other} = {other}.loc[{one}.index]."
        )
        raise ValueError(msg)


def check_truth(truth: pd.Series) -> Truth:
    """Labels that are there; at least one must be."""
    known = truth.notna().to_numpy()
    if not known.any():
        what = "is empty" if truth.empty else f"has no label: all {len(truth):,} entries are NaN or None"
        msg = f"truth {what}. Pass the column with the labels: truth=adata.obs['cell_type']."
        raise ValueError(msg)
    return Truth(truth.astype(object).to_numpy()[known].astype(str).astype(object), known)


def check_table(table: object, *, name: str) -> pd.DataFrame:
    """`table` must be a DataFrame, cells x labels, each label once."""
    if not isinstance(table, pd.DataFrame):
        msg = (
            f"{name} is a {type(table).__name__}; it needs a DataFrame whose columns are the labels: "
            f"{name} = pd.DataFrame({name}, columns=labels)."
        )
        raise TypeError(msg)
    columns = table.columns.astype(str)
    if columns.empty:
        msg = f"{name} has no column; it needs one for each label."
        raise ValueError(msg)
    if not columns.is_unique:
        msg = (
            f"{name} has the label {columns[columns.duplicated()][0]!r} in two columns. "
            f"Keep one of each: {name} = {name}.loc[:, ~{name}.columns.astype(str).duplicated()]."
        )
        raise ValueError(msg)
    return table.set_axis(columns, axis=1)


def check_probabilities(truth: ArrayLike, probabilities: object) -> tuple[Truth, np.ndarray, pd.Index]:
    """Truth, the probabilities of the cells that have one (float64, `(n_known, n_labels)`), and the labels, sorted."""
    truth = as_column(truth, name="truth")
    table = check_table(probabilities, name="probabilities").sort_index(axis=1)  # of equal ones the first label is top
    check_rows(truth, table, names=("truth", "probabilities"))
    found = check_truth(truth)
    values = table.to_numpy(dtype=np.float64)[found.known]
    wrong = ~((values >= 0) & (values <= 1 + _SUM_TOLERANCE)).all(axis=1)  # NaN too
    if wrong.any():
        bad = values[wrong][0]
        bad = bad[~((bad >= 0) & (bad <= 1 + _SUM_TOLERANCE))][0]
        msg = (
            f"probabilities of {int(wrong.sum()):,} cells are not between 0 and 1 (the first is {bad:.3g}). "
            "From scores of a network: probabilities = scipy.special.softmax(scores, axis=1)."
        )
        raise ValueError(msg)
    off = np.abs(values.sum(axis=1) - 1) > _SUM_TOLERANCE
    if off.any():
        msg = (
            f"probabilities of {int(off.sum()):,} cells do not sum to 1 (the first to {values[off][0].sum():.3g}). "
            "Scale them: probabilities = probabilities.div(probabilities.sum(axis=1), axis=0)."
        )
        raise ValueError(msg)
    return found, values, table.columns


def check_confidence(confidence: float) -> None:
    """Level of an interval."""
    if not 0 < confidence < 1:
        msg = f"confidence={confidence!r}: the level of the interval lies between 0 and 1, such as 0.95."
        raise ValueError(msg)


def check_whole(value: int, *, name: str, least: int = 1) -> None:
    """A whole number of at least `least`."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
        msg = f"{name}={value!r}: use a whole number of at least {least}."
        raise ValueError(msg)
