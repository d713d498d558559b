"""The simple predictors of effects: each does what it says."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scanpy_scgpt import baselines

GENES = [f"G{i}" for i in range(40)]
KNOWN = GENES[:24]


@pytest.fixture
def world():
    """Effects are a linear map of features of the target, with noise; one combination is known."""
    rng = np.random.default_rng(0)
    features = pd.DataFrame(rng.normal(size=(40, 4)), index=GENES)
    effects = features.to_numpy() @ rng.normal(size=(4, 40)) + 1 + 0.2 * rng.normal(size=(40, 40))
    table = pd.DataFrame(effects, index=GENES, columns=GENES)
    return table, features, {gene: (gene,) for gene in GENES}


def test_plain_predictors(world):
    table, _, targets = world
    known = table.loc[KNOWN]
    targets = {**targets, "drug": ()}
    found = baselines.perturb(known, targets, ["G30", "drug", ("G0", "G1"), ("G30", "G0")])
    mean = known.mean().to_numpy()
    assert list(found["mean"].index) == ["G30", "drug", "G0+G1", "G0+G30"]
    assert (found["no_change"] == 0).all(axis=None)
    np.testing.assert_allclose(found["mean"], np.tile(mean, (4, 1)))
    np.testing.assert_allclose(found["additive"].loc["G0+G1"], known.loc["G0"] + known.loc["G1"])
    np.testing.assert_allclose(found["matching_mean"].loc["G0+G1"], (known.loc["G0"] + known.loc["G1"]) / 2)
    np.testing.assert_allclose(found["additive"].loc["G0+G30"], known.loc["G0"] + mean)
    for name in ("matching_mean", "additive", "ridge_features", "knn"):
        np.testing.assert_allclose(found[name].loc["drug"], mean)


def test_the_informed_mean_changes_the_target_alone(world):
    table, _, targets = world
    known = table.loc[KNOWN].copy()
    for gene in KNOWN:
        known.loc[gene, gene] = -5
    found = baselines.perturb(known, targets, ["G30"], methods=["mean", "informed_mean"])
    change = (found["informed_mean"] - found["mean"]).loc["G30"]
    expected = -5 - np.mean([known[gene].mean() for gene in KNOWN])
    assert change["G30"] == pytest.approx(expected)
    assert change.drop("G30").abs().max() == 0


def test_ridge_is_the_published_formula(world):
    table, _, targets = world
    known = table.loc[KNOWN]
    y = known.to_numpy().T
    b = y.mean(axis=1, keepdims=True)
    centred = (y - b) - (y - b).mean(axis=0)
    left, strength, _ = np.linalg.svd(centred, full_matrices=False)
    g = left[:, :10] * strength[:10]
    p = g[:24]
    inverse = [np.linalg.inv(part.T @ part + 0.1 * np.eye(10)) for part in (g, p)]
    expected = g @ inverse[0] @ g.T @ (y - b) @ p @ inverse[1] @ g[30] + b.ravel()
    found = baselines.perturb(known, targets, ["G30"], methods="ridge")
    np.testing.assert_allclose(found["ridge"].loc["G30"], expected)


def test_features_that_tell_are_used(world):
    table, features, targets = world
    wanted = GENES[24:]
    found = baselines.perturb(table.loc[KNOWN], targets, wanted, features={"true": features, "own": None})
    truth = table.loc[wanted]
    error = {name: float(((one - truth) ** 2).mean(axis=None)) for name, one in found.items()}
    assert error["ridge_features:true"] < 0.1 * error["mean"]
    assert error["knn:true"] < 0.8 * error["mean"]
    assert {"ridge_features:own", "knn:own"} <= error.keys()


def test_without_signal_the_mean_stays():
    """A test at 5 %: in a few of forty draws chance alone lets features in."""
    targets = {f"A{i}": (f"A{i}",) for i in range(31)}
    let_in = {"ridge_features": 0, "knn": 0}
    for seed in range(40):
        rng = np.random.default_rng(seed)
        table = pd.DataFrame(rng.normal(size=(30, 50)) + 1, index=list(targets)[:30])
        features = pd.DataFrame(rng.normal(size=(31, 8)), index=list(targets))
        found = baselines.perturb(table, targets, ["A30"], features=features, methods=["mean", *let_in])
        for name in let_in:
            let_in[name] += not np.allclose(found[name], found["mean"])
    assert max(let_in.values()) <= 6


def test_the_choice_by_leaving_out_is_that_of_real_refits():
    """The closed form of the errors agrees with refits without each condition."""
    from scanpy_scgpt.baselines._ridge import kernel_ridge

    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(12, 3)), rng.normal(size=(12, 6))
    y += x @ rng.normal(size=(3, 6)) * 3
    predicted = kernel_ridge(x, y, x[:2], penalties=(1e-9,))
    fitted = np.linalg.lstsq(np.c_[np.ones(12), x], y, rcond=None)[0]
    np.testing.assert_allclose(predicted, np.c_[np.ones(2), x[:2]] @ fitted, atol=1e-5)


def test_a_gene_without_features_gets_the_mean(world):
    table, features, targets = world
    known = table.loc[KNOWN]
    found = baselines.perturb(
        known, targets, ["G30"], features=features.drop("G30"), methods=["mean", "ridge_features"]
    )
    np.testing.assert_allclose(found["ridge_features"], found["mean"])


def test_bad_input(world):
    table, _, targets = world
    with pytest.raises(ValueError, match="a method='aditive': use one of .* did you mean 'additive'"):
        baselines.perturb(table, targets, ["G1"], methods="aditive")
    with pytest.raises(KeyError, match="targets has no entry for 'X'"):
        baselines.perturb(table, targets, ["X"])
    with pytest.raises(ValueError, match="wanted is empty"):
        baselines.perturb(table, targets, [])
    with pytest.raises(ValueError, match="effects has 1 NaN or infinite values"):
        baselines.perturb(table.mask((table.index == "G3")[:, None] & (table.columns == "G1")), targets, ["G1"])
    with pytest.raises(ValueError, match=r"effects has the shape \(0, 40\)"):
        baselines.perturb(table[:0], targets, ["G1"])
