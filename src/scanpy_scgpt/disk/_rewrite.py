"""Rewriting of files of cells to plain rows."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from scanpy_scgpt._logging import get_logger

from ._cells import CellFile, is_absent, open_cells
from ._matrix import DiskMatrix
from ._stored import opened

if TYPE_CHECKING:
    from ._stored import Node

logger = get_logger(__name__)
_CHUNK = 2**18  # values: one megabyte of float32
_MAX_INT32 = 2**31 - 1
_STEP, _BY_COLUMNS = 2**22, 2**25  # entries copied at a time; of a matrix by columns in one pass


def rewrite(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    chunk: int = _CHUNK,
    modality: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Copy a file of cells so that blocks of cells are read fast: rows (CSR), not compressed.

    `X`, the layers and `raw.X` are streamed, so the memory does not grow with them; a matrix by columns (CSC) is gone
    through once for every 32 million entries. Dense matrices of which less than half is not zero become CSR. All other
    elements are read and written one by one.

    Parameters
    ----------
    path
        File or folder as for :func:`open_cells`.
    out
        New file; the ending `.h5ad` or `.zarr` decides about its kind.
    chunk
        Values of a chunk of a `.zarr` folder; an `.h5ad` file has none.
    modality
        Modality of a MuData.
    overwrite
        Replace what stands at `out`; it stays until the new file is complete. The new one is written to a hidden file
        beside it: one call at a time for the same `out`.

    Returns
    -------
    The path of the new file.

    Raises
    ------
    FileExistsError
        When there is something at `out`.
    ValueError
        When `out` ends otherwise, or `chunk` is too small.
    """
    cells, out = open_cells(path, modality=modality), Path(out)
    if out.suffix not in {".h5ad", ".zarr"}:
        msg = f"out={str(out)!r}: the name must end in .h5ad or .zarr."
        raise ValueError(msg)
    if chunk < 1:
        msg = f"chunk={chunk}: use 1 or more values per chunk; {_CHUNK:,} are a good start."
        raise ValueError(msg)
    draft, old = (out.with_name(f".{out.name}.{role}") for role in ("part", "old"))
    if old.exists() and not out.exists():  # a call was killed while it put its file in place
        old.rename(out)
    if out.exists() and not overwrite:
        msg = f"out={str(out)!r} exists. Name another place, or pass overwrite=True."
        raise FileExistsError(msg)
    _remove(draft)  # of a call that was killed
    try:
        _write(cells, draft, is_zarr=out.suffix == ".zarr", chunk=chunk)
        _place(draft, out, old)
    finally:
        _remove(draft)
    logger.info("rewrite: %s cells · %s → %s", f"{cells.n_obs:,}", cells.path, out)
    return out


def _write(cells: CellFile, draft: Path, *, is_zarr: bool, chunk: int) -> None:
    from anndata.io import write_elem

    target = new_root(draft, is_zarr=is_zarr)
    try:
        target.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        for name in _elements(cells):
            group, _, last = name.rpartition("/")
            if group:
                target.require_group(group).attrs.update(
                    {"encoding-type": "raw" if group == "raw" else "dict", "encoding-version": "0.1.0"}
                )
            parent = target[group] if group else target
            if name in {"X", "raw/X"} or group == "layers":
                copy_rows(DiskMatrix(cells.path, cells.place(name)), parent, last, chunk=chunk)
            else:
                write_elem(parent, last, cells.read(name))
    finally:
        if hasattr(target, "close"):
            target.close()


def _elements(cells: CellFile) -> list[str]:
    """Everything in the file; `layers` and `raw` by their parts."""
    with opened(cells.path) as root:
        node = root[cells.place("").rstrip("/")] if cells.modality else root
        parts = {name for name in ("layers", "raw") if not is_absent(node, name)}
        inner = [f"{name}/{part}" for name in sorted(parts) for part in node[name]]
        return [name for name in node if name not in parts and not is_absent(node, name)] + inner


def _place(draft: Path, out: Path, old: Path) -> None:
    """Put a finished draft in the place of what is there, which lies at `old` for a moment."""
    _remove(old)
    if not out.exists() or (out.is_file() and draft.is_file()):
        os.replace(draft, out)
        return
    out.rename(old)
    draft.rename(out)
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def new_root(path: Path, *, is_zarr: bool) -> Any:
    """The root group of a new HDF5 file or zarr folder."""
    if is_zarr:
        import zarr

        return zarr.open_group(path, mode="w", zarr_format=2)  # every version of anndata reads it
    import h5py

    return h5py.File(path, "w")


