"""Logistic regression on components of the bins of a cell: the simple classifier that the network stands beside.

Bins are ranks inside a cell, so the classifier carries over between depths and technologies as the tokens do. Principal
components and regression are linear, so together they are one number per gene and label.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import sparse
from sklearn.decomposition import PCA

from scanpy_scgpt.tokenizer import Tokens

from ._regression import fit_regression

_N_GENES, _N_COMPONENTS = 2000, 50


class Anchor(NamedTuple):
    """A score per label that is linear in the bins.

    Attributes
    ----------
    gene_ids
        Vocabulary ids, int64, shape `(n_genes,)`.
    weight
        Float32, shape `(n_genes, n_labels)`.
    mean
        Mean bin of each gene over the training cells, as a share of the highest; float32, shape `(n_genes,)`.
    bias
        Float32, shape `(n_labels,)`.
    """

    gene_ids: np.ndarray
    weight: np.ndarray
    mean: np.ndarray
    bias: np.ndarray

    def scores(self, tokens: Tokens, *, n_bins: int, measured: np.ndarray | None = None) -> np.ndarray:
        """Scores of cells, float32, shape `(n_cells, n_labels)`.

        Parameters
        ----------
        tokens
            Cells.
        n_bins
            Number of digits of the tokens.
        measured
            Vocabulary ids of the genes that the cells could express; a gene that is not among them counts as its mean.
        """
        column = np.full(int(max(self.gene_ids.max(initial=0), tokens.gene_ids.max(initial=0))) + 1, -1)
        column[self.gene_ids] = np.arange(len(self.gene_ids))
        weight = self.weight
        if measured is not None:
            weight = weight * np.isin(self.gene_ids, measured)[:, None]
        known = tokens.masked(column[tokens.gene_ids] >= 0)
        shape = (len(tokens), len(self.gene_ids))
        values = known.values.astype(np.float32) / (n_bins - 1)
        bins = sparse.csr_matrix((values, column[known.gene_ids], known.indptr), shape=shape)
        return bins @ weight + (self.bias - self.mean @ weight)


def fit_anchor(
    tokens: Tokens, labels: np.ndarray, *, n_bins: int, n_labels: int, allowed: np.ndarray | None = None, rng: int = 0
) -> Anchor:
    """Fit on labelled cells.

    Parameters
    ----------
    tokens
        Cells.
    labels
        Int, shape `(n_cells,)`; below 0 for none.
    n_bins
        Number of digits of the tokens.
    n_labels
        Number of labels; one may lack cells.
    allowed
        Vocabulary ids of the genes that may be used; all by default.
    rng
        Seed of the components.
    """
    cells = np.flatnonzero(labels >= 0)
    tokens, labels = tokens.take(cells), labels[cells]
    values = tokens.values.astype(np.float32) / (n_bins - 1)
    n_ids = int(tokens.gene_ids.max(initial=0)) + 1
    bins = sparse.csr_matrix((values, tokens.gene_ids, tokens.indptr), shape=(len(tokens), n_ids))
    mean = np.asarray(bins.mean(axis=0)).ravel()
    variance = np.asarray(bins.power(2).mean(axis=0)).ravel() - mean**2
    if allowed is not None:
        variance[np.setdiff1d(np.arange(n_ids), allowed)] = 0
    genes = np.sort(np.argsort(-variance, kind="stable")[: min(_N_GENES, int((variance > 0).sum()))])
    x = bins[:, genes].toarray() - mean[genes].astype(np.float32)  # n_cells x 2,000 at most: components need it whole
    components = np.zeros((0, len(genes)), dtype=np.float32)
    if len(genes) and len(np.unique(labels)) > 1:
        components = PCA(min(_N_COMPONENTS, *x.shape), svd_solver="auto", random_state=rng).fit(x).components_
    weight, bias = fit_regression(x @ components.T, labels, n_labels=n_labels, strength=1.0)
    numbers = (components.T @ weight.T, mean[genes], bias)
    return Anchor(genes, *(x.astype(np.float32) for x in numbers))
