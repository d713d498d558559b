"""Figures."""

from ._embed import embeddings

__all__ = ["embeddings"]
