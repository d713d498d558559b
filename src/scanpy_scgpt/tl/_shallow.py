"""Cells with nothing but their counts and genes: what a model may register without touching the user's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd

from scanpy_scgpt._counts import choose_counts
from scanpy_scgpt._modalities import own_columns
from scanpy_scgpt.disk import as_cells

if TYPE_CHECKING:
    from anndata import AnnData


def shallow(adata: AnnData, *, layer: str | None, use_raw: bool | None) -> tuple[AnnData, str]:
    """An AnnData that shares the matrix of counts, and the place of that matrix; antibodies and peaks are left out.

    Parameters
    ----------
    adata
        Cells; not changed. Those on disk are read.
    layer, use_raw
        Where the counts are.
    """
    source = choose_counts(as_cells(adata), layer=layer, use_raw=use_raw)
    matrix = source.matrix
    if source.on_disk:
        matrix = source.rows(0, source.n_obs)
    mine, var = own_columns(source.var, "rna"), source.var
    if not mine.all():
        matrix, var = matrix[:, np.flatnonzero(mine)], var[mine]
    obs = pd.DataFrame(index=pd.Index(np.asarray(adata.obs_names)))
    return ad.AnnData(X=matrix, obs=obs, var=var.copy()), source.where
