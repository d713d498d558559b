"""Arrays of a file, read by ranges of values: past the library where their bytes lie plain."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import h5py
    import zarr

    Node = h5py.Group | h5py.Dataset | zarr.Group | zarr.Array

_SUSPICIOUS = 1024  # a missing chunk of so many values is a lost file, not a run of zeros


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The root group of an HDF5 file or zarr folder, open for reading."""
    if not path.exists():
        msg = f"There is no file or folder {path}."
        raise FileNotFoundError(msg)
    if path.is_dir():
        yield _open_zarr(path)
        return
    with _open_h5(path) as file:
        yield file


def _open_zarr(path: Path) -> zarr.Group:
    import zarr

    try:
        return zarr.open_group(path, mode="r")
    except (FileNotFoundError, KeyError, ValueError, TypeError) as error:
        msg = f"{path} is a folder, but no zarr group ({error}). Give the path of an .h5ad file or a .zarr folder."
        raise OSError(msg) from error


def _open_h5(path: Path) -> h5py.File:
    import h5py

    try:
        return h5py.File(path, "r")
    except OSError as error:
        size = path.stat().st_size
        with path.open("rb") as file:
            is_hdf5 = file.read(8) == b"\x89HDF\r\n\x1a\n"
        if is_hdf5:
            msg = f"{path} is cut off or damaged: {size:,} bytes are there ({error}). Copy or download it again."
        else:
            found = "it is empty" if size == 0 else f"its {size:,} bytes are something else"
            msg = f"{path} is no HDF5 file: {found}. Give the path of an .h5ad file or a .zarr folder."
        raise OSError(msg) from error


def attribute(node: Node, *names: str) -> Any:
    """The first of these attributes that is there, text as `str`, else None."""
    found = next((node.attrs[name] for name in names if name in node.attrs), None)
    return found.decode() if isinstance(found, bytes) else found


def _read_exactly(handle: int, position: int, target: np.ndarray) -> bool:
    """Fill an array with the bytes of an open file from a position on; False where the file ends before."""
    done = os.preadv(handle, [target], position)  # nearly always all of it
    if done == target.nbytes:
        return True
    view = memoryview(target).cast("B")
    while done < len(view):
        n = os.preadv(handle, [view[done:]], position + done)
        if n == 0:
            return False
        done += n
    return True


