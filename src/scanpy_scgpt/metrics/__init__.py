"""Measures: truth and result in, numbers out."""

from ._embed import Agreement, knn_agreement

__all__ = ["Agreement", "knn_agreement"]
