"""Logistic regression on cell vectors, against sklearn's own pipeline."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from scanpy_scgpt.model._probe import fit_probe


def _cells(n, n_labels, seed):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(7).normal(size=(n_labels, 5))
    labels = rng.integers(0, n_labels, n)
    return ((centres[labels] + rng.normal(size=(n, 5))) * [1, 10, 0.1, 1, 3] + 2).astype(np.float32), labels


def _softmax(x):
    x = np.exp(x - x.max(axis=1, keepdims=True))
    return x / x.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("n_labels", [2, 3])
def test_probabilities_are_those_of_the_pipeline(n_labels):
    (x, y), (held, truth) = _cells(120, n_labels, 0), _cells(60, n_labels, 1)
    probe = fit_probe(x, y, held, truth, n_labels=n_labels)
    losses = {}
    for strength in (0.01, 0.1, 1.0, 10.0):
        pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000)).fit(x, y)
        losses[strength] = log_loss(truth, pipeline.predict_proba(held)), pipeline
    best = min(losses, key=lambda strength: losses[strength][0])
    assert probe.strength == best
    assert (probe.weight.dtype, probe.weight.shape, probe.bias.shape) == (np.float32, (n_labels, 5), (n_labels,))
    np.testing.assert_allclose(_softmax(probe.scores(held)), losses[best][1].predict_proba(held), atol=1e-3)


def test_cells_without_a_label_do_not_count():
    (x, y), (held, truth) = _cells(120, 3, 0), _cells(60, 3, 1)
    more = np.concatenate([x, 1e6 * np.ones((5, 5), np.float32)])
    labels = np.concatenate([y, np.full(5, -1)])
    got = fit_probe(more, labels, np.concatenate([held, more[-2:]]), np.concatenate([truth, [-1, -1]]), n_labels=3)
    np.testing.assert_array_equal(got.weight, fit_probe(x, y, held, truth, n_labels=3).weight)


@pytest.mark.parametrize("present", [[0, 2], [1], [0, 1, 3]])
def test_a_label_without_a_cell_is_never_the_answer(present):
    x, y = _cells(90, 3, 0)
    labels = np.asarray(present)[y % len(present)]
    held, truth = _cells(40, 4, 1)  # some of whose labels have no training cell
    probe = fit_probe(x, labels, held, truth, n_labels=4)
    assert set(probe.scores(held).argmax(axis=1)) <= set(present)
    assert np.isfinite(probe.weight).all()


def test_no_held_out_cell_and_a_number_that_never_changes():
    x, y = _cells(30, 3, 0)
    x[:, 2] = 7.0
    probe = fit_probe(x, y, np.zeros((0, 5), np.float32), np.zeros(0, int), n_labels=3)
    assert np.isfinite(probe.scores(x)).all()
    assert (probe.scores(x).argmax(axis=1) == y).mean() > 0.6
