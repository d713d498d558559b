"""The anchor: effects from effects; on numbers whose truth is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scanpy_scgpt.model._effects import EffectModel
from scanpy_scgpt.model._gram import COMPONENTS, Setting, Similarity
from scanpy_scgpt.model._screen import Conditions, OwnEffect, Screen
from scanpy_scgpt.model._selection import Selection, fitted_values, left_out, surely_positive

N_GENES = 120
GENES = tuple(f"g{i}" for i in range(N_GENES))


def _screen(effects, parts, *, errors=None, controls=None, contexts=None):
    conditions = Conditions(tuple(parts), tuple(contexts or ("",) * len(parts)))
    return Screen(conditions, effects.astype(np.float32), GENES, np.full(len(parts), 50.0), controls or {}, errors)


def _singles(n, *, signal, seed=0, noise=0.3):
    """Effects that follow features of the genes (or do not), and the features."""
    rng = np.random.default_rng(seed)
    features = pd.DataFrame(rng.normal(size=(N_GENES, 6)), index=GENES)
    effects = signal * features.to_numpy()[:n] @ rng.normal(size=(6, N_GENES)) + rng.normal(size=N_GENES)
    return effects + noise * rng.normal(size=effects.shape), features


def test_rows_that_are_left_out_are_predicted_as_if_they_had_never_been_there():
    effects, features = _singles(12, signal=0.5)
    screen = _screen(effects, [(f"g{i}",) for i in range(12)])
    similarity = Similarity({"own": features}, screen.conditions.universe)
    setting = Setting(signal=0.3, source="own", share=0.7)
    blocks = [np.array([0, 5]), np.array([3])]
    found = left_out(screen, effects, blocks, setting, similarity)
    for block in blocks:
        others = np.setdiff1d(np.arange(12), block)
        direct = fitted_values(screen, effects, others, screen.conditions.take(block), similarity, setting)
        np.testing.assert_allclose(found[block], direct, atol=1e-6)
    assert np.isnan(found[1]).all()


def test_features_are_used_where_they_tell_something_and_else_the_plain_guess_stays():
    asked = Conditions((("g40",), ("g41",)), ("", ""))
    for signal, helps in ((0.6, True), (0.0, False)):
        effects, features = _singles(30, signal=signal, seed=1)
        model = EffectModel(_screen(effects, [(f"g{i}",) for i in range(30)]), {"own": features}, own_effect=False)
        assert (model.unseen.gain > 0) is helps
        predicted = model.predict(asked)
        mean = effects.mean(axis=0)
        if helps:
            assert np.linalg.norm(predicted[0] - predicted[1]) > 0.3 * np.linalg.norm(effects[0] - effects[1])
        else:
            np.testing.assert_allclose(predicted, np.stack([mean, mean]), atol=0.02)


def test_without_signal_the_mean_anchor_and_the_full_one_agree():
    effects, features = _singles(30, signal=0.0, seed=1)
    screen = _screen(effects, [(f"g{i}",) for i in range(30)])
    asked = Conditions((("g50",),), ("",))
    full = EffectModel(screen, {"own": features}, own_effect=False).predict(asked)
    np.testing.assert_allclose(full, EffectModel(screen, anchor="mean").predict(asked), atol=0.02)


def test_what_a_perturbation_does_to_its_own_target_is_learned():
    effects, _ = _singles(20, signal=0.0)
    level = np.linspace(0.5, 3, N_GENES).astype(np.float32)
    effects[np.arange(20), np.arange(20)] -= 0.6 * level[:20]
    screen = _screen(effects, [(f"g{i}",) for i in range(20)], controls={"": level})
    own = OwnEffect.fitted(screen)
    assert own.share[""] == pytest.approx(-0.6, abs=0.3)
    predicted = EffectModel(screen).predict(Conditions((("g90",),), ("",)))[0]
    assert predicted[90] < effects.mean(axis=0)[90] - 0.8


def test_a_combination_is_the_sum_of_its_parts_by_the_additive_anchor():
    effects, _ = _singles(6, signal=0.3)
    model = EffectModel(_screen(effects, [(f"g{i}",) for i in range(6)]), anchor="additive")
    found = model.predict(Conditions((("g1", "g4"), ("g2",)), ("", "")))
    np.testing.assert_allclose(found, [effects[1] + effects[4], effects[2]], atol=1e-5)


def _doubles(*, interaction, seed=0):
    rng = np.random.default_rng(seed)
    n, features = 14, pd.DataFrame(rng.normal(size=(N_GENES, 3)), index=GENES)
    single = features.to_numpy()[:n] @ rng.normal(size=(3, N_GENES)) * 0.5
    direction = rng.normal(size=N_GENES)
    pairs = [(i, j) for i in range(n) for j in range(i + 1, n)]
    side = np.sign(features.to_numpy()[:n, 0])
    beyond = {pair: interaction * (side[pair[0]] * side[pair[1]] > 0) * direction for pair in pairs}
    parts = [(f"g{i}",) for i in range(n)] + [(f"g{i}", f"g{j}") for i, j in pairs]
    effects = np.vstack([single, *(single[i] + single[j] + beyond[i, j] for i, j in pairs)])
    truth = np.vstack([np.zeros((n, N_GENES)), *(beyond[pair] for pair in pairs)])
    return effects + 0.3 * rng.normal(size=effects.shape), parts, truth, {"own": features}


@pytest.mark.parametrize("interaction", [0.0, 1.2])
def test_interactions_are_found_where_there_are_some(interaction):
    effects, parts, truth, features = _doubles(interaction=interaction)
    rng = np.random.default_rng(1)
    held = np.sort(14 + rng.permutation(len(parts) - 14)[:15])
    known = np.setdiff1d(np.arange(len(parts)), held)
    model = EffectModel(_screen(effects[known], [parts[i] for i in known]), features)
    asked = Conditions(tuple(parts[i] for i in held), ("",) * len(held))
    found = model.interactions(asked)
    assert model.interacts is (interaction > 0)
    if not interaction:
        assert not found.any()
        return
    there = truth[held].any(axis=1)
    rest = model.predict(asked) - np.stack([effects[int(a[1:])] + effects[int(b[1:])] for a, b in asked.parts])
    related = [np.corrcoef(rest[i], truth[held[i]])[0, 1] for i in np.flatnonzero(there)]
    assert np.mean(related) > 0.5
    assert set(model.kinds(asked)) == {"combination"}


def test_what_was_measured_is_shrunk_by_its_noise_alone():
    rng = np.random.default_rng(0)
    common, own = rng.normal(size=N_GENES), rng.normal(size=(20, N_GENES))
    parts = [(f"h{i}",) for i in range(20)]
    noise = np.where(np.arange(20)[:, None] < 10, 1.5, 0.01) * rng.normal(size=(20, N_GENES))
    errors = np.broadcast_to(np.where(np.arange(20)[:, None] < 10, 1.5, 0.01), noise.shape).astype(np.float32)
    model = EffectModel(_screen(common + own + noise, parts, errors=errors))
    found = model.predict(model.screen.conditions)
    truth = common + own
    np.testing.assert_allclose(found[10:], truth[10:], atol=0.1)
    assert np.square(found[:10] - truth[:10]).mean() < 0.8 * np.square(noise[:10]).mean()


def test_intervals_hold_what_they_promise():
    effects, features = _singles(60, signal=0.5, noise=0.5)
    screen = _screen(effects[:40], [(f"g{i}",) for i in range(40)])
    model = EffectModel(screen, {"own": features}, own_effect=False)
    asked = Conditions(tuple((f"g{i}",) for i in range(40, 60)), ("",) * 20)
    inside = np.abs(model.predict(asked) - effects[40:]) <= model.width(asked)
    assert 0.8 < inside.mean() < 0.97


def test_an_effect_that_is_the_same_elsewhere_is_carried_over():
    effects, _ = _singles(12, signal=0.8)
    both = np.vstack([effects, effects[:11] + 0.1 * np.random.default_rng(5).normal(size=(11, N_GENES))])
    parts = [(f"g{i}",) for i in range(12)] + [(f"g{i}",) for i in range(11)]
    screen = _screen(both, parts, contexts=["a"] * 12 + ["b"] * 11)
    model = EffectModel(screen, own_effect=False)
    asked = Conditions((("g11",),), ("b",))
    assert model.kinds(asked) == ["seen elsewhere"]
    assert np.corrcoef(model.predict(asked)[0], effects[11])[0, 1] > 0.9


def test_a_gain_must_be_sure():
    assert surely_positive(np.array([0.1, 0.12, 0.09, 0.11]))
    assert not surely_positive(np.array([0.5, -0.4, 0.3, -0.3]))
    assert not surely_positive(np.array([0.2]))


def test_components_are_found_without_the_block_that_is_left_out():
    effects, _ = _singles(10, signal=0.5)
    screen = _screen(effects, [(f"g{i}",) for i in range(10)])
    similarity = Similarity({}, screen.conditions.universe).with_components(screen)
    blocks = [np.array([i]) for i in range(10)]
    every = np.arange(10)
    fresh = [similarity.with_components(screen.take(np.setdiff1d(every, block))) for block in blocks]
    trial = Selection(screen, effects, blocks, similarity, fresh)
    choice = trial.best([Setting()], [Setting(signal=0.3, source=COMPONENTS, share=0.9)])
    assert choice.table["source"].tolist() == [COMPONENTS]
    changed = effects.copy()
    changed[0] += 100 * np.random.default_rng(0).normal(size=N_GENES)
    other = _screen(changed, [(f"g{i}",) for i in range(10)])
    setting = Setting(signal=0.3, source=COMPONENTS, share=0.9)
    one = left_out(screen, effects, blocks, setting, similarity, fresh)[0]
    again = [similarity.with_components(other.take(np.setdiff1d(every, block))) for block in blocks]
    np.testing.assert_allclose(one, left_out(other, changed, blocks, setting, similarity, again)[0], atol=1e-6)
