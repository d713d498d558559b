"""Data that the package ships."""

from ._gene_features import gene_features

__all__ = ["gene_features"]
