"""Token vectors to one vector per cell."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor
from torch.nn import functional as F

from scanpy_scgpt._types import Pooling

POOLINGS: tuple[str, ...] = get_args(Pooling)


class CellPool:
    """Token vectors to one vector per cell: call it with what enters the layers, then with what each layer gives.

    Parameters
    ----------
    how
        `"cls"`: the first token; `"mean"`: mean over the tokens that are not padded; `"weighted"`: sum weighted by
        the values that are not padded, scaled to length 1; these of the last call. `"layers"`: the sum of the
        `"weighted"` vectors of all calls, scaled to length 1.
    padding
        (batch, length) bool, True where padded, or None.
    values
        (batch, length), for `"weighted"` and `"layers"`.
    """

    def __init__(self, how: Pooling, *, padding: Tensor | None = None, values: Tensor | None = None) -> None:
        self.how, self.padding, self.values = how, padding, values
        self._last: Tensor | None = None
        self._sum: Tensor | float = 0.0

    def __call__(self, hidden: Tensor) -> None:
        """Take vectors of tokens, (batch, length, d_model)."""
        if self.how == "layers":
            self._sum = self._sum + pool(hidden, how="weighted", padding=self.padding, values=self.values)
        else:
            self._last = hidden

    def result(self) -> Tensor:
        """Vectors of cells, (batch, d_model), of what was taken so far."""
        if self.how == "layers":
            return F.normalize(self._sum, dim=1)
        return pool(self._last, how=self.how, padding=self.padding, values=self.values)


def pool(
    hidden: Tensor,
    *,
    how: Literal["cls", "mean", "weighted"],
    padding: Tensor | None = None,
    values: Tensor | None = None,
) -> Tensor:
    """One vector per cell, from one layer.

    Parameters
    ----------
    hidden
        (batch, length, d_model).
    how
        `"cls"`, `"mean"` or `"weighted"`, as in :class:`scanpy_scgpt.nn.CellPool`.
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
