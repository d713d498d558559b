"""Which cells are good enough to learn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
from scipy import sparse

_MITO = r"(?i)^mt-"


@dataclass(frozen=True)
class QualityFilters:
    """Limits that a cell must keep to enter a corpus; None switches a limit off.

    Attributes
    ----------
    min_genes, max_genes
        Fewest and most expressed genes of the vocabulary.
    min_counts
        Lowest sum of all counts of the cell.
    max_mito
        Highest share of the counts in mitochondrial genes (names that begin with `MT-` or `mt-`), 0 to 1.

    Raises
    ------
    ValueError
        When a limit is out of its range.
    """

    min_genes: int | None = None
    max_genes: int | None = None
    min_counts: float | None = None
    max_mito: float | None = None

    def __post_init__(self) -> None:
        for name, good in (("min_genes", 200), ("max_genes", 8000), ("min_counts", 500)):
            value = getattr(self, name)
            if value is not None and value < 0:
                msg = f"{name}={value}: use a number of 0 or more, such as {good}, or None for no limit."
                raise ValueError(msg)
        if self.max_mito is not None and not 0 <= self.max_mito <= 1:
            msg = f"max_mito={self.max_mito}: it is a share of the counts, from 0 to 1, such as 0.2; None for no limit."
            raise ValueError(msg)
        if self.max_genes is not None and (self.min_genes or 0) > self.max_genes:
            msg = (
                f"min_genes={self.min_genes} is more than max_genes={self.max_genes}: no cell is left. Lower min_genes."
            )
            raise ValueError(msg)

    def broken(self, counts: sparse.csr_matrix, n_genes: np.ndarray, mito: np.ndarray) -> dict[str, np.ndarray]:
        """Cells that each limit removes; a cell counts for the first limit that it breaks.

        Parameters
        ----------
        counts
            All counts, shape `(n_cells, n_columns)`.
        n_genes
            Expressed genes of the vocabulary, shape `(n_cells,)`.
        mito
            Columns that are mitochondrial genes, bool, shape `(n_columns,)`.

        Returns
        -------
        Name of each limit that is on, and the cells, bool, shape `(n_cells,)`.
        """
        found, left = {}, np.ones(len(n_genes), dtype=bool)
        total = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
        beyond = {
            "min_genes": lambda limit: n_genes < limit,
            "max_genes": lambda limit: n_genes > limit,
            "min_counts": lambda limit: total < limit,
            "max_mito": lambda limit: counts @ mito.astype(np.float64) > limit * total,
        }
        for name, limit in asdict(self).items():
            if limit is not None:
                found[name] = left & beyond[name](limit)
                left &= ~found[name]
        return found


def mitochondrial(names: Sequence[Sequence[str]]) -> np.ndarray:
    """Genes with a mitochondrial name among any of their names; each of shape `(n_genes,)`; bool `(n_genes,)`."""
    return np.logical_or.reduce([pd.Series(list(column), dtype=str).str.match(_MITO).to_numpy() for column in names])
