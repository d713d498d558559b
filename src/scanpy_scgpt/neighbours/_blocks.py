"""Cells in blocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

_BLOCK = 2**14  # cells handled at a time


class CellBlock(NamedTuple):
    """Some cells of an index to be.

    Attributes
    ----------
    vectors
        Shape `(n, n_dims)`.
    names
        Names of the cells, shape `(n,)`.
    labels
        Values by key, each of shape `(n,)`; NaN or None for none.
    """

    vectors: np.ndarray
    names: np.ndarray
    labels: Mapping[str, np.ndarray]


def blocks_of(
    vectors: np.ndarray,
    names: Sequence[str] | None,
    labels: Mapping[str, Sequence[str]] | None,
    *,
    first: int = 0,
) -> Iterator[CellBlock]:
    """Arrays in blocks; lengths are compared before the first one."""
    names = np.arange(first, first + len(vectors)).astype(str) if names is None else np.asarray(names, dtype=object)
    labels = {key: np.asarray(values, dtype=object) for key, values in (labels or {}).items()}
    for what, values in {"names": names, **{f"labels[{key!r}]": values for key, values in labels.items()}}.items():
        if len(values) != len(vectors):
            msg = f"{what} has {len(values):,} values for {len(vectors):,} cells: give one for each."
            raise ValueError(msg)
    for start in range(0, len(vectors), _BLOCK):
        part = slice(start, start + _BLOCK)
        yield CellBlock(vectors[part], names[part], {key: values[part] for key, values in labels.items()})
