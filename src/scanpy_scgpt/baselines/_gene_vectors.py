"""Co-expression as vectors of genes: the opponent of gene embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scanpy_scgpt._counts import choose_counts
from scanpy_scgpt._lognormal import columns_of, log_normalised
from scanpy_scgpt._validate import check_anndata

if TYPE_CHECKING:
    from anndata import AnnData

_MOST_GENES = 8000  # whose matrix of correlations is decomposed
_SMALLEST = 1e-6  # share of the largest eigenvalue below which one is rounding


def gene_vectors(
    adata: AnnData, genes: Sequence[str] | None = None, *, layer: str | None = None, use_raw: bool | None = None
) -> pd.DataFrame:
    """Vectors of genes whose cosine is the Pearson correlation of their log-normalised expression.

    Everything that takes vectors of genes can so be given co-expression.

    Parameters
    ----------
    adata
        Cells, shape `(n_obs, n_vars)`.
    genes
        Names; all genes by default.
    layer, use_raw
        Where the counts are.

    Returns
    -------
    Table of float32, genes x components; a gene that no two cells tell apart, or that is not there, has NaN.

    Raises
    ------
    ValueError
        For more than 8,000 genes, or cells of which nothing can be said.
    """
    check_anndata(adata, function="baselines.gene_vectors")
    names = adata.var_names if genes is None else pd.Index([str(gene) for gene in genes])
    if len(names) > _MOST_GENES:
        msg = f"baselines.gene_vectors of {len(names):,} genes: at most {_MOST_GENES:,}. Name the variable ones: genes="
        raise ValueError(msg + "adata.var_names[adata.var['highly_variable']].")
    source = choose_counts(adata, layer=layer, use_raw=use_raw)
    at = columns_of(source, names)
    n = len(names)
    total, products, n_cells = np.zeros(n), np.zeros((n, n)), 0
    for rows in log_normalised(source):
        own = rows[:, np.maximum(at, 0)]
        total += np.asarray(own.sum(axis=0), dtype=np.float64).ravel()
        products += (own.T @ own).toarray()
        n_cells += own.shape[0]
    mean = total / max(n_cells, 1)
    covariance = products / max(n_cells, 1) - np.outer(mean, mean)
    spread = np.sqrt(np.maximum(np.diag(covariance), 0))
    told = (at >= 0) & (spread > np.sqrt(_SMALLEST))
    out = np.full((n, 1), np.nan, dtype=np.float32)
    if told.any():
        correlation = covariance[np.ix_(told, told)] / np.outer(spread[told], spread[told])
        values, vectors = np.linalg.eigh(correlation)
        kept = values > _SMALLEST * values[-1]
        out = np.full((n, int(kept.sum())), np.nan, dtype=np.float32)
        out[told] = (vectors[:, kept] * np.sqrt(values[kept]))[:, ::-1]
    return pd.DataFrame(out, index=pd.Index(names, name="gene"))
