"""Simple opponents of the tools."""

from ._annotate import Prediction, annotate
from ._embed import embed_pca
from ._grn import grn
from ._integrate import Integration, integrate

__all__ = ["Integration", "Prediction", "annotate", "embed_pca", "grn", "integrate"]
