"""One process at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path


@contextmanager
def alone_with(path: Path, *, wait: bool) -> Iterator[bool]:
    """Gives True to one process at a time for each file; another waits, or gets False at once.

    A killed process holds nothing. False, too, when the folder of the file is gone. Without such locks (Windows) always
    True.
    """
    try:
        import fcntl
    except ImportError:
        yield True
        return
    with ExitStack() as stack:
        try:
            file = stack.enter_context(path.open("a"))
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            mine = True
        except (BlockingIOError, FileNotFoundError):  # another is at it, or has done it
            mine = False
        yield mine
