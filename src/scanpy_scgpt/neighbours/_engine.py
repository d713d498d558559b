"""What a method keeps beside the vectors, and the candidates that it finds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

import numpy as np

from scanpy_scgpt._logging import get_logger
from scanpy_scgpt._optional import is_installed
from scanpy_scgpt._types import NeighbourMethod
from scanpy_scgpt._validate import check_one_of

from . import _codes, _graph
from ._storage import Arrays

logger = get_logger(__name__)
_EXACT_UP_TO, _GRAPH_UP_TO = 100_000, 1_000_000
_SAMPLE, _MOST = 51_200, 2**17  # at least and at most so many vectors train codes
_LISTS = ("codes", "rows", "ends")


def choose_method(method: NeighbourMethod, n_cells: int) -> NeighbourMethod:
    """The method that is taken for so many cells.

    Parameters
    ----------
    method
        As in :meth:`NeighbourIndex.build`.
    n_cells
        Number of cells.

    Returns
    -------
    A method other than `"auto"`.

    Raises
    ------
    ValueError
        When there is no such method.
    ImportError
        When it needs faiss and that is not installed.
    """
    check_one_of(method, get_args(NeighbourMethod), name="method")
    if method in {"hnsw", "ivf"}:
        _graph.faiss_module(method)
    if method != "auto":
        return method
    if n_cells < _EXACT_UP_TO:
        return "exact"
    if n_cells > _GRAPH_UP_TO:
        return "pq"
    if is_installed("faiss"):
        return "hnsw"
    logger.info(
        "index: %s cells are searched exactly, as faiss is not installed; for a faster graph: "
        "pip install 'scanpy-scgpt[faiss]', or method='pq'.",
        f"{n_cells:,}",
    )
    return "exact"


class Engine:
    """The part of an index that depends on its method, other than `"exact"`.

    Parameters
    ----------
    arrays
        Of the index; the engine adds its own.
    content
        Of the index: method, seed.
    """

    def __init__(self, arrays: Arrays, content: Mapping[str, Any]) -> None:
        self._arrays, self.method, self.seed = arrays, content["method"], int(content["seed"])
        self._graph: Any = None
        self._quantiser: _codes.Quantiser | None = None

    def prepare(self) -> None:
        """Bring what the method needs up to all vectors."""
        if self.method == "pq":
            self._encode()
        elif self.method != "exact":
            self._graph = _graph.add(self._faiss(), self._arrays["vectors"])
            if self._arrays.folder is not None:
                self._arrays.put("faiss", _graph.to_bytes(self._graph))

    def forget(self) -> None:
        """Take what is in the arrays again."""
        self._graph = self._quantiser = None

    def _encode(self) -> None:
        arrays, vectors = self._arrays, self._arrays["vectors"]
        old = {name: arrays[name] for name in _LISTS} if "codes" in arrays else None
        if old is None:
            n_lists, n_bytes = _codes.shape_of(*vectors.shape)
            rng = np.random.default_rng(self.seed)
            n = min(len(vectors), np.clip(_codes.PER_LIST * n_lists, _SAMPLE, _MOST))
            rows = rng.choice(len(vectors), n, replace=False)
            order = np.argsort(rows)  # read from the first row to the last, used in the order of the draw
            sample = np.empty((len(rows), vectors.shape[1]), np.float32)
            sample[order] = vectors[rows[order]]
            trained = _codes.Quantiser.train(sample, n_lists=n_lists, n_bytes=n_bytes, rng=rng)
            for name, array in trained.arrays().items():
                arrays.put(name, array)
        for name, array in _codes.sort_into_lists(vectors, self._coder(), arrays.allocate, old).items():
            arrays.put(name, array)

    def _coder(self) -> _codes.Quantiser:
        if self._quantiser is None:
            self._quantiser = _codes.Quantiser.from_arrays(self._arrays)
        return self._quantiser

    def _faiss(self) -> Any:
        if self._graph is None:
            arrays = self._arrays
            if "faiss" in arrays:
                self._graph = _graph.from_bytes(arrays["faiss"], method=self.method)
            else:
                n_lists = _codes.shape_of(*arrays["vectors"].shape)[0]
                self._graph = _graph.build(arrays["vectors"], method=self.method, n_lists=n_lists, seed=self.seed)
        return self._graph

    def candidates(self, queries: np.ndarray, k: int, *, shortlist: int, n_probe: int) -> np.ndarray:
        """Rows that may be near, int64, shape `(n_queries, n_candidates)`; -1 for none."""
        if self.method != "pq":
            return _graph.candidates(self._faiss(), queries, k, n_probe=n_probe)
        lists = {name: self._arrays[name] for name in _LISTS}
        size = min(max(shortlist, 4 * k), len(lists["rows"]))
        return _codes.shortlist_of(queries, self._coder(), lists, shortlist=size, n_probe=n_probe)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """What is not in the arrays yet."""
        return {} if self.method in {"exact", "pq"} or "faiss" in self._arrays else {"faiss": self.to_bytes()}

    def to_bytes(self) -> np.ndarray:
        """The graph or lists of faiss, uint8."""
        return _graph.to_bytes(self._faiss())

    def memory(self) -> int:
        """Bytes that every search reads."""
        if self.method == "exact":
            return self._arrays["vectors"].nbytes
        if self.method == "pq":
            return _codes.memory(self._coder(), self._arrays)
        return (self._arrays["faiss"] if "faiss" in self._arrays else self.to_bytes()).nbytes
