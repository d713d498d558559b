"""Packages of the extras: imported by the function that needs them, missing ones named with the line that mends it."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType


def require(module: str, *, extra: str, needed_for: str) -> ModuleType:
    """Import a package of an extra.

    Parameters
    ----------
    module
        Name to import.
    extra
        Extra of this package that installs it.
    needed_for
        What the user asked for; begins the message.

    Returns
    -------
    The module.

    Raises
    ------
    ImportError
        When it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        msg = f"{needed_for} needs `{module}`: pip install 'scanpy-scgpt[{extra}]'"
        raise ImportError(msg) from error


def is_installed(module: str) -> bool:
    """Whether a top-level package could be imported; imports nothing."""
    return importlib.util.find_spec(module) is not None
