"""`SCGPTPerturber` on a real screen: pairing, context, weights, files."""

from __future__ import annotations

import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scanpy_scgpt.datasets import gene_features
from scanpy_scgpt.model import SCGPTPerturber
from scanpy_scgpt.model._perturb_data import gene_sets_table, read_screen
from scanpy_scgpt.model._perturb_network import Controls, Draw, NetworkSettings, PerturbNetwork

KNOWN = ["CMTM6", "IFNGR2", "JAK2", "NFKBIA", "STAT1", "STAT2", "STAT3", "TNFRSF14", "UBE2L6"]
TINY = {"per_epoch": 2, "batch_size": 8, "n_genes": 40, "pool": 5}


@pytest.fixture(scope="module")
def cells(data_dir):
    every = ad.read_h5ad(data_dir / "perturb_papalexi2021_thp1.h5ad")
    names = every.obs["perturbation"].astype(str)
    rank = names.groupby(names).cumcount()
    kept = (rank < np.where(names == "control", 300, 60)).to_numpy()
    return every[kept, :].copy()


@pytest.fixture(scope="module")
def model(cells):
    return SCGPTPerturber(cells, "perturbation", batch_key="batch")


def test_a_real_screen_is_read(model, cells):
    screen = model.screen_
    assert screen.effects.shape == (25, 299)
    assert screen.errors is not None
    assert not model.is_table_
    assert sorted(model.features_) == ["coexpression", "knowledge", "network"]
    column = list(screen.genes).index("STAT1")
    row = [x[0] for x in screen.conditions.parts].index("STAT1")
    assert screen.effects[row, column] < -0.5
    assert model.predict(screen.conditions)[0].shape == (25, 299)


def test_the_network_has_targets_in_each_step_and_each_block(model):
    settings = NetworkSettings(n_genes=30)
    network = PerturbNetwork(model._checkpoint, model.screen_.genes, settings)
    target = np.flatnonzero(network.flags(("JAK2",)))
    rng = np.random.default_rng(0)
    assert all(np.isin(target, network.columns(target, rng)).all() for _ in range(20))
    seen = []
    forward = network.module.forward
    network.module.forward = lambda ids, values, flags: seen.append(int(flags.sum())) or forward(ids, values, flags)
    network.predict(np.zeros((1, 299), dtype=np.float32), [("JAK2",)])
    assert len(seen) > 5
    assert set(seen) == {1}
    legacy = PerturbNetwork(model._checkpoint, model.screen_.genes, NetworkSettings(n_genes=30, legacy=True))
    assert not all(np.isin(target, legacy.columns(target, rng)).all() for _ in range(20))


def test_a_prediction_is_the_same_in_one_block_as_one_gene_at_a_time_would_see_it(model):
    network = PerturbNetwork(model._checkpoint, model.screen_.genes, NetworkSettings(n_genes=512))
    inputs = np.random.default_rng(0).random((2, 299)).astype(np.float32)
    found = network.predict(inputs, [("JAK2",), ("STAT1",)])
    assert found.shape == (2, 299)
    assert not np.allclose(found[0], found[1])
    unknown = np.setdiff1d(np.arange(299), network.known)
    assert (found[:, unknown] == 0).all()


def test_controls_are_those_of_the_batch_and_the_context():
    values = np.arange(6, dtype=np.float32)[:, None] * np.ones((1, 2), dtype=np.float32)
    from scipy import sparse

    contexts, batches = np.array(["a", "a", "a", "b", "b", "b"]), np.array(["1", "1", "2", "1", "2", "2"])
    controls, rng = Controls(sparse.csr_matrix(values), contexts, batches), np.random.default_rng(0)
    assert {float(controls.draw("a", 1, rng, batch="1")[0]) for _ in range(20)} == {0.0, 1.0}
    assert {float(controls.draw("b", 1, rng)[0]) for _ in range(40)} == {3.0, 4.0, 5.0}
    assert {float(controls.draw("b", 1, rng, batch="9")[0]) for _ in range(40)} == {3.0, 4.0, 5.0}
    assert {float(controls.draw("new", 1, rng)[0]) for _ in range(80)} == {0.0, 1.0, 2.0, 3.0, 4.0, 5.0}


def test_training_learns_what_it_is_shown(model):
    controls = model._controls()
    network = PerturbNetwork(model._checkpoint, model.screen_.genes, NetworkSettings(max_epochs=6, lr=1e-3, **TINY))
    change = np.zeros((1, 299), dtype=np.float32)
    change[0, network.known[:20]] = 1.0
    draw = Draw(network, controls, [("JAK2",)], [""], change)
    network.fit(draw, 1, [network.known[:20]])
    assert network.history[-1] < 0.6 * network.history[0]


def test_the_weight_of_the_network_is_0_unless_it_surely_helps(cells):
    model = SCGPTPerturber(cells, "perturbation", batch_key="batch", features={"knowledge": gene_features()})
    before = model.predict(model.conditions(["TYK2", "JAK2+STAT1"]))[0]
    model.train(1, **TINY)
    assert list(model.validation_["weight"]) == [0.25, 0.5, 1.0]
    assert model.network_weight_ == 0
    np.testing.assert_array_equal(model.predict(model.conditions(["TYK2", "JAK2+STAT1"]))[0], before)


