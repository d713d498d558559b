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
                _fill(_H5Group(root["layers"].create_group(layer)), blocks, shape)
        else:
            import zarr

            root = zarr.open_group(path, mode="w", zarr_format=2)
            write_rest(root, uns=uns, var=var, filled="layers")
            write_obs(root, files)
            _fill(_ZarrGroup(root["layers"].create_group(layer)), blocks, shape)
            zarr.consolidate_metadata(path)
    except OSError as error:
        raise disk_error(error, path.parent, done=0, n=1) from None
    return path


class _H5Group:
    def __init__(self, group: Any) -> None:
        self.group = group

    def growing(self, name: str, dtype: str) -> Any:
        return self.group.create_dataset(name, (0,), dtype, maxshape=(None,), chunks=(_CHUNK,))

    @staticmethod
    def append(array: Any, values: np.ndarray) -> None:
        n = array.shape[0]
        array.resize((n + len(values),))
        array[n:] = values


class _ZarrGroup:
    def __init__(self, group: Any) -> None:
        self.group = group

    def growing(self, name: str, dtype: str) -> Any:
        return self.group.create_array(name, shape=(0,), dtype=dtype, chunks=(_CHUNK,), compressors=None)

    @staticmethod
    def append(array: Any, values: np.ndarray) -> None:
        array.append(values)


def _fill(target: _H5Group | _ZarrGroup, blocks: Iterable[sparse.csr_matrix], shape: tuple[int, int]) -> None:
    target.group.attrs.update({**_CSR, "shape": list(shape)})
    arrays = {name: target.growing(name, dtype) for name, dtype in (("data", "uint8"), ("indices", "int32"))}
    indptr = target.growing("indptr", "int64")
    for array in (*arrays.values(), indptr):
        array.attrs.update(_ARRAY)
    target.append(indptr, np.zeros(1, np.int64))
    written = 0
    for block in blocks:
        target.append(arrays["data"], block.data)
        target.append(arrays["indices"], block.indices)
        target.append(indptr, block.indptr[1:].astype(np.int64) + written)
        written += block.nnz
