"""Votes of neighbours, against a count by hand."""

from __future__ import annotations

import numpy as np
import pytest

from scanpy_scgpt.neighbours import _vote, vote

INF = np.inf


def test_the_most_frequent_label_wins():
    codes, shares = vote(np.array([[0, 1, 1, -1]]), np.array([[0.1, 0.2, 0.3, 0.4]]), n_labels=3)
    assert codes.tolist() == [1]
    np.testing.assert_allclose(shares, [2 / 3])


def test_even_votes_go_to_the_nearer_label_then_to_the_first():
    labels = np.array([[0, 1, 0, 1], [1, 0, 0, 1]])
    distances = np.array([[0.1, 0.2, 0.3, 0.4], [0.1, 0.1, 0.2, 0.2]])
    assert vote(labels, distances, n_labels=2).codes.tolist() == [0, 0]
    assert vote(labels[:1], distances[:, ::-1][:1], n_labels=2).codes.tolist() == [1]


def test_nobody_votes():
    found = vote(np.array([[-1, -1]]), np.array([[INF, INF]]), n_labels=2)
    assert (found.codes.tolist(), found.shares.tolist()) == ([-1], [0.0])
    assert vote(np.array([[-1]]), np.array([[0.1]]), n_labels=0).codes.tolist() == [-1]


def test_near_neighbours_count_more_by_distance():
    labels, distances = np.array([[0, 1, 1]]), np.array([[0.01, 1.0, 1.0]])
    assert vote(labels, distances, n_labels=2).codes.tolist() == [1]
    given = np.exp(-np.square(distances[0] / distances[0].mean()) / 2)
    found = vote(labels, distances, n_labels=2, weights="distance")
    assert found.codes.tolist() == [int(given[0] < given[1:].sum())]
    np.testing.assert_allclose(found.shares, [max(given[0], given[1:].sum()) / given.sum()], rtol=1e-6)
    zero = vote(labels, np.zeros((1, 3)), n_labels=2, weights="distance")
    assert zero.codes.tolist() == [1]


def test_corrected_shares_are_the_weighted_vote_of_the_original():
    labels = np.array([[0] * 7 + [1] * 3])
    frequencies = np.array([0.9, 0.1])
    found = vote(labels, np.ones((1, 10)), n_labels=2, frequencies=frequencies)
    scores = np.maximum(np.array([7, 3]) - 0.01 * 10, 0) / frequencies
    assert found.codes.tolist() == [1]
    np.testing.assert_allclose(found.shares, [scores[1] / scores.sum()], rtol=1e-6)


def test_blocks_change_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    labels, distances = rng.integers(-1, 4, size=(50, 7)), rng.random((50, 7))
    whole = vote(labels, distances, n_labels=4)
    monkeypatch.setattr(_vote, "_CELLS", 12)
    part = vote(labels, distances, n_labels=4)
    np.testing.assert_array_equal(whole.codes, part.codes)
    np.testing.assert_array_equal(whole.shares, part.shares)


def test_unknown_weights():
    with pytest.raises(ValueError, match=r"weights='distances': use one of .*; did you mean 'distance'"):
        vote(np.zeros((1, 1), int), np.zeros((1, 1)), n_labels=1, weights="distances")
