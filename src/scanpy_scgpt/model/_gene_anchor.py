"""Sparse logistic regression on log-normalised expression: a few genes for each label.

The third classifier beside the network and the bins. Cells are scaled over the genes that they share with the training
cells, to the share of the counts that these genes have there, so a panel of genes and a whole transcriptome compare.
"""

from __future__ import annotations

import inspect
import warnings
from typing import NamedTuple

import numpy as np
from scipy import sparse
from scipy.special import expit
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier

from ._regression import UNSEEN

_N_GENES, _TOTAL, _MAX_ITER = 2000, 1e4, 2000


class GeneAnchor(NamedTuple):
    """One score per label against the others, linear in log-normalised expression.

    Attributes
    ----------
    gene_ids
        Vocabulary ids, int64, shape `(n_genes,)`.
    weight
        Float32, shape `(n_genes, n_labels)`.
    bias
        Float32, shape `(n_labels,)`.
    profile
        Mean share of the counts of a training cell by vocabulary id, float32, shape `(n_ids,)`.
    """

    gene_ids: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    profile: np.ndarray

    def log_probabilities(self, expression: sparse.csr_matrix, measured: np.ndarray | None = None) -> np.ndarray:
        """Logarithms of probabilities, float32, shape `(n_cells, n_labels)`.

        Parameters
        ----------
        expression
            Counts, or a multiple of them, by vocabulary id: CSR, shape `(n_cells, n_ids)`.
        measured
            Vocabulary ids of the genes that the cells could express.
        """
        shared = self.profile > 0
        if measured is not None:
            known = np.zeros(len(shared), dtype=bool)
            known[measured] = True
            shared &= known
        values = _log_normalised(expression, shared, share=float(self.profile[shared].sum()))
        one_against_all = values[:, self.gene_ids] @ self.weight + self.bias
        chance = expit(one_against_all.astype(np.float64)) + 1e-9
        return np.log(chance / chance.sum(axis=1, keepdims=True)).astype(np.float32)


def _log_normalised(expression: sparse.csr_matrix, genes: np.ndarray, *, share: float) -> sparse.csr_matrix:
    """Expression of the genes where True, each cell scaled to `share` of 10,000 over them, logged."""
    kept = sparse.csr_matrix(expression @ sparse.diags(genes.astype(np.float32)))
    total = np.asarray(kept.sum(axis=1, dtype=np.float64)).ravel()
    scale = np.divide(_TOTAL * share, total, out=np.zeros_like(total), where=total > 0)
    kept.data = np.log1p(kept.data * np.repeat(scale, np.diff(kept.indptr))).astype(np.float32)
    return kept


def fit_gene_anchor(
    expression: sparse.csr_matrix, labels: np.ndarray, *, n_labels: int, allowed: np.ndarray | None = None, rng: int = 0
) -> GeneAnchor:
    """Fit on labelled cells.

    Parameters
    ----------
    expression
        Counts, or a multiple of them, by vocabulary id: CSR, shape `(n_cells, n_ids)`.
    labels
        Int, shape `(n_cells,)`; below 0 for none.
    n_labels
        Number of labels; one may lack cells.
    allowed
        Vocabulary ids of the genes that may be used; all by default.
    rng
        Seed of the solver.
    """
    expression, labels = expression[labels >= 0], labels[labels >= 0]
    total = np.asarray(expression.sum(axis=1, dtype=np.float64)).ravel()
    shares = sparse.diags(np.divide(1, total, out=np.zeros_like(total), where=total > 0)) @ expression
    profile = np.asarray(shares.mean(axis=0)).ravel()
    genes = profile > 0
    if allowed is not None:
        kept = np.zeros(len(genes), dtype=bool)
        kept[allowed] = True
        genes &= kept
    values = _log_normalised(expression, genes, share=float(profile[genes].sum()))
    mean = np.asarray(values.mean(axis=0)).ravel()
    variance = np.asarray(values.power(2).mean(axis=0)).ravel() - mean**2
    chosen = np.sort(np.argsort(-variance, kind="stable")[: min(_N_GENES, int(genes.sum()))])
    present = np.unique(labels)
    weight, bias = np.zeros((len(chosen), n_labels)), np.full(n_labels, UNSEEN)
    if len(present) < 2 or not len(chosen):  # noqa: PLR2004
        bias[present] = -UNSEEN
    else:
        fitted = _fitted(values[:, chosen], labels, rng=rng)
        coef = np.vstack([one.coef_ for one in fitted.estimators_])
        intercept = np.concatenate([one.intercept_ for one in fitted.estimators_])
        if len(present) == 2:  # noqa: PLR2004 - two labels have one regression
            coef, intercept = np.vstack([-coef, coef]), np.concatenate([-intercept, intercept])
        weight[:, present], bias[present] = coef.T, intercept
    small = (chosen, weight.astype(np.float32), bias.astype(np.float32), profile.astype(np.float32))
    return GeneAnchor(*small)


def _fitted(values: sparse.csr_matrix, labels: np.ndarray, *, rng: int) -> OneVsRestClassifier:
    new = inspect.signature(LogisticRegression).parameters["penalty"].default == "deprecated"  # scikit-learn 1.8
    penalty = {"l1_ratio": 1.0} if new else {"penalty": "l1"}
    one = LogisticRegression(solver="liblinear", max_iter=_MAX_ITER, random_state=rng, **penalty)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return OneVsRestClassifier(one).fit(values, labels)
