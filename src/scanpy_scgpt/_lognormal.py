"""Log-normalised expression out of counts, block by block of cells."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from scipy import sparse

from ._counts import CountSource

_BLOCK, _TOTAL = 4096, 1e4


def columns_of(source: CountSource, names: pd.Index) -> np.ndarray:
    """Column of the matrix for each gene by name, -1 where it has none; int64."""
    own = pd.Index(source.var.index)
    first = pd.Series(np.arange(len(own)), index=own)
    return first[~own.duplicated()].reindex(names, fill_value=-1).to_numpy(dtype=np.int64)


def log_normalised(source: CountSource) -> Iterator[sparse.csr_matrix]:
    """Rows of a matrix, float32: counts per ten thousand, `log1p`; values that are logarithms already as they are."""
    counts = source.kind() != "log-normalised values"
    for start in range(0, source.n_obs, _BLOCK):
        rows = sparse.csr_matrix(source.rows(start, min(start + _BLOCK, source.n_obs)), dtype=np.float32, copy=True)
        if counts:
            totals = np.asarray(rows.sum(axis=1), dtype=np.float64).ravel()
            scale = np.divide(_TOTAL, totals, out=np.zeros_like(totals), where=totals > 0)
            rows.data *= np.repeat(scale, np.diff(rows.indptr)).astype(np.float32)
            np.log1p(rows.data, out=rows.data)
        yield rows
