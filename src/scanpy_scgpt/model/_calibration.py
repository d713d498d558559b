"""Scores to probabilities that mean what they say: two factors, a threshold, a distance, from held-out cells."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

_LEAST = 20  # held-out cells below which nothing is calibrated


class Calibration(NamedTuple):
    """What held-out cells say about the scores.

    Attributes
    ----------
    network, anchor
        Factors on the logarithms of the two probabilities; their sum is the inverse of a temperature.
    scores
        Of each held-out cell 1 minus the probability of its label, sorted; float64, shape `(n,)`.
    distances
        Distance of each held-out cell to its nearest training cells, sorted; float64, shape `(n,)`.
    """

    network: float
    anchor: float
    scores: np.ndarray
    distances: np.ndarray

    def probabilities(self, network: np.ndarray, anchor: np.ndarray) -> np.ndarray:
        """Probabilities of cells from both scores, each (n, n_labels), float32; rows sum to 1."""
        mixed = self.network * log_softmax(network, axis=1) + self.anchor * log_softmax(anchor, axis=1)
        return softmax(mixed, axis=1).astype(np.float32)

    def sets(self, probabilities: np.ndarray, *, target_error: float) -> np.ndarray:
        """Labels that cannot be ruled out at that error, bool, (n, n_labels): split conformal prediction.

        A cell like the held-out ones has its label in the set with probability `1 - target_error` at least.
        """
        n = len(self.scores)
        rank = int(np.ceil((n + 1) * (1 - target_error)))
        if rank > n:
            return np.ones(probabilities.shape, dtype=bool)
        return 1 - probabilities.astype(np.float64) <= self.scores[rank - 1]

    def novelty(self, distances: np.ndarray) -> np.ndarray:
        """Share of held-out cells that are as far from the training cells, float64, (n,): low means new."""
        n = len(self.distances)
        below = np.searchsorted(self.distances, distances, side="left")
        return (n - below + 1) / (n + 1)


def calibrate(network: np.ndarray, anchor: np.ndarray, labels: np.ndarray, distances: np.ndarray) -> Calibration:
    """Choose the factors that make the labels of held-out cells most probable.

    Parameters
    ----------
    network, anchor
        Scores of held-out cells, shape `(n, n_labels)`.
    labels
        Their labels, int, shape `(n,)`, all 0 or above.
    distances
        Their distances to the training cells, shape `(n,)`.
    """
    both = np.stack([log_softmax(network, axis=1), log_softmax(anchor, axis=1)])
    rows = np.arange(len(labels))

    def loss(factors: np.ndarray) -> float:
        mixed = np.tensordot(factors, both, axes=1)
        # a weak pull towards equal parts keeps few cells from deciding alone
        return -log_softmax(mixed, axis=1)[rows, labels].sum() + 0.5 * ((factors - 0.5) ** 2).sum()

    factors = np.array([0.5, 0.5])
    if len(labels) >= _LEAST:
        factors = minimize(loss, factors, bounds=[(0.0, 5.0), (0.0, 5.0)], method="L-BFGS-B").x
        if factors.sum() < 0.05:  # noqa: PLR2004 - scores that say nothing
            factors = np.array([0.05, 0.05])
    found = Calibration(float(factors[0]), float(factors[1]), np.zeros(0), np.sort(distances))
    probability = found.probabilities(network, anchor)[rows, labels]
    return found._replace(scores=np.sort(1 - probability.astype(np.float64)))
