"""The one progress bar."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ._settings import settings


@contextmanager
def track(description: str, *, total: int) -> Iterator[Callable[[int], None]]:
    """Progress of `total` units; yields the function that advances it.

    Shown where standard error is a terminal or a notebook and `settings.progress_bar` is on.
    """
    shown = settings.progress_bar and (sys.stderr.isatty() or "ipykernel" in sys.modules)
    if not shown:
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(description, total=total)
        yield lambda n: progress.advance(task, n)
