"""Figures."""

from ._annotate import confidence, confusion, reliability
from ._embed import embeddings
from ._grn import grn
from ._integrate import integration
from ._programs import enrichment, gene_programs

__all__ = [
    "confidence",
    "confusion",
    "embeddings",
    "enrichment",
    "gene_programs",
    "grn",
    "integration",
    "reliability",
]