def copy_rows(matrix: DiskMatrix, group: Node, name: str, *, chunk: int) -> None:
    """Write a matrix into the group of another file: CSR, or dense where at least half of it is not zero.

    Parameters
    ----------
    matrix
        What to copy; streamed, a block of rows at a time.
    group, name
        Place of the copy: an open group of HDF5 or zarr.
    chunk
        Values of a chunk of a zarr array.
    """
    if matrix.format == "csr":
        lengths = np.diff(matrix.indptr)
    else:
        lengths = _entries_per_row(matrix)
        if matrix.format == "dense" and 2 * int(lengths.sum()) >= max(int(np.prod(matrix.shape)), 1):
            _copy_dense(matrix, group, name, chunk=chunk)
            return
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    copy = group.create_group(name)
    copy.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": list(matrix.shape)})
    dtype = np.dtype("f4") if matrix.dtype == np.float16 else matrix.dtype  # scipy has no sparse half precision
    dtypes = {"data": dtype, "indices": np.dtype("i4" if matrix.shape[1] <= _MAX_INT32 else "i8")}
    arrays = [_new_array(copy, part, (int(indptr[-1]),), dtype, chunk) for part, dtype in dtypes.items()]
    _new_array(copy, "indptr", indptr.shape, indptr.dtype, chunk)[:] = indptr
    by_columns = matrix.format == "csc"
    for start, stop in _row_ranges(indptr, _BY_COLUMNS if by_columns else _STEP):
        block = _rows_of_columns(matrix, start, stop) if by_columns else matrix.take_blocks([start], [stop])
        for array, values in zip(arrays, (block.data, block.indices), strict=True):
            if values.size:
                array[int(indptr[start]) : int(indptr[stop])] = values


def _new_array(group: Node, name: str, shape: tuple[int, ...], dtype: np.dtype, chunk: int) -> Any:
    """An array without compression: in HDF5 in one piece, in zarr in chunks."""
    if hasattr(group, "id"):
        array = group.create_dataset(name, shape=shape, dtype=dtype)
    else:
        width = max(int(np.prod(shape[1:])), 1)
        chunks = (max(min(chunk // width, shape[0]), 1), *shape[1:])
        array = group.create_array(
            name, shape=shape, dtype=dtype, chunks=chunks, compressors=None, config={"write_empty_chunks": True}
        )
    array.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    return array


def _row_ranges(indptr: np.ndarray, budget: int) -> Iterator[tuple[int, int]]:
    """Ranges of rows that have at most so many entries; a longer row is a range of its own."""
    start, n = 0, indptr.size - 1
    while start < n:
        stop = int(np.searchsorted(indptr, indptr[start] + budget, side="right")) - 1
        stop = min(max(stop, start + 1), n)
        yield start, stop
        start = stop


def _entries_per_row(matrix: DiskMatrix) -> np.ndarray:
    """Number of stored entries (CSC), or of those that are not zero (dense), of each row, int64."""
    lengths = np.zeros(matrix.shape[0], np.int64)
    if matrix.format == "dense":
        for start, stop in _dense_ranges(matrix):
            lengths[start:stop] = np.count_nonzero(matrix[start:stop], axis=1)
        return lengths
    end = int(matrix.indptr[-1])
    for first in range(0, end, _STEP):
        rows, _ = matrix.entries(np.array([first]), np.array([min(first + _STEP, end)]))
        lengths += np.bincount(rows, minlength=lengths.size)
    return lengths


def _dense_ranges(matrix: DiskMatrix) -> list[tuple[int, int]]:
    step = max(_STEP // max(matrix.shape[1], 1), 1)
    return [(start, min(start + step, matrix.shape[0])) for start in range(0, matrix.shape[0], step)]


def _rows_of_columns(matrix: DiskMatrix, start: int, stop: int) -> sparse.csr_matrix:
    """The rows `start:stop` of a matrix by columns; goes through all of it."""
    found: list[tuple[np.ndarray, ...]] = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, matrix.dtype))]
    for first, last in _row_ranges(matrix.indptr, _STEP):
        ends = matrix.indptr[first : last + 1]
        rows, values = matrix.entries(ends[:1], ends[-1:])
        columns = np.repeat(np.arange(first, last), np.diff(ends))
        inside = (rows >= start) & (rows < stop)
        found.append((rows[inside] - start, columns[inside], values[inside]))
    rows, columns, values = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.argsort(rows, kind="stable")  # inside a row the columns are sorted already
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=stop - start))])
    return sparse.csr_matrix((values[order], columns[order], indptr), shape=(stop - start, matrix.shape[1]))


def _copy_dense(matrix: DiskMatrix, group: Node, name: str, *, chunk: int) -> None:
    array = _new_array(group, name, matrix.shape, matrix.dtype, chunk)
    for start, stop in _dense_ranges(matrix):
        array[start:stop] = matrix[start:stop]
