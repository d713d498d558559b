"""Batches in one space: what is written, what is said, what is refused."""

from __future__ import annotations

import logging

import anndata as ad
import numpy as np
import pytest
from scipy import sparse

from scanpy_scgpt import baselines, metrics, model, pp, tl

FAST = {"max_epochs": 0, "device": "cpu", "n_components": 10}


@pytest.fixture(scope="module")
def cells(data_dir):
    adata = ad.read_h5ad(data_dir / "pbmc_ifnb_kang2018_2k.h5ad")
    return adata[np.random.default_rng(0).permutation(adata.n_obs)[:240]].copy()


def test_what_is_written(cells, caplog):
    adata = cells.copy()
    before = {"obs": adata.obs.copy(), "var": adata.var.copy(), "X": adata.X.copy()}
    with caplog.at_level(logging.INFO, logger="scanpy_scgpt"):
        assert tl.integrate(adata, "condition", **FAST) is None
    assert set(adata.obsm) == {"X_scgpt_integrated"}
    assert adata.obsm["X_scgpt_integrated"].shape == (240, 20)
    assert adata.obsm["X_scgpt_integrated"].dtype == np.float32
    assert adata.obs.equals(before["obs"])
    assert adata.var.equals(before["var"])
    assert (before["X"] != adata.X).nnz == 0
    record = adata.uns["scgpt"]["integrate"]
    assert record["batches"] == ["ctrl", "stim"]
    assert record["corrected"]
    mixing = metrics.batch_mixing(adata.obsm["X_scgpt_integrated"], adata.obs["condition"])
    assert record["measured"]["corrected"]["mixing"] == pytest.approx(mixing, abs=0.05)
    assert "correction kept: mixing" in caplog.text
    assert "240 cells · 2 batches" in caplog.text


def test_it_repeats_and_survives_a_file(cells, tmp_path):
    first = tl.integrate(cells, "condition", copy=True, **FAST)
    assert "X_scgpt_integrated" not in cells.obsm
    first.write_h5ad(tmp_path / "cells.h5ad")
    back = ad.read_h5ad(tmp_path / "cells.h5ad")
    kept = back.obsm["X_scgpt_integrated"].copy()
    tl.integrate(back, "condition", **FAST)
    np.testing.assert_allclose(back.obsm["X_scgpt_integrated"], kept, atol=1e-6)


def test_cells_to_come_go_into_the_space_of_a_saved_integrator(cells, tmp_path, caplog):
    adata = cells[:100].copy()
    tl.integrate(adata, "condition", save=tmp_path / "model", key_added="X_space", **FAST)
    assert "integrate_X_space" in adata.uns["scgpt"]
    later = cells[80:].copy()
    tl.integrate(later, "condition", model=tmp_path / "model", device="cpu")
    np.testing.assert_allclose(later.obsm["X_scgpt_integrated"][:20], adata.obsm["X_space"][80:], atol=2e-5)
    assert later.uns["scgpt"]["integrate"]["applied"]
    with pytest.raises(FileExistsError, match="overwrite=True"):
        tl.integrate(adata, "condition", save=tmp_path / "model", **FAST)


def test_a_query_is_told_what_holds(cells, tmp_path, caplog):
    adata = cells[:80].copy()
    tl.integrate(adata, "condition", correct=True, save=tmp_path / "model", **FAST)
    query = cells[80:120].copy()
    with caplog.at_level(logging.INFO, logger="scanpy_scgpt"):
        given = {"network_weight": 0, "n_components": 3, "correct": False}
        tl.integrate(query, model=tmp_path / "model", device="cpu", **given)
    assert "network_weight, correct, n_components have no effect" in caplog.text
    assert "40 cells are taken as one new batch, 'query'" in caplog.text
    assert "has one batch" not in caplog.text
    assert "weights are free" not in caplog.text
    assert f"40 cells · 1 new ('query'), laid over them · X · {tmp_path / 'model'}" in caplog.text
    found = query.obsm["X_scgpt_integrated"].copy()
    query.obs["study"] = "query"
    tl.integrate(query, "study", model=tmp_path / "model", device="cpu")
    np.testing.assert_allclose(query.obsm["X_scgpt_integrated"], found, atol=1e-6)
    mixed = cells[80:120].copy()
    mixed.obs["b"] = np.where(np.arange(40) < 20, "ctrl", "other")
    tl.integrate(mixed, "b", model=tmp_path / "model", device="cpu")
    record = mixed.uns["scgpt"]["integrate"]
    assert (record["known_batches"], record["new_batches"]) == (["ctrl"], ["other"])
    known, every = record["shared_features"]["expression"]
    assert known == every
    caplog.clear()
    few = cells[80:120, :150].copy()
    with pytest.raises(ValueError, match="at least 200 are needed"):
        tl.integrate(few, "condition", model=tmp_path / "model", device="cpu")
    tl.integrate(few, "condition", model=tmp_path / "model", min_genes=50, device="cpu")
    assert "features of expression that the model goes by" in caplog.text


