"""A result in the making: `<out>.part` beside the final place, the same run goes on there after a kill."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scanpy_scgpt._logging import get_logger

from ._lock import alone_with
from ._shards import write_file

logger = get_logger(__name__)
_RUN = "run.json"
_OF_ZARR = (".zgroup", "zarr.json")


def _differences(old: object, new: object, *, at: str = "") -> list[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        names = dict.fromkeys([*old, *new])
        inner = (_differences(old.get(n), new.get(n), at=f"{at}.{n}" if at else str(n)) for n in names)
        return [line for lines in inner for line in lines]
    return [] if old == new else [at]


class RunFolder:
    """Where a run keeps what it has done until its result is complete.

    Parameters
    ----------
    out
        Final place of the result, a file or a folder.
    identity
        What decides about the result: inputs, model, settings. Plain values, written to `run.json`.
    overwrite
        Replace a result that stands at `out` already (it stays until the new one is complete), and drop the beginnings
        of another run.

    Attributes
    ----------
    path
        The folder `<out>.part`.
    finished
        True when `out` is the result of this very run.

    Raises
    ------
    FileExistsError
        When `out` is something else, or `<out>.part` belongs to another run.
    FileNotFoundError
        When there is no folder to write to.
    """

    def __init__(
        self, out: str | os.PathLike[str], identity: Mapping[str, Any], *, found: str | None, overwrite: bool = False
    ) -> None:
        self.out = Path(out).expanduser()
        self.path = self.out.with_name(f"{self.out.name}.part")
        self.identity = json.loads(json.dumps(identity))
        self.digest = hashlib.blake2b(json.dumps(self.identity, sort_keys=True).encode(), digest_size=8).hexdigest()
        if not self.out.parent.is_dir():
            msg = f"out={str(self.out)!r}: there is no folder {self.out.parent}. Make it first, or name another place."
            raise FileNotFoundError(msg)
        self.finished = self.out.exists() and found == self.digest
        if self.finished:
            return
        if self.out.is_dir() and not any((self.out / name).exists() for name in _OF_ZARR):
            msg = f"out={str(self.out)!r} is a folder, and no zarr file: it is left alone. Name another place."
            raise FileExistsError(msg)
        if self.out.exists() and not overwrite:
            msg = (
                f"out={str(self.out)!r} exists and is not the result of this call (other input, model or settings). "
                "Choose another place, or pass overwrite=True: it is then replaced once the new result is complete."
            )
            raise FileExistsError(msg)
        self._begin(overwrite=overwrite)

    def _begin(self, *, overwrite: bool) -> None:
        """Find the beginnings of this run or make them; several processes may do so at the same time."""
        while True:
            old = self._record(self.path)
            if old == self.identity or (old is None and self._made()):
                return
            if old is None:  # another process was faster, or there is something else
                old = self._record(self.path)
                if old == self.identity:
                    return
            if old is None:
                msg = (
                    f"{self.path} is in the way: it has no readable run.json, so it is not the beginnings of a run. "
                    "Move it, or name another place."
                )
                raise FileExistsError(msg)
            if not overwrite and self._has_work():
                what = ", ".join(_differences(old, self.identity)[:5])
                msg = (
                    f"{self.path} holds the beginnings of another run (different: {what}). Repeat that call to finish "
                    "it, delete the folder, or pass overwrite=True to start anew."
                )
                raise FileExistsError(msg)
            self._drop()

    @staticmethod
    def _record(folder: Path) -> dict[str, Any] | None:
        try:
            found = json.loads((folder / _RUN).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def _has_work(self) -> bool:
        """Whether anything is done in the folder that would be lost."""
        return any(any((self.path / name).glob("*")) for name in ("done", "tokens/shards"))

    def _made(self) -> bool:
        """Put a folder with the record in place, whole or not at all; False when something is there."""
        draft = self.out.with_name(f".{self.out.name}.{uuid.uuid4().hex}")
        try:
            draft.mkdir()
        except PermissionError as error:
            msg = f"out={str(self.out)!r}: {self.out.parent.resolve()} cannot be written to. Name another place."
            raise PermissionError(error.errno, msg) from None
        write_file(draft / _RUN, [json.dumps(self.identity, indent=1).encode()])
        try:
            draft.rename(self.path)
        except OSError:
            shutil.rmtree(draft)
            if not self.path.exists():
                raise
            return False
        return True

    def _drop(self) -> None:
        """Remove the beginnings of another run, unless another process has just done so."""
        aside = self.out.with_name(f".{self.out.name}.{uuid.uuid4().hex}")
        self.path.rename(aside)
        if self._record(aside) == self.identity:
            aside.rename(self.path)
        else:
            shutil.rmtree(aside) if aside.is_dir() else aside.unlink()

    @contextmanager
    def alone(self, name: str = "finish", *, wait: bool = False) -> Iterator[bool]:
        """Gives True to one process at a time for each `name`; another waits, or gets False at once.

        A killed process holds nothing. False, too, when the folder is gone because the result is in its place.
        """
        with alone_with(self.path / f"{name}.lock", wait=wait) as mine:
            yield mine and self.path.is_dir()

    def place(self, result: Path) -> None:
        """Move the complete result, a file or folder inside the run folder, to `out`; remove the rest."""
        old = self.path / "replaced"
        if self.out.exists():
            if old.exists():
                shutil.rmtree(old) if old.is_dir() else old.unlink()
            os.replace(self.out, old)
        os.replace(result, self.out)
        shutil.rmtree(self.path, ignore_errors=True)


def disk_error(error: OSError, folder: Path, *, done: int, n: int) -> OSError:
    """The error with what is safe and how to go on; other errors than a full disk keep their text."""
    if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
        return error
    msg = (
        f"The disk is full: {done:,} of {n:,} blocks are safe in {folder}. Make room and repeat the same call; it goes "
        "on from there."
    )
    return OSError(error.errno, msg)
