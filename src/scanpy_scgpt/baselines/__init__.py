"""Simple opponents of the tools."""

from ._annotate import Prediction, annotate
from ._embed import embed_pca
from ._gene_vectors import gene_vectors
from ._integrate import Integration, integrate

__all__ = ["Integration", "Prediction", "annotate", "embed_pca", "gene_vectors", "integrate"]
