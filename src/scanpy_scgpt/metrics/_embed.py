"""How well an embedding keeps labels together."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
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
        Share of all cells whose label was found.
    low, high
        Bounds of the accuracy at 95 % (bootstrap over cells).
    macro_f1
        Mean of the F1 scores of the labels.
    """

    accuracy: float
    low: float
    high: float
    macro_f1: float


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

    Parameters
    ----------
    embedding
        Vectors of the cells, shape `(n_cells, n_dims)`.
    labels
        Label of each cell, shape `(n_cells,)`.
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
    Accuracy with its interval, and macro F1.

    Raises
    ------
    ValueError
        When embedding and labels differ in length, or the embedding has NaN.
    """
    embedding, labels = np.asarray(embedding), np.asarray(labels).astype(str)
    if len(embedding) != len(labels):
        msg = f"embedding has {len(embedding):,} rows, labels {len(labels):,}; both need one per cell."
        raise ValueError(msg)
    if not np.isfinite(embedding).all():
        msg = f"embedding has {int((~np.isfinite(embedding)).any(axis=1).sum()):,} rows with NaN or infinite values."
        raise ValueError(msg)
    points = normalize(embedding) if cosine else embedding
    predicted = np.empty(len(labels), dtype=object)
    folds = StratifiedKFold(n_folds, shuffle=True, random_state=rng)
    for train, test in folds.split(points, labels):
        predicted[test] = KNeighborsClassifier(n_neighbors).fit(points[train], labels[train]).predict(points[test])
    right = predicted == labels
    draws = np.random.default_rng(rng).integers(len(labels), size=(1000, len(labels)))
    low, high = np.quantile(right[draws].mean(axis=1), [0.025, 0.975])
    macro = f1_score(labels, predicted.astype(str), average="macro")
    return Agreement(float(right.mean()), float(low), float(high), float(macro))
