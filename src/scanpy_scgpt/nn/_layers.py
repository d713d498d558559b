"""Encoder layer: attention and feed-forward part with their norms."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ._attention import SelfAttention
from ._config import NormScheme
from ._linear import Linear


class FeedForward(nn.Module):
    """Two affine maps with ReLU between. Shapes: (..., d_model) -> (..., d_model)."""

    def __init__(self, *, d_model: int, d_ff: int, dropout: float) -> None:
        super().__init__()
        self.linear1, self.linear2 = Linear(d_model, d_ff), Linear(d_ff, d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.linear1(x)
        return self.linear2(self.dropout(F.relu(hidden, inplace=not torch.is_grad_enabled())))


class EncoderLayer(nn.Module):
    """One transformer layer.

    Shapes: `x` (batch, length, d_model) -> (batch, length, d_model). `attend` maps vectors to attended vectors of the
    same shape; it carries masks and the form of attention.
    """

    def __init__(
        self, *, attention: SelfAttention, feed_forward: FeedForward, d_model: int, dropout: float, scheme: NormScheme
    ) -> None:
        super().__init__()
        self.attention, self.feed_forward = attention, feed_forward
        self.norm1, self.norm2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.dropout = nn.Dropout(dropout)
        self.scheme = scheme

    def forward(self, x: Tensor, padding: Tensor | None) -> Tensor:
        """Bidirectional attention; `padding` (batch, length) bool, True where padded, or None."""
        return self.mix(x, lambda tokens: self.attention(tokens, padding))

    def mix(self, x: Tensor, attend: Callable[[Tensor], Tensor]) -> Tensor:
        """Residuals and norms around any form of attention."""
        if self.scheme == "pre":
            x = self._add(x, attend(self.norm1(x)))
            return self._add(x, self.feed_forward(self.norm2(x)))
        if self.scheme == "legacy_pre":
            x = self.norm1(x)
            x = self.norm2(self._add(x, attend(x)))
            return self._add(x, self.feed_forward(x))
        x = self.norm1(self._add(x, attend(x)))
        return self.norm2(self._add(x, self.feed_forward(x)))

    def _add(self, x: Tensor, part: Tensor) -> Tensor:
        """`x` plus what a part of the layer adds to it."""
        part = self.dropout(part)
        if torch.is_grad_enabled() or part.dtype != x.dtype:
            return x + part
        return part.add_(x)  # fresh memory costs more than the sum
