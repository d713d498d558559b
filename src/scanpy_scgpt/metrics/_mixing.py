"""Label-free measures of an integration: whether batches mix, and whether cells keep their neighbours."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from sklearn.neighbors import NearestNeighbors

_DRAWS = 2000  # neighbourhoods at random, for what mixing means when there is no batch effect
_MOST_OF_BATCH = 4  # a neighbourhood is at most a fourth of a batch


def batch_mixing(embedding: ArrayLike, batches: ArrayLike, *, n_neighbors: int = 30) -> float:
    """How well batches mix: the entropy of the batches among the neighbours of a cell, over that of random neighbours.

    Batches count alike whatever their size: shares among neighbours are divided by those among all cells. 0 when a cell
    sees its own batch alone, 1 when neighbours are as cells drawn at random.

    Parameters
    ----------
    embedding
        Vectors of the cells, shape `(n_cells, n_dims)`.
    batches
        Batch of each cell, shape `(n_cells,)`.
    n_neighbors
        Nearest cells that are looked at.

    Returns
    -------
    Mean over the cells. Of one batch: 1.

    Raises
    ------
    ValueError
        When the lengths differ, vectors have NaN, or no neighbour is asked for.
    """
    x, (_, codes) = np.asarray(embedding), np.unique(np.asarray(batches).astype(str), return_inverse=True)
    _check(x, codes, n_neighbors)
    n_batches, n = int(codes.max()) + 1, min(n_neighbors, len(codes) - 1)
    if n_batches < 2 or n < 1:  # noqa: PLR2004
        return 1.0
    share = np.bincount(codes) / len(codes)
    near = NearestNeighbors(n_neighbors=n).fit(x).kneighbors(return_distance=False)
    drawn = np.random.default_rng(0).choice(n_batches, size=(_DRAWS, n), p=share)
    usual = _entropy(drawn, share).mean()
    return float(_entropy(codes[near], share).mean() / max(usual, np.finfo(float).tiny))


def _check(x: np.ndarray, codes: np.ndarray, n_neighbors: int) -> None:
    if x.ndim != 2 or len(x) != len(codes):  # noqa: PLR2004
        msg = f"embedding {x.shape} and {len(codes):,} batches: one row and one batch for each cell."
        raise ValueError(msg)
    if not np.isfinite(x).all():
        n = int((~np.isfinite(x)).any(axis=1).sum())
        msg = f"embedding: {n:,} cells have NaN. Leave them out of both."
        raise ValueError(msg)
    if n_neighbors < 1:
        msg = f"n_neighbors={n_neighbors!r}: a whole number from 1, such as 30."
        raise ValueError(msg)


def _entropy(codes: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Entropy of the batches of each row, `(n,)`; batches weighed by one over their share."""
    n, n_batches = len(codes), len(share)
    flat = (np.arange(n)[:, None] * n_batches + codes).ravel()
    counts = np.bincount(flat, minlength=n * n_batches).reshape(n, n_batches) / share
    p = counts / counts.sum(axis=1, keepdims=True)
    return -(p * np.log(np.maximum(p, np.finfo(float).tiny))).sum(axis=1)


def structure_kept(before: ArrayLike, after: ArrayLike, batches: ArrayLike, *, n_neighbors: int = 30) -> float:
    """Share of a cell's nearest neighbours inside its own batch that are still among the nearest afterwards.

    Parameters
    ----------
    before, after
        Vectors of the same cells, shape `(n_cells, n_dims)` each; numbers of dimensions may differ.
    batches
        Batch of each cell, shape `(n_cells,)`.
    n_neighbors
        Nearest cells of the batch that are looked at; at most a fourth of the batch.

    Returns
    -------
    Mean over the cells; batches of fewer than 8 cells are left out, and 1 when none is left.
    """
    first, second = np.asarray(before), np.asarray(after)
    _, codes = np.unique(np.asarray(batches).astype(str), return_inverse=True)
    total, counted = 0.0, 0
    for batch in range(int(codes.max(initial=0)) + 1):
        own = np.flatnonzero(codes == batch)
        k = min(n_neighbors, len(own) // _MOST_OF_BATCH)
        if k < 2:  # noqa: PLR2004
            continue
        near = [NearestNeighbors(n_neighbors=k).fit(x[own]).kneighbors(return_distance=False) for x in (first, second)]
        one, two = (np.sort(rows + np.arange(len(own))[:, None] * len(own), axis=None) for rows in near)
        total += len(np.intersect1d(one, two, assume_unique=True)) / k
        counted += len(own)
    return total / counted if counted else 1.0
