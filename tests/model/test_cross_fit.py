"""Cells are left out by the fold, whole batches together, and nobody is judged by what was fitted on them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from scanpy_scgpt.model._cross_fit import distances_to, folds_of, left_out, unit
from scanpy_scgpt.tokenizer import Tokens

N_IDS = 30


def _cells(n, seed=0, *, shift=0.0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    counts = rng.poisson(np.random.default_rng(7).gamma(1, 3, (3, N_IDS))[labels]).astype(np.float32)
    rows, genes = counts.nonzero()
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=n))])
    tokens = Tokens(indptr, genes.astype(np.int32), np.minimum(counts[rows, genes], 50).astype(np.uint8))
    vectors = np.log1p(counts) + shift
    return vectors, tokens, sparse.csr_matrix(counts), labels


def test_batches_stay_together():
    batches = np.repeat(np.arange(8), [40, 1, 7, 9, 3, 22, 5, 13])
    folds = folds_of(np.zeros(100, dtype=int), batches)
    assert all(len(np.unique(folds[batches == batch])) == 1 for batch in range(8))
    assert len(np.unique(folds)) == 5


@pytest.mark.parametrize("batches", [None, np.zeros(60, dtype=int)])
def test_without_batches_labels_are_spread(batches):
    labels = np.repeat([0, 1, 2], 20)
    folds = folds_of(labels, batches)
    assert np.array_equal(np.bincount(labels * 5 + folds), np.full(15, 4))
    assert not np.array_equal(folds, folds_of(labels, batches, rng=1))


def test_what_is_left_out_is_not_learned_from():
    """Labels that say nothing: cells that were learned from would be right nevertheless."""
    vectors, tokens, expression, _ = _cells(150)
    labels = np.random.default_rng(3).integers(0, 3, 150)
    folds = folds_of(labels, None)
    left = left_out(vectors, tokens, expression, labels, folds=folds, n_bins=51, n_labels=3)
    assert sorted(left.cells) == list(range(150))
    for name in ("network", "bins", "genes"):
        assert (left.members[name].argmax(axis=1) == labels[left.cells]).mean() < 0.5


def test_it_learns_and_leaves_out_what_cannot_be_known():
    vectors, tokens, expression, labels = _cells(150)
    labels[0] = 3  # the only one of its kind
    left = left_out(vectors, tokens, expression, labels, folds=folds_of(labels, None), n_bins=51, n_labels=4)
    assert 0 not in left.cells
    for scores in left.members.values():
        assert scores.shape == (149, 4)
        assert (scores.argmax(axis=1) == labels[left.cells]).mean() > 0.8
    alone = left_out(vectors, tokens, None, labels, folds=folds_of(labels, None), n_bins=51, n_labels=4, anchors=False)
    assert list(alone.members) == ["network"]


def test_one_fold_leaves_nothing():
    vectors, tokens, expression, labels = _cells(10)
    left = left_out(vectors, tokens, expression, labels, folds=np.zeros(10, int), n_bins=51, n_labels=3)
    assert len(left.cells) == len(left.members["network"]) == 0


def test_distances():
    vectors = unit(np.random.default_rng(0).normal(size=(30, 5)))
    cosine = np.sort(1 - vectors[:4] @ vectors[4:].T, axis=1)[:, :10].mean(axis=1)
    np.testing.assert_allclose(distances_to(vectors[4:], vectors[:4]), cosine, atol=1e-5)
    assert distances_to(vectors, vectors[:0]).shape == (0,)
    np.testing.assert_allclose(distances_to(vectors[:1], vectors[:1]), 0, atol=1e-6)
