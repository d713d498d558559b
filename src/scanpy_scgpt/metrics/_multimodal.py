"""Measures of several modalities: do they mix, do the two halves of a cell meet, are imputed values right."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import sparse
from scipy.stats import rankdata

from ._mixing import batch_mixing

_BLOCK = 1024  # cells at a time


def modality_mixing(embedding: ArrayLike, modalities: ArrayLike, *, n_neighbors: int = 30) -> float:
    """How well cells of different modalities mix: :func:`batch_mixing` of what a cell has, such as `rna+protein`.

    Parameters
    ----------
    embedding
        Vectors of the cells, shape `(n_cells, n_dims)`.
    modalities
        What each cell has, shape `(n_cells,)`: `mdata.obs["scgpt_modalities"]`.
    n_neighbors
        Nearest cells that are looked at.

    Returns
    -------
    0 when a cell sees its own kind alone, 1 when neighbours are as cells drawn at random.

    Raises
    ------
    ValueError
        As :func:`batch_mixing`.
    """
    return batch_mixing(embedding, modalities, n_neighbors=n_neighbors)


def foscttm(first: ArrayLike, second: ArrayLike) -> float:
    """Fraction of samples closer than the true match (FOSCTTM) :cite:p:`Singh2020`.

    Parameters
    ----------
    first, second
        Vectors of the same cells from one modality and from the other, shape `(n_cells, n_dims)` each.

    Returns
    -------
    Mean over cells and both directions of the share of the other cells that are nearer than the cell itself: 0 is
    perfect, 0.5 is chance. Cells at the very same distance count half.

    Raises
    ------
    ValueError
        When the shapes differ, there are fewer than two cells, or values are NaN.
    """
    x, y = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 2 or len(x) < 2:  # noqa: PLR2004
        msg = f"first {x.shape} and second {y.shape}: the vectors of the same cells, at least two, in one space."
        raise ValueError(msg)
    for name, values in (("first", x), ("second", y)):
        _require_finite(name, values)
    total = 0.0
    for one, other in ((x, y), (y, x)):
        lengths = (other**2).sum(axis=1)
        for start in range(0, len(one), _BLOCK):
            rows = np.arange(start, min(start + _BLOCK, len(one)))
            distance = lengths[None, :] - 2 * one[rows] @ other.T  # without the constant of the row
            own = distance[np.arange(len(rows)), rows][:, None]
            nearer = (distance < own).sum() + ((distance == own).sum() - len(rows)) / 2
            total += nearer / (len(one) - 1)
    return float(total / (2 * len(x)))


def imputation(
    truth: ArrayLike, predicted: ArrayLike, *, lower: ArrayLike | None = None, upper: ArrayLike | None = None
) -> pd.DataFrame:
    """How well values of each feature were predicted.

    Parameters
    ----------
    truth, predicted
        Values on one scale, shape `(n_cells, n_features)` each; tables keep the names of their features. Of two tables
        the second is brought into the order of the first by the names of cells and features.
    lower, upper
        Ends of the intervals, same shape, both or none; tables are ordered as `predicted` is.

    Returns
    -------
    One row for each feature: `pearson`, `spearman` (NaN for a constant one), `rmse`, and with intervals `coverage` and
    `width`.

    Raises
    ------
    ValueError
        When shapes or names differ, values are NaN, or one end of the intervals is missing.
    """
    if (lower is None) != (upper is None):
        given, lacking = ("lower", "upper") if upper is None else ("upper", "lower")
        msg = f"{given} is given and {lacking} is not: coverage needs both ends of the intervals. Give {lacking}= too."
        raise ValueError(msg)
    tables = {"truth": truth, "predicted": predicted, "lower": lower, "upper": upper}
    tables = {name: x for name, x in tables.items() if x is not None}
    named = next((x for x in tables.values() if isinstance(x, pd.DataFrame)), None)
    values = {name: _values(name, x, named) for name, x in tables.items()}
    y, x = values["truth"], values["predicted"]
    if x.shape != y.shape or y.ndim != 2:  # noqa: PLR2004
        msg = f"truth {y.shape} and predicted {x.shape}: both need one row per cell and one column per feature."
        raise ValueError(msg)
    for name, one in values.items():
        if one.shape != y.shape:
            msg = f"{name} {one.shape} and truth {y.shape}: the ends of the intervals need the same cells and features."
            raise ValueError(msg)
        _require_finite(name, one, advice="Leave them out of all.")
    columns = {
        "pearson": _correlation(x, y),
        "spearman": _correlation(rankdata(x, axis=0), rankdata(y, axis=0)),
        "rmse": np.sqrt(((x - y) ** 2).mean(axis=0)),
    }
    if "lower" in values:
        low, high = values["lower"], values["upper"]
        columns["coverage"] = ((y >= low) & (y <= high)).mean(axis=0)
        columns["width"] = (high - low).mean(axis=0)
    names = range(x.shape[1]) if named is None else named.columns
    return pd.DataFrame(columns, index=pd.Index(names, name="feature"))


def _values(name: str, table: ArrayLike, like: pd.DataFrame | None) -> np.ndarray:
    """Float64, rows and columns of a table in the order of those of another."""
    if isinstance(table, pd.DataFrame) and table is not like:
        table = _ordered(name, table, like)
    if sparse.issparse(table):
        table = table.toarray()
    return np.asarray(table, dtype=np.float64)


def _ordered(name: str, table: pd.DataFrame, like: pd.DataFrame) -> pd.DataFrame:
    for what, own, wanted in (("cells", table.index, like.index), ("features", table.columns, like.columns)):
        if own.equals(wanted):
            continue
        if len(own) != len(wanted):
            msg = (
                f"{name} {table.shape} and the first table {like.shape}: both need one row per cell and one column per "
                f"feature. Take the same {what} of both, such as {name}.loc[...]."
            )
            raise ValueError(msg)
        if not own.is_unique or not wanted.is_unique or len(own.difference(wanted, sort=False)):
            lost = own[own.duplicated()] if not own.is_unique else own.difference(wanted, sort=False)
            shown = ", ".join(map(repr, lost[:3])) or "repeated names"
            msg = (
                f"{name}: its {what} are others than those of the first table ({shown}), so values cannot be brought "
                f"together. Name them alike, or pass arrays in one order: {name}.to_numpy()."
            )
            raise ValueError(msg)
        table = table.loc[wanted] if what == "cells" else table[wanted]
    return table


def _require_finite(name: str, values: np.ndarray, *, advice: str = "Leave them out of both.") -> None:
    if not np.isfinite(values).all():
        n = int((~np.isfinite(values)).any(axis=1).sum())
        msg = f"{name}: {n:,} cells have NaN. {advice}"
        raise ValueError(msg)


def _correlation(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    norm = np.sqrt((x**2).sum(axis=0) * (y**2).sum(axis=0))
    return np.divide((x * y).sum(axis=0), norm, out=np.full(x.shape[1], np.nan), where=norm > 0)
