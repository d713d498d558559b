"""Rows of one array, written block by block by any number of processes, into an AnnData file."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scanpy_scgpt._logging import get_logger

from ._obs import write_obs, write_rest
from ._run_folder import RunFolder, disk_error
from ._shards import write_file

if TYPE_CHECKING:
    from ._cells import CellFile

logger = get_logger(__name__)
_ARRAY = {"encoding-type": "array", "encoding-version": "0.2.0"}
_SUFFIXES = (".zarr", ".h5ad")


def check_suffix(out: Path) -> None:
    """Refuse a place for a result that is neither zarr nor h5ad.

    Raises
    ------
    ValueError
        When the name ends otherwise.
    """
    if out.suffix not in _SUFFIXES:
        msg = f"out={str(out)!r}: results go to a name that ends in .zarr or .h5ad, such as {out.stem + '.zarr'!r}."
        raise ValueError(msg)


def run_of(out: Path, *, verb: str) -> str | None:
    """Digest of the run that wrote the file at `out`, None for anything else."""
    keys = ("uns", "scgpt", verb, "run")
    try:
        if out.suffix == ".zarr":
            import zarr

            value: Any = zarr.open_group(out, mode="r")
            for key in keys:
                value = value[key]
            return str(value[()])
        import h5py

        with h5py.File(out, "r") as file:
            value = file["/".join(keys)][()]
        return value.decode() if isinstance(value, bytes) else str(value)
    except (OSError, KeyError, ValueError):
        return None


class RowWriter:
    """Writes `obsm[key]` of shape `(n_obs, width)`, float32, by blocks of rows.

    Parameters
    ----------
    run
        Where the run keeps its blocks.
    key
        Name in `.obsm`.
    n_obs, width
        Shape of the array.
    block_rows
        Rows of a block; the last one may be shorter.
    """

    def __init__(self, run: RunFolder, *, key: str, n_obs: int, width: int, block_rows: int) -> None:
        self.run, self.key, self.n_obs, self.width, self.block_rows = run, key, n_obs, width, block_rows
        self.n_blocks = -(-n_obs // block_rows)
        self._store, self._done = run.path / "result.zarr", run.path / "done"
        self._done.mkdir(exist_ok=True)

    @cached_property
    def _rows(self) -> Any:
        import zarr

        shape, chunks = (self.n_obs, self.width), (self.block_rows, self.width)
        with self.run.alone("create", wait=True) as here:  # processes that share the blocks start together
            if not here:
                msg = f"{self.run.path} is gone: another process has put {self.run.out} in place, or removed it."
                raise FileNotFoundError(msg)
            group = zarr.open_group(self._store, mode="a", zarr_format=2)
            rows = group.require_array(
                f"obsm/{self.key}", shape=shape, chunks=chunks, dtype="float32", compressors=None, exact=True
            )
            rows.attrs.update(_ARRAY)
        return rows

    def bounds(self, block: int) -> tuple[int, int]:
        """First row of a block and the row behind its last."""
        return block * self.block_rows, min((block + 1) * self.block_rows, self.n_obs)

    def _marker(self, block: int) -> Path:
        return self._done / f"{block:09d}.json"

    def noted(self, block: int) -> dict[str, Any]:
        """What was noted with a block; empty when it is not written."""
        try:
            return json.loads(self._marker(block).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return {}

    def _is_whole(self, block: int) -> bool:
        noted = self.noted(block)
        start, stop = self.bounds(block)
        return bool(noted) and zlib.crc32(self._rows[start:stop].tobytes()) == noted["crc32"]

    def todo(self, shard: tuple[int, int] = (0, 1)) -> list[int]:
        """Blocks of a shard that are not written yet, or are damaged; `shard` is (which, of how many)."""
        return [block for block in range(shard[0], self.n_blocks, shard[1]) if not self._is_whole(block)]

    def write(self, block: int, rows: np.ndarray, **notes: Any) -> None:
        """Write the rows of a block, then the note that it is there.

        Raises
        ------
        OSError
            When the disk is full; what is written stays and the run goes on there.
        """
        rows = np.ascontiguousarray(rows, dtype=np.float32)
        start, stop = self.bounds(block)
        try:
            self._rows[start:stop] = rows
            self._to_disk(block)
            note = {"crc32": zlib.crc32(rows.tobytes()), **notes}
            write_file(self._marker(block), [json.dumps(note).encode()])
        except OSError as error:
            raise disk_error(error, self.run.path, done=len(list(self._done.glob("*.json"))), n=self.n_blocks) from None

    def read(self, block: int) -> np.ndarray:
        """The rows of a block that is written, float32."""
        start, stop = self.bounds(block)
        return np.asarray(self._rows[start:stop])

    def _to_disk(self, block: int) -> None:
        """The rows are on the disk before their note is."""
        chunk = self._store / "obsm" / self.key / f"{block}.0"
        if chunk.exists():  # zarr writes no chunk of zeros alone
            with chunk.open("rb") as file:
                os.fsync(file.fileno())

    @property
    def complete(self) -> bool:
        """True when every block has its note."""
        return all(self._marker(block).is_file() for block in range(self.n_blocks))

    def finish(self, files: Sequence[CellFile], describe: Callable[[], tuple[Mapping, Mapping]]) -> bool:
        """Add `obs` and `uns` and move the file to its place; False when another process is at it or has done it.

        Parameters
        ----------
        files
            Where the cells come from; see :func:`write_obs`.
        describe
            Gives what stands in `.uns["scgpt"]` and more columns of `obs`, each of `(n_obs,)` values; called when this
            process is the one that finishes.

        Raises
        ------
        OSError
            When the disk is full; repeat the call after making room.
        """
        with self.run.alone() as alone:
            if not alone:
                return False
            if damaged := self.todo():
                for block in damaged:
                    self._marker(block).unlink(missing_ok=True)
                msg = (
                    f"{len(damaged):,} of {self.n_blocks:,} blocks in {self.run.path} are damaged (the first: "
                    f"{damaged[0]}). Repeat the same call: it makes them anew."
                )
                raise OSError(msg)
            try:
                result = self._assembled(files, *describe())
            except OSError as error:
                raise disk_error(error, self.run.path, done=self.n_blocks, n=self.n_blocks) from None
            self.run.place(result)
        return True

    def _assembled(self, files: Sequence[CellFile], uns: Mapping[str, Any], extra: Mapping[str, Any]) -> Path:
        import zarr

        for draft in self._store.rglob("*.partial"):  # of a write that was killed
            draft.unlink()
        if self.run.out.suffix == ".h5ad":
            return self._as_h5ad(files, uns, extra)
        if self.n_obs == 0:
            _ = self._rows  # there is no block that would have made it
        group = zarr.open_group(self._store, mode="a", zarr_format=2)
        write_rest(group, uns={"scgpt": dict(uns)}, filled="obsm")
        write_obs(group, files, extra)
        return self._store

    def _as_h5ad(self, files: Sequence[CellFile], uns: Mapping[str, Any], extra: Mapping[str, Any]) -> Path:
        import h5py

        draft = self.run.path / "result.h5ad"
        with h5py.File(draft, "w") as file:
            write_rest(file, uns={"scgpt": dict(uns)}, filled="obsm")
            write_obs(file, files, extra)
            chunks = (min(self.block_rows, self.n_obs), self.width) if self.n_obs else None
            rows = file["obsm"].create_dataset(self.key, (self.n_obs, self.width), "float32", chunks=chunks)
            rows.attrs.update(_ARRAY)
            for block in range(self.n_blocks):
                start, stop = self.bounds(block)
                rows[start:stop] = self._rows[start:stop]
        return draft
