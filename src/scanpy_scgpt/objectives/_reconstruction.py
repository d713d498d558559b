"""Reconstruction of expression values."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_LEFT_OUT = -100  # class of the positions that do not count


def masked_mse(predicted: Tensor, target: Tensor, counted: Tensor) -> Tensor:
    """Mean squared error over the positions that count; 0 when none does (GEP, GEPC of Cui et al. 2024).

    Shapes: `predicted`, `target` (batch, length) float; `counted` (batch, length) bool -> scalar.
    """
    error = (predicted - target).square().masked_fill(~counted, 0)
    return error.sum() / counted.sum().clamp(min=1)


def masked_nonzero_nll(probability: Tensor, target: Tensor, counted: Tensor) -> Tensor:
    """Mean negative log-likelihood of being zero or not.

    Shapes: `probability` of being non-zero, `target` value, (batch, length); `counted` bool -> scalar.
    """
    likelihood = torch.where(target > 0, probability, 1 - probability).clamp(min=torch.finfo(probability.dtype).tiny)
    return -(likelihood.log().masked_fill(~counted, 0).sum() / counted.sum().clamp(min=1))


def masked_cross_entropy(logits: Tensor, target: Tensor, counted: Tensor) -> Tensor:
    """Mean cross entropy of digits over the positions that count; 0 when none does.

    Shapes: `logits` (batch, length, n_bins); `target` digits (batch, length), float or integer; `counted` bool ->
    scalar, in nats.
    """
    classes = target.long().masked_fill(~counted, _LEFT_OUT)
    summed = F.cross_entropy(logits.flatten(0, -2), classes.flatten(), ignore_index=_LEFT_OUT, reduction="sum")
    return summed / counted.sum().clamp(min=1)