@dataclass
class _Plain:
    """Where the bytes of an array without compression lie.

    `chunk` values per chunk. HDF5: all in the file `path`, chunk `i` at byte `offsets[i]`. Zarr: chunk `i` is the file
    `path + str(i)`, or with shards one of the `per_shard` chunks of the file, which ends with a table of their places.
    """

    path: str
    chunk: int
    itemsize: int
    offsets: np.ndarray | None = None
    per_shard: int = 0
    tail: int = 0

    def pieces(self, start: int, stop: int) -> Iterator[tuple[str, int, int, int]]:
        """File, chunk, byte in the chunk or file, and number of values, for the values `start:stop`."""
        first, last = start // self.chunk, (stop - 1) // self.chunk + 1
        if stop <= start:
            return
        if last - first == 1:  # nearly all ranges
            yield *self._place(first, start), stop - start
            return
        ends = np.arange(first + 1, last + 1)
        if self.offsets is not None:  # chunks that follow each other in the file are one piece
            away = np.diff(self.offsets[first:last]) != self.chunk * self.itemsize
            ends = np.append(first + 1 + np.flatnonzero(away), last)
        for end in ends.tolist():
            upto = min(end * self.chunk, stop)
            yield *self._place(first, start), upto - start
            start, first = upto, end

    def _place(self, chunk: int, value: int) -> tuple[str, int, int]:
        """File, chunk, and byte in the chunk or file, of one value of the chunk."""
        at = (value - chunk * self.chunk) * self.itemsize
        if self.offsets is not None:
            return self.path, chunk, at + int(self.offsets[chunk])
        return self.path + str(chunk // self.per_shard if self.per_shard else chunk), chunk, at

    def in_shard(self, handle: int, chunk: int) -> int | None:
        """Byte of a chunk in the open file of its shard; None when the chunk was left out."""
        table = np.empty((self.per_shard, 2), "<u8")
        at = os.fstat(handle).st_size - table.nbytes - self.tail
        if at < 0 or not _read_exactly(handle, at, table):
            return None
        offset = int(table[chunk % self.per_shard, 0])
        return None if offset == 2**64 - 1 else offset


def _plain_h5(dataset: h5py.Dataset) -> _Plain | None:
    file, place = dataset.file, dataset.id
    odd = file.userblock_size or dataset.external or dataset.is_virtual or place.get_create_plist().get_nfilters()
    if odd or file.driver != "sec2":
        return None
    width = int(np.prod(dataset.shape[1:]))
    if dataset.chunks is None:
        offset = place.get_offset()
        chunk, offsets = dataset.size, None if offset is None else np.array([offset])
    elif dataset.ndim > 1 or not hasattr(place, "chunk_iter"):
        return None
    else:
        chunk = dataset.chunks[0]
        offsets = np.full(-(-dataset.size // chunk), -1, dtype=np.int64)

        def note(stored: Any) -> None:
            if stored.chunk_offset[0] < dataset.size:
                offsets[stored.chunk_offset[0] // chunk] = stored.byte_offset

        place.chunk_iter(note)
    if offsets is None or (offsets < 0).any() or width == 0:
        return None
    if file.mode != "r":
        file.flush()
    return _Plain(file.filename, chunk, dataset.dtype.itemsize, offsets)


def _is_bytes(codecs: Any, *orders: str | None) -> bool:
    """Whether the codecs of zarr 3 leave the bytes as they are, in one of these orders (None: single bytes)."""
    if [type(codec).__name__ for codec in codecs] != ["BytesCodec"]:
        return False
    order = codecs[0].endian
    return getattr(order, "value", order) in orders


def _plain_zarr(array: zarr.Array) -> _Plain | None:
    metadata, root = getattr(array, "metadata", None), getattr(array.store, "root", None)
    if array.ndim != 1 or root is None or not hasattr(metadata, "encode_chunk_key"):
        return None
    if metadata.zarr_format < 3:  # noqa: PLR2004
        plain, shards = metadata.compressor is None and not metadata.filters, False
    else:
        codecs, index = metadata.codecs, ()
        shards = [type(codec).__name__ for codec in codecs] == ["ShardingCodec"]
        if shards:
            codecs, index, where = codecs[0].codecs, codecs[0].index_codecs, codecs[0].index_location.value
            checked = [type(codec).__name__ for codec in index[1:]]
            if not _is_bytes(index[:1], "little") or checked not in ([], ["Crc32cCodec"]) or where != "end":
                return None
        plain = _is_bytes(codecs, sys.byteorder, None)
    if not plain:
        return None
    path = str(Path(root) / array.path / metadata.encode_chunk_key((0,)))[:-1]
    if not shards:
        return _Plain(path, array.chunks[0], array.dtype.itemsize)
    per_shard, tail = array.shards[0] // array.chunks[0], 4 * (len(index) - 1)  # the checksum of the table
    return _Plain(path, array.chunks[0], array.dtype.itemsize, per_shard=per_shard, tail=tail)


def _stamp(path: Path) -> tuple[int, int]:
    return path.stat().st_mtime_ns, path.stat().st_size


class Stored:
    """An array of a file, flattened where it is 2-D, read by ranges of its values.

    Safe with threads, processes and pickle: plain bytes are read through a handle of their own for each call, other
    ones through the library with a handle per process and a lock.
    """

    def __init__(self, path: Path, name: str, node: Node) -> None:
        self.path, self.name = path, name
        self.shape, self.dtype = tuple(node.shape), np.dtype(node.dtype)
        self.size = int(np.prod(self.shape))
        self.chunks = node.chunks
        self._stamp = _stamp(path)
        self._reset()

    def _reset(self) -> None:
        self._lock, self._node, self._pid = threading.Lock(), None, -1

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in {"_lock", "_node", "_pid"}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def close(self) -> None:
        """Let the file go; the next read opens it again."""
        self._reset()

    @cached_property
    def _plain(self) -> _Plain | None:
        if not hasattr(os, "preadv") or not self.dtype.isnative or self.dtype.kind not in "iuf":
            return None
        with opened(self.path) as root:
            node = root[self.name]
            return _plain_zarr(node) if self.path.is_dir() else _plain_h5(node)

    @property
    def is_plain(self) -> bool:
        """True when its bytes are read without the library."""
        return self._plain is not None

    def _renew(self) -> None:
        """Look again where the bytes lie when the file was written to since."""
        if self.path.is_dir() or self._stamp == (stamp := _stamp(self.path)):
            return
        with opened(self.path) as root:
            now = root[self.name]
            if tuple(now.shape) != self.shape or np.dtype(now.dtype) != self.dtype:
                found = f"was {self.dtype} of shape {self.shape}, and is {now.dtype} of shape {tuple(now.shape)} now"
                msg = f"{self.path}: {self.name} {found}: somebody wrote to the file. Open it again."
                raise OSError(msg)
        self.__dict__.pop("_plain", None)
        self._reset()
        self._stamp = stamp

    def read(self, starts: np.ndarray, stops: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Values of several ranges, one after another; of a 2-D array the ranges are multiples of its width.

        They go to `out` when it is given: of their number and type.
        """
        ends = np.cumsum(lengths := stops - starts)
        if out is None:
            out = np.empty(int(ends[-1]) if ends.size else 0, self.dtype.newbyteorder("="))
        order = np.argsort(starts, kind="stable")
        order = order[lengths[order] > 0]
        for _ in self._filled((int(starts[i]), int(stops[i]), out[ends[i] - lengths[i] : ends[i]]) for i in order):
            pass
        return out

    def each(self, starts: np.ndarray, stops: np.ndarray) -> Iterator[np.ndarray]:
        """Values of one range after the other, in one buffer: use them before asking for the next."""
        buffer = np.empty(int((stops - starts).max(initial=0)), self.dtype.newbyteorder("="))
        pairs = zip(starts.tolist(), stops.tolist(), strict=True)
        return self._filled((start, stop, buffer[: stop - start]) for start, stop in pairs)

    def _filled(self, wanted: Iterable[tuple[int, int, np.ndarray]]) -> Iterator[np.ndarray]:
        """The arrays of (start, stop, array), each filled when it is asked for."""
        self._renew()
        return self._by_library(wanted) if self._plain is None else self._by_bytes(wanted)

    def _by_bytes(self, wanted: Iterable[tuple[int, int, np.ndarray]]) -> Iterator[np.ndarray]:
        path, handle = None, -1
        try:
            for start, stop, out in wanted:
                done = 0
                for needed, chunk, position, n in self._plain.pieces(start, stop):
                    if needed != path:
                        if handle >= 0:
                            os.close(handle)
                        path, handle = needed, -1
                        with suppress(FileNotFoundError):
                            handle = os.open(path, os.O_RDONLY)
                    self._piece(handle, path, chunk, position, out[done : done + n])
                    done += n
                yield out
        finally:
            if handle >= 0:
                os.close(handle)

    def _piece(self, handle: int, path: str, chunk: int, position: int, out: np.ndarray) -> None:
        base = 0 if handle >= 0 else None
        if base is not None and self._plain.per_shard:
            base = self._plain.in_shard(handle, chunk)
        if base is None and self._plain.chunk < _SUSPICIOUS and self._plain.offsets is None:
            out[:] = 0  # zarr leaves out chunks without any value
        elif base is None:
            msg = f"{self.path}: {self.name} lacks chunk {chunk} (file {path}). Copy or download it again."
            raise OSError(msg)
        elif not _read_exactly(handle, base + position, out):
            size, end = os.fstat(handle).st_size, base + position + out.nbytes
            found = f"{path} has {size:,} bytes, {end:,} are needed"
            msg = f"{self.path}: {self.name} is cut off: {found}. Copy or download it again."
            raise OSError(msg)

    def _by_library(self, wanted: Iterable[tuple[int, int, np.ndarray]]) -> Iterator[np.ndarray]:
        for start, stop, out in wanted:
            if self._pid != os.getpid():  # after a fork neither the handle nor the lock of the parent is of use
                self._reset()
                self._pid = os.getpid()
            try:
                with self._lock:
                    if self._node is None:
                        root = _open_zarr(self.path) if self.path.is_dir() else _open_h5(self.path)
                        self._node = root[self.name]
                    self._range(start, stop, out)
            except (OSError, RuntimeError, ValueError) as error:
                msg = f"{self.path}: {self.name} cannot be read ({error}). Copy or download it again."
                raise OSError(msg) from error
            yield out

    def _range(self, start: int, stop: int, out: np.ndarray) -> None:
        node, width = self._node, int(np.prod(self.shape[1:]))
        rows = slice(start // width, stop // width)
        target = out.reshape(-1, *self.shape[1:])
        if hasattr(node, "read_direct"):
            node.read_direct(target, rows)
        else:
            target[:] = node[rows]
