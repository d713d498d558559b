"""Batches laid over one another by fixed shifts."""

from __future__ import annotations

import numpy as np
import pytest

from scanpy_scgpt.metrics import batch_mixing
from scanpy_scgpt.model._alignment import Alignment, align


@pytest.fixture(scope="module")
def shifted():
    """Three kinds of cells in two batches; the second stands elsewhere."""
    rng = np.random.default_rng(0)
    kind, batch = rng.integers(3, size=600), rng.integers(2, size=600)
    centres = rng.normal(size=(3, 12)) * 4
    apart = rng.normal(size=12) * 2.5
    x = centres[kind] + rng.normal(size=(600, 12)) * 0.5 + batch[:, None] * apart
    return x.astype(np.float32), batch, kind


def test_batches_meet_and_kinds_stay_apart(shifted):
    x, batch, kind = shifted
    moved = align(x, batch).apply(x, batch)
    assert batch_mixing(x, batch) < 0.1
    assert batch_mixing(moved, batch) > 0.9
    assert batch_mixing(moved, kind) < 0.05


def test_a_cell_is_moved_alike_whatever_it_is_sent_with(shifted):
    x, batch, _ = shifted
    found = align(x, batch)
    whole = found.apply(x, batch)
    np.testing.assert_allclose(found.apply(x[::-7], batch[::-7]), whole[::-7], atol=1e-5)
    np.testing.assert_allclose(found.apply(x[:1], batch[:1]), whole[:1], atol=1e-5)
    again = align(x, batch).apply(x, batch)
    np.testing.assert_array_equal(again, whole)


def test_a_new_batch_gets_shifts_of_its_own_and_the_others_keep_theirs(shifted):
    x, batch, kind = shifted
    found = align(x, batch)
    new = x[batch == 1] + 3
    codes = np.full(len(new), 2)
    more = found.with_batches(new, codes)
    np.testing.assert_array_equal(more.shifts[:2], found.shifts)
    reference = found.apply(x, batch)
    both = np.concatenate([reference, more.apply(new, codes)])
    of = np.repeat([0, 1], [len(reference), len(new)])
    assert batch_mixing(np.concatenate([reference, new]), of) < 0.1
    assert batch_mixing(both, of) > 0.8
    assert batch_mixing(both, np.concatenate([kind, kind[batch == 1]])) < 0.05


def test_cells_without_a_batch_stay(shifted):
    x, batch, _ = shifted
    found = align(x, batch)
    np.testing.assert_array_equal(found.apply(x[:5], np.array([-1, -1, 7, -1, 7])), x[:5])


def test_there_is_nothing_to_lay_over(shifted):
    x, batch, _ = shifted
    assert align(x, np.zeros(len(x), dtype=int)) is None
    assert align(x, np.full(len(x), -1)) is None
    assert align(x[:1], batch[:1]) is None


@pytest.mark.parametrize("n", [1, 2, 5])
def test_a_batch_of_hardly_a_cell_does_no_harm(shifted, n):
    x, batch, _ = shifted
    codes = batch.copy()
    codes[:n] = 2
    moved = align(x, codes).apply(x, codes)
    assert np.isfinite(moved).all()
    assert batch_mixing(moved[n:], codes[n:]) > 0.9


def test_it_can_be_saved(shifted):
    x, batch, _ = shifted
    found = align(x, batch)
    back = Alignment.from_arrays(found.arrays("a"), "a")
    np.testing.assert_array_equal(back.apply(x, batch), found.apply(x, batch))
    assert Alignment.from_arrays({}, "a") is None
