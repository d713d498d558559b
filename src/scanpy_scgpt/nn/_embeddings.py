"""Gene and value encoders."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MAX_VALUE = 512.0  # continuous values above this are clipped, as in the original


class GeneEncoder(nn.Module):
    """Gene table with layer norm.

    Shapes: `gene_ids` (...) int64 -> (..., d_model).
    """

    def __init__(self, *, n_tokens: int, d_model: int, pad_id: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_tokens, d_model, padding_idx=pad_id)
        self.norm = nn.LayerNorm(d_model)

    def forward(self, gene_ids: Tensor) -> Tensor:
        return self.norm(self.embedding(gene_ids))

    def table(self) -> Tensor:
        """Vectors of all tokens, (n_tokens, d_model)."""
        return self.norm(self.embedding.weight)


class ContinuousValueEncoder(nn.Module):
    """A value through a small network; the marks for masked (-1) and padded (-2) are ordinary numbers to it.

    Shapes: `values` (...) float -> (..., d_model).
    """

    def __init__(self, *, d_model: int, dropout: float) -> None:
        super().__init__()
        self.linear1 = nn.Linear(1, d_model)
        self.linear2 = nn.Linear(d_model, d_model)
        self.norm = nn.LayerNorm(d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, values: Tensor) -> Tensor:
        x = values.unsqueeze(-1).clamp(max=MAX_VALUE).to(self.linear1.weight.dtype)
        return self.dropout(self.norm(self.linear2(F.relu(self.linear1(x)))))


class CategoryValueEncoder(nn.Module):
    """A table of value bins: `n_bins` digits, then pad (`n_bins`), then mask (`n_bins + 1`).

    Shapes: `values` (...) -> (..., d_model).
    """

    def __init__(self, *, n_bins: int, d_model: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_bins + 2, d_model, padding_idx=n_bins)
        self.norm = nn.LayerNorm(d_model)

    def forward(self, values: Tensor) -> Tensor:
        return self.norm(self.embedding(values.long()))


class InputEncoder(nn.Module):
    """Sum (or product, for `"scaling"`) of gene and value vectors.

    `unknown` is the vector that stands in for the value of a gene whose expression is to be generated.
    """

    def __init__(self, *, genes: GeneEncoder, values: nn.Module | None) -> None:
        super().__init__()
        self.genes = genes
        self.values = values
        self.unknown = nn.Parameter(torch.zeros(genes.embedding.embedding_dim))

    def forward(self, gene_ids: Tensor, values: Tensor) -> Tensor:
        """Vectors of tokens: `gene_ids` (batch, length), `values` (batch, length) -> (batch, length, d_model)."""
        genes = self.genes(gene_ids)
        if self.values is None:
            return genes * values.unsqueeze(-1)
        return genes + self.values(values)

    def without_value(self, gene_ids: Tensor) -> Tensor:
        """Vectors of genes of unknown value: `gene_ids` (batch, length) -> (batch, length, d_model)."""
        return self.genes(gene_ids) + self.unknown
