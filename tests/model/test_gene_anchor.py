"""The sparse classifier of expression, against sklearn's own pipeline."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier

from scanpy_scgpt.model._gene_anchor import fit_gene_anchor

N_IDS = 40


def _cells(n, n_labels, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, n_labels, n)
    rates = np.random.default_rng(7).gamma(1, 3, (n_labels, N_IDS))
    return sparse.csr_matrix(rng.poisson(rates[labels] * rng.gamma(4, 0.25, (n, 1))).astype(np.float32)), labels


def _logged(counts):
    dense = counts.toarray()
    return np.log1p(1e4 * dense / np.maximum(dense.sum(axis=1, keepdims=True), 1))


@pytest.mark.parametrize("n_labels", [2, 4])
def test_probabilities_are_those_of_the_pipeline(n_labels):
    counts, labels = _cells(150, n_labels, 0)
    other, _ = _cells(30, n_labels, 1)
    anchor = fit_gene_anchor(counts, labels, n_labels=n_labels)
    one = LogisticRegression(solver="liblinear", max_iter=2000, random_state=0, l1_ratio=1.0)
    model = OneVsRestClassifier(one).fit(_logged(counts), labels)
    got = np.exp(anchor.log_probabilities(other))
    np.testing.assert_allclose(got.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(got, model.predict_proba(_logged(other)), atol=0.02)
    assert (anchor.weight == 0).any()


def test_depth_does_not_matter():
    counts, labels = _cells(100, 3, 0)
    anchor = fit_gene_anchor(counts, labels, n_labels=3)
    np.testing.assert_allclose(anchor.log_probabilities(counts * 7), anchor.log_probabilities(counts), atol=1e-4)


def test_a_panel_is_scaled_to_the_share_of_its_genes():
    """The cells of a panel get the values that they have in the whole transcriptome, on average."""
    counts, labels = _cells(400, 3, 0)
    allowed = np.arange(0, N_IDS, 2)
    anchor = fit_gene_anchor(counts, labels, n_labels=3, allowed=allowed)
    assert set(anchor.gene_ids) <= set(allowed)
    panel = sparse.csr_matrix(counts @ sparse.diags(np.isin(np.arange(N_IDS), allowed).astype(np.float32)))
    whole, part = anchor.log_probabilities(counts), anchor.log_probabilities(panel, allowed)
    assert (whole.argmax(axis=1) == part.argmax(axis=1)).mean() > 0.95
    assert (part.argmax(axis=1) == labels).mean() > 0.9


@pytest.mark.parametrize("present", [[0, 2], [1]])
def test_labels_without_a_cell_and_cells_without_a_label(present):
    counts, labels = _cells(60, 3, 0)
    labels = np.asarray(present)[labels % len(present)]
    labels[:5] = -1
    anchor = fit_gene_anchor(counts, labels, n_labels=4)
    found = anchor.log_probabilities(counts)
    assert np.isfinite(found).all()
    assert set(found.argmax(axis=1)) <= set(present)
    assert np.isfinite(anchor.log_probabilities(sparse.csr_matrix((2, N_IDS), dtype=np.float32))).all()
