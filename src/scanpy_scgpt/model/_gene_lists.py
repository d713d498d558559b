"""Ragged lists of genes and numbers, cell after cell, as generation needs them. No network."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class GeneLists(NamedTuple):
    """Genes of cells, ragged.

    Attributes
    ----------
    indptr
        Cell `i` owns the genes `indptr[i]:indptr[i + 1]`; shape `(n_cells + 1,)`, int64.
    gene_ids
        Vocabulary ids, shape `(n_entries,)`, int.
    """

    indptr: np.ndarray
    gene_ids: np.ndarray

    @classmethod
    def repeated(cls, gene_ids: np.ndarray, n_cells: int) -> GeneLists:
        """The same genes (int, shape `(n,)`) for every cell."""
        return cls(np.arange(n_cells + 1, dtype=np.int64) * len(gene_ids), np.tile(gene_ids, n_cells))

    @property
    def lengths(self) -> np.ndarray:
        """Number of genes of each cell, shape `(n_cells,)`, int64."""
        return np.diff(self.indptr)

    @property
    def cells(self) -> np.ndarray:
        """Position of the cell of each entry, shape `(n_entries,)`, int64."""
        return np.repeat(np.arange(len(self.indptr) - 1), self.lengths)

    def masked(self, chosen: np.ndarray) -> GeneLists:
        """The entries where `chosen` (bool, shape `(n_entries,)`) is True; cells stay, some get shorter."""
        kept = np.concatenate([[0], np.cumsum(chosen, dtype=np.int64)])
        return GeneLists(kept[self.indptr], self.gene_ids[chosen])

    def places(self, cells: np.ndarray) -> np.ndarray:
        """Where the entries of these cells stand, as rows of equal width.

        Parameters
        ----------
        cells
            Positions of cells, int, shape `(n,)`.

        Returns
        -------
        Positions in `gene_ids`, int64, shape `(n, longest)`; the number of entries where a row is padded.
        """
        lengths = self.indptr[cells + 1] - self.indptr[cells]
        column = np.arange(int(lengths.max(initial=0)))
        return np.where(column < lengths[:, None], self.indptr[cells][:, None] + column, len(self.gene_ids))


def ranks(cells: np.ndarray, *scores: np.ndarray) -> np.ndarray:
    """Rank of each entry inside its cell, lowest score first.

    Parameters
    ----------
    cells
        Position of the cell of each entry in ascending order, int, shape `(n_entries,)`.
    *scores
        What to sort by, shape `(n_entries,)`; a further score decides between equals.

    Returns
    -------
    Array of shape `(n_entries,)`, int64, from 0.
    """
    order = np.lexsort((*scores[::-1], cells))
    rank = np.empty(len(cells), dtype=np.int64)
    rank[order] = np.arange(len(cells))
    return rank - np.searchsorted(cells, cells)
