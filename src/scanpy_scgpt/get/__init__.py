"""Results back as tables."""

from ._annotate import label_probabilities, label_sets
from ._grn import grn_edges, grn_graph, similar_genes

__all__ = ["grn_edges", "grn_graph", "label_probabilities", "label_sets", "similar_genes"]
