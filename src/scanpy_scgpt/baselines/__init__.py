"""Simple opponents of the tools."""

from scanpy_scgpt._effects import Effects, pseudobulk_effects, table_effects

from ._annotate import Prediction, annotate
from ._embed import embed_pca
from ._integrate import Integration, integrate
from ._perturb import perturb

__all__ = [
    "Effects",
    "Integration",
    "Prediction",
    "annotate",
    "embed_pca",
    "integrate",
    "perturb",
    "pseudobulk_effects",
    "table_effects",
]
