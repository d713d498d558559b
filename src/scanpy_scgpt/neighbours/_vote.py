"""Labels by the vote of neighbours."""

from __future__ import annotations

from typing import NamedTuple, get_args

import numpy as np

from scanpy_scgpt._types import VoteWeights
from scanpy_scgpt._validate import check_one_of

_CELLS = 2**22  # entries of the table of votes
_CLIPPED = 0.01  # of all votes, taken from each label before shares are corrected
_EVEN = 1e-9  # votes that differ by less are even


class Votes(NamedTuple):
    """The label that neighbours elect.

    Attributes
    ----------
    codes
        Label of each query, int32, shape `(n_queries,)`; -1 where no neighbour has one.
    shares
        Share of the vote that it got, float32; 0 where there is none.
    """

    codes: np.ndarray
    shares: np.ndarray


def vote(
    labels: np.ndarray,
    distances: np.ndarray,
    *,
    n_labels: int,
    weights: VoteWeights = "uniform",
    frequencies: np.ndarray | None = None,
) -> Votes:
    """Elect a label for each query.

    Even votes go to the label whose voters are nearer in the mean, then to the first. With `frequencies`, the weighted
    vote of the original :cite:p:`Cui2024`: a label loses 1 % of all votes, not below 0, and what is left is divided by
    its frequency.

    Parameters
    ----------
    labels
        Code of each neighbour, shape `(n_queries, n_neighbors)`; -1 does not vote.
    distances
        Of the neighbours, the same shape.
    n_labels
        Number of labels.
    weights
        `"uniform"`, or `"distance"`: `exp(-d**2 / (2 h**2))` with `h` the mean distance of the neighbours of the query.
    frequencies
        Of the labels in the reference, shape `(n_labels,)`.

    Returns
    -------
    Labels and their shares of the vote.

    Raises
    ------
    ValueError
        When there are no such weights.
    """
    check_one_of(weights, get_args(VoteWeights), name="weights")
    codes, shares = np.full(len(labels), -1, np.int32), np.zeros(len(labels), np.float32)
    step = max(_CELLS // max(n_labels, 1), 1)
    for start in range(0, len(labels) if n_labels else 0, step):
        part = slice(start, start + step)
        codes[part], shares[part] = _elect(labels[part], distances[part], n_labels, weights, frequencies)
    return Votes(codes, shares)


def _elect(
    labels: np.ndarray, distances: np.ndarray, n_labels: int, weights: VoteWeights, frequencies: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    n, votes_here = len(labels), labels >= 0
    of, place = np.nonzero(votes_here)
    cells = of * n_labels + labels[of, place]
    gaps = distances[of, place].astype(np.float64)
    number = np.bincount(of, minlength=n)
    given = np.ones(len(of))
    if weights == "distance":
        width = np.bincount(of, weights=gaps, minlength=n) / np.maximum(number, 1)
        given = np.exp(-np.square(gaps / np.maximum(width, np.finfo(float).tiny)[of]) / 2)

    def table(values: np.ndarray) -> np.ndarray:
        return np.bincount(cells, weights=values, minlength=n * n_labels).reshape(n, n_labels)

    votes, voters = table(given), table(np.ones(len(of)))
    total = votes.sum(axis=1, keepdims=True)
    if frequencies is not None:
        clipped = np.maximum(votes - _CLIPPED * total, 0)
        votes = np.where(frequencies > 0, clipped / np.maximum(frequencies, np.finfo(float).tiny), 0)
        total = votes.sum(axis=1, keepdims=True)
    votes = votes / np.maximum(total, np.finfo(float).tiny)
    mean_gap = np.where(voters > 0, table(gaps) / np.maximum(voters, 1), np.inf)
    is_best = votes >= votes.max(axis=1, keepdims=True) - _EVEN
    best = np.where(is_best, mean_gap, np.inf).argmin(axis=1)
    share = votes[np.arange(n), best]
    return np.where(number > 0, best, -1), np.where(number > 0, share, 0)
