"""Data that the package ships, simulates, or reads in the layout of others."""

from ._gears import read_gears
from ._gene_features import gene_features
from ._simulate import simulate_perturb

__all__ = ["gene_features", "read_gears", "simulate_perturb"]
