"""Cells in a file: what is needed to read them by rows, and nothing else of the file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from ._matrix import DiskMatrix, of_library
from ._stored import attribute, opened

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from ._stored import Node

_NAMES = 2**14  # names that are read at a time
_OTHER_FORMATS = {
    ".loom": "anndata.io.read_loom({path!r})",
    ".h5": "scanpy.read_10x_h5({path!r})",
    ".mtx": "scanpy.read_10x_mtx({folder!r})",
    ".csv": "anndata.io.read_csv({path!r})",
    ".txt": "scanpy.read_text({path!r})",
}


def is_absent(root: Node, name: str) -> bool:
    return name not in root or attribute(root[name], "encoding-type") == "null"


def _length(node: Node) -> int:
    """Number of values of a column: an array, or a group of codes or values."""
    if not hasattr(node, "dtype"):
        node = node["codes" if "codes" in node else "values"]
    return int(node.shape[0])


def _as_names(values: Any) -> np.ndarray:
    return np.asarray(values, dtype=object).astype(str)


def _texts(node: Node, start: int, stop: int) -> np.ndarray:
    """Values `start:stop` of an array as str."""
    is_bytes = hasattr(node, "asstr") and node.dtype.kind in "OS"  # HDF5
    return _as_names((node.asstr() if is_bytes else node)[start:stop])


class _Layers(Mapping[str, DiskMatrix]):
    """Layers of a file, each opened when it is asked for."""

    def __init__(self, path: Path, place: str, names: list[str]) -> None:
        self._path, self._place, self._names = path, place, names

    def __getitem__(self, name: str) -> DiskMatrix:
        if name not in self._names:
            raise KeyError(name)
        return DiskMatrix(self._path, f"{self._place}{name}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class RawCells:
    """The slot `raw` of a file: `.X` and `.var`."""

    def __init__(self, cells: CellFile) -> None:
        self._cells = cells

    @cached_property
    def X(self) -> DiskMatrix:
        """Its matrix."""
        return DiskMatrix(self._cells.path, self._cells.place("raw/X"))

    @cached_property
    def var(self) -> pd.DataFrame:
        """Annotation of its columns."""
        return self._cells.read("raw/var")


class CellFile:
    """A file of cells with the slots of an AnnData that reading counts needs; see :func:`open_cells`.

    Attributes
    ----------
    path
        The file or folder.
    modality
        Modality of a MuData that is read, else None.
    layers
        Name to :class:`DiskMatrix`; opened when asked for.
    """

    def __init__(self, path: Path, modality: str | None = None) -> None:
        self.path, self.modality = path, modality
        self._base = f"mod/{modality}/" if modality else ""
        with opened(path) as root:
            node = root[self._base.rstrip("/")] if modality else root
            self._check(node)
            self._has_raw = not is_absent(node, "raw")
            self._has_x = not is_absent(node, "X")
            self._index = attribute(node["obs"], "_index") or "_index"
            self.n_obs = _length(node["obs"][self._index])
            names = [] if is_absent(node, "layers") else list(node["layers"])
        self._names = 0, np.zeros(0, dtype=str)
        self.layers = _Layers(path, self.place("layers/"), names)

    def _check(self, node: Node) -> None:
        missing = [name for name in ("obs", "var") if name not in node]
        if missing:
            found = ", ".join(map(repr, list(node)[:8])) or "nothing"
            how = _conversion(self.path, ".h5" if "matrix" in node else self.path.suffix)
            msg = f"{self.path} is not the file of an AnnData: it has {found} and no {missing[0]!r}.{how}"
            raise ValueError(msg)
        if hasattr(node["obs"], "dtype"):
            msg = (
                f"{self.path} was written by anndata before 0.7 (obs is one array). Write it anew: "
                f"anndata.read_h5ad({str(self.path)!r}).write_h5ad('new.h5ad')."
            )
            raise ValueError(msg)

    def __enter__(self) -> CellFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"CellFile({self.n_obs:,} cells, {str(self.path)!r}{f', {self.modality!r}' if self.modality else ''})"

    def close(self) -> None:
        """Let the file go; a later read opens it again."""
        matrices = [
            self.__dict__.get("X"),
            self.__dict__["raw"].__dict__.get("X") if self.__dict__.get("raw") else None,
        ]
        for matrix in matrices:
            if matrix is not None:
                matrix.close()

    def place(self, name: str) -> str:
        """Place of an element in the file, the modality included."""
        return f"{self._base}{name}"

    def read(self, name: str) -> Any:
        """One element of the file as AnnData reads it, such as `obsm/X_pca`."""
        from anndata.io import read_elem

        with opened(self.path) as root:
            return read_elem(root[self.place(name)])

    @cached_property
    def obs_names(self) -> np.ndarray:
        """Names of all cells, shape `(n_obs,)`, str; see :meth:`names` for some of them."""
        return _as_names(self.read(f"obs/{self._index}"))

    @property
    def index_name(self) -> str:
        """Name of the index of `obs` in the file."""
        return self._index

    def names(self, start: int, stop: int) -> np.ndarray:
        """Names of the cells `start:stop`, str; only some thousand names are read and kept at a time."""
        start, stop, _ = slice(start, stop).indices(self.n_obs)
        first, held = self._names
        if not first <= start <= stop <= first + held.size:
            first, held = start, self._read_names(start, max(stop, min(start + _NAMES, self.n_obs)))
            self._names = first, held
        return held[start - first : max(stop, start) - first]

    def obs_texts(self, name: str, start: int, stop: int) -> np.ndarray:
        """Values `start:stop` of a column of `obs` as str; `nan` or `<NA>` where there is none."""
        from anndata.io import read_elem

        with opened(self.path) as root:
            node = root[self.place(f"obs/{name}")]
            if hasattr(node, "dtype"):
                if "categories" in node.attrs:  # anndata before 0.8: the numbers are codes
                    return _as_names(np.asarray(self.obs_column(name)))[start:stop]
                return _texts(node, start, stop)
            if "codes" not in node:  # with a mask, such as nullable numbers
                values = _texts(node["values"], start, stop)
                return np.where(node["mask"][start:stop], "<NA>", values).astype(str)
            names, codes = _as_names(read_elem(node["categories"])), node["codes"][start:stop]
        return np.where(codes >= 0, names[codes] if names.size else "nan", "nan").astype(str)

    def _read_names(self, start: int, stop: int) -> np.ndarray:
        return self.obs_texts(self._index, start, stop)

    @cached_property
    def var(self) -> pd.DataFrame:
        """Annotation of the genes."""
        return self.read("var")

    @cached_property
    def obs(self) -> pd.DataFrame:
        """Annotation of the cells, all of its columns."""
        return self.read("obs")

    @cached_property
    def obs_columns(self) -> list[str]:
        """Names of the columns of `obs`, in their order."""
        with opened(self.path) as root:
            return [str(column) for column in root[self.place("obs")].attrs["column-order"]]

    def obs_column(self, name: str) -> Any:
        """One column of `obs`: an array or a categorical, shape `(n_obs,)`; nothing else is read."""
        with opened(self.path) as root:
            is_old = name in root[self.place("obs")] and "categories" in root[self.place(f"obs/{name}")].attrs
        if name not in self.obs_columns:
            msg = f"obs of {self.path} has no column {name!r}. Columns: {', '.join(self.obs_columns) or 'none'}."
            raise KeyError(msg)
        return self.obs[name].array if is_old else self.read(f"obs/{name}")  # anndata before 0.8: codes alone

    @cached_property
    def X(self) -> DiskMatrix | None:
        """The matrix, or None."""
        return DiskMatrix(self.path, self.place("X")) if self._has_x else None

    @cached_property
    def raw(self) -> RawCells | None:
        """The slot `raw`, or None."""
        return RawCells(self) if self._has_raw else None

    def fingerprint(self) -> dict[str, Any]:
        """What tells this file from another one or a changed one: name, bytes, time, numbers of cells and genes."""
        files = [self.path] if self.path.is_file() else [file for file in self.path.rglob("*") if file.is_file()]
        stats = [file.stat() for file in files]
        with opened(self.path) as root:
            var = root[self.place("var")]
            n_vars = _length(var[attribute(var, "_index") or "_index"])
        return {
            "path": self.path.name,
            "size": sum(stat.st_size for stat in stats),
            "mtime_ns": max(stat.st_mtime_ns for stat in stats),
            "n_obs": self.n_obs,
            "n_vars": n_vars,
        }


def _conversion(path: Path, suffix: str) -> str:
    reader = _OTHER_FORMATS.get(suffix)
    if reader is None:
        return " Give the path of an .h5ad file or a .zarr folder."
    line = reader.format(path=str(path), folder=str(path.parent))
    out = path.with_suffix(".h5ad") if path.suffix != ".h5ad" else path.with_name(f"{path.stem}-cells.h5ad")
    return f" Convert it: {line}.write_h5ad({str(out)!r})."


def open_cells(path: str | os.PathLike[str], *, modality: str | None = None) -> CellFile:
    """Open a file of cells for reading by rows; only names and sizes are read.

    Parameters
    ----------
    path
        An `.h5ad` file, a `.zarr` folder, or a MuData as `.h5mu` or `.zarr`.
    modality
        Modality of a MuData; by default `"rna"`.

    Returns
    -------
    The cells; works with `with`, and where an AnnData is only read by its counts.

    Raises
    ------
    FileNotFoundError
        When there is nothing at `path`.
    OSError
        When the file is empty, cut off, or no HDF5 or zarr.
    ValueError
        When it holds something else than cells.
    KeyError
        When the MuData has no such modality.
    """
    path = Path(path)
    if path.is_file() and path.suffix in _OTHER_FORMATS:
        msg = f"{path} is a {path.suffix} file, cells are read from .h5ad and .zarr.{_conversion(path, path.suffix)}"
        raise ValueError(msg)
    with opened(path) as root:
        names = list(root["mod"]) if "mod" in root and "X" not in root else []
    if names and (modality or "rna") not in names:
        listed = ", ".join(map(repr, names))
        msg = f"{path} has no modality {modality or 'rna'!r}. Modalities: {listed}. Name one: modality={names[0]!r}."
        raise KeyError(msg)
    if modality is not None and not names:
        msg = f"modality={modality!r}, but {path} is no MuData. Leave modality out."
        raise ValueError(msg)
    return CellFile(path, (modality or "rna") if names else None)


class BackedCells:
    """An AnnData in backed mode whose matrices on disk are read as :class:`DiskMatrix`; the rest is the AnnData's."""

    def __init__(self, adata: AnnData) -> None:
        self._adata = adata

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_adata" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self._adata, name)

    @cached_property
    def X(self) -> Any:
        """The matrix."""
        return of_library(self._adata.X)

    @cached_property
    def raw(self) -> Any:
        """The slot `raw`, or None."""
        return None if self._adata.raw is None else _BackedRaw(self._adata.raw)


class _BackedRaw:
    def __init__(self, raw: Any) -> None:
        self.X, self.var = of_library(raw.X), raw.var


def as_cells(data: Any, *, modality: str | None = None) -> Any:
    """Cells that are read fast by rows, from whatever was given.

    Parameters
    ----------
    data
        A path (see :func:`open_cells`), a :class:`CellFile`, or an AnnData, in memory or backed.
    modality
        Modality, when `data` is the path of a MuData.

    Returns
    -------
    A :class:`CellFile` for a path, a wrapper for a backed AnnData, else `data` itself.
    """
    if isinstance(data, str | os.PathLike):
        return open_cells(data, modality=modality)
    if getattr(data, "isbacked", False) and not data.is_view:
        return BackedCells(data)
    return data
