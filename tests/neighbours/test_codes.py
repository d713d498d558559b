"""Product codes: sizes, lists, and the plain form of the compiled scan."""

from __future__ import annotations

import numpy as np
import pytest

from scanpy_scgpt.neighbours import _codes

N, D = 3000, 24


def allocate(name, shape, dtype):
    return np.empty(shape, dtype)


@pytest.fixture(scope="module")
def vectors():
    rng = np.random.default_rng(0)
    middles = rng.standard_normal((30, D))
    values = middles[rng.integers(30, size=N)] + 0.3 * rng.standard_normal((N, D))
    return values.astype(np.float32)


@pytest.fixture(scope="module")
def quantiser(vectors):
    return _codes.Quantiser.train(vectors, n_lists=16, n_bytes=4, rng=np.random.default_rng(0))


@pytest.mark.parametrize("n_dims", [64, 192, 512])
@pytest.mark.parametrize("n", [1_000_000, 10_000_000])
def test_what_is_in_memory_is_a_hundred_times_smaller(n, n_dims):
    n_lists, n_bytes = _codes.shape_of(n, n_dims)
    width = -(-min(n_dims, 128) // n_bytes) * n_bytes
    fixed = n_lists * (2 * width + 8) + 8 + 4 * n_dims * (width + 1) + 4 * 256 * width
    assert 4 * n_dims * n / (n * n_bytes + fixed) >= (100 if n_dims > 64 else 80)


def test_few_vectors_keep_a_code():
    assert _codes.shape_of(1, 8)[1] >= 1
    assert _codes.shape_of(10, 4) == (8, 1)


def test_rotation_is_orthonormal_and_codes_come_near(vectors, quantiser):
    turn = quantiser.rotation
    np.testing.assert_allclose(turn.T @ turn, np.eye(turn.shape[1]), atol=1e-5)
    lists, codes = quantiser.encode(vectors)
    parts = [quantiser.codebooks[i][codes[:, i]] for i in range(quantiser.n_bytes)]
    back = quantiser.centroids[lists].astype(np.float32) + np.concatenate(parts, axis=1)
    kept = quantiser.project(vectors)
    assert np.square(kept - back).sum() < 0.35 * np.square(kept - kept.mean(axis=0)).sum()


def test_training_repeats(vectors, quantiser):
    again = _codes.Quantiser.train(vectors, n_lists=16, n_bytes=4, rng=np.random.default_rng(0))
    for name, array in quantiser.arrays().items():
        np.testing.assert_array_equal(array, again.arrays()[name])


def test_lists_hold_every_row_once_in_order(vectors, quantiser):
    found = _codes.sort_into_lists(vectors, quantiser, allocate)
    lists, codes = quantiser.encode(vectors)
    np.testing.assert_array_equal(found["rows"], np.argsort(lists, kind="stable"))
    np.testing.assert_array_equal(found["codes"], codes[found["rows"]])
    np.testing.assert_array_equal(np.diff(found["ends"]), np.bincount(lists, minlength=16))


def test_appending_is_sorting_all_at_once(vectors, quantiser, monkeypatch):
    monkeypatch.setattr(_codes, "_BLOCK", 700)
    whole = _codes.sort_into_lists(vectors, quantiser, allocate)
    part = _codes.sort_into_lists(vectors[:1100], quantiser, allocate)
    grown = _codes.sort_into_lists(vectors, quantiser, allocate, part)
    for name in whole:
        np.testing.assert_array_equal(grown[name], whole[name])


def test_shortlist_is_that_of_plain_distances(vectors, quantiser):
    """All lists are looked through: the rows are those of the smallest distances to the decoded vectors."""
    found = _codes.sort_into_lists(vectors, quantiser, allocate)
    queries = vectors[:20] + 0.05
    got = _codes.shortlist_of(queries, quantiser, found, shortlist=50, n_probe=99)
    lists, codes = quantiser.encode(vectors)
    parts = [quantiser.codebooks[i][codes[:, i]] for i in range(quantiser.n_bytes)]
    back = quantiser.centroids[lists].astype(np.float32) + np.concatenate(parts, axis=1)
    gaps = np.square(quantiser.project(queries)[:, None] - back[None]).sum(axis=2)
    limit = np.sort(gaps, axis=1)[:, 49]
    for i in range(20):
        assert len(set(got[i])) == 50
        assert gaps[i, got[i]].max() <= limit[i] * (1 + 1e-4)


def test_fewer_cells_than_the_shortlist(vectors, quantiser):
    found = _codes.sort_into_lists(vectors[:5], quantiser, allocate)
    got = _codes.shortlist_of(vectors[:2], quantiser, found, shortlist=8, n_probe=16)
    assert sorted(got[0].tolist()) == [-1, -1, -1, 0, 1, 2, 3, 4]


def test_k_means_of_fewer_vectors_than_centroids():
    centroids = _codes.k_means(np.eye(3, dtype=np.float32), 8, np.random.default_rng(0))
    assert centroids.shape == (8, 3)
    assert np.isfinite(centroids).all()
