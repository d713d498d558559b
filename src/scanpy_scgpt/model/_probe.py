"""Logistic regression on frozen cell vectors: where the head of the labels starts."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import log_softmax

from ._regression import fit_regression

_STRENGTHS = (0.01, 0.1, 1.0, 10.0)  # inverse of the penalty on standardised vectors


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
    x, held_x = (vectors[known] - mean) / spread, (held_vectors[held] - mean) / spread
    tried = (strength,) if strength is not None else _STRENGTHS if held.any() else (1.0,)
    best: tuple[float, float, np.ndarray, np.ndarray] | None = None
    for one in tried:
        weight, bias = fit_regression(x, labels[known], n_labels=n_labels, strength=one)
        scores = log_softmax(held_x @ weight.T + bias, axis=1)
        loss = -scores[np.arange(len(scores)), held_labels[held]].mean() if held.any() else np.inf
        if best is None or loss < best[0]:
            best = loss, one, weight, bias
    _, chosen, weight, bias = best
    weight = weight / spread
    return Probe(weight.astype(np.float32), (bias - weight @ mean).astype(np.float32), chosen)
