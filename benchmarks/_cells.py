"""Real cells for the benchmarks."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import sparse

from benchmarks._harness import ROOT

VARIABLE = "SCANPY_SCGPT_DATA"


@dataclass(frozen=True)
class Cells:
    """Counts of one file: `counts` CSR `(n_cells, n_genes)`."""

    name: str
    counts: sparse.csr_matrix
    genes: np.ndarray
    names: np.ndarray


def data_folder() -> Path:
    """Folder with h5ad files: the environment variable, or `../shared/data`."""
    return Path(os.environ.get(VARIABLE, ROOT.parent / "shared" / "data")).expanduser()


def read_cells(files: list[str], *, n_cells: int, seed: int = 0) -> list[Cells]:
    """Random cells of these files; of scanpy's shipped PBMC, with a word, where none of them is there."""
    import anndata as ad
    import scanpy as sc

    found = [path for name in files if (path := data_folder() / name).is_file()]
    if found:
        return [_sample(path.name, ad.read_h5ad(path), n_cells=n_cells, seed=seed) for path in found]
    print(
        f"No {', '.join(files)} in the folder of {VARIABLE} (or ../shared/data): taking scanpy's "
        "pbmc68k_reduced().raw, which has only 765 genes and log-normalised values; the figures then say little."
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        raw = sc.datasets.pbmc68k_reduced().raw.to_adata()
    return [_sample("pbmc68k_reduced().raw", raw, n_cells=n_cells, seed=seed)]


def _sample(name: str, adata, *, n_cells: int, seed: int) -> Cells:
    rows = np.random.default_rng(seed).permutation(adata.n_obs)[:n_cells]
    counts = sparse.csr_matrix(adata.X)[np.sort(rows)]
    names = adata.obs_names.to_numpy()[np.sort(rows)]
    return Cells(name, counts, adata.var_names.to_numpy(), names)


def human_symbols() -> list[str]:
    """Gene symbols of the table in the package."""
    from importlib import resources

    with resources.as_file(resources.files("scanpy_scgpt.tokenizer") / "genes_human.tsv.gz") as path:
        return pd.read_csv(path, sep="\t", dtype=str, na_filter=False)["symbol"].unique().tolist()
