"""Counts to tokens: gather the vocabulary genes of each row, bin, select."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numba
import numpy as np
from scipy import sparse

from scanpy_scgpt._types import Select, Ties

from ._binning import MODES, TIES, digits_of_row, workspace_for
from ._hash import cell_keys
from ._select import N_COUNTS, SELECT, choose, select_genes
from ._tokens import Tokens
from ._vocab import GeneVocab

MAX_BINS = 256  # digits are stored in one byte
_EXACT_IN_FLOAT32 = 2**24
_UNCUT = 2**31 - 1


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

    def updated(self, **changes: Any) -> TokenizerConfig:
        """A copy in which the changes that are not `None` are made."""
        return replace(self, **{key: value for key, value in changes.items() if value is not None})


@numba.njit(cache=True, nogil=True)
def _gather(indices, data, gene_of_column, gene_ids, values):  # pragma: no cover - compiled
    """Genes of one row that have an id and that are not zero; returns how many (writes one place more)."""
    n = 0
    for i in range(indices.shape[0]):
        gene, value = gene_of_column[indices[i]], data[i]
        gene_ids[n], values[n] = gene, value
        n += (gene >= 0) & (value != 0)
    return n


@numba.njit(cache=True, nogil=True)
def _encode_kernel(
    indptr, indices, data, gene_of_column, tie_keys, cut_keys, quantiles, mode, max_genes, top, gene_ids, digits
):  # pragma: no cover - compiled
    """Row by row, so that what a step leaves is still in the cache for the next; returns row pointer, whole lengths."""
    widest = np.diff(indptr).max() + 1
    genes, values, row_digits = np.empty(widest, np.int32), np.empty(widest, data.dtype), np.empty(widest, np.uint8)
    scores, counts, keep = np.empty(widest, np.uint64), np.empty(N_COUNTS, np.int32), np.zeros(0, np.bool_)
    workspace = workspace_for(widest, quantiles.shape[0])
    out_indptr, whole, end = np.zeros(indptr.shape[0], np.int64), np.zeros(indptr.shape[0] - 1, np.int64), 0
    for r in range(indptr.shape[0] - 1):
        row = slice(indptr[r], indptr[r + 1])
        n = _gather(indices[row], data[row], gene_of_column, genes, values)
        whole[r] = n
        if n:
            digits_of_row(values[:n], genes[:n], tie_keys[r], quantiles, mode, workspace, row_digits)
        if n > max_genes:
            n = choose(genes, row_digits, n, cut_keys[r], keep, max_genes, top, scores, counts)
        gene_ids[end : end + n], digits[end : end + n] = genes[:n], row_digits[:n]
        end += n
        out_indptr[r + 1] = end
    return out_indptr, whole


@numba.njit(cache=True, nogil=True)
def _merge_kernel(indptr, indices, data, target):  # pragma: no cover - compiled
    """Add each value to the one in the column that its column is summed into; columns of a row stay sorted."""
    for r in range(indptr.shape[0] - 1):
        for i in range(indptr[r], indptr[r + 1]):
            column, value, j = target[indices[i]], data[i], i
            if column == indices[i]:
                continue
            while j > indptr[r] and indices[j - 1] > column:
                indices[j], data[j] = indices[j - 1], data[j - 1]
                j -= 1
            indices[j], data[j] = column, value
            if j > indptr[r] and indices[j - 1] == column:
                data[j - 1] += value
                data[j] = 0


def _as_number(data: np.ndarray) -> np.ndarray:
    """Values as int32, float32, or float64 where float32 would lose digits."""
    if data.dtype in (np.int32, np.float32, np.float64):
        return data
    if data.dtype.kind == "f":
        return data.astype(np.float32 if data.dtype.itemsize < np.dtype(np.float32).itemsize else np.float64)
    small = data.dtype.itemsize <= 2 or data.size == 0 or np.abs(data).max() < _EXACT_IN_FLOAT32
    return data.astype(np.float32 if small else np.float64)


def _merge_columns(matrix: sparse.csr_matrix, gene_of_column: np.ndarray) -> sparse.csr_matrix:
    """Sum the columns of one gene into the first of them; what is summed away becomes a stored zero."""
    known = np.flatnonzero(gene_of_column >= 0)[::-1]
    first_of_gene = np.empty(gene_of_column.max() + 1, dtype=matrix.indices.dtype)
    first_of_gene[gene_of_column[known]] = known  # from the end, so the first one stays
    target = np.arange(matrix.shape[1], dtype=matrix.indices.dtype)
    target[known] = first_of_gene[gene_of_column[known]]
    merged = matrix.copy() if matrix.has_sorted_indices else matrix.sorted_indices()
    _merge_kernel(merged.indptr, merged.indices, merged.data, target)
    return merged


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
        return self._encoded(counts, gene_of_column, names, seed=seed, max_genes=_UNCUT)[0]

    def _encoded(
        self, counts: sparse.csr_matrix, gene_of_column: np.ndarray, names: np.ndarray, *, seed: int, max_genes: int
    ) -> tuple[Tokens, np.ndarray]:
        gene_of_column = np.ascontiguousarray(gene_of_column, dtype=np.int32)
        data = _as_number(counts.data)
        if np.bincount(gene_of_column[gene_of_column >= 0], minlength=1).max() > 1:
            counts = sparse.csr_matrix((data, counts.indices, counts.indptr), shape=counts.shape)
            counts = _merge_columns(counts, gene_of_column)
            data = counts.data
        if not len(names):
            return Tokens(np.zeros(1, np.int64), np.zeros(0, np.int32), np.zeros(0, np.uint8)), np.zeros(0, np.int64)
        indptr = counts.indptr.astype(np.int64, copy=False)
        size = int(np.minimum(np.diff(indptr), max_genes).sum())
        gene_ids, digits = np.empty(size, np.int32), np.empty(size, np.uint8)
        kept, whole = _encode_kernel(
            indptr,
            counts.indices,
            data,
            gene_of_column,
            cell_keys(names, seed=seed, purpose="ties"),
            cell_keys(names, seed=seed, purpose="select"),
            np.linspace(0, 1, self.config.n_bins - 1),
            MODES[self.config.ties],
            max_genes,
            self.config.select == "top",
            gene_ids,
            digits,
        )
        return Tokens(kept, gene_ids[: kept[-1]], digits[: kept[-1]]), whole

    def cut(self, tokens: Tokens, names: np.ndarray, *, seed: int = 0, keep: np.ndarray | None = None) -> Tokens:
        """Cells of at most `max_length - 1` genes; `keep` (bool per vocabulary id) protects genes."""
        return Tokens(
            *select_genes(
                tokens.indptr,
                tokens.gene_ids,
                tokens.values,
                cell_keys(names, seed=seed, purpose="select"),
                max_genes=self.config.max_length - 1,
                select=self.config.select,
                keep=keep,
            )
        )

    def encode(
        self, counts: sparse.csr_matrix, gene_of_column: np.ndarray, names: np.ndarray, *, seed: int = 0
    ) -> Tokens:
        """Tokens of the cells: :meth:`bins`, then :meth:`cut`, in one go."""
        return self.encode_counted(counts, gene_of_column, names, seed=seed)[0]

    def encode_counted(
        self, counts: sparse.csr_matrix, gene_of_column: np.ndarray, names: np.ndarray, *, seed: int = 0
    ) -> tuple[Tokens, np.ndarray]:
        """As :meth:`encode`, with the number of genes of each cell before the cut, shape `(n_cells,)`, int64."""
        return self._encoded(counts, gene_of_column, names, seed=seed, max_genes=self.config.max_length - 1)
