"""Exact nearest neighbours: blocked matrix products choose candidates, double precision ranks them."""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np

from scanpy_scgpt._types import Metric

_QUERIES, _ROWS, _PAIRS = 1024, 8192, 2**17  # queries and vectors of a block; pairs gathered at a time
_ROUNDING = 8.0  # times the rounding of a float32 product that a candidate may lie below the last neighbour


class Neighbours(NamedTuple):
    """Nearest vectors of each query, the nearest first; equal distances in the order of the rows.

    Attributes
    ----------
    rows
        Row of each neighbour in the index, int64, shape `(n_queries, n_neighbors)`; -1 where there are no more.
    distances
        Its distance, float32, the same shape; infinite where there is none.
    """

    rows: np.ndarray
    distances: np.ndarray


def as_vectors(values: np.ndarray, metric: Metric, *, name: str, n_dims: int | None = None) -> np.ndarray:
    """Float32 vectors, of length 1 for cosine.

    Parameters
    ----------
    values
        Numbers, shape `(n, n_dims)`.
    metric
        What they are compared by.
    name
        What to call them in errors.
    n_dims
        Width that they must have.

    Raises
    ------
    ValueError
        When the shape is another, or a value is not finite.
    """
    vectors = np.ascontiguousarray(values, dtype=np.float32)
    if vectors.ndim != 2 or (n_dims is not None and vectors.shape[1] != n_dims):  # noqa: PLR2004
        wanted = "(n, n_dims)" if n_dims is None else f"(n, {n_dims})"
        msg = f"{name} have the shape {vectors.shape}, needed is {wanted}: take those that the index was made of."
        raise ValueError(msg)
    if not np.isfinite(vectors).all():
        bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        msg = (
            f"{len(bad):,} of {len(vectors):,} {name} have values that are not finite (the first: row {bad[0]:,}). "
            "Leave these cells out: adata = adata[np.isfinite(adata.obsm[key]).all(axis=1)].copy()"
        )
        raise ValueError(msg)
    if metric == "cosine":
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
    return vectors


@numba.njit(cache=True, nogil=True, parallel=True)
def _pair_distances(
    queries: np.ndarray,
    vectors: np.ndarray,
    of: np.ndarray,
    rows: np.ndarray,
    is_cosine: bool,  # noqa: FBT001
    out: np.ndarray,
) -> None:  # pragma: no cover - compiled
    """Distance of `queries[of[i]]` and `vectors[rows[i]]`, summed one by one: the same in any company."""
    for i in numba.prange(len(of)):
        q, v = queries[of[i]], vectors[rows[i]]
        if is_cosine:
            dot = qq = vv = 0.0
            for j in range(len(q)):
                a, b = np.float64(q[j]), np.float64(v[j])
                dot += a * b
                qq += a * a
                vv += b * b
            out[i] = 1.0 - dot / np.sqrt(qq * vv) if qq > 0 and vv > 0 else 1.0
        else:
            total = 0.0
            for j in range(len(q)):
                gap = np.float64(q[j]) - np.float64(v[j])
                total += gap * gap
            out[i] = np.sqrt(total)
        out[i] = max(out[i], 0.0)


