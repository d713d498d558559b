"""Simple opponents of the tools."""

from ._annotate import Prediction, annotate
from ._embed import embed_pca
from ._integrate import Integration, integrate
from ._modalities import impute_modality, integrate_modalities

__all__ = [
    "Integration",
    "Prediction",
    "annotate",
    "embed_pca",
    "impute_modality",
    "integrate",
    "integrate_modalities",
]
