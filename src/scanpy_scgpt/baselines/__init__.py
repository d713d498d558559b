"""Simple opponents of the tools."""

from ._annotate import Prediction, annotate
from ._embed import embed_pca

__all__ = ["Prediction", "annotate", "embed_pca"]
