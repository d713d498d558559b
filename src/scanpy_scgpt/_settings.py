"""Settings of the package."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ._logging import VERBOSITIES, set_verbosity, verbosity

_FIELDS = ("model", "verbosity", "progress_bar", "cache_dir")
_OFF = {"0", "false", "no", "off"}


def _verbosity_of_environment() -> str | None:
    """What the environment asks for; `"info"`, with a warning, for an unknown value; None if it asks for nothing."""
    given = os.environ.get("SCANPY_SCGPT_VERBOSITY", "").strip().lower()
    if given and given not in VERBOSITIES:
        msg = (
            f"SCANPY_SCGPT_VERBOSITY={given!r} is unknown, 'info' is used. Set it to one of "
            f"{', '.join(map(repr, VERBOSITIES))}."
        )
        warnings.warn(msg, stacklevel=3)
        return "info"
    return given or None


def _cache_of_environment() -> str:
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return os.environ.get("SCANPY_SCGPT_CACHE") or str(Path(base) / "scanpy_scgpt")


class Settings:
    """Defaults that hold for the session; each can be set from the environment.

    Attributes
    ----------
    model
        Checkpoint that `model=None` means: a name or a folder (`SCANPY_SCGPT_MODEL`; default `"mini"`).
    verbosity
        `"error"`, `"warning"`, `"info"` (default: receipts are shown) or `"debug"` (`SCANPY_SCGPT_VERBOSITY`).
        A level that the logger `scanpy_scgpt` has before the import stays unless one of the two sets another.
    progress_bar
        Show progress of long loops (`SCANPY_SCGPT_PROGRESS`; `0`, `false`, `no` or `off` hides it).
    cache_dir
        Folder of downloaded checkpoints and registered names (`SCANPY_SCGPT_CACHE`; default `scanpy_scgpt` in
        `$XDG_CACHE_HOME` or `~/.cache`). It is made when something is put there.
    """

    def __init__(self) -> None:
        self.model: str = os.environ.get("SCANPY_SCGPT_MODEL", "mini")
        asked, of_application = _verbosity_of_environment(), verbosity()
        if asked is None and of_application is not None:
            super().__setattr__("verbosity", of_application)  # known, but the level stays exactly as it is
        else:
            self.verbosity = asked or "info"
        self.progress_bar = os.environ.get("SCANPY_SCGPT_PROGRESS", "1").strip().lower() not in _OFF
        self.cache_dir: str | os.PathLike[str] = _cache_of_environment()

    def __setattr__(self, name: str, value: object) -> None:
        if name not in _FIELDS:
            msg = f"There is no setting {name!r}; settings: {', '.join(_FIELDS)}."
            raise AttributeError(msg)
        if name == "verbosity":
            if value not in VERBOSITIES:
                msg = f"verbosity={value!r}: use one of {', '.join(map(repr, VERBOSITIES))}."
                raise ValueError(msg)
            set_verbosity(str(value))
        if name == "progress_bar" and not isinstance(value, bool):
            msg = f"progress_bar={value!r}: use True or False."
            raise TypeError(msg)
        if name == "model" and not isinstance(value, str | os.PathLike):
            msg = f"model={value!r}: use the name of a checkpoint or the path of its folder."
            raise TypeError(msg)
        if name == "cache_dir" and (not isinstance(value, str | os.PathLike) or not os.fspath(value)):
            msg = f"cache_dir={value!r}: use the path of a folder."
            raise TypeError(msg)
        super().__setattr__(name, value)

    @contextmanager
    def override(self, **changes: object) -> Iterator[Settings]:
        """Change settings inside a `with` block."""
        before = {name: getattr(self, name) for name in changes}
        try:
            for name, value in changes.items():
                setattr(self, name, value)
            yield self
        finally:
            for name, value in before.items():
                setattr(self, name, value)

    def __repr__(self) -> str:
        return f"Settings({', '.join(f'{name}={getattr(self, name)!r}' for name in _FIELDS)})"


settings = Settings()
