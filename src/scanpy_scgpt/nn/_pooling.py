"""Token vectors to one vector per cell."""

from __future__ import annotations

from typing import get_args

from torch import Tensor
from torch.nn import functional as F

from scanpy_scgpt._types import Pooling

POOLINGS: tuple[str, ...] = get_args(Pooling)


def pool(hidden: Tensor, *, how: Pooling, padding: Tensor | None = None, values: Tensor | None = None) -> Tensor:
    """One vector per cell.

    Parameters
    ----------
    hidden
        (batch, length, d_model).
    how
        `"cls"`: the first token; `"mean"`: mean over the tokens that are not padded; `"weighted"`: sum weighted by
        the values that are not padded, scaled to length 1.
    padding
        (batch, length) bool, True where padded, or None.
    values
        (batch, length), for `"weighted"`.

    Returns
    -------
    (batch, d_model).
    """
    if how == "cls":
        return hidden[:, 0]
    if how == "mean":
        if padding is None:
            return hidden.mean(dim=1)
        kept = (~padding).unsqueeze(-1).to(hidden.dtype)
        return hidden.masked_fill(padding.unsqueeze(-1), 0).sum(dim=1) / kept.sum(dim=1)
    weights = values if padding is None else values.masked_fill(padding, 0)
    summed = (hidden.masked_fill(weights.unsqueeze(-1) == 0, 0) * weights.unsqueeze(-1)).sum(dim=1)
    return F.normalize(summed, dim=1)
