"""A simulated screen: labelled as such, with the effects that it says."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scanpy_scgpt import baselines, datasets
from scanpy_scgpt.pp import parse_perturbations


@pytest.fixture(scope="module")
def control(data_dir):
    cells = ad.read_h5ad(data_dir / "pbmc3k_10x.h5ad")
    return cells[:800, np.asarray((cells.X > 0).mean(axis=0)).ravel() > 0.2].copy()


@pytest.fixture(scope="module")
def screen(control):
    return datasets.simulate_perturb(control, n_genes=8, doubles=1.0, n_cells=150, n_control=600)


@pytest.fixture(scope="module")
def effects(screen):
    return baselines.pseudobulk_effects(screen, parse_perturbations(screen.obs["perturbation"], genes=screen.var_names))


def test_it_says_that_it_is_a_simulation(screen):
    assert screen.uns["simulation"]["description"].startswith("SIMULATION")
    assert screen.obs["simulated"].all()
    assert all(name.startswith("simulated_") for name in screen.obs_names)
    assert screen.X.dtype == np.int32
    assert screen.X.data.min() > 0
    assert screen.obs["perturbation"].value_counts()["control"] == 600


def test_the_truth_is_in_the_cells(screen, effects):
    truth = screen.uns["simulation"]
    change = pd.DataFrame(truth["log_fold_change"], truth["conditions"], screen.var_names)
    singles = [name for name in effects.deltas.index if "+" not in name]
    assert len(singles) == 8
    for name in singles:
        assert change.loc[name, name] == pytest.approx(np.log(0.2))
        assert effects.deltas.loc[name, name] < 0
        z = (effects.deltas / effects.errors).loc[name]
        clear = change.loc[name].abs().nlargest(20).index
        assert (
            np.sign(z[clear]) == np.sign(change.loc[name, clear])
        ).mean() >= 0.75  # shares sum to one: others shift too


def test_interactions_are_where_they_are_said_to_be(screen, effects):
    truth = screen.uns["simulation"]
    extra = pd.DataFrame(truth["interaction"], truth["conditions"], screen.var_names)
    doubles = [name for name in effects.deltas.index if "+" in name]
    interacting = set(truth["interacting"])
    assert interacting == {name for name in extra.index if extra.loc[name].any()}
    assert 0 < len(interacting) < len(doubles) == 28
    rest = {
        name: effects.deltas.loc[name] - sum(effects.deltas.loc[one] for one in name.split("+")) for name in doubles
    }
    found = [np.corrcoef(rest[name], extra.loc[name] * effects.control)[0, 1] for name in sorted(interacting)]
    assert np.mean(found) > 0.3
    sizes = {name: float(np.linalg.norm(one)) for name, one in rest.items()}
    assert np.mean([sizes[n] for n in interacting]) > 1.1 * np.mean(
        [s for n, s in sizes.items() if n not in interacting]
    )


def test_without_interactions_logarithms_add_up(control):
    truth = datasets.simulate_perturb(control, n_genes=5, doubles=1.0, interactions=0, n_cells=2).uns["simulation"]
    table = pd.DataFrame(truth["log_fold_change"], truth["conditions"])
    assert len(truth["interacting"]) == 0
    assert not truth["interaction"].any()
    for name in table.index[5:]:
        first, second = name.split("+")
        np.testing.assert_allclose(table.loc[name], (table.loc[first] + table.loc[second]).clip(-3, 3))


def test_it_repeats_and_leaves_the_cells_alone(control, fingerprint):
    before = fingerprint(control)
    one, other, third = (datasets.simulate_perturb(control, n_genes=4, n_cells=5, rng=rng) for rng in (1, 1, 2))
    assert fingerprint(control) == before
    assert fingerprint(one) == fingerprint(other) != fingerprint(third)


def test_it_can_be_written(screen, write_cells, tmp_path):
    again = ad.read_h5ad(write_cells(screen[:50].copy(), tmp_path / "simulated.h5ad"))
    assert again.uns["simulation"]["description"].startswith("SIMULATION")


def test_bad_input(control):
    with pytest.raises(ValueError, match="genes: 'NOPE' is none of the"):
        datasets.simulate_perturb(control, ["NOPE"])
    with pytest.raises(
        ValueError, match=r"genes are found in at least 5 % of the cells, n_genes=100000. Lower n_genes"
    ):
        datasets.simulate_perturb(control, n_genes=100_000)
    for given, text in (
        ({"doubles": 2}, "doubles=2: a share from 0 to 1"),
        ({"strength": -1}, "strength=-1: a number from 0"),
        ({"n_cells": 0}, "n_cells=0: a whole number from 1"),
    ):
        with pytest.raises(ValueError, match=text):
            datasets.simulate_perturb(control, **given)
    logged = ad.AnnData(control.X.log1p(), var=control.var)
    with pytest.raises(ValueError, match="X holds log-normalised values; a simulation needs counts"):
        datasets.simulate_perturb(logged)
