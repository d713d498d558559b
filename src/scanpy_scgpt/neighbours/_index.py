"""`NeighbourIndex`: vectors, names and labels of reference cells, searched by one of several methods."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, get_args

import numpy as np

from scanpy_scgpt._types import Metric, NeighbourMethod
from scanpy_scgpt._validate import check_one_of, seed_of
from scanpy_scgpt.disk import alone_with

from ._blocks import CellBlock, blocks_of
from ._cells import add_labels, add_names, names_of
from ._engine import Engine, choose_method
from ._exact import Neighbours, as_vectors, rank, search_all
from ._storage import MANIFEST, Arrays, FolderArrays, IndexFormatError, check_place, new_folder, read_manifest

_COPIED = 2**24  # bytes at a time
_PROBES = 32  # lists that are looked through


class NeighbourIndex:
    """Reference cells that are found by their vectors; made by `build` or `load`.

    Parameters
    ----------
    arrays
        Vectors, names, labels and what the method needs, in memory or in a folder.
    content
        What the manifest of a folder says of them.

    Attributes
    ----------
    content
        Method, metric, sizes, origin of the vectors, categories of the labels.
    """

    def __init__(self, arrays: Any, content: Mapping[str, Any]) -> None:
        self._arrays, self.content = arrays, dict(content)
        self._engine = Engine(arrays, self.content)

    def __repr__(self) -> str:
        where = f" in {str(self.folder)!r}" if self.folder else ""
        return f"NeighbourIndex({len(self):,} cells of {self.n_dims}, {self.method}, {self.metric}{where})"

    def __len__(self) -> int:
        return self.content["n_cells"]

    @classmethod
    def build(
        cls,
        vectors: np.ndarray | Iterable[CellBlock],
        *,
        names: Sequence[str] | None = None,
        labels: Mapping[str, Sequence[str]] | None = None,
        method: NeighbourMethod = "auto",
        metric: Metric = "cosine",
        n_cells: int | None = None,
        origin: Mapping[str, Any] | None = None,
        path: str | os.PathLike[str] | None = None,
        overwrite: bool = False,
        rng: int | np.random.Generator | None = 0,
    ) -> NeighbourIndex:
        """Make an index.

        Parameters
        ----------
        vectors
            Shape `(n, n_dims)`; or blocks of cells, which are written to `path` one after the other, so that the memory
            does not grow with their number.
        names
            Names of the cells; numbers by default.
        labels
            Values by key, each of shape `(n,)`; NaN or None for none.
        method
            `"exact"` (compares with all), `"hnsw"` (a graph) and `"ivf"` (lists) of faiss, `"pq"` (codes 100 times
            smaller than the vectors choose a shortlist, which is compared by vectors on disk), or `"auto"`: exact below
            100,000 cells, hnsw to a million (exact where faiss is not installed), pq beyond.
        metric
            `"cosine"` or `"euclidean"`.
        n_cells
            Of blocks: about how many cells will come, for `method="auto"`.
        origin
            What made the vectors, as JSON holds it.
        path
            Folder for the index; by default it stays in memory.
        overwrite
            Replace an index there, once the new one is complete.
        rng
            Seed of what the method draws.

        Returns
        -------
        The index.

        Raises
        ------
        ValueError
            When there are no cells, values are not finite, or lengths differ.
        FileExistsError
            When there is something at `path`.
        ImportError
            When the method needs faiss and that is not installed.
        """
        check_one_of(metric, get_args(Metric), name="metric")
        if isinstance(vectors, np.ndarray):
            vectors, n_cells = blocks_of(as_vectors(vectors, "euclidean", name="vectors"), names, labels), len(vectors)
        content = {"method": choose_method(method, n_cells or 0), "metric": metric, "n_cells": 0, "n_dims": 0}
        content |= {"seed": str(seed_of(rng)), "origin": dict(origin or {}), "categories": {}}
        if path is None:
            return cls(Arrays(), content)._filled(vectors)
        folder = Path(path).expanduser()
        check_place(folder, overwrite=overwrite)
        with new_folder(folder) as (arrays, place):
            cls(arrays, content)._filled(vectors)
            place()
        return cls.load(folder)

    def _filled(self, blocks: Iterable[CellBlock]) -> NeighbourIndex:
        for block in blocks:
            if not self.content["n_dims"]:
                self.content["n_dims"] = int(np.shape(block.vectors)[-1])
                self.content["categories"] = {str(key): [] for key in block.labels}
            self._add(block)
        if not len(self):
            msg = "There are no cells for the index: give at least one, with a label where labels are asked for."
            raise ValueError(msg)
        self._engine.prepare()
        self._arrays.settle(self.content)
        return self

    def _add(self, block: CellBlock) -> None:
        vectors = as_vectors(block.vectors, self.metric, name="vectors", n_dims=self.n_dims)
        if len(block.names) != len(vectors):
            msg = f"names has {len(block.names):,} values for {len(vectors):,} cells: give one for each."
            raise ValueError(msg)
        labels = {str(key): values for key, values in block.labels.items()}
        categories = add_labels(self._arrays, self.content["categories"], labels, n=len(vectors))
        self._arrays.grow("vectors", vectors.astype("<f2" if self.method == "pq" else "<f4"))
        add_names(self._arrays, block.names)
        self.content.update(categories=categories, n_cells=len(self) + len(vectors))

    @property
    def folder(self) -> Path | None:
        """Where it lies; None in memory."""
        return self._arrays.folder

    @property
    def method(self) -> NeighbourMethod:
        """How it is searched."""
        return self.content["method"]

    @property
    def metric(self) -> Metric:
        """What vectors are compared by."""
        return self.content["metric"]

    @property
    def n_dims(self) -> int:
        """Width of the vectors."""
        return self.content["n_dims"]

    @property
    def origin(self) -> dict[str, Any]:
        """What made the vectors, such as `model` and `model_hash`."""
        return self.content["origin"]

    @property
    def labels_keys(self) -> list[str]:
        """Keys of the labels."""
        return list(self.content["categories"])

    @property
    def memory_bytes(self) -> int:
        """Bytes that every search reads; the rest, names and (of `"pq"`) vectors, is read where it is needed."""
        return self._engine.memory()

    @property
    def digest(self) -> str:
        """What tells it from another index, 16 hexadecimal digits."""
        hashed = hashlib.blake2b(digest_size=8)
        if self.folder is not None:
            hashed.update((self.folder / MANIFEST).read_bytes())
            return hashed.hexdigest()
        hashed.update(repr(sorted(self.content.items())).encode())
        for name in ("vectors", "names", *(f"label {key}" for key in self.labels_keys)):
            hashed.update(np.ascontiguousarray(self._arrays[name]).tobytes())
        return hashed.hexdigest()

    def search(
        self, queries: np.ndarray, n_neighbors: int = 15, *, shortlist: int = 400, n_probe: int | None = None
    ) -> Neighbours:
        """Find the nearest cells.

        Every method chooses candidates; their distances are computed one by one in double precision, so that equal
        distances are in the order of the rows, in any company.

        Parameters
        ----------
        queries
            Shape `(n_queries, n_dims)`.
        n_neighbors
            Number of neighbours.
        shortlist
            Of `"pq"`: candidates that are compared by their vectors, at least four times the neighbours.
        n_probe
            Of `"pq"` and `"ivf"`: lists that are looked through, 32 by default; more find more, in more time.

        Returns
        -------
        Rows and distances of the neighbours.

        Raises
        ------
        ValueError
            When the width is another, values are not finite, or a number is less than 1.
        ImportError
            When the method needs faiss and that is not installed.
        """
        for name, value in {"n_neighbors": n_neighbors, "shortlist": shortlist, "n_probe": n_probe or 1}.items():
            if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
                msg = f"{name}={value!r}: a whole number of at least 1."
                raise ValueError(msg)
        queries = as_vectors(queries, self.metric, name="queries", n_dims=self.n_dims)
        vectors, k, n_probe = self._arrays["vectors"], int(n_neighbors), n_probe or _PROBES
        if self.method == "exact":
            return search_all(queries, vectors, k, metric=self.metric)
        found = self._engine.candidates(queries, k, shortlist=shortlist, n_probe=n_probe)
        return rank(queries, found, vectors, k, metric=self.metric)

    def names(self, rows: np.ndarray) -> np.ndarray:
        """Names of cells, object, of the shape of `rows`; empty for -1."""
        return names_of(self._arrays, rows)

    def categories(self, key: str) -> list[str]:
        """Labels of a key, in the order of their codes."""
        return self.content["categories"][key]

    def codes(self, key: str) -> np.ndarray:
        """Label of every cell as a code, int32, shape `(n,)`; -1 for none."""
        return self._arrays[f"label {key}"]

    def label_counts(self, key: str) -> np.ndarray:
        """Number of cells of each label of a key, int64, shape `(n_labels,)`."""
        codes, counts = self.codes(key), np.zeros(len(self.categories(key)), np.int64)
        for start in range(0, len(codes), _COPIED):
            block = codes[start : start + _COPIED]
            counts += np.bincount(block[block >= 0], minlength=len(counts))
        return counts

    def append(
        self,
        vectors: np.ndarray | Iterable[CellBlock],
        *,
        names: Sequence[str] | None = None,
        labels: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """Add cells, in memory or in the folder: all of them or, after an error or a kill, none.

        Codes and lists stay those that were learned of the first cells; build anew after cells of another kind.

        Parameters
        ----------
        vectors, names, labels
            As in :meth:`build`; made by the same model, with the same keys of labels.

        Raises
        ------
        ValueError
            When they do not fit the index.
        RuntimeError
            When another process appends to the folder, or has done so since it was loaded.
        """
        if isinstance(vectors, np.ndarray):
            vectors = blocks_of(as_vectors(vectors, "euclidean", name="vectors"), names, labels, first=len(self))
        before, content = self._arrays.snapshot(), dict(self.content)
        with self._alone():
            try:
                for block in vectors:
                    self._add(block)
                self._engine.prepare()
                self._arrays.settle(self.content)
            except BaseException:
                self._arrays.restore(before)
                self.content = content
                self._engine.forget()
                raise

    @contextmanager
    def _alone(self) -> Iterator[None]:
        lock = nullcontext(enter_result=True) if self.folder is None else alone_with(self.folder / ".lock", wait=False)
        with lock as mine:
            if not mine or (self.folder and read_manifest(self.folder)["n_cells"] != len(self)):
                msg = f"{self.folder} is or was changed by another process. Load it again: NeighbourIndex.load(folder)."
                raise RuntimeError(msg)
            yield

    def save(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> NeighbourIndex:
        """Write it to a folder, whole or not at all: JSON and raw arrays.

        Parameters
        ----------
        folder
            A new folder.
        overwrite
            Replace an index there, once the new one is complete.

        Returns
        -------
        The index in the folder.

        Raises
        ------
        FileExistsError
            When there is something already.
        FileNotFoundError
            When the folder that is to hold it is missing.
        """
        folder = Path(folder).expanduser()
        check_place(folder, overwrite=overwrite)
        with new_folder(folder) as (arrays, place):
            whole = {name: self._arrays[name] for name in self._arrays.known()} | self._engine.to_arrays()
            for name, array in whole.items():
                step = max(_COPIED * len(array) // max(array.nbytes, 1), 1)
                for start in range(0, max(len(array), 1), step):
                    arrays.grow(name, array[start : start + step])
            arrays.settle(self.content)
            place()
        return type(self).load(folder)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> NeighbourIndex:
        """Open the index of a folder; its arrays are memory-mapped when they are needed.

        Parameters
        ----------
        folder
            What :meth:`save` or :meth:`build` wrote.

        Returns
        -------
        The index.

        Raises
        ------
        FileNotFoundError
            When there is none.
        IndexFormatError
            When it is incomplete, damaged or of a newer version.
        """
        folder = Path(folder).expanduser()
        content = read_manifest(folder)
        try:
            arrays = FolderArrays(folder, content.pop("arrays"))
            content.pop("format_version")
            return cls(arrays, {name: content[name] for name in (*_CONTENT, *content)})
        except (KeyError, TypeError) as error:
            msg = f"{folder / MANIFEST} lacks {error}. Copy the folder again, or build it anew."
            raise IndexFormatError(msg) from error

    def verify(self) -> None:
        """Compare the files of a folder with their checksums; nothing to do in memory.

        Raises
        ------
        IndexFormatError
            When one differs.
        """
        if isinstance(self._arrays, FolderArrays):
            self._arrays.verify()


_CONTENT = ("method", "metric", "n_cells", "n_dims", "seed", "origin", "categories")