@pytest.mark.parametrize("n", [3, 12])
def test_few_cells_are_not_corrected(cells, caplog, n):
    adata = cells[:n].copy()
    adata.obs["b"] = np.where(np.arange(n) % 2, "x", "y")
    with caplog.at_level(logging.WARNING, logger="scanpy_scgpt"):
        tl.integrate(adata, "b", **FAST)
    assert np.isfinite(adata.obsm["X_scgpt_integrated"]).all()
    assert not adata.uns["scgpt"]["integrate"]["corrected"]
    assert f"{n} cells are too few to lay batches over one another" in caplog.text


@pytest.mark.filterwarnings("ignore:.*names are not unique:UserWarning")
def test_antibodies_beside_genes_are_left_out(cells, caplog, tmp_path):
    plain = cells[:30].copy()
    plain.var["feature_types"] = "Gene Expression"
    antibodies = plain[:, ["CD14", "CD4", "CD8A"]].copy()
    antibodies.X = sparse.csr_matrix(np.random.default_rng(0).poisson(50, (30, 3)).astype(np.float32))
    antibodies.var["feature_types"], antibodies.var_names = "Antibody Capture", ["CD14", "CD4", "CD8_TotalSeqB"]
    both = ad.concat([plain, antibodies], axis=1, merge="first")
    with caplog.at_level(logging.INFO, logger="scanpy_scgpt"):
        tl.integrate(both, network_weight=0, **FAST)
        tl.embed(both, device="cpu")
    both.write_h5ad(tmp_path / "both.h5ad")
    of_file = ad.read_zarr(tl.embed(tmp_path / "both.h5ad", out=tmp_path / "vectors.zarr", device="cpu"))
    np.testing.assert_array_equal(of_file.obsm["X_scgpt"], both.obsm["X_scgpt"])
    pp.tokenize(both)
    assert set(both.var["scgpt_match"].iloc[-3:]) == {"none"}
    for made in (both, plain):
        baselines.embed_pca(made, n_comps=5)
    np.testing.assert_allclose(both.obsm["X_pca_baseline"], plain.obsm["X_pca_baseline"], atol=1e-5)
    tl.integrate(plain, network_weight=0, **FAST)
    tl.embed(plain, device="cpu")
    for key in ("X_scgpt_integrated", "X_scgpt"):
        np.testing.assert_allclose(both.obsm[key], plain.obsm[key], atol=1e-6)
    assert caplog.text.count("3 columns are no rna by feature_types and are left out") == 5


def test_a_batch_of_one_cell_does_not_decide(cells):
    adata = cells[:100].copy()
    adata.obs["b"] = adata.obs["condition"].astype(str)
    without = tl.integrate(adata, "b", network_weight=0, copy=True, **FAST).uns["scgpt"]["integrate"]["measured"]
    adata.obs.iloc[0, adata.obs.columns.get_loc("b")] = "alone"
    measured = tl.integrate(adata, "b", network_weight=0, copy=True, **FAST).uns["scgpt"]["integrate"]["measured"]
    for name in ("uncorrected", "corrected"):
        assert measured[name]["mixing"] == pytest.approx(without[name]["mixing"], abs=0.1)


