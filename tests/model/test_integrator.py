"""`SCGPTIntegrator`: what is kept, what is judged, and that batches meet."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
import torch

from scanpy_scgpt import tl
from scanpy_scgpt.io import CheckpointError
from scanpy_scgpt.metrics import batch_mixing
from scanpy_scgpt.model import SCGPT, SCGPTIntegrator
from scanpy_scgpt.model._integrator import EXPRESSION, NETWORK
from scanpy_scgpt.nn import ExpressionHead

FAST = {"accelerator": "cpu"}


@pytest.fixture(scope="module")
def stimulated(data_dir):
    """240 blood cells, half of them stimulated: the stimulation is the batch effect."""
    adata = ad.read_h5ad(data_dir / "pbmc_ifnb_kang2018_2k.h5ad")
    return adata[np.random.default_rng(0).permutation(adata.n_obs)[:240]].copy()


@pytest.fixture(scope="module")
def fitted(stimulated):
    adata = stimulated.copy()
    SCGPTIntegrator.setup_anndata(adata, batch_key="condition")
    model = SCGPTIntegrator(adata, n_components=20, max_length=100)
    model.train(max_epochs=1, train_size=0.5, **FAST)
    return model


def test_batches_meet(fitted, stimulated):
    batches = stimulated.obs["condition"].astype(str)
    vectors = fitted.get_latent_representation()
    assert vectors.shape == (240, 40)
    assert vectors.dtype == np.float32
    assert fitted.joint.corrected
    plain = fitted.joint.joined(
        fitted._coordinates(fitted._cells(), np.arange(240)), fitted._cells().codes["batch"], corrected=False
    )
    assert batch_mixing(vectors, batches) > batch_mixing(plain, batches) + 0.1
    assert batch_mixing(vectors, batches) > 0.85
    kept = fitted.measured_["corrected"]["kept"]
    assert kept > 0.7


def test_the_epochs_are_judged_without_labels(fitted):
    watched = fitted.history_["integration_validation"].iloc[:, 0]
    assert len(watched) == 1
    assert fitted.start_ == pytest.approx(watched.iloc[0], abs=1)
    assert {"gep_validation", "gepc_validation", "ecs_validation", "dar_validation"} <= set(fitted.history_)


@pytest.mark.parametrize("least", [-9.0, 9.0])
def test_the_start_is_kept_unless_an_epoch_gains_enough(stimulated, least, monkeypatch):
    monkeypatch.setattr(SCGPTIntegrator, "least_gain", least)
    adata = stimulated[:60].copy()
    SCGPTIntegrator.setup_anndata(adata, batch_key="condition")
    model = SCGPTIntegrator(adata, n_components=5, max_length=60)
    before = model._vectors(model._cells(), np.arange(60))
    model.train(max_epochs=1, **FAST)
    assert np.array_equal(model._vectors(model._cells(), np.arange(60)), before) == (least > 0)


def test_the_part_of_the_network_alone(fitted):
    network = fitted.get_latent_representation(part="network")
    assert network.shape == (240, fitted.module.transformer.config.d_model)
    np.testing.assert_allclose(np.linalg.norm(network, axis=1), 1, atol=1e-5)


def test_the_same_cell_gets_the_same_vector(fitted, stimulated):
    whole = fitted.get_latent_representation()
    other = stimulated[::-3].copy()
    np.testing.assert_allclose(fitted.get_latent_representation(other), whole[::-3], atol=2e-5)
    np.testing.assert_allclose(fitted.get_latent_representation(indices=[5, 2]), whole[[5, 2]], atol=2e-5)


def test_genes_in_another_order_and_outside_the_vocabulary(fitted, stimulated):
    assert fitted.other_genes_
    assert not set(fitted.other_genes_) & set(fitted._checkpoint.vocab.genes)
    genes = np.random.default_rng(1).permutation(stimulated.n_vars)
    found = fitted.get_latent_representation(stimulated[:, genes].copy())
    np.testing.assert_allclose(found, fitted.get_latent_representation(), atol=2e-5)


def test_it_can_be_saved(fitted, stimulated, tmp_path):
    fitted.save(tmp_path / "model")
    back = SCGPTIntegrator.load(tmp_path / "model", stimulated.copy())
    np.testing.assert_allclose(back.get_latent_representation(), fitted.get_latent_representation(), atol=1e-5)
    assert back.joint.corrected
    assert back.measured_ == fitted.measured_
    assert bool(back.module.domain_norm.seen.any()) == bool(fitted.module.domain_norm.seen.any())


def test_a_query_of_a_new_batch_comes_to_the_others(data_dir, tmp_path):
    adata = ad.read_h5ad(data_dir / "pbmc_ifnb_kang2018_2k.h5ad")[::4].copy()
    first, second = adata[adata.obs["condition"] == "ctrl"].copy(), adata[adata.obs["condition"] != "ctrl"].copy()
    first.obs["half"] = np.where(np.arange(first.n_obs) % 2, "a", "b")
    second.obs["half"] = "new"
    SCGPTIntegrator.setup_anndata(first, batch_key="half")
    model = SCGPTIntegrator(first, correct=True, n_components=20, max_length=100)
    model.train(max_epochs=0)
    model.save(tmp_path / "model")
    reference = model.get_latent_representation()
    mapped = SCGPTIntegrator.load_query_data(second, str(tmp_path / "model"), accelerator="cpu")
    vectors = mapped.get_latent_representation()
    of = np.repeat(["old", "new"], [first.n_obs, second.n_obs])
    apart = np.concatenate([reference, model.get_latent_representation(second.copy())])
    assert batch_mixing(np.concatenate([reference, vectors]), of) > batch_mixing(apart, of) + 0.05
    again = mapped.get_latent_representation(indices=np.arange(10))
    np.testing.assert_allclose(again, vectors[:10], atol=1e-5)


def test_a_correction_that_does_not_pay_is_not_made(stimulated):
    adata = stimulated[stimulated.obs["condition"] == "ctrl"].copy()
    adata.obs["half"] = np.where(np.arange(adata.n_obs) % 2, "a", "b")  # no batch effect at all
    SCGPTIntegrator.setup_anndata(adata, batch_key="half")
    model = SCGPTIntegrator(adata, n_components=20, max_length=100)
    model.train(max_epochs=0)
    assert not model.joint.corrected
    assert model.measured_["uncorrected"]["mixing"] > 0.95
    forced = SCGPTIntegrator(adata, n_components=20, max_length=100, correct=True)
    forced.train(max_epochs=0)
    assert forced.joint.corrected


@pytest.mark.parametrize(
    ("settings", "parts"),
    [({"network_weight": 0}, [EXPRESSION]), ({"expression": False}, [NETWORK]), ({}, [EXPRESSION, NETWORK])],
)
def test_either_part_can_be_left_out(stimulated, settings, parts):
    adata = stimulated[:200].copy()
    SCGPTIntegrator.setup_anndata(adata, batch_key="condition")
    model = SCGPTIntegrator(adata, n_components=10, max_length=100, **settings)
    model.train(max_epochs=0)
    assert list(model.joint.blocks) == parts
    assert model.get_latent_representation().shape == (200, 10 * len(parts))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"network_weight": -1}, "network_weight=-1: a number from 0"),
        ({"network_weight": 0, "expression": False}, "leave nothing of a cell"),
        ({"n_components": 0}, "n_components=0: a whole number from 1"),
        ({"n_top_genes": 1.5}, "n_top_genes=1.5: a whole number from 1"),
    ],
)
def test_what_is_refused(stimulated, settings, text):
    adata = stimulated[:50].copy()
    SCGPTIntegrator.setup_anndata(adata, batch_key="condition")
    with pytest.raises(ValueError, match=text):
        SCGPTIntegrator(adata, **settings)


def test_the_decoders_start_from_the_pretrained_ones(stimulated):
    adata = stimulated[:50].copy()
    SCGPTIntegrator.setup_anndata(adata, batch_key="condition")
    model = SCGPTIntegrator(adata)
    d = model.module.transformer.config.d_model
    kept = model._checkpoint.weights["expression_head.network.0.weight"]
    now = model.module.expression_head.network[0].weight.detach()
    np.testing.assert_array_equal(now[:, :d], kept)
    assert not now[:, d:].any()


def test_its_folder_is_a_checkpoint_for_networks_that_are_told_nothing(stimulated, tmp_path):
    adata = stimulated[:60].copy()
    SCGPTIntegrator.setup_anndata(adata, batch_key="condition")
    model = SCGPTIntegrator(adata, max_length=60, domain_norm=False, n_components=5)
    model.train(max_epochs=1, keep_best=False, **FAST)
    model.save(tmp_path / "plain")
    found = tl.embed(adata, tmp_path / "plain", max_length=60, copy=True).obsm["X_scgpt"]
    np.testing.assert_allclose(found, model.get_latent_representation(part="network"), atol=1e-5)
    checkpoint, d = model.to_checkpoint(), model.module.transformer.config.d_model
    tokens = torch.randn(3, d)
    mean = model.module.batch_encoder(torch.tensor(-1))
    whole = model.module.expression_head(torch.cat([tokens, mean.expand(3, -1)], dim=1)).values
    plain = ExpressionHead(d_model=d)
    names = {k.removeprefix("expression_head."): x for k, x in checkpoint.weights.items() if "expression_head" in k}
    plain.load_state_dict(names)
    torch.testing.assert_close(plain(tokens).values, whole)
    back = SCGPTIntegrator.load(tmp_path / "plain", adata.copy())
    for name, tensor in model.module.state_dict().items():
        torch.testing.assert_close(back.module.state_dict()[name], tensor, msg=name)


def test_domain_norms_are_kept_and_refused_where_there_are_no_batches(stimulated, tmp_path):
    adata = stimulated[:60].copy()
    SCGPTIntegrator.setup_anndata(adata, batch_key="condition")
    model = SCGPTIntegrator(adata, max_length=60, n_components=5)
    model.train(max_epochs=1, keep_best=False, **FAST)
    model.save(tmp_path / "normed")
    back = SCGPTIntegrator.load(tmp_path / "normed", adata.copy())
    np.testing.assert_allclose(back.get_latent_representation(), model.get_latent_representation(), atol=1e-5)
    assert back.get_latent_representation(indices=[]).shape == (0, 10)
    with pytest.raises(CheckpointError, match="tl.integrate"):
        tl.embed(adata, tmp_path / "normed")
    query = SCGPTIntegrator.load_query_data(adata.copy(), str(tmp_path / "normed"), accelerator="cpu")
    np.testing.assert_allclose(query.get_latent_representation(), model.get_latent_representation(), atol=1e-5)


def test_zeros_are_predicted_when_they_are_shown(stimulated):
    adata = stimulated[:40].copy()
    SCGPTIntegrator.setup_anndata(adata, batch_key="condition")
    model = SCGPTIntegrator(adata, max_length=40, include_zeros=True, n_components=5)
    model.train(max_epochs=1, **FAST)
    assert {"gep_zeros_train", "gepc_zeros_train"} <= set(model.history_)
    assert np.isfinite(model.history_["train_loss"].to_numpy(dtype=float)).all()


def _small(stimulated):
    adata = stimulated[:40].copy()
    SCGPTIntegrator.setup_anndata(adata, batch_key="condition")
    return SCGPTIntegrator(adata, n_components=5, max_length=40)


@pytest.mark.parametrize(("given", "moved"), [((0,), "cuda"), ((0, "gpu", [1]), "cuda:1"), ((0, "cpu"), None)])
def test_vectors_are_made_where_the_trainer_will_be(stimulated, monkeypatch, given, moved):
    model, order = _small(stimulated), []
    vectors = model._vectors
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(model, "to_device", order.append)
    monkeypatch.setattr(
        model, "_vectors", lambda *args, **settings: order.append("vectors") or vectors(*args, **settings)
    )
    model.train(*given)
    assert order[: order.index("vectors")] == [moved] * (moved is not None)


def test_arguments_of_training_by_position(stimulated, monkeypatch):
    model, calls = _small(stimulated), []
    monkeypatch.setattr(SCGPT, "train", lambda _self, *args, **_settings: calls.append(args))
    model.train(2, "cpu", 1)
    assert calls == [(2, "cpu", 1)]


def _made(adata, **train):
    SCGPTIntegrator.setup_anndata(adata, batch_key="condition")
    model = SCGPTIntegrator(adata, n_components=5, max_length=60, correct=True)
    model.train(**train, **FAST)
    return model


def test_a_second_training_finds_its_own_joint_space(stimulated):
    twice = _made(stimulated[:80].copy(), max_epochs=0)
    twice.train(max_epochs=1, keep_best=False, **FAST)
    once = _made(stimulated[:80].copy(), max_epochs=1, keep_best=False)
    np.testing.assert_allclose(twice.get_latent_representation(), once.get_latent_representation(), atol=1e-4)


def test_shifts_of_a_new_batch_come_from_all_cells_of_the_query(stimulated, tmp_path, caplog):
    reference = _made(stimulated[:120].copy(), max_epochs=0)
    query = stimulated[120:180].copy()
    query.obs["condition"] = np.where(np.arange(60) % 2, "new", query.obs["condition"].astype(str))
    first = SCGPTIntegrator.load_query_data(query.copy(), reference, **FAST)
    expected = first.get_latent_representation()
    some = SCGPTIntegrator.load_query_data(query.copy(), reference, **FAST)
    few = some.get_latent_representation(query[:10].copy())
    np.testing.assert_allclose(few, expected[:10], atol=1e-5)
    np.testing.assert_allclose(some.get_latent_representation(), expected, atol=1e-5)
    fresh = SCGPTIntegrator.load_query_data(query.copy(), reference, **FAST)
    fresh.save(tmp_path / "query")
    again = SCGPTIntegrator.load(tmp_path / "query", adata=False, accelerator="cpu")
    np.testing.assert_allclose(again.get_latent_representation(query[:10].copy()), expected[:10], atol=1e-5)
    assert "are of no batch" not in caplog.text
    reference.get_latent_representation(query.copy())
    assert "30 of 60 cells are of no batch that the model knows (it looks for obs['condition'])" in caplog.text
    with pytest.raises(ValueError, match="part='expression': use one of 'joint', 'network'"):
        reference.get_latent_representation(part="expression")


def test_shifts_are_found_again_after_a_query_was_trained(stimulated):
    reference = _made(stimulated[:120].copy(), max_epochs=0)
    found = []
    for looked in (True, False):
        query = stimulated[120:180].copy()
        query.obs["condition"] = np.where(np.arange(60) % 2, "new", query.obs["condition"].astype(str))
        model = SCGPTIntegrator.load_query_data(query, reference, **FAST)
        if looked:
            model.get_latent_representation()
        model.train(max_epochs=1, keep_best=False, **FAST)
        found.append(model.get_latent_representation())
    np.testing.assert_allclose(*found, atol=1e-4)
