"""Simple opponents of the tools."""

from ._embed import embed_pca

__all__ = ["embed_pca"]
