"""The linear classifier of bins, against sklearn's own pipeline."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from scanpy_scgpt.model._anchor import fit_anchor
from scanpy_scgpt.tokenizer import Tokens

N_IDS = 40


def _cells(n, n_labels, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, n_labels, n)
    rates = np.random.default_rng(7).random((n_labels, N_IDS))
    dense = np.where(rng.random((n, N_IDS)) < rates[labels], rng.integers(1, 51, (n, N_IDS)), 0)
    rows, genes = dense.nonzero()
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=n))])
    return Tokens(indptr, genes.astype(np.int32), dense[rows, genes].astype(np.uint8)), dense / 50, labels


def _softmax(x):
    x = np.exp(x - x.max(axis=1, keepdims=True))
    return x / x.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("n_labels", [2, 4])
def test_scores_are_those_of_the_pipeline(n_labels):
    tokens, dense, labels = _cells(150, n_labels, 0)
    other, other_dense, _ = _cells(20, n_labels, 1)
    anchor = fit_anchor(tokens, labels, n_bins=51, n_labels=n_labels)
    pipeline = make_pipeline(PCA(40, svd_solver="full"), LogisticRegression(max_iter=3000)).fit(dense, labels)
    got = _softmax(anchor.scores(other, n_bins=51))
    assert got.shape == (20, n_labels)
    np.testing.assert_allclose(got, pipeline.predict_proba(other_dense), atol=2e-3)


def test_a_gene_that_was_not_measured_counts_as_its_mean():
    tokens, dense, labels = _cells(150, 3, 0)
    anchor = fit_anchor(tokens, labels, n_bins=51, n_labels=3)
    measured = np.arange(0, N_IDS, 2)
    seen = tokens.masked(np.isin(tokens.gene_ids, measured))
    filled = dense.copy()
    filled[:, 1::2] = dense[:, 1::2].mean(axis=0)
    expected = (filled[:, anchor.gene_ids] - anchor.mean) @ anchor.weight + anchor.bias
    np.testing.assert_allclose(anchor.scores(seen, n_bins=51, measured=measured), expected, atol=1e-3)
    assert np.abs(anchor.scores(seen, n_bins=51) - expected).max() > 0.1


def test_genes_that_were_not_there_and_cells_without_any():
    tokens, _, labels = _cells(60, 3, 0)
    anchor = fit_anchor(tokens, labels, n_bins=51, n_labels=3)
    strange = Tokens(np.array([0, 1, 1]), np.array([99], np.int32), np.array([50], np.uint8))
    np.testing.assert_allclose(*anchor.scores(strange, n_bins=51), rtol=1e-6)
    assert anchor.scores(strange.take(np.zeros(0, int)), n_bins=51).shape == (0, 3)


@pytest.mark.parametrize("present", [[0, 2], [1]])
def test_labels_without_a_cell(present):
    tokens, _, labels = _cells(60, 3, 0)
    labels = np.asarray(present)[labels % len(present)]
    anchor = fit_anchor(tokens, labels, n_bins=51, n_labels=4)
    scores = anchor.scores(tokens, n_bins=51)
    assert np.isfinite(scores).all()
    assert set(scores.argmax(axis=1)) <= set(present)


def test_cells_without_a_label_do_not_count():
    tokens, _, labels = _cells(80, 3, 0)
    few = labels.copy()
    few[60:] = -1
    got = fit_anchor(tokens, few, n_bins=51, n_labels=3)
    expected = fit_anchor(tokens.take(np.arange(60)), labels[:60], n_bins=51, n_labels=3)
    np.testing.assert_array_equal(got.weight, expected.weight)
