"""Value bins: the kernel against its numpy reference, and both against numbers of the original implementation."""

from __future__ import annotations

import numpy as np
import pytest

from scanpy_scgpt.tokenizer import TIES, bin_row_reference, bin_rows


def _bin(values, *, ties, key=7, n_bins=51):
    values = np.asarray(values)
    values = values if values.dtype == np.float32 else values.astype(np.float64)
    genes = np.arange(values.size, dtype=np.int32)
    keys = np.array([key], dtype=np.uint64)
    return bin_rows(np.array([0, values.size]), values, genes, keys, n_bins=n_bins, ties=ties)


def _rows(rng):
    yield rng.poisson(1.5, 300) + 1
    yield rng.negative_binomial(1, 0.02, 800) + 1  # beyond the histogram: the sorting path
    yield np.log1p(rng.poisson(3, 400) + 1).astype(np.float32)
    yield rng.lognormal(size=57)
    yield np.array([3.0])
    yield np.full(12, 2.0)
    yield np.array([1.0, 5000.0, 5000.0, 2.0])
    yield np.array([0.5, 1.0, 2.0, 1023.0, 1024.0])


@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize("n_bins", [3, 11, 51, 256])
def test_kernel_is_the_reference(ties, n_bins):
    for row in _rows(np.random.default_rng(0)):
        values = row if row.dtype == np.float32 else row.astype(np.float64)
        expected = bin_row_reference(values, np.arange(values.size), 7, n_bins=n_bins, ties=ties)
        np.testing.assert_array_equal(_bin(values, ties=ties, n_bins=n_bins), expected)


def test_digits_are_in_range_and_follow_the_values():
    values = np.random.default_rng(1).poisson(4, 500) + 1
    for ties in ("low", "mid", "high"):
        digits = _bin(values, ties=ties)
        assert digits.min() >= 1
        assert digits.max() <= 50
        order = np.argsort(values, kind="stable")
        assert (np.diff(digits[order].astype(int)) >= 0).all()
    low, mid, high = (_bin(values, ties=ties).astype(int) for ties in ("low", "mid", "high"))
    random = _bin(values, ties="random").astype(int)
    assert ((low <= mid) & (mid <= high)).all()
    assert ((low <= random) & (random <= high)).all()
    assert len(np.unique(random[values == 4])) > 1


def test_random_ties_are_uniform_over_the_tie_range():
    values = np.repeat([1.0, 2.0], [9000, 1000])
    digits = _bin(values, ties="random")
    counts = np.bincount(digits[:9000], minlength=51)[1:46]
    assert counts.sum() == 9000  # ones fall on 45 of the 50 edges
    expected = 9000 / 45
    assert ((counts - expected) ** 2 / expected).sum() < 80  # chi-square with 44 degrees of freedom, p about 0.001
    assert set(np.unique(digits[9000:])) <= {46, 47, 48, 49, 50}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_float_width_does_not_matter_for_counts(dtype):
    counts = np.random.default_rng(2).poisson(2, 400) + 1
    np.testing.assert_array_equal(_bin(counts.astype(dtype), ties="random"), _bin(counts, ties="random"))


def test_digits_of_the_original_side_one(fixtures_dir):
    recorded = np.load(fixtures_dir / "binning.npz")
    cases = sorted({name.split("/")[0] for name in recorded.files if name.endswith("/digits_one")})
    assert len(cases) >= 15
    for case in cases:
        values = recorded[f"{case}/input"]
        np.testing.assert_array_equal(
            _bin(values[values != 0], ties="high"), recorded[f"{case}/digits_one"], err_msg=case
        )


def test_draws_of_the_original_lie_in_our_tie_range(fixtures_dir):
    recorded = np.load(fixtures_dir / "binning.npz")
    for case in ("two_values", "counts_with_ties", "int_counts", "constant_nonzero", "logcounts", "distinct_120"):
        values = recorded[f"{case}/input"]
        low, high = (_bin(values[values != 0], ties=ties) for ties in ("low", "high"))
        draws = recorded[f"{case}/draws"][:, values != 0]
        assert ((draws >= low) & (draws <= high)).all(), case


def test_random_ties_have_the_distribution_of_the_original(fixtures_dir):
    recorded = np.load(fixtures_dir / "binning.npz")
    values = recorded["ties/input"].astype(np.float64)
    ones, twos = values == 1, values == 2
    draws = np.stack([_bin(values, ties="random", key=key) for key in range(2000)])
    for chosen, name in ((ones, "ones"), (twos, "twos")):
        theirs = recorded[f"ties/hist_of_{name}"]
        ours = np.bincount(draws[:, chosen].ravel(), minlength=51)
        assert set(np.flatnonzero(ours)) == set(np.flatnonzero(theirs))
        shift = np.abs(ours / ours.sum() - theirs / theirs.sum())
        assert shift.max() < 5 * np.sqrt(1 / theirs.sum() / np.count_nonzero(theirs)) + 0.005
