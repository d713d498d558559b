"""Objectives: pure functions of tensors."""

from ._adversarial import reverse_gradient
from ._classification import classification
from ._combine import Loss, combine
from ._contrastive import contrastive_cells, elastic_similarity, similar_cells
from ._reconstruction import masked_cross_entropy, masked_mse, masked_nonzero_nll

__all__ = [
    "Loss",
    "classification",
    "combine",
    "contrastive_cells",
    "elastic_similarity",
    "masked_cross_entropy",
    "masked_mse",
    "masked_nonzero_nll",
    "reverse_gradient",
    "similar_cells",
]
