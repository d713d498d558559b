"""Tools: one function per task."""

from ._annotate import annotate
from ._denoise import denoise
from ._embed import embed
from ._generate import generate

__all__ = ["annotate", "denoise", "embed", "generate"]
