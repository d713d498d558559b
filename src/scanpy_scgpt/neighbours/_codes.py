"""Short codes of vectors: lists around centroids, and in each the bytes of a product quantiser."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from scipy import sparse

_ENTRIES = 256  # of a codebook: one byte
_BLOCK, _SCORES = 2**14, 2**23  # vectors, and scores of vectors by centroids, at a time
_KEPT_VARIANCE, _MOST_DIMS = 0.995, 128
PER_LIST, _PER_CODE, _ROUNDS = 40, 200, 10  # vectors to train a centroid, an entry; rounds of k-means
_SMALLER = 100  # times smaller than float32 vectors
Allocate = Callable[[str, tuple[int, ...], str], np.ndarray]


def nearest_centroid(vectors: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Nearest centroid of each vector by Euclidean distance, int64, shape `(n,)`."""
    half, out = 0.5 * np.square(centroids).sum(axis=1), np.empty(len(vectors), np.int64)
    step = max(_SCORES // len(centroids), 1)
    for start in range(0, len(vectors), step):
        scores = vectors[start : start + step] @ centroids.T
        scores -= half
        out[start : start + step] = scores.argmax(axis=1)
    return out


def k_means(vectors: np.ndarray, k: int, rng: np.random.Generator, *, rounds: int = _ROUNDS) -> np.ndarray:
    """Centroids of Lloyd's algorithm, float32, shape `(k, n_dims)`; those that lose all vectors start anew."""
    centroids = vectors[rng.choice(len(vectors), k, replace=len(vectors) < k)].copy()
    for _ in range(rounds):
        near = nearest_centroid(vectors, centroids)
        n = np.bincount(near, minlength=k)
        member = sparse.csr_matrix((np.ones(len(near), np.float32), (near, np.arange(len(near)))), (k, len(near)))
        centroids = (member @ vectors) / np.maximum(n, 1)[:, None].astype(np.float32)
        if (lost := n == 0).any():
            centroids[lost] = vectors[rng.choice(len(vectors), int(lost.sum()))]
    return centroids.astype(np.float32)


@dataclass(frozen=True)
class Quantiser:
    """How a vector becomes a list and a code: an inverted file of product codes :cite:p:`Jegou2011`.

    Attributes
    ----------
    mean
        Of the vectors, float32, shape `(n_dims,)`.
    rotation
        Orthonormal columns, float32, shape `(n_dims, n_kept)`: principal components of all vectors, then those of what
        the centroids leave over, dealt to the bytes so that each has an equal part of the variance :cite:p:`Ge2013`.
    centroids
        Rotated, float16, shape `(n_lists, n_kept)`.
    codebooks
        Float32, shape `(n_bytes, 256, n_kept / n_bytes)`.
    """

    mean: np.ndarray
    rotation: np.ndarray
    centroids: np.ndarray
    codebooks: np.ndarray

    @property
    def n_bytes(self) -> int:
        """Bytes of a code."""
        return len(self.codebooks)

    @classmethod
    def train(cls, sample: np.ndarray, *, n_lists: int, n_bytes: int, rng: np.random.Generator) -> Quantiser:
        """Learn from some vectors.

        Parameters
        ----------
        sample
            Float32, shape `(n, n_dims)`.
        n_lists, n_bytes
            Number of lists, and of bytes of a code.
        rng
            Source of what is drawn.
        """
        mean = sample.mean(axis=0)
        first = _components(sample[: _PER_CODE * _ENTRIES] - mean, n_bytes)
        kept = (sample - mean) @ first
        centroids = k_means(kept[: PER_LIST * n_lists], n_lists, rng)
        kept = kept[: _PER_CODE * _ENTRIES]
        rest = kept - centroids[nearest_centroid(kept, centroids)]
        turn = _dealt(rest, n_bytes)
        width = kept.shape[1] // n_bytes
        parts = (rest @ turn).reshape(len(rest), n_bytes, width)
        codebooks = np.stack([k_means(np.ascontiguousarray(parts[:, i]), _ENTRIES, rng) for i in range(n_bytes)])
        return cls(mean, first @ turn, (centroids @ turn).astype(np.float16), codebooks)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Quantiser:
        """From what :meth:`arrays` gave."""
        return cls(**{name: np.array(arrays[name]) for name in ("mean", "rotation", "centroids", "codebooks")})

    def arrays(self) -> dict[str, np.ndarray]:
        """Its arrays by name."""
        return {name: getattr(self, name) for name in ("mean", "rotation", "centroids", "codebooks")}

    def project(self, vectors: np.ndarray) -> np.ndarray:
        """Rotated vectors, float32, shape `(n, n_kept)`."""
        return (vectors - self.mean) @ self.rotation

    def encode(self, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """List `(n,)` int64 and code `(n, n_bytes)` uint8 of each vector."""
        kept, centroids = self.project(vectors), self.centroids.astype(np.float32)
        lists = nearest_centroid(kept, centroids)
        parts = (kept - centroids[lists]).reshape(len(kept), self.n_bytes, -1)
        codes = [
            nearest_centroid(np.ascontiguousarray(parts[:, i]), self.codebooks[i]).astype(np.uint8)
            for i in range(self.n_bytes)
        ]
        return lists, np.stack(codes, axis=1)


def _components(centred: np.ndarray, n_bytes: int) -> np.ndarray:
    """Principal components that keep nearly all variance, their number a multiple of the bytes; zeros fill up."""
    n_dims = centred.shape[1]
    variances, axes = np.linalg.eigh(centred.T.astype(np.float64) @ centred / max(len(centred), 1))
    variances, axes = np.maximum(variances[::-1], 0), axes[:, ::-1]
    share = np.cumsum(variances) / max(variances.sum(), np.finfo(float).tiny)
    needed = min(int(np.searchsorted(share, _KEPT_VARIANCE)) + 1, n_dims, _MOST_DIMS)
    width = -(-needed // n_bytes) * n_bytes
    out = np.zeros((n_dims, width), np.float32)
    out[:, : min(width, n_dims)] = axes[:, :width]
    return out


def _dealt(rest: np.ndarray, n_bytes: int) -> np.ndarray:
    """Orthonormal turn whose columns, taken by bytes, have equal products of variances."""
    variances, axes = np.linalg.eigh(rest.T.astype(np.float64) @ rest / max(len(rest), 1))
    variances, width = np.maximum(variances, 1e-12), len(variances) // n_bytes
    groups: list[list[int]] = [[] for _ in range(n_bytes)]
    weight = np.zeros(n_bytes)
    for i in np.argsort(-variances, kind="stable"):
        open_ = [g for g in range(n_bytes) if len(groups[g]) < width]
        best = min(open_, key=lambda g: weight[g])
        groups[best].append(int(i))
        weight[best] += np.log(variances[i] / variances.min()) + 1e-9
    return axes[:, [i for group in groups for i in group]].astype(np.float32)


def shape_of(n: int, n_dims: int) -> tuple[int, int]:
    """Number of lists, and bytes of a code with which codes and codebooks are 100 times smaller than the vectors."""
    n_lists = int(2 ** np.clip(np.round(np.log2(2 * np.sqrt(max(n, 1)))), 0, 15))
    width = min(n_dims, _MOST_DIMS)
    fixed = n_lists * (2 * width + 8) + 4 * n_dims * (width + 1) + 4 * _ENTRIES * width
    budget = 4 * n_dims / _SMALLER
    n_bytes = int(budget - fixed / max(n, 1))
    return n_lists, int(np.clip(n_bytes if n_bytes > budget / 2 else budget, 1, n_dims))


def sort_into_lists(
    vectors: np.ndarray, quantiser: Quantiser, allocate: Allocate, old: Mapping[str, np.ndarray] | None = None
) -> dict[str, np.ndarray]:
    """Codes and rows of vectors, list after list; in a list the rows ascend.

    Parameters
    ----------
    vectors
        Shape `(n, n_dims)`; read by blocks.
    quantiser
        What makes the codes.
    allocate
        Gives an array for a name, shape and type, in memory or in a file.
    old
        Codes, rows and ends of the first vectors, which are not encoded again.

    Returns
    -------
    `codes` uint8 `(n, n_bytes)`, `rows` int64 `(n,)`, and `ends` int64 `(n_lists + 1,)` with the bounds of the lists.
    """
    n, n_lists = len(vectors), len(quantiser.centroids)
    n_old = 0 if old is None else len(old["rows"])
    of_list = allocate("lists.draft", (n - n_old,), "<i4")
    unsorted = allocate("codes.draft", (n - n_old, quantiser.n_bytes), "|u1")
    for start in range(n_old, n, _BLOCK):
        stop = min(start + _BLOCK, n)
        part = slice(start - n_old, stop - n_old)
        of_list[part], unsorted[part] = quantiser.encode(np.asarray(vectors[start:stop], dtype=np.float32))
    n_before = np.zeros(n_lists, np.int64) if old is None else np.diff(old["ends"])
    sizes = np.array(n_before)
    for start in range(0, n - n_old, _BLOCK):
        sizes += np.bincount(of_list[start : start + _BLOCK], minlength=n_lists)
    ends = np.concatenate([[0], np.cumsum(sizes)])
    codes, rows = allocate("codes", (n, quantiser.n_bytes), "|u1"), allocate("rows", (n,), "<i8")
    for i in range(n_lists if n_old else 0):
        target, source = slice(ends[i], ends[i] + n_before[i]), slice(old["ends"][i], old["ends"][i + 1])
        codes[target], rows[target] = old["codes"][source], old["rows"][source]
    free = ends[:-1] + n_before
    for start in range(0, n - n_old, _BLOCK):
        block = np.asarray(of_list[start : start + _BLOCK])
        order = np.argsort(block, kind="stable")
        counts = np.bincount(block, minlength=n_lists)
        place = free[block[order]] + np.arange(len(block)) - (np.cumsum(counts) - counts)[block[order]]
        codes[place], rows[place] = unsorted[start : start + _BLOCK][order], n_old + start + order
        free = free + counts
    return {"codes": codes, "rows": rows, "ends": ends}


@numba.njit(cache=True, nogil=True, parallel=True)
def _scan(
    queries: np.ndarray,
    probes: np.ndarray,
    centroids: np.ndarray,
    codebooks: np.ndarray,
    codes: np.ndarray,
    ends: np.ndarray,
    places: np.ndarray,
    gaps: np.ndarray,
) -> None:  # pragma: no cover - compiled
    """Places of the codes nearest to each query in the lists it probes; a heap with the farthest on top."""
    n_bytes, _, width = codebooks.shape
    size = places.shape[1]
    for i in numba.prange(len(queries)):
        table = np.empty((n_bytes, _ENTRIES), np.float32)
        heap, place = gaps[i], places[i]
        for probe in probes[i]:
            for b in range(n_bytes):
                for e in range(_ENTRIES):
                    total = np.float32(0.0)
                    for j in range(width):
                        at = b * width + j
                        gap = queries[i, at] - centroids[probe, at] - codebooks[b, e, j]
                        total += gap * gap
                    table[b, e] = total
            for p in range(ends[probe], ends[probe + 1]):
                total = np.float32(0.0)
                for b in range(n_bytes):
                    total += table[b, codes[p, b]]
                if total >= heap[0]:
                    continue
                at = 0
                while True:
                    child = 2 * at + 1
                    if child >= size:
                        break
                    if child + 1 < size and heap[child + 1] > heap[child]:
                        child += 1
                    if heap[child] <= total:
                        break
                    heap[at], place[at] = heap[child], place[child]
                    at = child
                heap[at], place[at] = total, p


def shortlist_of(
    queries: np.ndarray, quantiser: Quantiser, lists: Mapping[str, np.ndarray], *, shortlist: int, n_probe: int
) -> np.ndarray:
    """Rows whose codes are nearest to each query, int64, shape `(n_queries, shortlist)`, -1 for none; not in order.

    Parameters
    ----------
    queries
        Float32, shape `(n_queries, n_dims)`.
    quantiser
        What made the codes.
    lists
        What :func:`sort_into_lists` gave.
    shortlist, n_probe
        Number of rows, and of lists that are looked through.
    """
    out = np.full((len(queries), shortlist), -1, np.int64)
    centroids = quantiser.centroids.astype(np.float32)
    half, n_probe = 0.5 * np.square(centroids).sum(axis=1), min(n_probe, len(centroids))
    codes, rows = (np.asarray(lists[name]) for name in ("codes", "rows"))
    for start in range(0, len(queries), _BLOCK // 8):
        kept = quantiser.project(queries[start : start + _BLOCK // 8])
        scores = half - kept @ centroids.T
        probes = np.argpartition(scores, n_probe - 1, axis=1)[:, :n_probe]
        places = np.full((len(kept), shortlist), -1, np.int64)
        gaps = np.full(places.shape, np.inf, np.float32)
        _scan(kept, probes, centroids, quantiser.codebooks, codes, np.asarray(lists["ends"]), places, gaps)
        there = places >= 0
        out[start : start + len(kept)][there] = rows[places[there]]
    return out


def memory(quantiser: Quantiser, lists: Mapping[str, Any]) -> int:
    """Bytes that a search reads again and again: codes, bounds of the lists and codebooks."""
    return sum(array.nbytes for array in (*quantiser.arrays().values(), lists["codes"], lists["ends"]))
