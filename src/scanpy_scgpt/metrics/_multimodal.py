"""Measures of several modalities: do they mix, do the two halves of a cell meet, are imputed values right."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.stats import rankdata

from ._mixing import batch_mixing

_BLOCK = 1024  # cells at a time


def modality_mixing(embedding: ArrayLike, modalities: ArrayLike, *, n_neighbors: int = 30) -> float:
    """How well cells of different modalities mix: :func:`batch_mixing` of what a cell has, such as `rna+prot`.

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
        When the shapes differ, or there are fewer than two cells.
    """
    x, y = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if x.shape != y.shape or len(x) < 2:  # noqa: PLR2004
        msg = f"first {x.shape} and second {y.shape}: the vectors of the same cells, at least two, in one space."
        raise ValueError(msg)
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
    truth: ArrayLike, predicted: ArrayLike, lower: ArrayLike | None = None, upper: ArrayLike | None = None
) -> pd.DataFrame:
    """How well values of each feature were predicted.

    Parameters
    ----------
    truth, predicted
        Values on one scale, shape `(n_cells, n_features)` each; tables keep the names of their features.
    lower, upper
        Ends of the intervals, same shape.

    Returns
    -------
    One row for each feature: `pearson`, `spearman` (NaN for a constant one), `rmse`, and with intervals `coverage` and
    `width`.

    Raises
    ------
    ValueError
        When shapes differ, or values are NaN.
    """
    names = getattr(truth, "columns", getattr(predicted, "columns", None))
    y, x = np.asarray(truth, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    if x.shape != y.shape or y.ndim != 2:  # noqa: PLR2004
        msg = f"truth {y.shape} and predicted {x.shape}: both need one row per cell and one column per feature."
        raise ValueError(msg)
    for name, values in (("truth", y), ("predicted", x)):
        if not np.isfinite(values).all():
            n = int((~np.isfinite(values)).any(axis=1).sum())
            msg = f"{name}: {n:,} cells have NaN. Leave them out of both."
            raise ValueError(msg)
    columns = {
        "pearson": _correlation(x, y),
        "spearman": _correlation(rankdata(x, axis=0), rankdata(y, axis=0)),
        "rmse": np.sqrt(((x - y) ** 2).mean(axis=0)),
    }
    if lower is not None and upper is not None:
        low, high = np.asarray(lower, dtype=np.float64), np.asarray(upper, dtype=np.float64)
        columns["coverage"] = ((y >= low) & (y <= high)).mean(axis=0)
        columns["width"] = (high - low).mean(axis=0)
    return pd.DataFrame(columns, index=pd.Index(range(x.shape[1]) if names is None else names, name="feature"))


def _correlation(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    norm = np.sqrt((x**2).sum(axis=0) * (y**2).sum(axis=0))
    return np.divide((x * y).sum(axis=0), norm, out=np.full(x.shape[1], np.nan), where=norm > 0)
