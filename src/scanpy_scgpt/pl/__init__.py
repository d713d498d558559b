"""Figures."""

from ._annotate import confidence, confusion, reliability
from ._attention import attention_difference, target_network
from ._embed import embeddings
from ._grn import grn
from ._integrate import integration
from ._modalities import modalities
from ._perturb_effect import perturb_effect
from ._perturb_space import perturb_space, reverse, reverse_hits
from ._programs import enrichment, gene_programs

__all__ = [
    "attention_difference",
    "confidence",
    "confusion",
    "embeddings",
    "enrichment",
    "gene_programs",
    "grn",
    "integration",
    "modalities",
    "perturb_effect",
    "perturb_space",
    "reliability",
    "reverse",
    "reverse_hits",
    "target_network",
]
