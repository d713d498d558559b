"""Figures."""

from ._annotate import confidence, confusion, reliability
from ._embed import embeddings

__all__ = ["confidence", "confusion", "embeddings", "reliability"]
