"""Batches laid over one another: Harmony finds the clusters, and a fixed map moves each cell.

Harmony :cite:p:`Korsunsky2019` gives soft clusters in which all batches take part. What it moves a cell by depends on
all other cells; here each cluster keeps one shift per batch (ridge regression in the cluster, as in Harmony's last
step), and a cell is moved by the shifts of the clusters that it belongs to. So a cell gets the same coordinates
whatever it is sent with, and a new batch needs its own shifts alone.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from scanpy_scgpt._logging import quiet

_WIDTH = 0.1  # of the soft clusters, and
_PENALTY = 1.0  # of the shifts: the defaults of Harmony
_ROUNDS = 2  # clusters of where a cell was, then of where it came to
_LEAST = 2  # cells, batches, dimensions: below there is nothing to lay over
_OF_CLUSTER = 30  # cells of a cluster of Harmony
_BLOCK = 4096  # cells at a time


@dataclass(frozen=True)
class Alignment:
    """Soft clusters of cells and the shift of each batch in each of them.

    Attributes
    ----------
    centroids
        Directions, float32, shape `(n_clusters, n_dims)`, of length 1.
    means
        Where the cells of a cluster are when the batches are laid over one another, float32, same shape.
    shifts
        Float32, shape `(n_batches, n_clusters, n_dims)`; zero for a batch that was never seen.
    """

    centroids: np.ndarray
    means: np.ndarray
    shifts: np.ndarray

    def apply(self, x: np.ndarray, batches: np.ndarray) -> np.ndarray:
        """Cells moved to where all batches meet.

        Parameters
        ----------
        x
            Coordinates, float, shape `(n, n_dims)`.
        batches
            Int, shape `(n,)`; a cell below 0 stays where it is.

        Returns
        -------
        Float32, shape `(n, n_dims)`.
        """
        moved = np.asarray(x, dtype=np.float32).copy()
        known = np.flatnonzero((batches >= 0) & (batches < len(self.shifts)))
        for batch in np.unique(batches[known]):
            own = known[batches[known] == batch]
            for start in range(0, len(own), _BLOCK):
                rows = own[start : start + _BLOCK]
                for _ in range(_ROUNDS):
                    moved[rows] = x[rows] - self.members(moved[rows]) @ self.shifts[batch]
        return moved

    def members(self, x: np.ndarray) -> np.ndarray:
        """How much of a cell is in each cluster, float32, shape `(n, n_clusters)`; rows sum to 1."""
        unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        score = 2 * (unit @ self.centroids.T) / _WIDTH
        score = np.exp(score - score.max(axis=1, keepdims=True))
        return (score / score.sum(axis=1, keepdims=True)).astype(np.float32)

    def with_batches(self, x: np.ndarray, batches: np.ndarray) -> Alignment:
        """The same with shifts for the batches of these cells that have none yet.

        Parameters
        ----------
        x, batches
            As in :meth:`apply`.
        """
        n_batches = max(int(batches.max(initial=-1)) + 1, len(self.shifts))
        shifts = np.zeros((n_batches, *self.means.shape), dtype=np.float32)
        shifts[: len(self.shifts)] = self.shifts
        for batch in np.unique(batches[batches >= 0]):
            if shifts[batch].any():
                continue
            own = np.asarray(x[batches == batch], dtype=np.float32)
            moved = own
            for _ in range(_ROUNDS):
                share = self.members(moved)
                n = share.sum(axis=0)[:, None]
                shifts[batch] = (share.T @ own - n * self.means) / (n + _PENALTY)
                moved = own - share @ shifts[batch]
        return replace(self, shifts=shifts)

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """To be saved, by names that start with `name`."""
        return {f"{name}.{key}": getattr(self, key) for key in ("centroids", "means", "shifts")}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], name: str) -> Alignment | None:
        """What :meth:`arrays` gave, or None."""
        if f"{name}.centroids" not in arrays:
            return None
        return cls(*(arrays[f"{name}.{key}"] for key in ("centroids", "means", "shifts")))


def align(x: np.ndarray, batches: np.ndarray, *, rng: int = 0) -> Alignment | None:
    """Lay batches over one another.

    Parameters
    ----------
    x
        Coordinates, float, shape `(n, n_dims)`.
    batches
        Int, shape `(n,)`; cells below 0 take no part.
    rng
        Seed.

    Returns
    -------
    None where there is nothing to lay over: one batch, or too few cells for a cluster (15 or fewer).
    """
    known = np.flatnonzero(batches >= 0)
    codes, x = batches[known], np.asarray(x[known], dtype=np.float64)
    if len(np.unique(codes)) < _LEAST or min(x.shape) < _LEAST:
        return None
    if round(len(x) / _OF_CLUSTER) < 1:
        return None
    import harmonypy

    with quiet("harmonypy", level=logging.ERROR):
        names = pd.DataFrame({"batch": codes.astype(str)})
        found = harmonypy.run_harmony(x, names, "batch", verbose=False, random_state=rng)
    corrected = np.asarray(found.Z_corr, dtype=np.float32)
    centroids = np.asarray(found.Y, dtype=np.float32).T
    centroids /= np.maximum(np.linalg.norm(centroids, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    clusters = Alignment(centroids, np.zeros_like(centroids), np.zeros((0, *centroids.shape), dtype=np.float32))
    return _with_shifts(clusters, x.astype(np.float32), clusters.members(corrected), codes)


def _with_shifts(clusters: Alignment, x: np.ndarray, share: np.ndarray, codes: np.ndarray) -> Alignment:
    """Ridge regression in each cluster: a mean of its own, and a penalised shift for each batch."""
    present, codes = np.unique(codes, return_inverse=True)
    n = np.stack([share[codes == batch].sum(axis=0) for batch in range(len(present))]).astype(np.float64)
    sums = np.stack([share[codes == batch].T @ x[codes == batch] for batch in range(len(present))]).astype(np.float64)
    # shift_b = (sum_b - n_b mean) / (n_b + penalty), and the mean solves what is left: sum over b of
    # penalty / (n_b + penalty) * (sum_b - n_b mean) = 0
    keep = _PENALTY / (n + _PENALTY)
    weight = (keep * n).sum(axis=0)
    means = (keep[..., None] * sums).sum(axis=0) / np.maximum(weight, np.finfo(np.float32).tiny)[:, None]
    shifts = np.zeros((int(present.max()) + 1, *means.shape), dtype=np.float32)
    shifts[present] = (sums - n[..., None] * means) / (n + _PENALTY)[..., None]
    return replace(clusters, means=means.astype(np.float32), shifts=shifts)
