"""Results back as tables, or in the form of other packages."""

from ._annotate import label_probabilities, label_sets
from ._grn import grn_edges, grn_graph, similar_genes
from ._perturb import cell_eval_pair
from ._programs import enrichment, gene_programs, program_scores

__all__ = [
    "cell_eval_pair",
    "enrichment",
    "gene_programs",
    "grn_edges",
    "grn_graph",
    "label_probabilities",
    "label_sets",
    "program_scores",
    "similar_genes",
]
