"""Cells that stand more than once in a corpus: equal counts, or equal names."""

from __future__ import annotations

from collections.abc import Iterator

import numba
import numpy as np
import pandas as pd
from scipy import sparse

from scanpy_scgpt.disk import TokenStore
from scanpy_scgpt.tokenizer import cell_keys

_TELLING = 10  # genes; cells with fewer may be equal by chance
_NAMES = 2**21  # names of cells that are compared at most


@numba.njit(cache=True, nogil=True)
def _mixed(x):  # noqa: ANN001, ANN202 # pragma: no cover - compiled
    """Finaliser of the splitmix64 generator (Steele, Lea and Flood 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@numba.njit(cache=True, nogil=True)
def _sums(indptr, genes, counts, out):  # noqa: ANN001, ANN202 # pragma: no cover - compiled
    for r in range(indptr.shape[0] - 1):
        total, n = np.uint64(0), 0
        for i in range(indptr[r], indptr[r + 1]):
            if counts[i] != 0:
                pair = np.uint64(counts[i]) + (np.uint64(genes[i]) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
                total += _mixed(pair)
                n += 1
        out[r] = max(total, np.uint64(1)) if n >= _TELLING else np.uint64(0)


def count_keys(counts: sparse.csr_matrix, gene_ids: np.ndarray, *, n_tokens: int) -> np.ndarray:
    """A 64-bit key of the counts of each cell: the sum of a hash of each pair of gene and count.

    Parameters
    ----------
    counts
        Whole numbers, shape `(n_cells, n_columns)`.
    gene_ids
        Vocabulary id of each column, -1 for none; shape `(n_columns,)`. Columns of one gene are summed.
    n_tokens
        Size of the vocabulary.

    Returns
    -------
    Array of shape `(n_cells,)`, uint64; the same for the same counts, whatever the order of the columns. 0 for cells of
    fewer than 10 genes, which may be equal by chance.
    """
    genes = gene_ids[counts.indices]
    known = genes >= 0
    indptr = np.concatenate([[0], np.cumsum(known)])[counts.indptr]
    merged = sparse.csr_matrix((counts.data[known], genes[known], indptr), shape=(counts.shape[0], n_tokens))
    merged.sum_duplicates()
    keys = np.empty(counts.shape[0], dtype=np.uint64)
    _sums(merged.indptr, merged.indices, merged.data, keys)
    return keys


class Seen:
    """The file in which each key was seen first; 12 bytes a key.

    The keys lie in sorted runs that are merged when they have grown to a like size, so that looking up takes a few
    binary searches.
    """

    def __init__(self) -> None:
        self._runs: list[tuple[np.ndarray, np.ndarray]] = []

    def first(self, keys: np.ndarray, file: int) -> np.ndarray:
        """Number of the file that has each key first, or -1 for new keys, which from now on are those of `file`.

        Parameters
        ----------
        keys
            uint64, shape `(n_cells,)`; 0 is never found.
        file
            Number of the file that the keys are of.
        """
        found = np.full(keys.size, -1, dtype=np.int64)
        for held, files in self._runs:
            at = np.minimum(np.searchsorted(held, keys), held.size - 1)
            hit = held[at] == keys
            found[hit] = files[at[hit]]
        new = np.flatnonzero((found < 0) & (keys > 0))
        fresh, which = np.unique(keys[new], return_index=True)
        again = np.ones(new.size, dtype=bool)
        again[which] = False
        found[new[again]] = file
        self._add(fresh, np.full(fresh.size, file, dtype=np.int32))
        return found

    def forget(self, file: int) -> None:
        """Let the keys of a file go."""
        kept = [(keys[files != file], files[files != file]) for keys, files in self._runs]
        self._runs = [(keys, files) for keys, files in kept if keys.size]

    def _add(self, keys: np.ndarray, files: np.ndarray) -> None:
        while self._runs and self._runs[-1][0].size <= 2 * keys.size:
            keys, files = (np.concatenate(pair) for pair in zip(self._runs.pop(), (keys, files), strict=True))
            order = np.argsort(keys, kind="stable")
            keys, files = keys[order], files[order]
        if keys.size:
            self._runs.append((keys, files))


def shared_names(store: TokenStore) -> Iterator[tuple[str, str, int]]:
    """Pairs of files and about how many names of cells they share; a large store is looked at in part."""
    bound = np.uint64(min(_NAMES / max(len(store), 1), 1) * (2**64 - 2**12))
    parts = []
    for names, files in zip(store.shard_names(), store.shard_columns("file"), strict=True):
        keys = cell_keys(names, seed=0, purpose="names")
        parts.append(pd.DataFrame({"key": keys, "file": files})[keys <= bound].drop_duplicates())
    table = pd.concat(parts).drop_duplicates()
    table = table[table["key"].duplicated(keep=False)].sort_values(["key", "file"])
    first = table.groupby("key")["file"].transform("first")
    pairs = pd.DataFrame({"first": first, "second": table["file"]})[first != table["file"]]
    share = float(bound) / 2**64
    for (a, b), n in pairs.value_counts(sort=False).items():
        yield a, b, round(n / share)
