"""Simple opponents of the tools."""

from scanpy_scgpt._effects import Effects, pseudobulk_effects, table_effects

from ._annotate import Prediction, annotate
from ._embed import embed_pca
from ._gene_vectors import gene_vectors
from ._grn import grn
from ._integrate import Integration, integrate
from ._modalities import impute_modality, integrate_modalities
from ._perturb import perturb

__all__ = [
    "Effects",
    "Integration",
    "Prediction",
    "annotate",
    "embed_pca",
    "gene_vectors",
    "grn",
    "impute_modality",
    "integrate",
    "integrate_modalities",
    "perturb",
    "pseudobulk_effects",
    "table_effects",
]
