"""Results back as tables, or in the form of other packages."""

from ._annotate import label_probabilities, label_sets
from ._perturb import cell_eval_pair

__all__ = ["cell_eval_pair", "label_probabilities", "label_sets"]
