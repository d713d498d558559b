"""Indices of the faiss library: a navigable graph, or lists of whole vectors."""

from __future__ import annotations

from typing import Any

import numpy as np

from scanpy_scgpt._optional import require

_BLOCK = 2**15
_LINKS, _BUILD, _SEARCH = 32, 100, 512  # of a cell in the graph; candidates looked at to build, to search
_SPARE = 16  # candidates beyond the neighbours


def faiss_module(method: str) -> Any:
    """The library, or an error that names the extra."""
    return require("faiss", extra="faiss", needed_for=f"method={method!r}")


def build(vectors: np.ndarray, *, method: str, n_lists: int, seed: int) -> Any:
    """An index of faiss :cite:p:`Douze2024` over vectors, read by blocks.

    Parameters
    ----------
    vectors
        Shape `(n, n_dims)`.
    method
        `"hnsw"` :cite:p:`Malkov2020` or `"ivf"`.
    n_lists
        Lists of `"ivf"`.
    seed
        Seed of what is drawn.
    """
    faiss = faiss_module(method)
    n_dims = vectors.shape[1]
    if method == "hnsw":
        index = faiss.IndexHNSWFlat(n_dims, _LINKS)
        index.hnsw.efConstruction = _BUILD
    else:
        lists = faiss.IndexFlatL2(n_dims)
        index = faiss.IndexIVFFlat(lists, n_dims, n_lists)
        lists.this.disown()
        index.own_fields = True
        index.cp.seed = seed % 2**31
        index.cp.min_points_per_centroid = 1
        n = min(len(vectors), 64 * n_lists)
        rows = np.random.default_rng(seed).choice(len(vectors), n, replace=False)
        index.train(np.asarray(vectors[np.sort(rows)], dtype=np.float32))
    return add(index, vectors)


def add(index: Any, vectors: np.ndarray) -> Any:
    """Append vectors that the index does not have yet: those from its number on."""
    for start in range(index.ntotal, len(vectors), _BLOCK):
        index.add(np.ascontiguousarray(vectors[start : start + _BLOCK], dtype=np.float32))
    return index


def candidates(index: Any, queries: np.ndarray, k: int, *, n_probe: int) -> np.ndarray:
    """Rows that are near, int64, shape `(n_queries, k + 16)`; -1 for none."""
    if hasattr(index, "hnsw"):
        index.hnsw.efSearch = max(_SEARCH, 2 * (k + _SPARE))
    else:
        index.nprobe = n_probe
    return index.search(np.ascontiguousarray(queries, dtype=np.float32), k + _SPARE)[1]


def to_bytes(index: Any) -> np.ndarray:
    """The index as the library writes it, uint8."""
    return faiss_module("hnsw").serialize_index(index)


def from_bytes(data: np.ndarray, *, method: str) -> Any:
    """The index again."""
    return faiss_module(method).deserialize_index(np.ascontiguousarray(data))
