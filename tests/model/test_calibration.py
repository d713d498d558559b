"""Probabilities that hold, on scores whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from scanpy_scgpt.model._calibration import Calibration, calibrate


def _softmax(x):
    x = np.exp(x - x.max(axis=1, keepdims=True))
    return x / x.sum(axis=1, keepdims=True)


def _drawn(n, seed, *, n_labels=4):
    """Scores, and labels drawn from the probabilities that they say."""
    rng = np.random.default_rng(seed)
    scores = 1.5 * rng.normal(size=(n, n_labels))
    labels = (_softmax(scores).cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)
    return scores, labels


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("n_members", [1, 3])
def test_a_known_temperature_is_found(temperature, n_members):
    scores, labels = _drawn(6000, 0)
    given = [temperature * scores] * n_members
    found = calibrate(given, labels, np.zeros(6000))
    assert found.temperature == pytest.approx(temperature, rel=0.06)
    np.testing.assert_allclose(found.probabilities(given), _softmax(scores), atol=0.03)


def test_probabilities_are_the_mean_of_those_of_the_members():
    first, second = _drawn(50, 0)[0], _drawn(50, 1)[0]
    found = Calibration(np.array([0.25, 0.75]), 1.0, np.zeros(0), np.zeros(0))
    expected = 0.25 * _softmax(first) + 0.75 * _softmax(second + 7)  # a score that all labels share says nothing
    np.testing.assert_allclose(found.probabilities([first, second + 7]), expected, atol=1e-6)
    np.testing.assert_allclose(found.probabilities([first]), _softmax(first), atol=1e-6)
    cold = found._replace(temperature=0.5).probabilities([first, second])
    np.testing.assert_allclose(cold, expected**2 / (expected**2).sum(axis=1, keepdims=True), atol=1e-5)


def test_scores_that_say_nothing_give_nearly_equal_probabilities():
    scores, _ = _drawn(3000, 0)
    labels = np.random.default_rng(5).integers(0, 4, 3000)
    given = [scores, scores[:, ::-1]]
    assert np.abs(calibrate(given, labels, np.zeros(3000)).probabilities(given) - 0.25).max() < 0.2


def test_the_one_that_knows_counts():
    scores, labels = _drawn(3000, 0)
    found = calibrate([scores, _drawn(3000, 1)[0]], labels, np.zeros(3000))
    assert found.weights[0] > 0.95
    assert found.weights.sum() == pytest.approx(1)


@pytest.mark.parametrize("n", [0, 1, 19])
def test_few_cells_decide_nothing(n):
    scores, labels = _drawn(n, 0)
    found = calibrate([scores, scores], labels, np.zeros(n))
    assert found.temperature == 1.0
    np.testing.assert_allclose(found.weights, 0.5)
    probabilities = found.probabilities([scores, scores])
    assert probabilities.shape == (n, 4)
    assert probabilities.dtype == np.float32


@pytest.mark.parametrize("target_error", [0.05, 0.1, 0.3])
@pytest.mark.parametrize("n_held", [25, 200])
def test_sets_contain_the_truth_as_often_as_they_say(target_error, n_held):
    """Over many held-out sets: the mean share is the one of theory, within the bounds of a binomial."""
    inside, n_new, rounds = 0, 20, 150
    for seed in range(rounds):
        scores, labels = _drawn(n_held + n_new, seed)
        found = Calibration(np.ones(1), 1.0, np.zeros(0), np.zeros(0))
        p = found.probabilities([scores])
        own = p[np.arange(len(p)), labels].astype(np.float64)
        found = found._replace(scores=np.sort(1 - own[:n_held]))
        sets = found.sets(p[n_held:], target_error=target_error)
        inside += sets[np.arange(n_new), labels[n_held:]].sum()
    expected = np.ceil((n_held + 1) * (1 - target_error)) / (n_held + 1)
    spread = np.sqrt(expected * (1 - expected) * (1 / (rounds * n_new) + 1 / (rounds * n_held)))
    assert expected >= 1 - target_error
    assert inside / (rounds * n_new) == pytest.approx(expected, abs=4 * spread)


def test_calibrated_sets_hold_on_other_cells():
    scores, labels = _drawn(1000, 0)
    found = calibrate([3 * scores], labels, np.zeros(1000))
    new, truth = _drawn(1000, 1)
    sets = found.sets(found.probabilities([3 * new]), target_error=0.1)
    n_inside = sets[np.arange(1000), truth].sum()
    assert binom.cdf(n_inside, 1000, 0.9) > 1e-4
    assert binom.sf(n_inside - 1, 1000, 0.93) > 1e-4
    assert 1 < sets.sum(axis=1).mean() < 4


def test_a_cell_equal_to_a_held_out_one_is_in_the_set():
    """Thresholds and probabilities are compared in one precision, also where a probability is nearly 0."""
    scores = np.array([[0.0, 40.0], [0.3, 0.1], [1.0, 20.0]])
    labels = np.array([0, 1, 0])
    found = calibrate([scores], labels, np.zeros(3))
    sets = found.sets(found.probabilities([scores]), target_error=0.25)
    assert sets[np.arange(3), labels].all()


def test_too_few_held_out_cells_rule_nothing_out():
    found = Calibration(np.ones(1), 1.0, np.array([0.1, 0.2]), np.zeros(2))
    assert found.sets(np.array([[0.999, 0.001]]), target_error=0.1).all()
    assert found.sets(np.array([[0.85, 0.15]]), target_error=0.34).tolist() == [[True, False]]


def test_novelty_is_a_p_value():
    found = Calibration(np.ones(1), 1.0, np.zeros(0), np.array([0.1, 0.2, 0.2, 0.4]))
    got = found.novelty(np.array([0.0, 0.1, 0.2, 0.3, 0.5]))
    assert got.tolist() == [1.0, 1.0, 0.8, 0.4, 0.2]
    rng = np.random.default_rng(0)
    drawn = [
        Calibration(np.ones(1), 1, np.zeros(0), np.sort(rng.random(50))).novelty(rng.random(40)) for _ in range(200)
    ]
    assert np.mean(np.concatenate(drawn) <= 0.1) <= 0.1 + 0.02
