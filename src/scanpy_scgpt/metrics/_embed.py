"""How well an embedding keeps labels together."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from sklearn.metrics import f1_score
from sklearn.model_selection import StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import normalize


class Agreement(NamedTuple):
    """How often the label of a held-out cell was found.

    Attributes
    ----------
    accuracy
        Share of the cells with a label whose label was found.
    low, high
        Bounds of the accuracy at 95 % (bootstrap over cells).
    macro_f1
        Mean of the F1 scores of the labels.
    n_cells
        Number of cells with a label; the other fields are about these.
    n_left_out
        Number of cells without a label.
    """

    accuracy: float
    low: float
    high: float
    macro_f1: float
    n_cells: int
    n_left_out: int


def _folds(labels: np.ndarray, *, n_folds: int, rng: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Positions of training and test cells of each stratified fold."""
    largest = int(np.unique(labels, return_counts=True)[1].max(initial=0))
    if largest < n_folds:
        msg = (
            f"No label has n_folds={n_folds} cells (the most frequent has {largest:,}), so there are no stratified "
            f"folds. Pass n_folds={max(largest, 2)}, or coarser labels."
        )
        raise ValueError(msg)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        return list(StratifiedKFold(n_folds, shuffle=True, random_state=rng).split(labels, labels))


def knn_agreement(
    embedding: ArrayLike,
    labels: ArrayLike,
    *,
    n_neighbors: int = 10,
    n_folds: int = 5,
    cosine: bool = True,
    rng: int = 0,
) -> Agreement:
    """Predict the label of held-out cells from their nearest neighbours among the other cells.

    Cells are split into stratified folds; each fold is predicted by majority vote of its neighbours in the others.
    Cells without a label (NaN, None) are left out: they are not predicted and do not vote. A label with fewer cells
    than folds is kept; some folds have none of its cells, and the label of a single cell can never be found.

    Parameters
    ----------
    embedding
        Vectors of the cells, shape `(n_cells, n_dims)`.
    labels
        Label of each cell, shape `(n_cells,)`; NaN or None where there is none.
    n_neighbors
        Neighbours that vote.
    n_folds
        Number of folds.
    cosine
        Neighbours by cosine (vectors scaled to length 1), else by Euclidean distance.
    rng
        Seed of folds and bootstrap.

    Returns
    -------
    Accuracy with its interval, macro F1, and numbers of cells with and without a label.

    Raises
    ------
    ValueError
        When embedding and labels differ in length, the embedding of a cell with a label has NaN, or no label has
        `n_folds` cells.
    """
    embedding, labels = np.asarray(embedding), pd.Series(labels).astype(object)
    if len(embedding) != len(labels):
        msg = f"embedding has {len(embedding):,} rows, labels {len(labels):,}; both need one per cell."
        raise ValueError(msg)
    known = labels.notna().to_numpy()
    embedding, labels = embedding[known], labels.to_numpy()[known].astype(str)
    if not np.isfinite(embedding).all():
        msg = f"embedding has {int((~np.isfinite(embedding)).any(axis=1).sum()):,} rows with NaN or infinite values."
        raise ValueError(msg)
    folds = _folds(labels, n_folds=n_folds, rng=rng)
    points = normalize(embedding) if cosine else embedding
    predicted = np.empty(len(labels), dtype=object)
    for train, test in folds:
        predicted[test] = KNeighborsClassifier(n_neighbors).fit(points[train], labels[train]).predict(points[test])
    right = predicted == labels
    draws = np.random.default_rng(rng).integers(len(labels), size=(1000, len(labels)))
    low, high = np.quantile(right[draws].mean(axis=1), [0.025, 0.975])
    macro = f1_score(labels, predicted.astype(str), average="macro")
    n_cells = len(labels)
    return Agreement(float(right.mean()), float(low), float(high), float(macro), n_cells, len(known) - n_cells)
