"""What depends on the batch or the modality of a cell: normalisation by domain, vectors of categories."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_EPS, _MOMENTUM = 6.1e-5, 0.1  # of the original


class DomainNorm(nn.Module):
    """Batch normalisation of token vectors with the statistics of the domain of each cell (DSBN), without weights.

    A batch may hold cells of several domains: each is normalised with its own statistics, and padding is in none.

    Shapes: `x` (batch, length, d_model); `domains` (batch,) int64, below 0 for a domain without statistics, which then
    has the mean of those that were seen; `padding` (batch, length) bool or None -> (batch, length, d_model).

    Parameters
    ----------
    n_domains
        Number of domains.
    d_model
        Width of the vectors.
    """

    def __init__(self, n_domains: int, d_model: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_domains, d_model))
        self.register_buffer("variance", torch.ones(n_domains, d_model))
        self.register_buffer("seen", torch.zeros(n_domains, dtype=torch.bool))

    def forward(self, x: Tensor, domains: Tensor, padding: Tensor | None = None) -> Tensor:
        if self.training:
            mean, variance = self._of_batch(x, domains, padding)
        else:
            mean, variance = self._kept(domains)
        return (x - mean[:, None].to(x.dtype)) * (variance + _EPS).rsqrt()[:, None].to(x.dtype)

    def _kept(self, domains: Tensor) -> tuple[Tensor, Tensor]:
        """Running statistics of each cell, (batch, d_model)."""
        seen = self.seen.float().clamp(min=float(not bool(self.seen.any())))[:, None]
        usual = [(kept * seen).sum(dim=0) / seen.sum() for kept in (self.mean, self.variance)]
        known = (domains >= 0) & self.seen[domains.clamp(min=0)] if self.seen.any() else domains >= 0
        return tuple(
            torch.where(known[:, None], kept[domains.clamp(min=0)], other)
            for kept, other in zip((self.mean, self.variance), usual, strict=True)
        )

    def _of_batch(self, x: Tensor, domains: Tensor, padding: Tensor | None) -> tuple[Tensor, Tensor]:
        """Statistics of the batch, domain by domain; the running ones follow."""
        with torch.autocast(x.device.type, enabled=False):
            x, n_domains = x.float(), len(self.mean)
            counted = torch.ones(x.shape[:2], device=x.device) if padding is None else (~padding).float()
            own = torch.nn.functional.one_hot(domains.clamp(min=0), n_domains).float()
            n = own.T @ counted.sum(dim=1)  # tokens of each domain
            mean = own.T @ torch.einsum("bl,bld->bd", counted, x) / n.clamp(min=1)[:, None]
            spread = (x - (own @ mean)[:, None]).square()
            variance = own.T @ torch.einsum("bl,bld->bd", counted, spread) / n.clamp(min=1)[:, None]
            self._follow(mean.detach(), variance.detach(), n)
        return own @ mean, own @ variance

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor, n: Tensor) -> None:
        there = n > 1
        unbiased = variance * (n / (n - 1).clamp(min=1))[:, None]
        for kept, new in ((self.mean, mean), (self.variance, unbiased)):
            kept[there] += _MOMENTUM * (new[there] - kept[there])
        self.seen |= there


class CategoryEncoder(nn.Module):
    """Vectors of batches or modalities: a table with layer norm.

    Shapes: `codes` (...) int64 -> (..., d_model); a code below 0 gets the mean of all vectors.

    Parameters
    ----------
    n_categories
        Number of categories.
    d_model
        Width.
    """

    def __init__(self, n_categories: int, d_model: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_categories, d_model)
        self.norm = nn.LayerNorm(d_model)

    def forward(self, codes: Tensor) -> Tensor:
        table = self.norm(self.embedding.weight)
        return torch.where((codes >= 0)[..., None], table[codes.clamp(min=0)], table.mean(dim=0))
