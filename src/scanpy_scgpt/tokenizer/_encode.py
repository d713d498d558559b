"""Counts to tokens: gather the vocabulary genes of each row, bin, select."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numba
import numpy as np
from scipy import sparse

from scanpy_scgpt._types import Select, Ties

from ._binning import TIES, bin_rows
from ._hash import cell_keys
from ._select import SELECT, select_genes
from ._tokens import Tokens
from ._vocab import GeneVocab

MAX_BINS = 256  # digits are stored in one byte
_EXACT_IN_FLOAT32 = 2**24


@dataclass(frozen=True)
class TokenizerConfig:
    """How counts become tokens; stored with every checkpoint.

    Attributes
    ----------
    n_bins
        Number of value bins with the one for zero.
    ties
        Digit of values on which several bin edges fall: `"random"`, `"low"`, `"mid"`, `"high"`.
    max_length
        Longest sequence, `<cls>` included.
    select
        Genes that stay when a cell is longer: `"random"` or `"top"`.
    cls_value
        Value of the `<cls>` token: -2 after pretraining, 0 in the original's fine-tuning.
    """

    n_bins: int = 51
    ties: Ties = "random"
    max_length: int = 1200
    select: Select = "random"
    cls_value: float = -2.0

    def __post_init__(self) -> None:
        if not 3 <= self.n_bins <= MAX_BINS:
            msg = f"n_bins={self.n_bins}: use 3 to {MAX_BINS} (the original checkpoints have 51)."
            raise ValueError(msg)
        if self.ties not in TIES:
            msg = f"ties={self.ties!r}: use one of {', '.join(map(repr, TIES))}."
            raise ValueError(msg)
        if self.select not in SELECT:
            msg = f"select={self.select!r}: use one of {', '.join(map(repr, SELECT))}."
            raise ValueError(msg)
        if self.max_length < 2:
            msg = f"max_length={self.max_length}: it counts <cls>, so at least 2 (the original uses 1200)."
            raise ValueError(msg)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as written to JSON."""
        return asdict(self)

    def updated(self, **changes: Any) -> TokenizerConfig:  # noqa: ANN401: any field
        """A copy in which the changes that are not `None` are made."""
        return replace(self, **{key: value for key, value in changes.items() if value is not None})


@numba.njit(cache=True, nogil=True)
def _gather(indptr, indices, data, gene_of_column, out_indptr, gene_ids, values):  # pragma: no cover - compiled
    n = 0
    for r in range(indptr.shape[0] - 1):
        for i in range(indptr[r], indptr[r + 1]):
            gene = gene_of_column[indices[i]]
            if gene >= 0 and data[i] != 0:
                gene_ids[n], values[n] = gene, data[i]
                n += 1
        out_indptr[r + 1] = n


def _as_float(data: np.ndarray) -> np.ndarray:
    """Values as float32, or float64 where float32 would lose digits."""
    if data.dtype in (np.float32, np.float64):
        return data
    if data.dtype.kind == "f":
        return data.astype(np.float32 if data.dtype.itemsize < np.dtype(np.float32).itemsize else np.float64)
    small = data.dtype.itemsize <= 2 or data.size == 0 or max(data.max(), -data.min()) < _EXACT_IN_FLOAT32
    return data.astype(np.float32 if small else np.float64)


def _merge_columns(matrix: sparse.csr_matrix, gene_of_column: np.ndarray) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Sum the columns of one gene into the first of them."""
    known = np.flatnonzero(gene_of_column >= 0)
    _, first, inverse = np.unique(gene_of_column[known], return_index=True, return_inverse=True)
    n_columns = matrix.shape[1]
    target = known[first][inverse]
    ones = np.ones(known.size, dtype=matrix.dtype)
    merged = sparse.csr_matrix(matrix @ sparse.csr_matrix((ones, (known, target)), shape=(n_columns, n_columns)))
    merged.sort_indices()
    kept = np.full_like(gene_of_column, -1)
    kept[target] = gene_of_column[target]
    return merged, kept


class Tokenizer:
    """Turns rows of a count matrix into :class:`Tokens`.

    Parameters
    ----------
    vocab
        Vocabulary whose ids the tokens carry.
    config
        How values are binned and long cells are cut.
    """

    def __init__(self, vocab: GeneVocab, config: TokenizerConfig | None = None) -> None:
        self.vocab = vocab
        self.config = config or TokenizerConfig()

    def bins(
        self, counts: sparse.csr_matrix, gene_of_column: np.ndarray, names: np.ndarray, *, seed: int = 0
    ) -> Tokens:
        """Bins of all vocabulary genes of each cell, uncut.

        Parameters
        ----------
        counts
            CSR matrix `(n_cells, n_columns)`, non-negative, any number type.
        gene_of_column
            Vocabulary id of each column, -1 for none; shape `(n_columns,)`. Columns of one gene are summed.
        names
            `obs_names` of the rows: the key of every random choice.
        seed
            The same seed gives the same tokens.

        Returns
        -------
        The tokens, in the order of the columns.
        """
        gene_of_column = np.ascontiguousarray(gene_of_column, dtype=np.int64)
        known = gene_of_column[gene_of_column >= 0]
        data = _as_float(counts.data)
        if np.bincount(known).max(initial=0) > 1:
            counts = sparse.csr_matrix((data, counts.indices, counts.indptr), shape=counts.shape)
            counts, gene_of_column = _merge_columns(counts, gene_of_column)
            data = counts.data
        row_pointer = counts.indptr.astype(np.int64, copy=False)
        indptr = np.zeros(row_pointer.size, np.int64)
        gene_ids, values = np.empty(data.size, np.int32), np.empty(data.size, data.dtype)
        _gather(row_pointer, counts.indices, data, gene_of_column, indptr, gene_ids, values)
        gene_ids, values = gene_ids[: indptr[-1]], values[: indptr[-1]]
        keys = cell_keys(names, seed=seed, purpose="ties")
        digits = bin_rows(indptr, values, gene_ids, keys, n_bins=self.config.n_bins, ties=self.config.ties)
        return Tokens(indptr, gene_ids, digits)

    def cut(self, tokens: Tokens, names: np.ndarray, *, seed: int = 0, keep: np.ndarray | None = None) -> Tokens:
        """Cells of at most `max_length - 1` genes; `keep` (bool per vocabulary id) protects genes."""
        chosen = select_genes(
            tokens.indptr,
            tokens.gene_ids,
            tokens.values,
            cell_keys(names, seed=seed, purpose="select"),
            max_genes=self.config.max_length - 1,
            select=self.config.select,
            keep=keep,
        )
        return tokens if chosen is None else tokens.masked(chosen)

    def encode(
        self, counts: sparse.csr_matrix, gene_of_column: np.ndarray, names: np.ndarray, *, seed: int = 0
    ) -> Tokens:
        """Tokens of the cells: :meth:`bins`, then :meth:`cut`."""
        tokens = self.bins(counts, gene_of_column, names, seed=seed)
        return self.cut(tokens, names, seed=seed)
