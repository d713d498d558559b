"""The arrays of an index, in memory or as raw files of a folder; a folder changes when its manifest is replaced."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from scanpy_scgpt.disk import write_file

FORMAT_VERSION = 1
MANIFEST = "index.json"
_STEP = 2**24  # bytes hashed or copied at a time


class IndexFormatError(ValueError):
    """The folder of an index is incomplete, damaged, or of a newer version."""


def _bytes_of(array: np.ndarray) -> memoryview | bytes:
    array = np.ascontiguousarray(array)
    return memoryview(array.reshape(-1).view(np.uint8)) if array.nbytes else b""


class Arrays:
    """Arrays by name that grow by rows; those in memory.

    Attributes
    ----------
    folder
        Where they lie, or None.
    """

    folder: Path | None = None

    def __init__(self) -> None:
        self._arrays: dict[str, np.ndarray] = {}
        self._new: dict[str, list[np.ndarray]] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._arrays or name in self._new

    def __getitem__(self, name: str) -> np.ndarray:
        if parts := self._new.pop(name, None):
            old = [self._arrays[name]] if name in self._arrays else []
            self._arrays[name] = np.concatenate([*old, *parts])
        return self._arrays[name]

    def known(self) -> list[str]:
        """Names of all arrays."""
        return list(dict.fromkeys([*self._arrays, *self._new]))

    def allocate(self, name: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """A new array of any content; in the place of an old one once :meth:`put` is called with it."""
        return np.empty(shape, np.dtype(dtype))

    def grow(self, name: str, rows: np.ndarray) -> None:
        """Append rows."""
        self._new.setdefault(name, []).append(rows.copy())

    def put(self, name: str, array: np.ndarray) -> None:
        """Set or replace an array."""
        self._arrays[name] = array

    def snapshot(self) -> Any:
        """What :meth:`restore` needs to undo changes that are not settled."""
        return {name: self[name] for name in self.known()}

    def restore(self, before: Any) -> None:
        """Undo changes."""
        self._arrays, self._new = before, {}

    def settle(self, content: Mapping[str, Any]) -> None:
        """From here on the arrays are as they are now, and `content` describes them."""

    def drop_drafts(self) -> None:
        """Forget what :meth:`allocate` gave for drafts."""


class FolderArrays(Arrays):
    """The same in files, memory-mapped when they are asked for.

    Rows are appended to a file beyond the size that the manifest states, other arrays get a new file; the manifest,
    which is replaced in one step, makes them count.

    Parameters
    ----------
    folder
        Where the files lie.
    listed
        File, type, shape and checksums of each array, as the manifest has them.
    """

    def __init__(self, folder: Path, listed: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.folder = folder
        self.listed: dict[str, dict[str, Any]] = json.loads(json.dumps(dict(listed or {})))
        for name, entry in self.listed.items():
            path = folder / entry["file"]
            size = path.stat().st_size if path.is_file() else -1
            if size < self._size(entry):
                found = "is missing" if size < 0 else f"has {size:,} bytes, {self._size(entry):,} are needed"
                msg = f"{folder} is damaged: {entry['file']} ({name}) {found}. Copy the folder again, or build it anew."
                raise IndexFormatError(msg)

    @staticmethod
    def _size(entry: Mapping[str, Any]) -> int:
        return int(np.prod(entry["shape"])) * np.dtype(entry["dtype"]).itemsize

    def __contains__(self, name: str) -> bool:
        return name in self.listed

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._arrays:
            entry = self.listed[name]
            shape, dtype = tuple(entry["shape"]), np.dtype(entry["dtype"])
            if self._size(entry):
                mapped = np.memmap(self.folder / entry["file"], dtype, mode="r", shape=shape)
                self._arrays[name] = mapped.view(np.ndarray)
            else:
                self._arrays[name] = np.zeros(shape, dtype)
        return self._arrays[name]

    def known(self) -> list[str]:
        return list(self.listed)

    def _new_file(self, name: str) -> str:
        return f"{name.replace(' ', '_')}-{uuid.uuid4().hex[:8]}.bin"

    def allocate(self, name: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        if not np.prod(shape):
            return np.empty(shape, np.dtype(dtype))
        return np.memmap(self.folder / self._new_file(name), np.dtype(dtype), mode="w+", shape=shape)

    def grow(self, name: str, rows: np.ndarray) -> None:
        entry = self.listed.get(name)
        if entry is None:
            shape = [0, *rows.shape[1:]]
            entry = {"file": self._new_file(name), "dtype": rows.dtype.str, "shape": shape, "checksums": []}
            self.listed[name] = entry
        path, start, data = self.folder / entry["file"], self._size(entry), _bytes_of(rows.astype(entry["dtype"]))
        with path.open("r+b" if path.exists() else "w+b") as file:
            file.truncate(start)  # what an appending that was killed left behind
            file.seek(start)
            file.write(data)
        if len(data):
            entry["checksums"].append([len(data), hashlib.blake2b(data, digest_size=16).hexdigest()])
        entry["shape"][0] += len(rows)
        self._arrays.pop(name, None)

    def put(self, name: str, array: np.ndarray) -> None:
        if isinstance(array, np.memmap) and Path(array.filename).parent == self.folder.resolve():
            array.flush()
            file = Path(array.filename).name
        else:
            file = self._new_file(name)
            write_file(self.folder / file, [_bytes_of(array)])
        data, sums = _bytes_of(array), []
        for start in range(0, len(data), _STEP):
            piece = data[start : start + _STEP]
            sums.append([len(piece), hashlib.blake2b(piece, digest_size=16).hexdigest()])
        self.listed[name] = {
            "file": file, "dtype": array.dtype.str, "shape": list(array.shape), "checksums": sums
        }  # fmt: skip
        self._arrays.pop(name, None)

    def snapshot(self) -> Any:
        return json.dumps(self.listed)

    def restore(self, before: Any) -> None:
        self.listed, self._arrays = json.loads(before), {}
        self.drop_drafts()

    def settle(self, content: Mapping[str, Any]) -> None:
        for entry in self.listed.values():
            with (self.folder / entry["file"]).open("rb") as file:
                os.fsync(file.fileno())
        whole = {"format_version": FORMAT_VERSION, **content, "arrays": self.listed}
        write_file(self.folder / MANIFEST, [(json.dumps(whole, indent=1, ensure_ascii=False) + "\n").encode()])
        self.drop_drafts()

    def drop_drafts(self) -> None:
        kept = {MANIFEST, *(entry["file"] for entry in self.listed.values())}
        for path in self.folder.iterdir():
            if path.name not in kept and path.suffix == ".bin":
                path.unlink()

    def verify(self) -> None:
        """Compare every file with its checksums.

        Raises
        ------
        IndexFormatError
            When one differs.
        """
        for entry in self.listed.values():
            with (self.folder / entry["file"]).open("rb") as file:
                for n, checksum in entry["checksums"]:
                    if hashlib.blake2b(file.read(n), digest_size=16).hexdigest() != checksum:
                        msg = f"{self.folder} is damaged: {entry['file']} differs from its checksum. Build it anew."
                        raise IndexFormatError(msg)


def read_manifest(folder: Path) -> dict[str, Any]:
    """What stands in the manifest of an index.

    Raises
    ------
    FileNotFoundError
        When there is no index.
    IndexFormatError
        When it cannot be read, or is of a newer version.
    """
    path = folder / MANIFEST
    if not path.is_file():
        why = "there is no such folder" if not folder.exists() else f"it has no {MANIFEST}"
        msg = f"{folder} is no index: {why}. Build one: scgpt.tl.build_index(reference, labels, path={str(folder)!r})."
        raise FileNotFoundError(msg)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = int(content["format_version"])
    except (ValueError, KeyError, TypeError) as error:
        msg = f"{path} cannot be read ({error}). Copy the folder again, or build it anew."
        raise IndexFormatError(msg) from error
    if version > FORMAT_VERSION:
        msg = (
            f"{folder} has format {version}, this release reads up to {FORMAT_VERSION}. Update: "
            "pip install --upgrade scanpy-scgpt, or build the index anew."
        )
        raise IndexFormatError(msg)
    return content


def check_place(folder: Path, *, overwrite: bool) -> None:
    """Refuse a place where something else is, or an index without `overwrite`.

    Raises
    ------
    FileExistsError
        In these cases.
    FileNotFoundError
        When the folder that is to hold it is missing.
    """
    if not folder.parent.is_dir():
        msg = f"path={str(folder)!r}: there is no folder {folder.parent}. Make it first, or name another place."
        raise FileNotFoundError(msg)
    if not folder.exists():
        return
    if not (folder / MANIFEST).is_file() and not (folder.is_dir() and not any(folder.iterdir())):
        msg = f"path={str(folder)!r} is something else than an index: it is left alone. Name another place."
        raise FileExistsError(msg)
    if not overwrite and (folder / MANIFEST).is_file():
        msg = f"path={str(folder)!r} exists. Name another place, or pass overwrite=True."
        raise FileExistsError(msg)


@contextmanager
def new_folder(folder: Path) -> Iterator[tuple[FolderArrays, Callable[[], None]]]:
    """A hidden folder beside the place, and what puts it there once it is settled; removed when that is not called."""
    draft = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:12]}")
    draft.mkdir()

    def place() -> None:
        aside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:12]}")
        if folder.exists():
            folder.rename(aside)
        try:
            draft.rename(folder)
        except OSError:
            if aside.exists():
                aside.rename(folder)
            raise
        shutil.rmtree(aside, ignore_errors=True)

    try:
        yield FolderArrays(draft), place
    finally:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(draft)
