"""The simple opponent of `tl.embed`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import scanpy as sc
from scipy import sparse

from scanpy_scgpt._counts import choose_counts
from scanpy_scgpt._modalities import own_columns
from scanpy_scgpt._validate import check_anndata, copied

if TYPE_CHECKING:
    from anndata import AnnData


def embed_pca(
    adata: AnnData,
    *,
    layer: str | None = None,
    use_raw: bool | None = None,
    n_top_genes: int = 2000,
    n_comps: int = 50,
    key_added: str = "X_pca_baseline",
    rng: int = 0,
    copy: bool = False,
) -> AnnData | None:
    """Principal components of the highly variable genes: the embedding that any model has to beat.

    Counts are scaled to 10,000 per cell and logged (values that are logged already are taken as they are, and so are
    other non-integer values, with a note in the log); then the steps of the standard Scanpy workflow.

    Parameters
    ----------
    adata
        Cells, shape `(n_obs, n_vars)`, in memory.
    layer, use_raw
        Where the counts are; see :func:`scanpy_scgpt.pp.tokenize`.
    n_top_genes
        Highly variable genes; all genes when there are no more.
    n_comps
        Number of components, at most one less than cells or genes.
    key_added
        Name in `.obsm`.
    rng
        Seed of the solver.
    copy
        Return a copy instead of writing to `adata`.

    Returns
    -------
    `None`, or the copy if `copy=True`. Sets the field

    `.obsm[key_added]` : :class:`numpy.ndarray` of float32, shape `(n_obs, n_comps)`
        Principal components.
    """
    check_anndata(adata, function="baselines.embed_pca", copy=copy)
    source = choose_counts(adata, layer=layer, use_raw=use_raw)
    rows = sparse.csr_matrix(source.rows(0, source.n_obs), dtype=np.float32)
    work = sc.AnnData(rows[:, own_columns(source.var, "rna")])
    if source.kind() != "log-normalised values":  # counts, also those that are no integers
        sc.pp.normalize_total(work, target_sum=1e4)
        sc.pp.log1p(work)
    if n_top_genes < work.n_vars:
        sc.pp.highly_variable_genes(work, n_top_genes=n_top_genes)
        work = work[:, work.var["highly_variable"]]
    sc_components = sc.pp.pca(work.X, n_comps=min(n_comps, min(work.shape) - 1), random_state=rng)
    adata = copied(adata) if copy else adata
    adata.obsm[key_added] = np.asarray(sc_components, dtype=np.float32)
    return adata if copy else None
