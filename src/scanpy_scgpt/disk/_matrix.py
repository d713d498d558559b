"""A matrix in a file, read by ranges of rows."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from scanpy_scgpt._counts import by_columns_text

from ._kernels import place_rows
from ._stored import Stored, attribute, opened

if TYPE_CHECKING:
    from ._stored import Node

_BLOCK_ROWS = 64  # rows that are asked for at a time
_TINY, _HUGE, _WASTE = 1024, 2**16, 16  # values of a chunk; how many blocks of rows a chunk may hold
_FORMATS = {"csr_matrix": "csr", "csc_matrix": "csc", "csr": "csr", "csc": "csc"}
_PARTS = ("data", "indices", "indptr")
_MAX_INT32 = 2**31 - 1
_PIECE, _WHOLE = 2**16, 2**62  # entries read and put in their places at a time: they fit into the cache


class DiskMatrix:
    """A matrix inside an `.h5ad` file or `.zarr` folder (v2, v3, sharded), read by rows.

    It holds no open file that matters: it can be pickled, read from threads, and used after a fork.

    Parameters
    ----------
    path
        HDF5 file or zarr folder.
    name
        Place of the matrix in it, such as `X`, `layers/counts`, `raw/X` or `mod/rna/X`.

    Attributes
    ----------
    shape
        `(n_obs, n_vars)`.
    dtype
        Type of the values.
    format
        `"csr"`, `"dense"` or `"csc"`; rows of the last cannot be read.

    Raises
    ------
    FileNotFoundError
        When there is no such file.
    KeyError
        When the file has nothing of this name.
    OSError
        When the file is cut off or no HDF5 or zarr.
    ValueError
        When the element is no matrix, or its parts do not fit each other.
    """

    on_disk = True
    ndim = 2

    def __init__(self, path: str | os.PathLike[str], name: str = "X") -> None:
        self.path, self.name = Path(path), name.strip("/")
        with opened(self.path) as root:
            if self.name not in root:
                msg = f"{self.path} has no element {self.name!r}. It has: {', '.join(map(repr, root)) or 'nothing'}."
                raise KeyError(msg)
            self._describe(root[self.name])

    def _describe(self, node: Node) -> None:
        kind = attribute(node, "encoding-type", "h5sparse_format")
        if hasattr(node, "dtype"):
            if len(node.shape) != self.ndim or np.dtype(node.dtype).kind not in "iufb":
                raise ValueError(self._text(f"is no matrix but {node.dtype} of shape {tuple(node.shape)}."))
            self.format, self.shape = "dense", tuple(map(int, node.shape))
            self._data = Stored(self.path, self.name, node)
        else:
            missing = [part for part in _PARTS if part not in node]
            if kind not in _FORMATS or missing:
                found = f"encoding {kind!r}" + (f", without {missing[0]!r}" if missing else "")
                raise ValueError(self._text(f"is no matrix ({found})."))
            self.format = _FORMATS[kind]
            self.shape = tuple(int(n) for n in attribute(node, "shape", "h5sparse_shape"))
            self._data, self._indices, self._indptr = (
                Stored(self.path, f"{self.name}/{part}", node[part]) for part in _PARTS
            )
            self._check_sizes()
        self._compression = _compression(node if self.format == "dense" else node["data"])
        self.dtype = self._data.dtype.newbyteorder("=")

    def _text(self, what: str) -> str:
        return f"{self.path}: {self.name} {what}"

    def _check_sizes(self) -> None:
        major = self.shape[self.format == "csc"]
        sizes = [part.size for part in (self._data, self._indices, self._indptr)]
        if sizes[0] != sizes[1] or sizes[2] != major + 1:
            msg = (
                f"has {sizes[0]:,} data, {sizes[1]:,} indices and {sizes[2]:,} indptr for shape {self.shape}: they do "
                "not fit each other. The file was not written to its end; write or download it again."
            )
            raise ValueError(self._text(msg))

    def __repr__(self) -> str:
        shape = f"{self.shape[0]:,} x {self.shape[1]:,}"
        return f"DiskMatrix({self.format}, {shape}, {self.dtype}, {self.path}:{self.name})"

    @property
    def parts(self) -> tuple[Stored, ...]:
        """The arrays with the values: of a sparse matrix data and indices."""
        return (self._data,) if self.format == "dense" else (self._data, self._indices)

    @cached_property
    def indptr(self) -> np.ndarray:
        """First entry of each row (CSR) or column (CSC), shape `(n + 1,)`, int64."""
        found = self._indptr.read(np.array([0]), np.array([self._indptr.size])).astype(np.int64, copy=False)
        if found[0] != 0 or found[-1] != self._data.size or (np.diff(found) < 0).any():
            msg = (
                f"has an indptr from {found[0]:,} to {found[-1]:,}"
                f"{'' if (np.diff(found) >= 0).all() else ' that falls in between'}, but {self._data.size:,} data. "
                "The file was not written to its end; write or download it again."
            )
            raise ValueError(self._text(msg))
        return found

    def __getitem__(self, rows: slice) -> Any:
        """Rows `start:stop`: a CSR matrix, or an array when the matrix is dense."""
        if not isinstance(rows, slice) or rows.step not in (None, 1):
            msg = self._text(f"is read by ranges of rows, matrix[start:stop]; asked for {rows!r}.")
            raise TypeError(msg)
        start, stop, _ = rows.indices(self.shape[0])
        starts, stops = np.array([start]), np.array([max(start, stop)])
        self._check_rows()
        return self._dense(starts, stops) if self.format == "dense" else self._rows(starts, stops, None)[0]

    def take_blocks(self, starts: np.ndarray, stops: np.ndarray, order: np.ndarray | None = None) -> sparse.csr_matrix:
        """Several ranges of rows, one after another in the order asked for.

        Parameters
        ----------
        starts, stops
            First rows, and rows after the last ones, of the ranges; int, shape `(n_ranges,)`.
        order
            Each position among these rows once: row `order[i]` of them comes at place `i`; int, shape `(n_rows,)`.

        Returns
        -------
        CSR matrix `(sum of the lengths, n_vars)`.

        Raises
        ------
        IndexError
            When a range leaves the matrix.
        ValueError
            When `order` is no order of the rows.
        """
        return self.take_looked_at(starts, stops, order)[0]

    def take_looked_at(
        self, starts: np.ndarray, stops: np.ndarray, order: np.ndarray | None = None
    ) -> tuple[sparse.csr_matrix, bool]:
        """As :meth:`take_blocks`; and True when it is known that no value is negative, infinite or NaN."""
        starts, stops = np.asarray(starts, dtype=np.int64), np.asarray(stops, dtype=np.int64)
        wrong = np.flatnonzero((starts < 0) | (stops < starts) | (stops > self.shape[0]))
        if wrong.size:
            found = f"{starts[wrong[0]]}:{stops[wrong[0]]}"
            raise IndexError(self._text(f"has {self.shape[0]:,} rows, asked for {found}."))
        if order is not None:
            self._check_order(order, int((stops - starts).sum()))
        self._check_rows()
        if self.format == "csr":
            return self._rows(starts, stops, order)
        block = self._dense(starts, stops)
        if block.dtype == np.float16:
            block = block.astype(np.float32)  # scipy has no sparse half precision
        return sparse.csr_matrix(block if order is None else block[order]), False

    def _check_order(self, order: np.ndarray, n_rows: int) -> None:
        seen = np.zeros(n_rows, dtype=bool)
        if len(order) == n_rows and (n_rows == 0 or (np.min(order) >= 0 and np.max(order) < n_rows)):
            seen[order] = True
        if not seen.all() or len(order) != n_rows:
            msg = f"is asked for {n_rows:,} rows in an order of {len(order):,}: it must hold 0 to n - 1, each once."
            raise ValueError(self._text(msg))

    def _check_rows(self) -> None:
        if self.format == "csc":
            raise ValueError(by_columns_text(self._text("").strip()))

    def _dense(self, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
        n_cols = self.shape[1]
        return self._data.read(*_merged(starts * n_cols, stops * n_cols)).reshape(int((stops - starts).sum()), n_cols)

    def _rows(self, starts: np.ndarray, stops: np.ndarray, order: np.ndarray | None) -> tuple[sparse.csr_matrix, bool]:
        """Rows of a CSR matrix, a piece that fits into the cache at a time; True when all values are fine."""
        rows = rows_of(starts, stops)
        firsts, lasts = self.indptr[rows], self.indptr[rows + 1]
        sizes = lasts - firsts
        indptr = np.concatenate([[0], np.cumsum(sizes if order is None else sizes[order])])
        places = indptr[:-1]
        if order is not None:
            places = np.empty_like(indptr[:-1])
            places[order] = indptr[:-1]
        n, n_cols = int(indptr[-1]), self.shape[1]
        dtype = np.dtype("f4") if self.dtype == np.float16 else self.dtype  # scipy has no sparse half precision
        indices = np.empty(n, np.int32 if n_cols <= _MAX_INT32 else np.int64)
        data = np.empty(n, dtype)
        is_sorted, is_fine = self._place(firsts, lasts, places, indices, data)
        if max(n, n_cols) <= _MAX_INT32:
            indptr = indptr.astype(np.int32)
        block = sparse.csr_matrix((data, indices, indptr), shape=(rows.size, n_cols))
        if is_sorted:
            block.has_canonical_format = True
        return block, is_fine

    def _place(
        self, firsts: np.ndarray, lasts: np.ndarray, places: np.ndarray, indices: np.ndarray, data: np.ndarray
    ) -> tuple[bool, bool]:
        """Read rows to their places; True when each has its columns in order, True when all values are fine."""
        cuts = _pieces(firsts, lasts, _PIECE if self._data.is_plain and self._indices.is_plain else _WHOLE)
        columns, values = (part.each(firsts[cuts[:-1]], lasts[cuts[1:] - 1]) for part in (self._indices, self._data))
        top = largest(data.dtype)
        low, high, is_sorted, is_fine = 0, -1, True, True
        for start, stop, column, value in zip(cuts[:-1].tolist(), cuts[1:].tolist(), columns, values, strict=True):
            rows = firsts[start:stop] - firsts[start], lasts[start:stop] - firsts[start]
            seen = place_rows(
                *rows, column, value.astype(data.dtype, copy=False), places[start:stop], top, indices, data
            )
            low, high = min(low, seen[0]), max(high, seen[1])
            is_sorted, is_fine = is_sorted and seen[2], is_fine and seen[3]
        if low < 0 or high >= self.shape[1]:
            raise self.damaged(low, high)
        return is_sorted, is_fine

    def read_rows(
        self, starts: np.ndarray, stops: np.ndarray, space: Callable[[str, int, np.dtype], np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None:
        """Stored entries of ranges of rows as they lie in the file, for those that look at them; None unless CSR.

        Parameters
        ----------
        starts, stops
            As in :meth:`take_blocks`.
        space
            Gives an array for a name, a length and a type.

        Returns
        -------
        First entry of each row and the one behind its last, int64, shape `(n_rows,)`; columns and values.
        """
        if self.format != "csr" or self.dtype == np.float16:
            return None
        rows = rows_of(starts, stops)
        sizes = self.indptr[rows + 1] - self.indptr[rows]
        lasts = np.cumsum(sizes)
        ranges = _merged(self.indptr[starts], self.indptr[stops])
        n = int(sizes.sum())
        columns = self._indices.read(*ranges, out=space("indices", n, self._indices.dtype.newbyteorder("=")))
        return lasts - sizes, lasts, columns, self._data.read(*ranges, out=space("data", n, self.dtype))

    def damaged(self, low: int, high: int) -> ValueError:
        """The error for columns that leave the matrix."""
        what = f"has indices from {low:,} to {high:,}, and shape {self.shape}. The file is damaged; copy it again."
        return ValueError(self._text(what))

    def entries(self, firsts: np.ndarray, lasts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Stored entries of some ranges: columns (rows of a CSC matrix), checked, and values."""
        ranges = _merged(np.asarray(firsts), np.asarray(lasts))
        indices, minor = self._indices.read(*ranges), self.shape[self.format == "csr"]
        if indices.size and int(indices.view(f"u{indices.itemsize}").max()) >= minor:
            raise self.damaged(int(indices.min()), int(indices.max()))
        if minor <= _MAX_INT32:
            indices = indices.astype(np.int32, copy=False)
        return indices, self._data.read(*ranges)

    def layout_advice(self) -> str | None:
        """One line when the file is laid out so that reading blocks of rows is slow, else None."""
        values, in_chunk = self._data, int(np.prod(self._data.chunks or ()))
        per_row = self.shape[1] if self.format == "dense" else values.size / max(self.shape[0], 1)
        if self.format == "csc":
            reason = "lies by columns (CSC)"
        elif self._compression:
            reason = f"is compressed ({self._compression})"
        elif values.chunks is None or values.is_plain:
            return None
        elif in_chunk < min(_TINY, values.size):
            reason = f"lies in tiny chunks ({in_chunk:,} values)"
        elif in_chunk > max(_WASTE * _BLOCK_ROWS * per_row, _HUGE):
            reason = (
                f"lies in large chunks ({in_chunk:,} values, {_BLOCK_ROWS} cells have {_BLOCK_ROWS * per_row:,.0f})"
            )
        else:
            return None
        out = f"{self.path.stem}-plain{'.h5ad' if self.path.suffix.startswith('.h5') else '.zarr'}"
        line = f"disk.rewrite({str(self.path)!r}, {out!r})"
        return self._text(f"{reason}: blocks of cells are read slowly. Rewrite it once: {line}")

    def close(self) -> None:
        """Let the file go; the next read opens it again."""
        for part in self.parts:
            part.close()


