"""Named, weighted terms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor


class Loss(NamedTuple):
    """Weighted total and the unweighted value of each term (scalars)."""

    total: Tensor
    terms: dict[str, Tensor]


def combine(terms: Mapping[str, Tensor], weights: Mapping[str, float] | None = None) -> Loss:
    """Weighted sum of named terms; a term without a weight counts once.

    Raises
    ------
    KeyError
        When a weight is given for a term that does not exist.
    """
    weights = weights or {}
    unknown = set(weights) - set(terms)
    if unknown:
        msg = f"Weight for unknown term {sorted(unknown)[0]!r}; terms: {', '.join(terms)}."
        raise KeyError(msg)
    total = sum(weights.get(name, 1.0) * value for name, value in terms.items())
    return Loss(total, dict(terms))
