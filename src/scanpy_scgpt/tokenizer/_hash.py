"""Counter-based random numbers: a draw depends on (seed, cell, gene) and on nothing else.

That is why the same cell gets the same tokens in any order, chunk, batch or process.
"""

from __future__ import annotations

from collections.abc import Sequence

import numba
import numpy as np
import pandas as pd


@numba.njit(cache=True, nogil=True, inline="always")
def _mix(x):  # pragma: no cover - compiled
    """Finaliser of the splitmix64 generator (Steele, Lea and Flood 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@numba.njit(cache=True, nogil=True)
def hash32(key, counter):  # pragma: no cover - compiled
    """32 random bits for a 64-bit key and a counter."""
    return _mix(key + (counter + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)


@numba.njit(cache=True, nogil=True)
def _keys_with_seed(name_hashes, seed):  # pragma: no cover - compiled
    out = np.empty_like(name_hashes)
    salt = _mix(seed + np.uint64(0x9E3779B97F4A7C15))
    for i in range(name_hashes.shape[0]):
        out[i] = _mix(name_hashes[i] ^ salt)
    return out


def cell_keys(names: Sequence[str], *, seed: int, purpose: str = "ties") -> np.ndarray:
    """One 64-bit key per cell from its name, a seed and what it is for.

    Parameters
    ----------
    names
        `obs_names` of the cells, shape `(n_cells,)`. Cells of one name share their key.
    seed
        Any integer that fits 64 bits.
    purpose
        Draws for different purposes are independent.

    Returns
    -------
    Array of shape `(n_cells,)`, uint64.
    """
    hashed = pd.util.hash_array(np.asarray(names, dtype=object), categorize=False)
    salt = int(pd.util.hash_array(np.array([purpose], dtype=object), categorize=False)[0])
    return _keys_with_seed(hashed, np.uint64((seed ^ salt) % 2**64))


@numba.njit(cache=True, nogil=True)
def _draws(indptr, gene_ids, keys):  # pragma: no cover - compiled
    out = np.empty(gene_ids.shape[0], dtype=np.uint32)
    for row in range(indptr.shape[0] - 1):
        for i in range(indptr[row], indptr[row + 1]):
            out[i] = hash32(keys[row], np.uint64(gene_ids[i]))
    return out


def gene_draws(indptr: np.ndarray, gene_ids: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """A random number for each gene of each cell, from the key of the cell and the id of the gene alone.

    Parameters
    ----------
    indptr
        Cell `i` owns the genes `indptr[i]:indptr[i + 1]`; shape `(n_cells + 1,)`.
    gene_ids
        Ids of genes, shape `(n_tokens,)`.
    keys
        One 64-bit key per cell, uint64, shape `(n_cells,)`.

    Returns
    -------
    Array of shape `(n_tokens,)`, uint32.
    """
    return _draws(indptr, gene_ids, keys)
