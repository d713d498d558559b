"""Scores to probabilities that mean what they say: weights, a temperature, a threshold, from cells left out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax, logsumexp, softmax

LEAST = 20  # cells below which weights are equal and the temperature is 1
_TEMPERATURES = (0.2, 5.0)
_PULL = 2.0  # towards equal weights: what a few cells say about them is mostly chance


class Calibration(NamedTuple):
    """What cells that were left out say about the scores.

    Attributes
    ----------
    weights
        Share of each classifier in the mean of the probabilities, float64, shape `(n_members,)`.
    temperature
        What the logarithms of that mean are divided by: above 1 for scores that are too sure.
    scores
        Of each cell that was left out 1 minus the probability of its label, sorted; float64, shape `(n,)`.
    distances
        Distance of each of these cells to its nearest training cells, sorted; float64, shape `(n,)`.
    """

    weights: np.ndarray
    temperature: float
    scores: np.ndarray
    distances: np.ndarray

    def probabilities(self, members: Sequence[np.ndarray]) -> np.ndarray:
        """Probabilities, float32, (n, n_labels), from the scores of the first members; rows sum to 1."""
        weights = self.weights[: len(members)]
        mean = _mean(_logarithms(members), np.log(weights / weights.sum()))
        return softmax(mean / self.temperature, axis=1).astype(np.float32)

    def sets(self, probabilities: np.ndarray, *, target_error: float) -> np.ndarray:
        """Labels that cannot be ruled out at that error, bool, (n, n_labels): split conformal prediction.

        A cell like those left out has its label in the set with probability `1 - target_error` at least, if its scores
        are made as theirs were.
        """
        n = len(self.scores)
        rank = int(np.ceil((n + 1) * (1 - target_error)))
        if rank > n:
            return np.ones(probabilities.shape, dtype=bool)
        return 1 - probabilities.astype(np.float64) <= self.scores[rank - 1]

    def support(self, probabilities: np.ndarray) -> np.ndarray:
        """Share of left-out cells whose own label was no more probable than the best label is here, float64, (n,).

        The p-value of the hypothesis that the best label is right: low for a cell that no label fits.
        """
        n = len(self.scores)
        below = np.searchsorted(self.scores, 1 - probabilities.max(axis=1).astype(np.float64), side="left")
        return (n - below + 1) / (n + 1)

    def novelty(self, distances: np.ndarray) -> np.ndarray:
        """Share of held-out cells that are as far from the training cells, float64, (n,): low means new."""
        n = len(self.distances)
        below = np.searchsorted(self.distances, distances, side="left")
        return (n - below + 1) / (n + 1)


def _logarithms(members: Sequence[np.ndarray]) -> np.ndarray:
    """Logarithms of the probabilities of each member, (n_members, n, n_labels)."""
    return np.stack([log_softmax(scores.astype(np.float64), axis=1) for scores in members])


def _mean(logarithms: np.ndarray, log_weights: np.ndarray) -> np.ndarray:
    """Logarithm of the weighted mean of the probabilities, (n, n_labels)."""
    return logsumexp(logarithms + log_weights[:, None, None], axis=0)


def calibrate(members: Sequence[np.ndarray], labels: np.ndarray, distances: np.ndarray) -> Calibration:
    """Choose the weights and the temperature that make the labels most probable (:cite:t:`Guo2017`).

    Parameters
    ----------
    members
        Scores of each classifier for cells that it was not fitted on, shape `(n, n_labels)`.
    labels
        Their labels, int, shape `(n,)`, all 0 or above.
    distances
        Their distances to the training cells, shape `(n,)`.
    """
    logarithms, rows, k = _logarithms(members), np.arange(len(labels)), len(members)
    weights, temperature = np.full(k, 1 / k), 1.0
    if len(labels) >= LEAST:

        def loss(x: np.ndarray) -> float:
            mean = _mean(logarithms, log_softmax(x[:k]))
            nll = -log_softmax(mean / np.exp(x[k]), axis=1)[rows, labels].sum()
            return nll + _PULL * ((x[:k] - x[:k].mean()) ** 2).sum() + 0.5 * x[k] ** 2

        bounds = [(-4.0, 4.0)] * k + [tuple(np.log(_TEMPERATURES))]
        found = minimize(loss, np.zeros(k + 1), method="L-BFGS-B", bounds=bounds).x
        weights, temperature = np.exp(log_softmax(found[:k])), float(np.exp(found[k]))
    calibration = Calibration(weights, temperature, np.zeros(0), np.sort(distances))
    probability = calibration.probabilities(members)[rows, labels]
    return calibration._replace(scores=np.sort(1 - probability.astype(np.float64)))
