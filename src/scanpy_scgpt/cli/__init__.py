"""Command line: a thin face of the functions."""

from ._main import main

__all__ = ["main"]
