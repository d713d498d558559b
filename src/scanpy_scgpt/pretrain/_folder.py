"""The folder of a run: what may stand in it before, and that one run at a time writes there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scanpy_scgpt.disk import alone_with
from scanpy_scgpt.io import require_replaceable

_WRITTEN = ("run.json", "metrics.csv", "metrics-earlier.csv", "checkpoints")  # and replaced, by a run
_LOCK = ".run.lock"


def require_own(out: Path) -> None:
    """Nothing of another origin stands where a run writes; changes nothing.

    Parameters
    ----------
    out
        Folder of the run.

    Raises
    ------
    ValueError
        When `out` is a file, when it holds files with the names of those of a run that none wrote there, or a `model`
        that :func:`scanpy_scgpt.io.write_checkpoint` does not replace.
    """
    if out.exists() and not out.is_dir():
        msg = f"{out} is a file, and a run needs a folder. Choose another path."
        raise ValueError(msg)
    foreign = [] if _is_of_a_run(out / "run.json") else [name for name in _WRITTEN if _holds_something(out / name)]
    if foreign:
        msg = (
            f"{out} holds {', '.join(foreign)}, but no run.json of a pretraining run: a run would replace what it did "
            "not write. Choose another folder, or move this elsewhere."
        )
        raise ValueError(msg)
    try:
        require_replaceable(out / "model")
    except FileExistsError as error:
        raise ValueError(str(error)) from error


def _is_of_a_run(path: Path) -> bool:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and {"format", "config"} <= found.keys()


def _holds_something(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.exists()


@contextmanager
def alone_in(out: Path, *, first: bool) -> Iterator[None]:
    """Keep other runs out of a folder; a killed process holds nothing.

    Parameters
    ----------
    out
        Folder of the run; made when it is not there.
    first
        Whether this is the first process of its run: that one answers for all of them.

    Raises
    ------
    ValueError
        When another run is at work there.
    """
    if not first:
        yield
        return
    out.mkdir(parents=True, exist_ok=True)
    with alone_with(out / _LOCK, wait=False) as mine:
        if not mine:
            msg = f"Another process trains in {out}. Wait until it has ended, or choose another folder."
            raise ValueError(msg)
        yield
