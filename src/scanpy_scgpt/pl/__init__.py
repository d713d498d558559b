"""Figures."""

from ._annotate import confidence, confusion, reliability
from ._embed import embeddings
from ._integrate import integration

__all__ = ["confidence", "confusion", "embeddings", "integration", "reliability"]
