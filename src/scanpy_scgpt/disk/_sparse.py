"""A sparse layer, written block by block into a new AnnData file."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from ._obs import write_obs, write_rest
from ._run_folder import disk_error

if TYPE_CHECKING:
    import pandas as pd

    from ._cells import CellFile

_CHUNK = 2**20  # values of a chunk
_CSR = {"encoding-type": "csr_matrix", "encoding-version": "0.1.0"}
_ARRAY = {"encoding-type": "array", "encoding-version": "0.2.0"}


def write_sparse_layer(
    path: Path,
    blocks: Iterable[sparse.csr_matrix],
    *,
    layer: str,
    files: Sequence[CellFile],
    var: pd.DataFrame,
    uns: Mapping[str, Any],
) -> Path:
    """Write an AnnData file without `X` whose layer comes in blocks of rows.

    Parameters
    ----------
    path
        A new file (`.h5ad`) or folder (`.zarr`); what is there is replaced.
    blocks
        Consecutive rows, CSR, all with `len(var)` columns.
    layer
        Name of the layer.
    files
        Where the cells come from, for `obs`; see :func:`write_obs`.
    var, uns
        The rest of the object.

    Returns
    -------
    `path`.

    Raises
    ------
    OSError
        When the disk is full.
    """
    if path.exists():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shape = sum(file.n_obs for file in files), len(var)
    try:
        if path.suffix == ".h5ad":
            import h5py

            with h5py.File(path, "w") as root:
                write_rest(root, uns=uns, var=var, filled="layers")
                write_obs(root, files)
                _fill(root["layers"].create_group(layer), blocks, shape)
        else:
            import zarr

            root = zarr.open_group(path, mode="w", zarr_format=2)
            write_rest(root, uns=uns, var=var, filled="layers")
            write_obs(root, files)
            _fill(root["layers"].create_group(layer), blocks, shape)
    except OSError as error:
        raise disk_error(error, path.parent, done=0, n=1) from None
    return path


def _new_array(group: Any, name: str, dtype: str, n: int | None) -> Any:
    """An array of `n` values without compression, or an empty one that grows."""
    if not hasattr(group, "id"):
        chunk = _CHUNK if n is None else min(_CHUNK, n)
        array = group.create_array(name, shape=(n or 0,), dtype=dtype, chunks=(chunk,), compressors=None)
    elif n is None:
        array = group.create_dataset(name, (0,), dtype, maxshape=(None,), chunks=(_CHUNK,))
    else:
        array = group.create_dataset(name, (n,), dtype)
    array.attrs.update(_ARRAY)
    return array


class _Filled:
    """An array that is filled from the front, by whole chunks: smaller pieces are collected first."""

    def __init__(self, array: Any) -> None:
        self.array, self.written = array, 0
        self._waiting: list[np.ndarray] = []

    def add(self, values: np.ndarray) -> None:
        self._waiting.append(values)
        n = sum(map(len, self._waiting))
        if n >= _CHUNK:
            self._write(n - n % _CHUNK)

    def close(self) -> None:
        """Write the rest."""
        self._write(sum(map(len, self._waiting)))

    def _write(self, n: int) -> None:
        values, end = np.concatenate([*self._waiting, np.zeros(0, self.array.dtype)]), self.written + n
        if end > self.array.shape[0]:
            self.array.resize((end,))
        if n:
            self.array[self.written : end] = values[:n]
        self.written, self._waiting = end, [values[n:].copy()]


def _fill(group: Any, blocks: Iterable[sparse.csr_matrix], shape: tuple[int, int]) -> None:
    group.attrs.update({**_CSR, "shape": list(shape)})
    data, indices = (_Filled(_new_array(group, *which, None)) for which in (("data", "uint8"), ("indices", "int32")))
    indptr = _Filled(_new_array(group, "indptr", "int64", shape[0] + 1))
    indptr.add(np.zeros(1, np.int64))
    written = 0
    for block in blocks:
        data.add(block.data)
        indices.add(block.indices)
        indptr.add(block.indptr[1:].astype(np.int64) + written)
        written += block.nnz
    for array in (data, indices, indptr):
        array.close()