def rows_of(starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """The rows of several ranges, one range after another, int64."""
    lengths = stops - starts
    return np.arange(int(lengths.sum())) + np.repeat(starts - np.cumsum(lengths) + lengths, lengths)


def largest(dtype: np.dtype) -> np.generic:
    """Largest finite number of a type, of that type."""
    return np.array(np.finfo(dtype).max if dtype.kind == "f" else np.iinfo(dtype).max, dtype)[()]


def _pieces(firsts: np.ndarray, lasts: np.ndarray, budget: int) -> np.ndarray:
    """Where to cut rows so that those between two cuts lie side by side and have about `budget` entries; int64."""
    if not firsts.size:
        return np.zeros(1, np.int64)
    new = np.append(True, firsts[1:] != lasts[:-1])
    begin = firsts[new][np.cumsum(new) - 1]  # of the run of rows that lie side by side
    number = (lasts - begin) // budget
    new[1:] |= number[1:] != number[:-1]
    return np.append(np.flatnonzero(new), firsts.size)


def _merged(starts: np.ndarray, stops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ranges of which none begins where the one before ends."""
    new = np.append(True, starts[1:] != stops[:-1])[: starts.size]
    last = np.append(new[1:], True)[: starts.size]
    return starts[new], stops[last]


def of_library(matrix: Any) -> Any:
    """A DiskMatrix for a matrix that AnnData, h5py or zarr has open, if its file can be opened again; else itself."""
    node = getattr(matrix, "group", matrix)
    if type(node).__module__.startswith("h5py") and node.file.driver == "sec2":
        node.file.flush()
        return DiskMatrix(node.file.filename, node.name)
    root = getattr(getattr(node, "store", None), "root", None)
    if type(node).__module__.startswith("zarr") and isinstance(root, Path):
        return DiskMatrix(root, node.path)
    return matrix


def _compression(node: Node) -> str | None:
    """Name of what compresses an array."""
    if hasattr(node, "id"):
        plan = node.id.get_create_plist()
        names = {1: "gzip", 2: "", 3: "", 4: "szip", 32000: "lzf", 32001: "blosc", 32015: "zstd"}
        filters = [plan.get_filter(i)[0] for i in range(plan.get_nfilters())]
        found = [names.get(number, f"filter {number}") for number in filters]  # shuffle and checksum have no name
    else:
        given = node.compressors if hasattr(node, "compressors") else [node.compressor]  # zarr 2 has one of them
        found = [type(codec).__name__.removesuffix("Codec").lower() for codec in given if codec is not None]
    return next((name for name in found if name), None)
