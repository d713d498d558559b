"""The order of the cells: balanced between groups, steps of one group."""

from __future__ import annotations

import numpy as np
import pytest

from scanpy_scgpt.data import PassOrder

RNG = np.random.default_rng(0)
STUDY = RNG.choice(4, 3000, p=[0.7, 0.2, 0.08, 0.02])
TISSUE = RNG.choice(2, 3000)
CELLS = np.arange(3000) + 7
SETTINGS = {"batch_size": 32, "seed": 0}


def _shown(order, passes):
    """How often each cell is shown."""
    steps = [order.step(i) for i in range(order.steps * passes)]
    assert all(len(step) == order.batch_size for step in steps)
    return np.bincount(np.concatenate(steps), minlength=3007)[7:]


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_groups_get_their_share_and_cells_of_a_group_the_same(power):
    shown = _shown(PassOrder(CELLS, balance=STUDY, power=power, **SETTINGS), 20)
    n = np.bincount(STUDY)
    wanted = n ** (1 - power) / (n ** (1 - power)).sum()
    np.testing.assert_allclose(np.bincount(STUDY, shown) / shown.sum(), wanted, rtol=0.03)
    for group in range(4):
        often = shown[group == STUDY]
        assert often.max() - often.min() <= max(4, 0.15 * often.mean())


def test_a_step_is_of_one_group():
    order = PassOrder(CELLS, step_from=STUDY, **SETTINGS)
    for i in range(order.steps * 3):
        assert len(set(STUDY[order.step(i) - 7])) == 1
    shown = _shown(order, 20)
    assert shown.min() >= 17
    assert shown.max() <= 22
    assert not np.array_equal(np.sort(order.step(0)), np.sort(order.step(order.steps)))


def test_steps_of_one_group_that_are_balanced_between_others():
    """A step is of one tissue; studies get closer shares, as far as they have enough cells of a tissue for a step."""
    order = PassOrder(CELLS, balance=STUDY, power=1.0, step_from=TISSUE, **SETTINGS)
    for i in range(order.steps):
        assert len(set(TISSUE[order.step(i) - 7])) == 1
    shares = np.bincount(STUDY, _shown(order, 20)) / np.bincount(STUDY)
    assert shares[3] >= shares[2] > shares[1] > shares[0]


def test_groups_that_are_smaller_than_a_step_go_together():
    sizes = [5, 100, 3, 200]
    study = np.repeat(np.arange(4), sizes)
    order = PassOrder(np.arange(308), step_from=study, **SETTINGS)
    kinds = {tuple(np.unique(study[order.step(i)])) for i in range(order.steps * 4)}
    assert (3,) in kinds
    assert kinds <= {(3,), (1,), (0, 1), (1, 2), (0, 1, 2)}
    tiny = PassOrder(np.arange(10), step_from=np.arange(10) // 2, batch_size=10, seed=0)
    assert np.array_equal(np.sort(tiny.step(3)), np.arange(10))


def test_any_step_can_be_asked_for():
    """A run that goes on asks for a late step first."""
    for changes in ({}, {"balance": STUDY, "power": 0.7}, {"balance": STUDY, "step_from": TISSUE}):
        late, all_ = (PassOrder(CELLS, **SETTINGS, **changes) for _ in range(2))
        steps = [all_.step(i) for i in range(250)]
        for i in (249, 3, 120):
            np.testing.assert_array_equal(late.step(i), steps[i])
        other = PassOrder(CELLS, **{**SETTINGS, "seed": 1}, **changes)
        assert not np.array_equal(other.step(3), steps[3])
