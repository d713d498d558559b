"""Figures."""

from ._annotate import confidence, confusion, reliability
from ._embed import embeddings
from ._integrate import integration
from ._perturb_effect import perturb_effect
from ._perturb_space import perturb_space, reverse, reverse_hits

__all__ = [
    "confidence",
    "confusion",
    "embeddings",
    "integration",
    "perturb_effect",
    "perturb_space",
    "reliability",
    "reverse",
    "reverse_hits",
]
