"""Tokens: ragged cells, nothing padded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Tokens:
    """The expressed genes of cells and their binned values, without `<cls>` and without padding.

    Attributes
    ----------
    indptr
        Cell `i` owns the tokens `indptr[i]:indptr[i + 1]`; shape `(n_cells + 1,)`, int64.
    gene_ids
        Vocabulary ids, shape `(n_tokens,)`, int32.
    values
        Digits `1 .. n_bins - 1`, shape `(n_tokens,)`, uint8.
    """

    indptr: np.ndarray
    gene_ids: np.ndarray
    values: np.ndarray

    def __post_init__(self) -> None:
        if self.gene_ids.shape != self.values.shape or self.indptr[-1] != self.gene_ids.shape[0]:
            msg = (
                f"Tokens do not fit: {self.gene_ids.shape[0]} gene ids, {self.values.shape[0]} values, "
                f"row pointer ends at {self.indptr[-1]}."
            )
            raise ValueError(msg)

    def __len__(self) -> int:
        return self.indptr.shape[0] - 1

    @property
    def lengths(self) -> np.ndarray:
        """Number of genes of each cell, shape `(n_cells,)`, int64."""
        return np.diff(self.indptr)

    def masked(self, chosen: np.ndarray) -> Tokens:
        """The tokens where `chosen` (bool, shape `(n_tokens,)`) is True; cells stay, some get shorter."""
        kept = np.concatenate([[0], np.cumsum(chosen)])[self.indptr]
        return Tokens(kept, self.gene_ids[chosen], self.values[chosen])

    def take(self, cells: np.ndarray) -> Tokens:
        """Tokens of the cells at these positions (int, shape `(n,)`), in that order."""
        lengths = self.lengths[cells]
        indptr = np.concatenate([[0], np.cumsum(lengths)])
        where = np.arange(indptr[-1]) + np.repeat(self.indptr[cells] - indptr[:-1], lengths)
        return Tokens(indptr, self.gene_ids[where], self.values[where])

    @classmethod
    def concatenate(cls, parts: list[Tokens]) -> Tokens:
        """Cells of several parts, one after another."""
        lengths = np.concatenate([part.lengths for part in parts])
        return cls(
            np.concatenate([[0], np.cumsum(lengths)]),
            np.concatenate([part.gene_ids for part in parts]),
            np.concatenate([part.values for part in parts]),
        )