@pytest.mark.parametrize("batches", ["missing", "numbers", "one", "single cell"])
def test_unusual_batches_are_taken_and_spoken_of(cells, caplog, batches):
    adata = cells[:120].copy()
    values, text = {
        "missing": (
            np.where(np.arange(120) % 4 == 0, None, adata.obs["condition"].astype(object)),
            "30 missing values",
        ),
        "numbers": (np.arange(120) % 2 + 0.5, ""),
        "one": (np.full(120, "a"), "has one batch"),
        "single cell": (np.where(np.arange(120) == 0, "c", adata.obs["condition"].astype(str)), "'c' \\(1\\)"),
    }[batches]
    adata.obs["b"] = values
    with caplog.at_level(logging.INFO, logger="scanpy_scgpt"):
        tl.integrate(adata, "b", **FAST)
    assert np.isfinite(adata.obsm["X_scgpt_integrated"]).all()
    record = adata.uns["scgpt"]["integrate"]
    expected = {"missing": "unknown_batch", "numbers": "0.5", "one": "a", "single cell": "c"}[batches]
    assert expected in record["batches"]
    assert "_scgpt_batch" not in caplog.text
    assert "they become 'unknown_batch'" not in caplog.text
    if text:
        assert text.replace("\\", "") in caplog.text


def test_without_batches_there_is_an_embedding(cells):
    adata = cells[:60].copy()
    tl.integrate(adata, **FAST)
    assert adata.obsm["X_scgpt_integrated"].shape == (60, 20)
    assert not adata.uns["scgpt"]["integrate"]["corrected"]


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"batch_key": "conditon"}, KeyError, "did you mean 'condition'"),
        ({"max_epochs": -1}, ValueError, "max_epochs=-1: a whole number"),
        ({"key_added": "a/b"}, ValueError, "key_added='a/b'"),
        ({"layer": {"rna": "counts"}}, TypeError, "an AnnData has one modality"),
        ({"modalities": {"rna": "rna"}}, TypeError, "this is one AnnData"),
        ({"batch_key": ["condition", "cell_type"]}, TypeError, "the name of one column"),
        ({"device": "gpu9"}, ValueError, "device='gpu9' is not available"),
        ({"correct": "yes"}, ValueError, "correct='yes'"),
        ({"network_weight": -2}, ValueError, "network_weight=-2"),
        ({"objectives": ["gepp"]}, ValueError, "did you mean 'gep'"),
        ({"freeze": "encode"}, ValueError, "did you mean 'encoder'"),
    ],
)
def test_what_is_refused(cells, change, error, text):
    adata = cells[:60].copy()
    with pytest.raises(error, match=text):
        tl.integrate(adata, **{"batch_key": "condition", **FAST, "max_epochs": 1, **change})
    assert "X_scgpt_integrated" not in adata.obsm


def test_what_it_saves_knows_the_column_of_the_user(cells, tmp_path, caplog):
    adata = cells[:60].copy()
    adata.obs = adata.obs[["condition"]].rename(columns={"condition": "donor"}).assign(batch="lane")
    tl.integrate(adata, "donor", save=tmp_path / "model", correct=True, **FAST)
    saved = model.SCGPTIntegrator.load(tmp_path / "model", adata=adata[::-1].copy(), accelerator="cpu")
    found = saved.get_latent_representation()[::-1]
    np.testing.assert_allclose(found, adata.obsm["X_scgpt_integrated"], atol=1e-5)
    assert model.SCGPTIntegrator.load_registry(tmp_path / "model")["setup_args"]["batch_key"] == "donor"
    del adata.obs["donor"]
    without = model.SCGPTIntegrator.load(tmp_path / "model", adata=adata, accelerator="cpu")
    without.get_latent_representation()
    assert "60 of 60 cells are of no batch that the model knows (it looks for obs['donor'])" in caplog.text


def test_columns_that_are_no_batches(cells, caplog):
    adata = cells[:30].copy()
    adata.obs["none"] = np.nan
    with pytest.raises(ValueError, match=r"obs\['none'\] has no value in any cell"):
        tl.integrate(adata, "none", **FAST)
    adata.obs["umi"] = np.arange(30) + 0.5
    tl.integrate(adata, "umi", network_weight=0, **FAST)
    assert "obs['umi'] has 30 values for 30 cells. Is it a measurement?" in caplog.text
