"""A result in the making: `<out>.part` beside the final place, the same run goes on there after a kill."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from scanpy_scgpt._logging import get_logger

logger = get_logger(__name__)
_RUN = "run.json"


def write_atomically(path: Path, content: bytes) -> None:
    """Write a small file as a whole or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    with draft.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)


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
        self.out = Path(out)
        self.path = self.out.with_name(f"{self.out.name}.part")
        self.identity = json.loads(json.dumps(identity))
        self.digest = hashlib.blake2b(json.dumps(self.identity, sort_keys=True).encode(), digest_size=8).hexdigest()
        if not self.out.parent.is_dir():
            msg = f"out={str(self.out)!r}: there is no folder {self.out.parent}. Make it first, or name another place."
            raise FileNotFoundError(msg)
        self.finished = self.out.exists() and found == self.digest
        if self.finished:
            return
        if self.out.exists() and not overwrite:
            msg = (
                f"out={str(self.out)!r} exists and is not the result of this call (other input, model or settings). "
                "Choose another place, or pass overwrite=True: it is then replaced once the new result is complete."
            )
            raise FileExistsError(msg)
        self._begin(overwrite=overwrite)

    def _begin(self, *, overwrite: bool) -> None:
        record = self.path / _RUN
        try:
            old = json.loads(record.read_text(encoding="utf-8"))
        except FileNotFoundError:
            old = None if self.path.exists() else self.identity
        except ValueError:
            old = None
        if different := _differences(old, self.identity):
            if not overwrite:
                what = ", ".join(different[:5]) if isinstance(old, dict) else "no readable run.json"
                msg = (
                    f"{self.path} holds the beginnings of another run (different: {what}). Repeat that call to finish "
                    "it, delete the folder, or pass overwrite=True to start anew."
                )
                raise FileExistsError(msg)
            shutil.rmtree(self.path)
        self.path.mkdir(exist_ok=True)
        write_atomically(record, json.dumps(self.identity, indent=1).encode())

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """Gives True to one process at a time; another gets False at once. A killed process holds nothing."""
        try:
            import fcntl
        except ImportError:  # no such locks on Windows
            yield True
            return
        with ExitStack() as stack:
            try:
                file = stack.enter_context((self.path / "lock").open("a"))
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                first = self.path.is_dir()
            except (BlockingIOError, FileNotFoundError):  # another is at it, or has done it
                first = False
            yield first

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
