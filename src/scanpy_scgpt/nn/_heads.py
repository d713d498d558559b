"""Prediction heads. No loss."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CellToGeneStyle = Literal["inner product", "inner product, detach", "concat query", "sum query"]


class Expression(NamedTuple):
    """Predicted values (batch, length) and, when asked for, the probability of being non-zero, same shape."""

    values: Tensor
    nonzero: Tensor | None


def _token_network(d_in: int, d_model: int, d_out: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(d_in, d_model), nn.LeakyReLU(), nn.Linear(d_model, d_model), nn.LeakyReLU(), nn.Linear(d_model, d_out)
    )


class ExpressionHead(nn.Module):
    """Expression of each gene from its token vector (gene expression prediction, GEP).

    Shapes: `hidden` (batch, length, d_in) -> :class:`Expression` of (batch, length), on the scale of the bins.

    Parameters
    ----------
    d_model
        Width of the hidden layers.
    d_in
        Width of the token vectors; `d_model` by default, more when batch or modality vectors are appended.
    explicit_zeros
        Predict the probability of being non-zero too, with a second network.
    """

    def __init__(self, *, d_model: int, d_in: int | None = None, explicit_zeros: bool = False) -> None:
        super().__init__()
        self.network = _token_network(d_in or d_model, d_model)
        self.nonzero = _token_network(d_in or d_model, d_model) if explicit_zeros else None

    def forward(self, hidden: Tensor) -> Expression:
        nonzero = None if self.nonzero is None else torch.sigmoid(self.nonzero(hidden).squeeze(-1))
        return Expression(self.network(hidden).squeeze(-1), nonzero)


class AffineHead(nn.Module):
    """Expression after a perturbation: an affine map of the expression before it, `A * x + b`, made from the token.

    Shapes: `hidden` (batch, length, d_model), `values` (batch, length) -> :class:`Expression` of (batch, length).

    Parameters
    ----------
    d_model
        Width of the token vectors.
    explicit_zeros
        Predict the probability of being non-zero too.
    adaptive_bias
        Scale `b` of a cell with the mean of its values that are not zero.
    positive
        Make `A` and `b` positive (softplus).
    """

    def __init__(
        self, *, d_model: int, explicit_zeros: bool = False, adaptive_bias: bool = False, positive: bool = False
    ) -> None:
        super().__init__()
        self.positive = positive
        self.scale = ExpressionHead(d_model=d_model, explicit_zeros=explicit_zeros)
        self.shift = _token_network(d_model, d_model)
        self.adaptive_bias = adaptive_bias

    def forward(self, hidden: Tensor, values: Tensor) -> Expression:
        scale, nonzero = self.scale(hidden)
        shift = self.shift(hidden).squeeze(-1)
        if self.positive:
            scale, shift = F.softplus(scale), F.softplus(shift)
        if self.adaptive_bias:
            shown = (values != 0).sum(dim=1, keepdim=True).clamp(min=1)
            shift = shift * values.sum(dim=1, keepdim=True) / shown
        return Expression(scale * values + shift, nonzero)


class ValueDistributionHead(nn.Module):
    """Probability of each digit of a gene from its token vector: an answer that says how sure it is.

    Shapes: `hidden` (..., d_model) -> logits (..., n_bins); class `i` is digit `i`. Only expressed genes are trained,
    so digit 0 is never a target and gets a probability near 0.

    Parameters
    ----------
    d_model
        Width of the token vectors.
    n_bins
        Number of digits, the one for zero included.
    """

    def __init__(self, d_model: int, n_bins: int) -> None:
        super().__init__()
        self.network = _token_network(d_model, d_model, n_bins)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.network(hidden)


class CellToGeneHead(nn.Module):
    """Expression of each gene from the cell vector (GEPC; "MVC" in the original code).

    Shapes: `cell` (batch, d_cell), `genes` (batch, length, d_model) -> :class:`Expression` of (batch, length).

    Parameters
    ----------
    d_model
        Width of the gene vectors.
    d_cell
        Width of the cell vector; `d_model` by default.
    style
        How the two meet: `"inner product"` (with `", detach"` no gradient reaches the gene vectors), or a small network
        on `"concat query"` or `"sum query"`.
    explicit_zeros
        Predict the probability of being non-zero too; for the inner product.
    """

    def __init__(
        self,
        *,
        d_model: int,
        d_cell: int | None = None,
        style: CellToGeneStyle = "inner product",
        explicit_zeros: bool = False,
    ) -> None:
        super().__init__()
        if style not in get_args(CellToGeneStyle):
            msg = f"style={style!r}: use one of {', '.join(map(repr, get_args(CellToGeneStyle)))}."
            raise ValueError(msg)
        d_cell = d_cell or d_model
        self.style = style
        self.nonzero = None
        if style.startswith("inner product"):
            self.query = nn.Linear(d_model, d_model)
            self.weight = nn.Linear(d_model, d_cell, bias=False)
            self.nonzero = nn.Linear(d_model, d_cell) if explicit_zeros else None
        else:
            d_query = 64 if style == "concat query" else d_model
            self.query = nn.Linear(d_model, d_query)
            self.fc1 = nn.Linear(d_cell + 64 if style == "concat query" else d_cell, 64)
            self.activation = nn.PReLU()
            self.fc2 = nn.Linear(64, 1)

    def forward(self, cell: Tensor, genes: Tensor) -> Expression:
        if self.style == "inner product, detach":
            genes = genes.detach()
        query = torch.sigmoid(self.query(genes))
        if not self.style.startswith("inner product"):
            return Expression(self._from_query(cell, query), None)
        values = torch.einsum("bld,bd->bl", self.weight(query), cell)
        if self.nonzero is None:
            return Expression(values, None)
        return Expression(values, torch.sigmoid(torch.einsum("bld,bd->bl", self.nonzero(query), cell)))

    def _from_query(self, cell: Tensor, query: Tensor) -> Tensor:
        cell = cell.unsqueeze(1).expand(-1, query.shape[1], -1)
        x = torch.cat([cell, query], dim=-1) if self.style == "concat query" else cell + query
        return self.fc2(self.activation(self.fc1(x))).squeeze(-1)


class ClassHead(nn.Module):
    """Scores of classes from the cell vector.

    Shapes: `cell` (batch, d_model) -> (batch, n_classes), unnormalised.

    Parameters
    ----------
    d_model
        Width of the cell vector.
    n_classes
        Number of classes.
    n_layers
        Affine maps, the last one included.
    """

    def __init__(self, *, d_model: int, n_classes: int, n_layers: int = 3) -> None:
        super().__init__()
        self.hidden = nn.ModuleList(nn.Linear(d_model, d_model) for _ in range(n_layers - 1))
        self.norms = nn.ModuleList(nn.LayerNorm(d_model) for _ in range(n_layers - 1))
        self.out = nn.Linear(d_model, n_classes)

    def forward(self, cell: Tensor) -> Tensor:
        for linear, norm in zip(self.hidden, self.norms, strict=True):
            cell = norm(F.relu(linear(cell)))
        return self.out(cell)


class AdversaryHead(nn.Module):
    """Scores of batches from the cell vector, for the objective behind a reversed gradient.

    Shapes: `cell` (batch, d_model) -> (batch, n_batches), unnormalised.

    Parameters
    ----------
    d_model
        Width of the cell vector.
    n_batches
        Number of batches.
    n_layers
        Affine maps, the last one included.
    """

    def __init__(self, *, d_model: int, n_batches: int, n_layers: int = 3) -> None:
        super().__init__()
        hidden = [(nn.Linear(d_model, d_model), nn.LeakyReLU(), nn.LayerNorm(d_model)) for _ in range(n_layers - 1)]
        self.network = nn.Sequential(*(part for parts in hidden for part in parts), nn.Linear(d_model, n_batches))

    def forward(self, cell: Tensor) -> Tensor:
        return self.network(cell)
