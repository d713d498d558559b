"""Tools: one function per task."""

from ._embed import embed

__all__ = ["embed"]
