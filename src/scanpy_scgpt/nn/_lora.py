"""Low-rank adaptation of affine maps (LoRA, :cite:p:`Hu2022`): a trained `B A` beside a frozen weight."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


class LowRank(nn.Module):
    """`weight + scale * B A`, with `A` (rank, d_in) random and `B` (d_out, rank) zero at first.

    Shapes: `weight` (d_out, d_in) -> (d_out, d_in).
    """

    def __init__(self, d_out: int, d_in: int, *, rank: int, alpha: float) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(rank, d_in) / d_in**0.5)
        self.up = nn.Parameter(torch.zeros(d_out, rank))
        self.scale = alpha / rank

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.scale * self.up @ self.down


def _adapted(module: nn.Module, names: Sequence[str]) -> list[nn.Linear]:
    return [
        part
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear) and any(name.endswith(end) for end in names)
    ]


def add_low_rank(module: nn.Module, *, rank: int, names: Sequence[str], alpha: float | None = None) -> int:
    """Give the affine maps of a network low-rank partners and freeze their own weights.

    Parameters
    ----------
    module
        Network, changed in place; its output stays the same at first.
    rank
        Rank of the partners.
    names
        Ends of the names of the maps, such as `("attention.in_proj", "attention.out_proj")`.
    alpha
        Factor on the partners is `alpha / rank`; `alpha` is `rank` by default.

    Returns
    -------
    Number of maps that got a partner.
    """
    maps = _adapted(module, names)
    for part in maps:
        part.weight.requires_grad = False
        pair = LowRank(part.out_features, part.in_features, rank=rank, alpha=alpha or rank)
        parametrize.register_parametrization(part, "weight", pair.to(part.weight))
    return len(maps)


def merge_low_rank(module: nn.Module) -> int:
    """Write the sum of each weight and its partner into the weight, and drop the partner.

    Returns
    -------
    Number of maps that had a partner; the names of the parameters are those of before.
    """
    maps = [part for part in module.modules() if parametrize.is_parametrized(part, "weight")]
    for part in maps:
        parametrize.remove_parametrizations(part, "weight", leave_parametrized=True)
    return len(maps)