def _first(of: np.ndarray, rows: np.ndarray, distances: np.ndarray, *, n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The first `k` by distance, then row, of each of `n` queries; rows `(n, k)` and distances."""
    order = np.lexsort((rows, distances, of))
    of, rows, distances = of[order], rows[order], distances[order]
    place = np.arange(len(of)) - np.searchsorted(of, np.arange(n))[of]
    kept = place < k
    out_rows, out = np.full((n, k), -1, np.int64), np.full((n, k), np.inf)
    out_rows[of[kept], place[kept]], out[of[kept], place[kept]] = rows[kept], distances[kept]
    return out_rows, out


def search_all(
    queries: np.ndarray, vectors: np.ndarray, k: int, *, metric: Metric, n_queries: int = _QUERIES, n_rows: int = _ROWS
) -> Neighbours:
    """Compare queries with every vector; the result does not depend on the size of the blocks.

    Float32 products tell what may be among the nearest, with room for their rounding; what may be is compared in double
    precision.

    Parameters
    ----------
    queries, vectors
        Float32, shapes `(n_queries, n_dims)` and `(n, n_dims)`; of length 1 for cosine.
    k
        Number of neighbours.
    metric
        What they are compared by.
    n_queries, n_rows
        Queries and vectors of a block.
    """
    found = [
        _search_block(queries[start : start + n_queries], vectors, k, metric, n_rows)
        for start in range(0, len(queries), n_queries)
    ]
    rows = np.concatenate([np.zeros((0, k), np.int64), *(rows for rows, _ in found)])
    return Neighbours(rows, np.concatenate([np.zeros((0, k)), *(gaps for _, gaps in found)]).astype(np.float32))


def _search_block(
    queries: np.ndarray, vectors: np.ndarray, k: int, metric: Metric, n_rows: int
) -> tuple[np.ndarray, np.ndarray]:
    n, is_cosine = len(queries), metric == "cosine"
    rows, gaps = np.full((n, k), -1, np.int64), np.full((n, k), np.inf)
    longest = np.linalg.norm(queries, axis=1)
    squares = np.square(longest, dtype=np.float64)
    eps = _ROUNDING * np.finfo(np.float32).eps * np.sqrt(queries.shape[1])
    for start in range(0, len(vectors), n_rows):
        block = np.asarray(vectors[start : start + n_rows], dtype=np.float32)
        scores = queries @ block.T
        half = np.zeros(len(block), np.float32) if is_cosine else 0.5 * np.square(block).sum(axis=1)
        scores -= half
        last = gaps[:, -1]  # as a score: of the k-th neighbour so far
        limit = 1.0 - last if is_cosine else 0.5 * (squares - last**2)
        if not np.isfinite(last).all() and len(block) >= k:
            limit = np.maximum(limit, np.partition(scores, -k, axis=1)[:, -k])
        slack = eps * (longest * np.sqrt(2 * half.max()) + squares + half.max()) if not is_cosine else 2 * eps
        of, found = np.nonzero(scores >= np.float32(limit - slack)[:, None])
        distances = np.empty(len(of))
        _pair_distances(queries, block, of, found, is_cosine, distances)
        known = rows >= 0
        of = np.concatenate([np.nonzero(known)[0], of])
        found = np.concatenate([rows[known], found + start])
        rows, gaps = _first(of, found, np.concatenate([gaps[known], distances]), n=n, k=k)
    return rows, gaps


def rank(queries: np.ndarray, candidates: np.ndarray, vectors: np.ndarray, k: int, *, metric: Metric) -> Neighbours:
    """The nearest of some candidates, compared as :func:`search_all` does.

    Parameters
    ----------
    queries
        Float32, shape `(n_queries, n_dims)`.
    candidates
        Rows of `vectors`, int64, shape `(n_queries, n_candidates)`; -1 for none.
    vectors
        Float16 or float32, shape `(n, n_dims)`; only the candidates are read.
    k
        Number of neighbours.
    metric
        What they are compared by.
    """
    rows, gaps = np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), np.inf)
    step = max(_PAIRS // max(candidates.shape[1], 1), 1)
    for start in range(0, len(queries), step):
        some = candidates[start : start + step]
        of, place = np.nonzero(some >= 0)
        found = some[of, place]
        taken = np.asarray(vectors[found], dtype=np.float32)
        distances = np.empty(len(of))
        _pair_distances(queries[start : start + step], taken, of, np.arange(len(of)), metric == "cosine", distances)
        part = slice(start, start + len(some))
        rows[part], gaps[part] = _first(of, found, distances, n=len(some), k=k)
    return Neighbours(rows, gaps.astype(np.float32))
