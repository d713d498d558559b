"""What the opponents for a MuData are given: matrices of all cells, and their components."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scanpy as sc
from scipy import sparse
from sklearn.decomposition import TruncatedSVD

from scanpy_scgpt._logging import quiet
from scanpy_scgpt._modalities import column_of, find_modalities, own_features, patterns, rows_of, values_of

if TYPE_CHECKING:
    from mudata import MuData


class Task:
    """What the methods are given: matrices of all cells, zero rows where a cell lacks a modality."""

    def __init__(self, mdata: MuData, batch_key: str | None, n_top_genes: int, n_comps: int, rng: int) -> None:
        self.n_comps, self.rng, self.max_epochs = n_comps, rng, None
        self.n_obs, self.names = mdata.n_obs, np.asarray(mdata.obs_names)
        self.counts: dict[str, sparse.csr_matrix] = {}
        self.features: dict[str, pd.Index] = {}
        self.there: dict[str, np.ndarray] = {}
        with quiet("scanpy_scgpt._modalities"):
            found = find_modalities(mdata)
            self.kinds = {one.name: one.kind for one in found}
            for one in found:
                mod = mdata.mod[one.name]
                mine = own_features(mod, one.kind)
                values, _ = values_of(mod if mine.all() else mod[:, mine], one.kind)
                rows = rows_of(mdata, one.name)
                empty = sparse.csr_matrix((1, values.shape[1]), dtype=values.dtype)
                stacked = sparse.vstack([values, empty], format="csr")
                self.counts[one.kind] = stacked[np.where(rows < 0, values.shape[0], rows)]
                self.features[one.kind] = mod.var_names[mine]
                self.there[one.kind] = rows >= 0
        self.depth = np.zeros(self.n_obs, dtype=np.float32)
        if "rna" in self.counts:
            self.depth = np.asarray(self.counts["rna"].sum(axis=1), dtype=np.float32).ravel()  # of all genes
            self._keep_variable(n_top_genes)
        codes, listed = patterns(self.there)
        batch = np.full(self.n_obs, "all", dtype=object)
        if batch_key is not None:
            batch = column_of(mdata, batch_key).astype(object).fillna("unknown_batch").astype(str).to_numpy()
        self.batch = batch
        self.groups = np.asarray([f"{b}|{listed[c]}" for b, c in zip(batch, codes, strict=True)])

    def _keep_variable(self, n: int) -> None:
        """The highly variable genes alone."""
        there = self.there["rna"]
        cells = sc.AnnData(logged(self.counts["rna"][there]))
        if n < cells.n_vars:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                table = sc.pp.highly_variable_genes(cells, n_top_genes=n, inplace=False)
            chosen = np.flatnonzero(table["highly_variable"].to_numpy())
            self.counts["rna"], self.features["rna"] = self.counts["rna"][:, chosen], self.features["rna"][chosen]

    @cached_property
    def scaled(self) -> Mapping[str, np.ndarray | sparse.csr_matrix]:
        """Values that components are made of."""
        out = {}
        for kind, x in self.counts.items():
            if kind == "rna":
                out[kind] = logged(x, self.depth)
            elif kind == "protein":
                values = x.log1p().toarray()
                out[kind] = values - values.mean(axis=1, keepdims=True)
            else:
                share = np.asarray((x != 0).mean(axis=0)).ravel()
                out[kind] = logged(x) @ sparse.diags(np.log1p(1 / np.maximum(share, 1 / len(share))))
        return out

    @cached_property
    def components(self) -> Mapping[str, np.ndarray]:
        """Principal components of each modality, of spread 1, `(n_cells, n_comps)`; zero where a cell lacks it."""
        out = {}
        for kind, x in self.scaled.items():
            there = self.there[kind]
            n = min(self.n_comps, min(x[there].shape) - 1)
            if kind == "atac":
                found = TruncatedSVD(n + 1, random_state=self.rng).fit_transform(x[there])[:, 1:]
            else:
                found = sc.pp.pca(x[there], n_comps=n, random_state=self.rng)
            out[kind] = np.zeros((self.n_obs, found.shape[1]), dtype=np.float32)
            out[kind][there] = found / max(float(found.std()), 1e-6)
        return out


def logged(x: sparse.csr_matrix, total: np.ndarray | None = None) -> sparse.csr_matrix:
    """Counts per 10,000 of a cell, logged; of `total` where these are some of its genes."""
    total = np.asarray(x.sum(axis=1), dtype=np.float32).ravel() if total is None else total
    factor = np.divide(1e4, total, out=np.zeros_like(total), where=total > 0)
    return sparse.csr_matrix(sparse.diags(factor) @ x).log1p()
