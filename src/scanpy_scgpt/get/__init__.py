"""Results back as tables."""

from ._annotate import label_probabilities, label_sets

__all__ = ["label_probabilities", "label_sets"]
