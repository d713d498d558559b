"""Exact search: equal to comparing everything one by one, whatever the blocks."""

from __future__ import annotations

import numpy as np
import pytest

from scanpy_scgpt.neighbours._exact import as_vectors, rank, search_all

METRICS = ["cosine", "euclidean"]


@pytest.fixture
def vectors():
    """500 vectors, many of them equal, one zero."""
    values = np.random.default_rng(0).standard_normal((500, 12)).astype(np.float32)
    values[100:160] = values[7]
    values[300:310] = values[200:210]
    values[499] = 0
    return values


def one_by_one(queries, vectors, k, metric):
    """Rows and distances by plain double precision; ties by row."""
    rows, gaps = [], []
    for q in queries.astype(float):
        if metric == "cosine":
            lengths = np.linalg.norm(vectors.astype(float), axis=1) * np.linalg.norm(q)
            d = 1 - np.divide(vectors @ q, lengths, out=np.zeros(len(vectors)), where=lengths > 0)
        else:
            d = np.sqrt(np.square(vectors - q).sum(axis=1))
        order = np.lexsort((np.arange(len(d)), np.round(d, 10)))[:k]
        rows.append(order)
        gaps.append(d[order])
    return np.array(rows), np.array(gaps)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("blocks", [(1, 500), (7, 33), (500, 64), (1024, 8192)])
def test_neighbours_are_those_of_comparing_one_by_one(vectors, metric, blocks):
    queries = np.random.default_rng(1).standard_normal((40, 12)).astype(np.float32)
    queries[:5] = vectors[[7, 0, 200, 305, 120]]
    queries, vectors = (as_vectors(values, metric, name="v") for values in (queries, vectors))
    found = search_all(queries, vectors, 15, metric=metric, n_queries=blocks[0], n_rows=blocks[1])
    rows, gaps = one_by_one(queries, vectors, 15, metric)
    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_allclose(found.distances, gaps, atol=1e-6)


@pytest.mark.parametrize("metric", METRICS)
def test_equal_vectors_come_in_the_order_of_their_rows(metric):
    vectors = np.ones((300, 5), np.float32)
    for n_rows in (11, 300):
        found = search_all(vectors[:3], vectors, 6, metric=metric, n_rows=n_rows)
        np.testing.assert_array_equal(found.rows, np.tile(np.arange(6), (3, 1)))


@pytest.mark.parametrize("metric", METRICS)
def test_far_from_the_origin(metric):
    """Float32 products lose the small gaps between long vectors; the candidates leave room for that."""
    rng = np.random.default_rng(0)
    vectors = (1000 + rng.standard_normal((400, 8))).astype(np.float32)
    queries = (1000 + rng.standard_normal((10, 8))).astype(np.float32)
    queries, vectors = (as_vectors(values, metric, name="v") for values in (queries, vectors))
    found = search_all(queries, vectors, 5, metric=metric, n_rows=50)
    _, gaps = one_by_one(queries, vectors, 5, metric)
    np.testing.assert_allclose(found.distances, gaps, rtol=1e-5, atol=1e-8)


def test_fewer_vectors_than_neighbours():
    vectors = np.eye(3, dtype=np.float32)
    found = search_all(vectors[:1], vectors, 5, metric="euclidean")
    assert found.rows.tolist() == [[0, 1, 2, -1, -1]]
    assert np.isinf(found.distances[0, 3:]).all()
    assert search_all(vectors[:0], vectors, 2, metric="euclidean").rows.shape == (0, 2)


@pytest.mark.parametrize("metric", METRICS)
def test_ranking_all_is_searching_all(vectors, metric):
    vectors = as_vectors(vectors, metric, name="v")
    shuffled = np.random.default_rng(2).permuted(np.tile(np.arange(500), (20, 1)), axis=1)
    shuffled[:, 0] = np.where(np.arange(20) == 3, -1, shuffled[:, 0])
    ranked, whole = (
        rank(vectors[:20], shuffled, vectors, 9, metric=metric),
        search_all(vectors[:20], vectors, 9, metric=metric),
    )
    same = np.arange(20) != 3
    np.testing.assert_array_equal(ranked.rows[same], whole.rows[same])
    np.testing.assert_array_equal(ranked.distances[same], whole.distances[same])


def test_refused_vectors():
    with pytest.raises(ValueError, match=r"queries have the shape \(3, 4\), needed is \(n, 5\)"):
        as_vectors(np.ones((3, 4)), "cosine", name="queries", n_dims=5)
    with pytest.raises(ValueError, match=r"1 of 2 vectors have values that are not finite \(the first: row 1\)"):
        as_vectors(np.array([[1.0, 2], [np.nan, 1]]), "cosine", name="vectors")
