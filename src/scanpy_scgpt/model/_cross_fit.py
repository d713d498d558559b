"""What each classifier says of cells that it was not fitted on: the ground that calibration stands on.

With batches whole batches are left out, so that what is learned holds for a new donor, study or technology.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import sparse
from sklearn.neighbors import NearestNeighbors

from scanpy_scgpt.tokenizer import Tokens

from ._anchor import fit_anchor
from ._gene_anchor import fit_gene_anchor
from ._probe import fit_probe

_FOLDS = 5
_NEIGHBOURS = 10  # training cells that a distance is a mean over


class Left(NamedTuple):
    """Cells that were left out once each.

    Attributes
    ----------
    cells
        Positions, int, shape `(n,)`.
    members
        Scores of each classifier by its name, shape `(n, n_labels)`.
    """

    cells: np.ndarray
    members: dict[str, np.ndarray]


def folds_of(labels: np.ndarray, batches: np.ndarray | None, *, rng: int = 0) -> np.ndarray:
    """Fold of each cell, int, shape `(n,)`.

    Parameters
    ----------
    labels
        Int, shape `(n,)`: without batches every label is spread over the folds.
    batches
        Int, shape `(n,)`, or None: the cells of a batch stay together.
    rng
        Seed.
    """
    if batches is not None and len(np.unique(batches)) > 1:
        codes = np.unique(batches, return_inverse=True)[1]
        largest_first = np.argsort(-np.bincount(codes), kind="stable")
        place = np.empty(len(largest_first), dtype=np.int64)
        place[largest_first] = np.arange(len(largest_first)) % _FOLDS
        return place[codes]
    order = np.lexsort([np.random.default_rng([rng, 9]).random(len(labels)), labels])
    fold = np.empty(len(labels), dtype=np.int64)
    fold[order] = np.arange(len(labels)) % min(_FOLDS, max(len(labels), 1))
    return fold


def left_out(
    vectors: np.ndarray,
    tokens: Tokens,
    expression: sparse.csr_matrix | None,
    labels: np.ndarray,
    *,
    folds: np.ndarray,
    n_bins: int,
    n_labels: int,
    strength: float = 0.1,
    anchors: bool = True,
    allowed: np.ndarray | None = None,
    rng: int = 0,
) -> Left:
    """Leave out one fold after the other, and fit every classifier on the rest.

    Parameters
    ----------
    vectors
        Cell vectors of a network that has not seen the labels, shape `(n, d)`.
    tokens, expression
        The same cells as tokens and as counts (None for none).
    labels
        Int, shape `(n,)`, all 0 or above.
    folds
        Fold of each cell.
    n_bins, n_labels
        Number of digits, and of labels.
    strength
        Inverse of the penalty of the regression on the vectors.
    anchors
        False leaves the linear classifiers out.
    allowed
        Vocabulary ids of the genes that they may use.
    rng
        Seed of the fits.

    Returns
    -------
    The cells whose label the rest has too.
    """
    parts: list[tuple[np.ndarray, dict[str, np.ndarray]]] = []
    settings = {"n_labels": n_labels, "allowed": allowed, "rng": rng}
    for fold in np.unique(folds):
        rest = np.flatnonzero(folds != fold)
        out = np.flatnonzero((folds == fold) & np.isin(labels, labels[rest]))
        if not len(out) or not len(rest):
            continue
        probe = fit_probe(vectors[rest], labels[rest], vectors[:0], labels[:0], n_labels=n_labels, strength=strength)
        members = {"network": probe.scores(vectors[out])}
        if anchors:
            bins = fit_anchor(tokens.take(rest), labels[rest], n_bins=n_bins, **settings)
            members["bins"] = bins.scores(tokens.take(out), n_bins=n_bins, measured=allowed)
        if anchors and expression is not None:
            genes = fit_gene_anchor(expression[rest], labels[rest], **settings)
            members["genes"] = genes.log_probabilities(expression[out], allowed)
        parts.append((out, members))
    if not parts:
        return Left(np.zeros(0, dtype=np.int64), {"network": np.zeros((0, n_labels))})
    names = parts[0][1]
    return Left(
        np.concatenate([cells for cells, _ in parts]),
        {name: np.concatenate([members[name] for _, members in parts]) for name in names},
    )


def distances_to(reference: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Mean cosine distance to the nearest of the reference, float64, shape `(n,)`; all vectors of length 1."""
    if not len(vectors):
        return np.zeros(0)
    near = NearestNeighbors(n_neighbors=min(_NEIGHBOURS, len(reference)), algorithm="brute")
    found = near.fit(reference.astype(np.float32)).kneighbors(vectors.astype(np.float32))[0]
    return (found.astype(np.float64) ** 2 / 2).mean(axis=1)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors scaled to length 1."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)
