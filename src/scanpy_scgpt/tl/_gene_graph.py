"""Pairs of genes whose vectors point the same way."""

from __future__ import annotations

import numpy as np

_ROWS = 1024  # of the matrix of cosines at a time
MAX_EDGES = 5_000_000


def units(vectors: np.ndarray) -> np.ndarray:
    """Vectors scaled to length 1, float32."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.maximum(lengths, np.finfo(np.float32).tiny)).astype(np.float32)


def cosine_pairs(
    vectors: np.ndarray, *, threshold: float | None = None, n_neighbors: int | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs with a cosine above a threshold, of the nearest neighbours, or both.

    Parameters
    ----------
    vectors
        Shape `(n_genes, d)`, without NaN.
    threshold
        A pair has a cosine above it.
    n_neighbors
        At least one gene of a pair is among so many nearest of the other.

    Returns
    -------
    First and second position of each pair (the first is smaller), int64, and its cosine, float32; by position.

    Raises
    ------
    ValueError
        When there are more than five million pairs.
    """
    vectors = units(vectors)
    n = len(vectors)
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    n_found = 0
    for start in range(0, n, _ROWS):
        cosines = vectors[start : start + _ROWS] @ vectors.T
        rows = np.arange(start, start + len(cosines))
        cosines[np.arange(len(rows)), rows] = -np.inf  # no gene with itself
        keep = np.isfinite(cosines) if threshold is None else cosines > threshold
        if n_neighbors is not None and n_neighbors < n - 1:
            least = np.partition(cosines, n - n_neighbors, axis=1)[:, [n - n_neighbors]]
            keep &= cosines >= least
        i, j = np.nonzero(keep)
        found.append((rows[i], j, cosines[i, j]))
        n_found += len(i)
        if n_found > 2 * MAX_EDGES:
            msg = (
                f"The network has more than {MAX_EDGES:,} edges among {n:,} genes. Take fewer: a higher threshold "
                f"(now {threshold}), n_neighbors=15, or a list of genes."
            )
            raise ValueError(msg)
    i, j, weights = (np.concatenate(parts) for parts in zip(*found, strict=True))
    low, high = np.minimum(i, j), np.maximum(i, j)
    _, first = np.unique(low * n + high, return_index=True)  # neighbours on either side: one pair
    return low[first], high[first], weights[first]
