"""Figures."""

from ._annotate import confidence, confusion, reliability
from ._embed import embeddings
from ._integrate import integration
from ._modalities import modalities

__all__ = ["confidence", "confusion", "embeddings", "integration", "modalities", "reliability"]
