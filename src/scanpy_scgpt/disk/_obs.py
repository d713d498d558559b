"""Annotation of the cells of files, written column by column into a result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from pandas.api.types import union_categoricals

from scanpy_scgpt._keys import FILE
from scanpy_scgpt._logging import get_logger

from ._stored import attribute, opened

if TYPE_CHECKING:
    from ._cells import CellFile
    from ._stored import Node

_NAMES = 2**14  # names or texts in memory at a time
logger = get_logger(__name__)
_FRAME = {"encoding-type": "dataframe", "encoding-version": "0.2.0"}
_TEXT = {"encoding-type": "string-array", "encoding-version": "0.2.0"}


def write_obs(group: Node, files: Sequence[CellFile], extra: Mapping[str, Any] | None = None) -> None:
    """Write `obs` of the cells of files, one file after the other; one column is in memory at a time.

    The columns are those that every file has; of several files the column `scgpt_file` tells the file, and categories
    are united.

    Parameters
    ----------
    group
        An open group of HDF5 or zarr that gets the element `obs`; what is there is replaced.
    files
        Where the cells come from.
    extra
        More columns by name, each of `(n_obs,)` values; they replace columns of their name.
    """
    from anndata.io import write_elem

    extra = {**(_file_column(files) if len(files) > 1 else {}), **(extra or {})}
    common = [name for name in files[0].obs_columns if all(name in file.obs_columns for file in files[1:])]
    lost = dict.fromkeys(name for file in files for name in file.obs_columns if name not in common)
    if lost:
        logger.info("obs: columns that not every file has are left out: %s.", ", ".join(lost))
    common = [name for name in common if name not in extra]
    indices = {file.index_name for file in files}
    index = indices.pop() if len(indices) == 1 and not indices & {*common, *extra} else "_index"
    if "obs" in group:
        del group["obs"]
    frame, n_obs = group.create_group("obs"), sum(file.n_obs for file in files)
    frame.attrs.update({**_FRAME, "_index": index, "column-order": [*common, *extra]})
    _write_text(frame, index, n_obs, _names(files))
    for name in common:
        if all(_is_text(file, name) for file in files):
            _write_text(frame, name, n_obs, _texts(files, name))
        else:
            write_elem(frame, name, _column(files, name))
    for name, values in extra.items():
        write_elem(frame, name, values)


def write_rest(group: Node, *, uns: Mapping[str, Any], filled: str, var: pd.DataFrame | None = None) -> None:
    """Write the elements of an AnnData without `X` and `obs`.

    Parameters
    ----------
    group
        The open root of a file of HDF5 or zarr.
    uns, var
        The elements of these names; without `var` there are no genes.
    filled
        Element whose parts are written by others: what is in it stays.
    """
    from anndata.io import write_elem

    write_elem(group, "var", pd.DataFrame(index=pd.Index([], dtype=object)) if var is None else var)
    for name in ("obsm", "varm", "obsp", "varp", "layers"):
        if name != filled:
            write_elem(group, name, {})
    write_elem(group, "uns", dict(uns))
    group.require_group(filled).attrs.update({"encoding-type": "dict", "encoding-version": "0.1.0"})
    group.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})


def _file_column(files: Sequence[CellFile]) -> dict[str, pd.Categorical]:
    names = [file.path.name for file in files]
    kinds = list(dict.fromkeys(names))
    of_file = np.array([kinds.index(name) for name in names], dtype=np.min_scalar_type(-len(kinds)))
    return {FILE: pd.Categorical.from_codes(np.repeat(of_file, [file.n_obs for file in files]), kinds)}


def _write_text(frame: Node, name: str, n: int, blocks: Iterator[np.ndarray]) -> None:
    """Write an array of texts block by block."""
    if hasattr(frame, "id"):
        import h5py

        array = frame.create_dataset(name, (n,), h5py.string_dtype())
    else:
        array = frame.create_array(name, shape=(n,), dtype=str, chunks=(max(min(n, _NAMES), 1),))
    array.attrs.update(_TEXT)
    start = 0
    for block in blocks:
        array[start : start + len(block)] = block.astype(object)
        start += len(block)


def _ranges(files: Sequence[CellFile]) -> Iterator[tuple[CellFile, int, int]]:
    for file in files:
        for start in range(0, file.n_obs, _NAMES):
            yield file, start, min(start + _NAMES, file.n_obs)


def _names(files: Sequence[CellFile]) -> Iterator[np.ndarray]:
    return (file.names(start, stop) for file, start, stop in _ranges(files))


def _texts(files: Sequence[CellFile], name: str) -> Iterator[np.ndarray]:
    return (file.obs_texts(name, start, stop) for file, start, stop in _ranges(files))


def _is_text(file: CellFile, name: str) -> bool:
    with opened(file.path) as root:
        node = root[file.place(f"obs/{name}")]
        return hasattr(node, "dtype") and attribute(node, "encoding-type") == "string-array"


def _column(files: Sequence[CellFile], name: str) -> Any:
    """Values of a column of all files, of a type that can be written."""
    parts = [pd.Series(file.obs_column(name)) for file in files]
    if len(parts) == 1:
        joined = parts[0]
    elif all(isinstance(part.dtype, pd.CategoricalDtype) for part in parts):
        return _united(parts)
    else:
        joined = pd.concat(parts, ignore_index=True)
    if any(isinstance(part.dtype, pd.CategoricalDtype) for part in parts) and len(parts) > 1:
        joined = joined.astype(object)
    if joined.dtype == object or isinstance(joined.dtype, pd.StringDtype):  # texts, or of several types
        return pd.Categorical(joined.map(str, na_action="ignore"))
    return joined.array if isinstance(joined.dtype, pd.api.extensions.ExtensionDtype) else joined.to_numpy()


def _united(parts: Sequence[pd.Series]) -> pd.Categorical:
    if all(part.dtype == parts[0].dtype for part in parts):
        return union_categoricals(parts)
    kinds = [part.cat.categories.dtype for part in parts]
    if any(kind != kinds[0] for kind in kinds):
        parts = [part.cat.rename_categories(part.cat.categories.map(str)) for part in parts]
    return union_categoricals(parts, ignore_order=True)
