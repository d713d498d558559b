"""Figures."""

from ._annotate import confidence, confusion, reliability
from ._attention import attention_difference, target_network
from ._embed import embeddings
from ._integrate import integration

__all__ = [
    "attention_difference",
    "confidence",
    "confusion",
    "embeddings",
    "integration",
    "reliability",
    "target_network",
]
