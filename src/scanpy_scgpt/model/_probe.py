"""Logistic regression on frozen cell vectors: where the head of the labels starts."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

_STRENGTHS = (0.01, 0.1, 1.0, 10.0)  # inverse of the penalty on standardised vectors
_MAX_ITER = 2000


class Probe(NamedTuple):
    """An affine map from cell vectors to scores of labels.

    Attributes
    ----------
    weight
        Float32, shape `(n_labels, d)`.
    bias
        Float32, shape `(n_labels,)`; very low for a label without a cell.
    strength
        Inverse of the penalty that was chosen.
    """

    weight: np.ndarray
    bias: np.ndarray
    strength: float

    def scores(self, vectors: np.ndarray) -> np.ndarray:
        """Scores of cells, shape `(n, n_labels)`."""
        return vectors @ self.weight.T + self.bias


def fit_probe(
    vectors: np.ndarray,
    labels: np.ndarray,
    held_vectors: np.ndarray,
    held_labels: np.ndarray,
    *,
    n_labels: int,
    strength: float | None = None,
) -> Probe:
    """Multinomial logistic regression on standardised vectors, its penalty chosen on held-out cells; 1 without any.

    Parameters
    ----------
    vectors, held_vectors
        Cell vectors, shape `(n, d)`.
    labels, held_labels
        Labels, int, shape `(n,)`; below 0 for none.
    n_labels
        Number of labels; a label may lack cells.
    strength
        Inverse of the penalty, in place of the choice.
    """
    known, held = labels >= 0, np.isin(held_labels, np.unique(labels[labels >= 0]))
    mean, spread = vectors[known].mean(axis=0), vectors[known].std(axis=0) + 1e-6
    x, y = (vectors[known] - mean) / spread, labels[known]
    present = np.unique(y)
    bias = np.full(n_labels, -30.0)
    weight = np.zeros((n_labels, vectors.shape[1]))
    if len(present) == 1:
        bias[present] = 0.0
        return Probe(weight.astype(np.float32), bias.astype(np.float32), _STRENGTHS[0])
    best = None
    tried = (strength,) if strength is not None else _STRENGTHS if held.any() else (1.0,)
    for one in tried:
        model = LogisticRegression(C=one, max_iter=_MAX_ITER)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(x, y)
        loss = np.inf
        if held.any():
            proba = model.predict_proba((held_vectors[held] - mean) / spread)
            loss = log_loss(held_labels[held], proba, labels=present)
        if best is None or loss < best[0]:
            best = (loss, one, model)
    _, chosen, model = best
    coef, intercept = model.coef_, model.intercept_
    if len(present) == 2:  # noqa: PLR2004 - two labels have one row of coefficients
        coef, intercept = np.vstack([-coef / 2, coef / 2]), np.array([-intercept[0] / 2, intercept[0] / 2])
    weight[present], bias[present] = coef / spread, intercept - (coef / spread) @ mean
    return Probe(weight.astype(np.float32), bias.astype(np.float32), chosen)
