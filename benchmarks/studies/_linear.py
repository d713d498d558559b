"""The linear comparator: principal components of a corpus, and other cells projected onto them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scanpy as sc
from anndata import AnnData
from scipy import sparse
from scipy.sparse.linalg import LinearOperator, svds

_TOTAL = 1e4  # counts that a cell is scaled to


class Components(NamedTuple):
    """Principal components of log-normalised counts.

    `genes` (n_variable,) positions, `means` and `scales` (n_variable,), `loadings` (n_variable, n_components).
    """

    genes: np.ndarray
    means: np.ndarray
    scales: np.ndarray
    loadings: np.ndarray

    def project(self, counts: sparse.csr_matrix, measured: np.ndarray) -> np.ndarray:
        """Cells in the components of the corpus, `(n_cells, n_components)`.

        A gene that the cells do not measure counts as its mean in the corpus.

        Parameters
        ----------
        counts
            `(n_cells, n_genes)`, the genes of the corpus.
        measured
            Whether the cells measure each gene, shape `(n_genes,)`.
        """
        weights = self.loadings / self.scales[:, None] * measured[self.genes, None]
        return np.asarray(normalised(counts)[:, self.genes] @ weights - self.means @ weights)


def normalised(counts: sparse.csr_matrix) -> sparse.csr_matrix:
    """Counts scaled to 10,000 a cell and logged."""
    total = np.asarray(counts.sum(axis=1)).ravel()
    scaled = sparse.diags(_TOTAL / np.maximum(total, 1)) @ counts
    return sparse.csr_matrix(scaled.astype(np.float32)).log1p()


def components(counts: sparse.csr_matrix, *, n_genes: int = 2000, n_components: int = 50) -> Components:
    """Principal components of the highly variable genes of a corpus, each scaled to unit variance.

    Parameters
    ----------
    counts
        `(n_cells, n_genes)`.
    n_genes, n_components
        At most so many.
    """
    x = normalised(counts)
    variable = sc.pp.highly_variable_genes(AnnData(x), n_top_genes=min(n_genes, x.shape[1]), inplace=False)
    genes = np.flatnonzero(variable["highly_variable"])
    x = x[:, genes]
    means = np.asarray(x.mean(axis=0)).ravel()
    variance = np.asarray(x.multiply(x).mean(axis=0)).ravel() - means**2
    scales = np.sqrt(np.maximum(variance, 1e-8))
    scaled, shift = x @ sparse.diags(1 / scales), means / scales
    centred = LinearOperator(
        x.shape,
        matvec=lambda v: scaled @ v.ravel() - shift @ v.ravel(),
        rmatvec=lambda u: scaled.T @ u.ravel() - shift * u.sum(),
        dtype=np.float32,
    )
    k = min(n_components, min(x.shape) - 1)
    start = np.random.default_rng(0).standard_normal(min(x.shape))
    return Components(genes, means, scales, svds(centred, k=k, v0=start)[2].T)