def test_a_saved_model_predicts_the_same(cells, tmp_path):
    model = SCGPTPerturber(cells, "perturbation", features=("network",), gene_sets={"ifn": ["STAT1", "JAK2", "IRF1"]})
    model.train(1, weight=0.5, n_networks=2, **TINY)
    asked = model.conditions(["JAK2+STAT3", "TYK2", "IRF1"])
    change, width = model.predict(asked)
    model.save(tmp_path / "model")
    again = SCGPTPerturber.load(tmp_path / "model")
    other, wide = again.predict(again.conditions(["JAK2+STAT3", "TYK2", "IRF1"]))
    np.testing.assert_allclose(change, other, atol=1e-4)
    np.testing.assert_allclose(width, wide, atol=1e-4)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        model.save(tmp_path / "model")
    with pytest.raises(FileNotFoundError, match=r"holds no perturber\.json"):
        SCGPTPerturber.load(tmp_path)
    with pytest.raises(ValueError, match="needs control cells"):
        again.train(1)
    for given, error, text in (
        ({"max_epochs": 0}, ValueError, "max_epochs=0: a whole number from 1"),
        ({"n_networks": 0}, ValueError, "n_networks=0: a whole number from 1"),
        ({"weight": -1}, ValueError, "weight=-1: a number from 0"),
        ({"batchsize": 8}, TypeError, "takes no 'batchsize'; did you mean 'batch_size'"),
    ):
        with pytest.raises(error, match=text):
            model.train(**given)


def test_the_original_recipe_predicts_expression(cells):
    model = SCGPTPerturber(cells, "perturbation", batch_key="batch", legacy=True, features=())
    model.train(1, per_epoch=2, batch_size=8)
    assert model.effects_ is None
    network = model.networks_[0]
    assert network.settings.pool == 1
    assert network.settings.n_genes == 1536
    assert np.isfinite(model.predict(model.conditions(["STAT1"]))[0]).all()


def test_a_table_of_effects_in_two_contexts(data_dir):
    table = ad.read_h5ad(data_dir / "perturb_table_macrophage_wang2025.h5ad")
    some = table[table.obs["perturbation"].isin(["SPI1", "TREM2", "LTBR", "TYROBP", "CD33", "SYK"]), :800].copy()
    model = SCGPTPerturber(some, "perturbation", context_key="condition", features=("knowledge",))
    assert model.is_table_
    assert model.contexts_ == ["CRISPRa", "CRISPRi"]
    asked = model.conditions(["IRF8", "SPI1"])
    assert model.kinds(asked) == ["unseen", "measured"] * 2
    with pytest.raises(ValueError, match="max_epochs=0"):
        model.train(1)


def test_bad_input(cells, caplog):
    with pytest.raises(ValueError, match="anchor='best': use one of"):
        SCGPTPerturber(cells, "perturbation", anchor="best")
    with pytest.raises(KeyError, match="adata.obs has no column 'pertubation'; did you mean 'perturbation'"):
        SCGPTPerturber(cells, "pertubation")
    with pytest.raises(ValueError, match="There is no control"):
        SCGPTPerturber(cells[cells.obs["perturbation"] != "control"].copy(), "perturbation")
    scaled = cells.copy()
    scaled.X = cells.X.toarray().astype(np.float32) - 1.0
    with pytest.raises(ValueError, match="has negative values"):
        SCGPTPerturber(scaled, "perturbation")
    apart = cells.copy()
    apart.obs["where"] = np.where(apart.obs["perturbation"] == "control", "there", "here")
    with pytest.raises(ValueError, match="where='here' has perturbed cells and no control cell"):
        SCGPTPerturber(apart, "perturbation", context_key="where")
    one = cells[(cells.obs["perturbation"].isin(["control", "JAK2", "STAT1"])).to_numpy()].copy()
    kept = np.ones(one.n_obs, dtype=bool)
    kept[np.flatnonzero(one.obs["perturbation"] == "JAK2")[1:]] = False
    with caplog.at_level(logging.WARNING, logger="scanpy_scgpt"):
        read = read_screen(one[kept].copy(), SCGPTPerturber(one, "perturbation", features=()).source_)
    assert "perturbations of one cell say next to nothing: JAK2" in caplog.text
    assert len(read.screen) == 2
    model = SCGPTPerturber(one, "perturbation", features=())
    with caplog.at_level(logging.WARNING, logger="scanpy_scgpt"):
        model.conditions(["STAT11"])
    assert "nothing is known of 'STAT11'" in caplog.text
    assert "STAT1" in caplog.text


def test_sets_of_genes_are_features():
    table = gene_sets_table({"a": ["X", "Y"], "b": ["Y", "Z", "W"]})
    assert isinstance(table, pd.DataFrame)
    assert table.loc["X", "b"] == 0
    assert table.loc["Y", "a"] > table.loc["Y", "b"] > 0


def test_a_table_of_the_user_with_the_name_of_ours_is_saved(cells, tmp_path):
    rng = np.random.default_rng(0)
    mine = pd.DataFrame(rng.normal(size=(299, 5)).astype(np.float32), index=cells.var_names)
    made = SCGPTPerturber(cells, "perturbation", features={"knowledge": mine})
    made.save(tmp_path / "saved")
    pd.testing.assert_frame_equal(
        SCGPTPerturber.load(tmp_path / "saved").features_["knowledge"], mine, check_names=False, check_column_type=False
    )
