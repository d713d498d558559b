"""Principal components of what was measured and of what the network makes of it: the coordinates of an integration."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from anndata import AnnData
from scipy import sparse
from sklearn.decomposition import PCA

Kind = Literal["counts", "proteins", "peaks", "vectors"]
_TOTAL = 1e4  # counts of a cell after scaling
_LEAST_OF_BATCH = 20  # cells of a batch that has a say in which genes are variable
_FEW = 2  # features or cells: no components below


@dataclass(frozen=True)
class Block:
    """A projection onto principal components.

    Attributes
    ----------
    kind
        What it projects: counts of genes (scaled to 10,000 a cell, logged), of proteins (logged, centred on the mean of
        the cell), of peaks (term frequency times inverse document frequency, logged), or vectors (scaled to length 1).
    ids
        Columns that it uses, int64, shape `(n_features,)`.
    scale
        Factor of each column, float32, same shape: the inverse document frequency of peaks, else 1.
    mean
        Of each column, float32, same shape.
    components
        Float32, shape `(n_components, n_features)`.
    """

    kind: Kind
    ids: np.ndarray
    scale: np.ndarray
    mean: np.ndarray
    components: np.ndarray

    @property
    def n_dims(self) -> int:
        """Number of components."""
        return len(self.components)

    def project(self, x: np.ndarray | sparse.csr_matrix, measured: np.ndarray | None = None) -> np.ndarray:
        """Coordinates of cells.

        Parameters
        ----------
        x
            Values by column, dense for vectors and CSR else, shape `(n, n_columns)`.
        measured
            Columns that the cells could have; another counts as its mean.

        Returns
        -------
        Float32, shape `(n, n_components)`.
        """
        there = np.ones(len(self.ids), bool) if measured is None else np.isin(self.ids, measured)
        weight, center = (self.components * self.scale).T, self.mean
        if self.kind == "proteins" and there.any() and not there.all():
            values = sparse.csr_matrix(x, dtype=np.float32).log1p().toarray()[:, self.ids]
            values = values - (values - self.mean)[:, there].mean(axis=1, keepdims=True)  # what is lacking has no say
        else:
            values = _prepared(x, self.kind)[:, self.ids]
        if measured is not None:
            weight, center = weight * there[:, None], np.where(there, center, 0)
        return np.asarray(values @ weight - center @ self.components.T, dtype=np.float32)

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """To be saved, by names that start with `name`."""
        return {f"{name}.{key}": getattr(self, key) for key in ("ids", "scale", "mean", "components")}

    @classmethod
    def from_arrays(cls, kind: Kind, arrays: Mapping[str, np.ndarray], name: str) -> Block:
        """What :meth:`arrays` gave."""
        return cls(kind, *(arrays[f"{name}.{key}"] for key in ("ids", "scale", "mean", "components")))


def fit_block(
    x: np.ndarray | sparse.csr_matrix,
    kind: Kind,
    *,
    batches: np.ndarray | None = None,
    ids: np.ndarray | None = None,
    n_top: int = 1200,
    n_components: int = 50,
    rng: int = 0,
) -> Block:
    """Fit on cells.

    Parameters
    ----------
    x
        Values by column, shape `(n, n_columns)`.
    kind
        What they are.
    batches
        Int, shape `(n,)`: genes are variable if they are so inside batches.
    ids
        Columns that may be used; all by default.
    n_top
        Most columns: of counts the highly variable ones.
    n_components
        Most components.
    rng
        Seed.
    """
    values = _prepared(x, kind)
    ids = np.arange(values.shape[1]) if ids is None else np.sort(ids)
    if kind != "vectors":
        ids = ids[np.asarray((values[:, ids] != 0).sum(axis=0)).ravel() > 0]
    if kind == "counts" and len(ids) > n_top:
        ids = ids[_variable(values[:, ids], batches, n_top)]
    values, scale = values[:, ids], np.ones(len(ids), dtype=np.float32)
    if kind == "peaks":
        share = np.asarray((values != 0).mean(axis=0)).ravel()
        scale = np.log1p(1 / np.maximum(share, 1 / len(share))).astype(np.float32)
        values = values @ sparse.diags(scale)
    mean = np.asarray(values.mean(axis=0), dtype=np.float32).ravel()
    return Block(kind, ids.astype(np.int64), scale, mean, _components(values, n_components, kind=kind, rng=rng))


def _components(values: np.ndarray | sparse.csr_matrix, n: int, *, kind: Kind, rng: int) -> np.ndarray:
    """Float32, shape `(n_components, n_features)`; of peaks without the first, which is the depth."""
    first = int(kind == "peaks")
    n = min(n + first, min(values.shape) - 1)
    if n < _FEW:
        return np.eye(values.shape[1], dtype=np.float32)
    solver = (
        "arpack" if sparse.issparse(values) else "covariance_eigh" if values.shape[1] <= values.shape[0] else "full"
    )
    found = PCA(n, svd_solver=solver, random_state=rng).fit(values).components_
    return found[first:].astype(np.float32)


def _prepared(x: np.ndarray | sparse.csr_matrix, kind: Kind) -> np.ndarray | sparse.csr_matrix:
    """Values on the scale on which they are compared; nothing is centred, so what is sparse stays sparse."""
    if kind == "vectors":
        return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    x = sparse.csr_matrix(x, dtype=np.float32)
    if kind == "proteins":  # a few hundred at most, and every cell has them all
        logged = x.log1p().toarray()
        return logged - logged.mean(axis=1, keepdims=True)
    total = np.asarray(x.sum(axis=1), dtype=np.float32).ravel()
    factor = np.divide(_TOTAL, total, out=np.zeros_like(total), where=total > 0)
    return sparse.csr_matrix(sparse.diags(factor) @ x).log1p()


def _variable(values: sparse.csr_matrix, batches: np.ndarray | None, n: int) -> np.ndarray:
    """Positions of the highly variable columns, sorted."""
    import scanpy as sc

    cells = AnnData(values)
    key = None
    if batches is not None:
        large = np.flatnonzero(np.bincount(batches[batches >= 0]) >= _LEAST_OF_BATCH)
        kept = np.isin(batches, large)
        if len(large) > 1 and kept.any():
            cells = AnnData(values[kept])
            cells.obs["batch"] = batches[kept].astype(str)
            key = "batch"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = sc.pp.highly_variable_genes(cells, n_top_genes=n, batch_key=key, inplace=False)
    chosen = table["highly_variable"].to_numpy()
    return np.sort(np.flatnonzero(chosen))
