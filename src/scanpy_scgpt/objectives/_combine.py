"""Named, weighted terms."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from torch import Tensor

_NONE: Mapping[str, str] = MappingProxyType({})


class Loss(NamedTuple):
    """Weighted total and the unweighted value of each term (scalars).

    `weights` holds the weight of each term, `over` what it is a mean over (`"targets"` where nothing is said).
    """

    total: Tensor
    terms: dict[str, Tensor]
    weights: Mapping[str, float] = _NONE
    over: Mapping[str, str] = _NONE

    def shared(self, shares: Mapping[str, float]) -> Loss:
        """Each term times the share of this batch in what the term is a mean over.

        Parameters
        ----------
        shares
            Shares by what is counted, such as `{"targets": 0.25, "cells": 0.5}`.

        Returns
        -------
        Loss whose sum over the parts of a batch is the loss of the whole batch.
        """
        terms = {name: value * shares[self.over.get(name, "targets")] for name, value in self.terms.items()}
        return combine(terms, self.weights, over=self.over)


def combine(
    terms: Mapping[str, Tensor],
    weights: Mapping[str, float] | None = None,
    *,
    over: Mapping[str, str] | None = None,
) -> Loss:
    """Weighted sum of named terms; a term without a weight counts once.

    Parameters
    ----------
    terms
        Value of each term, scalars.
    weights
        Weights by name of the term.
    over
        What each term is a mean over, by its name; `"targets"` where nothing is said.

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
    return Loss(total, dict(terms), dict(weights), dict(over or {}))
