"""Which cells an integration is fitted on and judged by, and which settings of it make sense."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from scanpy_scgpt._modalities import KINDS
from scanpy_scgpt._validate import check_one_of

_LEAST = 3  # cells of a batch: of fewer, mixing says nothing


def judged(positions: np.ndarray, batches: np.ndarray) -> np.ndarray:
    """The positions of cells whose batch has at least three cells among them; all where no batch has.

    Parameters
    ----------
    positions
        Of cells, int, shape `(n,)`.
    batches
        Batch of each cell of all, int, shape `(n_cells,)`.
    """
    _, place, counted = np.unique(batches[positions], return_inverse=True, return_counts=True)
    large = counted[place] >= _LEAST
    return positions[large] if large.any() else positions


def unit(x: np.ndarray) -> np.ndarray:
    """Vectors of length 1."""
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(np.float32).tiny)


def sample(positions: np.ndarray, most: int, seed: int) -> np.ndarray:
    """At most so many of the positions of cells, sorted."""
    if len(positions) <= most:
        return positions
    return positions[np.sort(np.random.default_rng([seed, 12]).choice(len(positions), most, replace=False))]


def check_integration(network_weight: float, *, expression: bool, n_top_genes: int, n_components: int) -> None:
    """Settings of the parts of a vector must be in range."""
    if not isinstance(network_weight, int | float) or not 0 <= network_weight < np.inf:
        msg = f"network_weight={network_weight!r}: a number from 0, such as 0.5."
        raise ValueError(msg)
    if not expression and not network_weight:
        msg = "expression=False and network_weight=0 leave nothing of a cell. Keep one of the two."
        raise ValueError(msg)
    for name, value in (("n_top_genes", n_top_genes), ("n_components", n_components)):
        if not isinstance(value, int) or value < 1:
            msg = f"{name}={value!r}: a whole number from 1, such as {1200 if name == 'n_top_genes' else 50}."
            raise ValueError(msg)


def check_parts(
    weights_of: Mapping[str, float] | None, budgets: Mapping[str, int] | None, hide_modality: float
) -> None:
    """What is said of single modalities must be in range."""
    for name, given in (("weights_of", weights_of), ("budgets", budgets)):
        if given is not None and not isinstance(given, Mapping):
            msg = f"{name}={given!r}: say it by the kind of the modality, such as {name}={{'protein': 1}}."
            raise TypeError(msg)
        for kind in given or ():
            check_one_of(kind, KINDS, name=f"a modality in {name}")
    for kind, length in (weights_of or {}).items():
        if not _is_number(length) or not 0 <= length < np.inf:
            msg = f"weights_of={{{kind!r}: {length!r}}}: a number from 0, such as 1."
            raise ValueError(msg)
    for kind, most in (budgets or {}).items():
        if not _is_number(most, whole=True) or most < 1:
            msg = f"budgets={{{kind!r}: {most!r}}}: a whole number of tokens from 1, such as 100."
            raise ValueError(msg)
    if not _is_number(hide_modality) or not 0 <= hide_modality <= 1:
        msg = f"hide_modality={hide_modality!r}: a share of the cells from 0 to 1, such as 0.3."
        raise ValueError(msg)


def _is_number(value: object, *, whole: bool = False) -> bool:
    kinds = (int, np.integer) if whole else (int, float, np.integer, np.floating)
    return isinstance(value, kinds) and not isinstance(value, bool)
