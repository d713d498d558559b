"""Scores to probabilities that mean what they say: a temperature, a threshold, a distance, from held-out cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, logsumexp, softmax

_LEAST = 20  # held-out cells below which the temperature is 1
_TEMPERATURES = (0.2, 5.0)


class Calibration(NamedTuple):
    """What held-out cells say about the scores.

    Attributes
    ----------
    temperature
        What the logarithms of the mean probabilities are divided by: above 1 for scores that are too sure.
    scores
        Of each held-out cell 1 minus the probability of its label, sorted; float64, shape `(n,)`.
    distances
        Distance of each held-out cell to its nearest training cells, sorted; float64, shape `(n,)`.
    """

    temperature: float
    scores: np.ndarray
    distances: np.ndarray

    def probabilities(self, members: Sequence[np.ndarray]) -> np.ndarray:
        """Probabilities, float32, (n, n_labels), from the scores of each member; rows sum to 1."""
        return softmax(_mean(members) / self.temperature, axis=1).astype(np.float32)

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


def _mean(members: Sequence[np.ndarray]) -> np.ndarray:
    """Logarithm of the mean of the probabilities of the members, (n, n_labels)."""
    each = np.stack([log_softmax(scores.astype(np.float64), axis=1) for scores in members])
    return logsumexp(each, axis=0) - np.log(len(members))


def calibrate(members: Sequence[np.ndarray], labels: np.ndarray, distances: np.ndarray) -> Calibration:
    """Choose the temperature that makes the labels of held-out cells most probable (:cite:t:`Guo2017`).

    Parameters
    ----------
    members
        Scores of held-out cells from each classifier, shape `(n, n_labels)`.
    labels
        Their labels, int, shape `(n,)`, all 0 or above.
    distances
        Their distances to the training cells, shape `(n,)`.
    """
    mean, rows = _mean(members), np.arange(len(labels))
    temperature = 1.0
    if len(labels) >= _LEAST:

        def loss(logarithm: float) -> float:
            return -log_softmax(mean / np.exp(logarithm), axis=1)[rows, labels].sum() + 0.5 * logarithm**2

        bounds = tuple(np.log(_TEMPERATURES))
        temperature = float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x))
    found = Calibration(temperature, np.zeros(0), np.sort(distances))
    probability = found.probabilities(members)[rows, labels]
    return found._replace(scores=np.sort(1 - probability.astype(np.float64)))
