"""Figures."""

from ._annotate import confidence, confusion, reliability
from ._embed import embeddings
from ._integrate import integration
from ._perturb_effect import perturb_effect

__all__ = ["confidence", "confusion", "embeddings", "integration", "perturb_effect", "reliability"]
