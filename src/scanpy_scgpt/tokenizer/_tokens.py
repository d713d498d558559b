"""Tokens: ragged cells, nothing padded."""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np


@numba.njit(cache=True, nogil=True)
def _fill(indptr, gene_ids, values, cells, out_ids, out_digits):  # pragma: no cover - compiled
    for row in range(cells.shape[0]):
        start, stop = indptr[cells[row]], indptr[cells[row] + 1]
        for i in range(start, stop):
            out_ids[row, i - start + 1] = gene_ids[i]
            out_digits[row, i - start + 1] = values[i]


@numba.njit(cache=True, nogil=True)
def _compact(indptr, gene_ids, values, chosen):  # pragma: no cover - compiled
    kept = np.zeros_like(indptr)
    out_ids, out_values = np.empty_like(gene_ids), np.empty_like(values)
    n = 0
    for r in range(indptr.shape[0] - 1):
        for i in range(indptr[r], indptr[r + 1]):
            if chosen[i]:
                out_ids[n], out_values[n] = gene_ids[i], values[i]
                n += 1
        kept[r + 1] = n
    return kept, out_ids[:n], out_values[:n]


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

    def lengths_of(self, cells: np.ndarray) -> np.ndarray:
        """Number of genes of the cells at these positions (int, shape `(n,)`), int64; looks at no others."""
        return self.indptr[cells + 1] - self.indptr[cells]

    def masked(self, chosen: np.ndarray) -> Tokens:
        """The tokens where `chosen` (bool, shape `(n_tokens,)`) is True; cells stay, some get shorter."""
        return Tokens(*_compact(self.indptr, self.gene_ids, self.values, chosen))

    def fill(self, cells: np.ndarray, gene_ids: np.ndarray, digits: np.ndarray) -> None:
        """Write the cells at these positions into padded arrays, from the second column on.

        Parameters
        ----------
        cells
            Positions of cells, int, shape `(n,)`.
        gene_ids, digits
            Arrays of int32, shape `(n, longest + 1)`, changed in place; padding keeps what it holds.
        """
        _fill(self.indptr, self.gene_ids, self.values, cells, gene_ids, digits)

    def take(self, cells: np.ndarray) -> Tokens:
        """Tokens of the cells at these positions (int, shape `(n,)`), in that order."""
        lengths = self.lengths_of(cells)
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
