"""Objectives that a network is trained against."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * grad, None


def reverse_gradient(x: Tensor, *, strength: float = 1.0) -> Tensor:
    """`x` itself, whose gradient arrives with the opposite sign, times `strength` (DAR; "DAB" in the original code).

    A classifier of batches behind it learns, and what is in front of it unlearns, what tells batches apart.
    """
    return _Reversed.apply(x, strength)
