"""A MuData in `tl.embed`, `tl.integrate` and `tl.impute_modality`: what is written, said, refused, left as it was."""

from __future__ import annotations

import logging
import warnings

import matplotlib as mpl
import mudata
import numpy as np
import pandas as pd
import pytest

from scanpy_scgpt import model, pl, tl

pytestmark = [
    pytest.mark.filterwarnings("ignore:From 0.4 .update:FutureWarning"),  # of mudata, of its next release
    pytest.mark.filterwarnings("ignore:.*var_names:UserWarning"),  # genes and proteins share names
]

FAST = {"max_epochs": 0, "device": "cpu", "min_genes": 100}


def read(path):
    with warnings.catch_warnings(), mudata.set_options(pull_on_update=False):
        warnings.simplefilter("ignore")
        return mudata.read_h5mu(path)


def together(**parts):
    with mudata.set_options(pull_on_update=False), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # genes and proteins share names
        return mudata.MuData(parts)


@pytest.fixture(scope="module")
def whole(data_dir):
    found = read(data_dir / "cite_pbmc10k_10x.h5mu")
    rows = np.sort(np.random.default_rng(0).permutation(found.n_obs)[:120])
    return {name: found.mod[name][rows].copy() for name in ("rna", "prot")}


@pytest.fixture
def mosaic(whole):
    """120 cells, 60 of them without proteins."""
    return together(rna=whole["rna"].copy(), prot=whole["prot"][:60].copy())


def test_integrated_written_read_and_integrated_again(mosaic, tmp_path, caplog):
    mosaic.obs["_scvi_batch"] = 7  # of another model of the user
    before = {name: part.X.copy() for name, part in mosaic.mod.items()}
    with caplog.at_level(logging.INFO, logger="scanpy_scgpt"):
        assert tl.integrate(mosaic, n_components=10, save=tmp_path / "model", **FAST) is None
    vectors = mosaic.obsm["X_scgpt_integrated"].copy()
    assert np.isfinite(vectors).all()
    assert len(vectors) == 120
    assert set(mosaic.obs) == {"_scvi_batch", "scgpt_modalities"}
    assert set(mosaic.obs["_scvi_batch"]) == {7}
    assert set(mosaic.uns) == {"scgpt"}
    for name, x in before.items():
        assert (x != mosaic.mod[name].X).nnz == 0
        assert not mosaic.mod[name].uns
    assert mosaic.obs["scgpt_modalities"].value_counts().to_dict() == {"rna": 60, "rna+protein": 60}
    assert "'prot' is protein (by its name)" in caplog.text
    assert "60 with rna · 60 with rna+protein" in caplog.text
    mosaic.write(tmp_path / "cells.h5mu")
    back = read(tmp_path / "cells.h5mu")
    tl.integrate(back, n_components=10, key_added="again", **FAST)
    np.testing.assert_allclose(back.obsm["again"], vectors, atol=1e-5)
    tl.integrate(back, model=tmp_path / "model", key_added="applied", device="cpu")
    np.testing.assert_allclose(back.obsm["applied"], vectors, atol=1e-5)
    assert back.uns["scgpt"]["integrate_applied"]["applied"]


@pytest.fixture(scope="module")
def space(whole, tmp_path_factory):
    """Folder of a model of 60 cells with both modalities, whose counts of genes lie in a layer."""
    mdata = together(rna=whole["rna"][:60].copy(), prot=whole["prot"][:60].copy())
    mdata.mod["rna"].layers["raw"] = mdata.mod["rna"].X.copy()
    mdata.obs["donor"] = np.where(np.arange(60) % 2, "d1", "d2")
    folder = tmp_path_factory.mktemp("space") / "model"
    tl.integrate(mdata, "donor", layer={"rna": "raw"}, correct=True, n_components=10, save=folder, **FAST)
    return folder


def permuted(rna):
    """The same cells with the right counts in a layer and others in `X`."""
    rna = rna.copy()
    rna.layers["raw"] = rna.X.copy()
    rna.X = rna.X[:, np.random.default_rng(0).permutation(rna.n_vars)].copy()
    return rna


def test_a_query_may_lack_one_of_the_modalities_that_were_named(whole, tmp_path):
    told = {"x": "rna", "y": "protein"}
    mdata = together(x=whole["rna"][:60].copy(), y=whole["prot"][:60].copy())
    tl.integrate(mdata, modalities=told, n_components=5, save=tmp_path / "model", **FAST)
    query = together(x=whole["rna"][60:80].copy())
    tl.integrate(query, model=tmp_path / "model", device="cpu")
    assert set(query.obs["scgpt_modalities"]) == {"rna"}
    assert np.isfinite(query.obsm["X_scgpt_integrated"]).all()


def test_what_it_saves_knows_the_column_of_the_user(space, whole):
    mdata = together(rna=whole["rna"][:60].copy(), prot=whole["prot"][:60].copy())
    mdata.mod["rna"].layers["raw"] = mdata.mod["rna"].X.copy()
    mdata.obs["donor"] = np.where(np.arange(60) % 2, "d1", "d2")
    loaded = model.SCGPTMulti.load(space, adata=mdata.copy(), accelerator="cpu")
    assert loaded.registry_["setup_args"]["batch_key"] == "donor"
    tl.integrate(mdata, "donor", layer={"rna": "raw"}, correct=True, n_components=10, **FAST)
    np.testing.assert_allclose(loaded.get_latent_representation(), mdata.obsm["X_scgpt_integrated"], atol=1e-4)


def test_a_trained_model_reads_the_layer_and_the_modalities_that_are_named(whole, space, caplog):
    right = together(rna=whole["rna"][60:90].copy())
    with pytest.raises(KeyError, match=r"mod\['rna'\] has no layer 'raw'.*or \{\} for X"):
        tl.integrate(right, model=space, device="cpu")
    expected = tl.integrate(right, model=space, layer={}, device="cpu", copy=True).obsm["X_scgpt_integrated"]
    query = together(strange=permuted(whole["rna"][60:90]))
    given = {"layer": {"strange": "raw"}, "modalities": {"strange": "rna"}}
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="scanpy_scgpt"):
        tl.integrate(query, model=space, max_epochs=3, device="cpu", **given)
    np.testing.assert_allclose(query.obsm["X_scgpt_integrated"], expected, atol=1e-5)
    assert "max_epochs has no effect" in caplog.text
    assert "30 cells are taken as one new batch, 'query'" in caplog.text
    assert "1 new ('query'), laid over them" in caplog.text
    assert str(space) in caplog.text
    assert "weights are free" not in caplog.text
    record = query.uns["scgpt"]["integrate"]
    assert record["new_batches"] == ["query"]
    assert record["shared_features"]["rna"][0] == record["shared_features"]["rna"][1]
    reference = model.SCGPTMulti.load(space, adata=False, accelerator="cpu")
    setup = {"layers": {"strange": "raw"}, "modalities": {"strange": "rna"}}
    found = model.SCGPTMulti.load_query_data(query, reference, **setup)
    assert np.isfinite(found.get_latent_representation()).all()
    assert "query: the cells have no batches" in caplog.text
    for wrong, error, text in (
        ({"layer": {"rna": "typo"}}, KeyError, "no layer 'typo'"),
        ({"layer": {"rn": "raw"}}, ValueError, "did you mean 'rna'"),
        ({"modalities": {"rn": "rna"}}, KeyError, "Did you mean 'rna'"),
    ):
        with pytest.raises(error, match=text):
            tl.integrate(right, model=space, device="cpu", **wrong)
    with pytest.raises(TypeError, match="knows no argument 'layer'"):
        model.SCGPTMulti.load_query_data(query, reference, layer="raw")


def test_cells_without_any_modality_get_nothing_invented(mosaic, caplog):
    mosaic.mod["rna"].obs["donor"] = np.where(np.arange(120) % 2, "d1", "d2")
    smaller = together(rna=mosaic.mod["rna"][:110].copy(), prot=mosaic.mod["prot"].copy())
    tl.integrate(smaller, "donor", n_components=10, network_weight=0, **FAST)
    mosaic.mod["rna"] = mosaic.mod["rna"][:110].copy()  # and no mdata.update()
    with caplog.at_level(logging.WARNING, logger="scanpy_scgpt"):
        tl.integrate(mosaic, "donor", n_components=10, network_weight=0, **FAST)
    vectors = mosaic.obsm["X_scgpt_integrated"]
    nothing = (mosaic.obs["scgpt_modalities"] == "nothing").to_numpy()
    assert nothing.sum() == 10
    assert np.isnan(vectors[nothing]).all()
    np.testing.assert_allclose(vectors[~nothing], smaller.obsm["X_scgpt_integrated"], atol=1e-5)
    assert mosaic.uns["scgpt"]["integrate"]["batches"] == ["d1", "d2"]
    assert mosaic.uns["scgpt"]["integrate"]["measured"] == smaller.uns["scgpt"]["integrate"]["measured"]
    assert "10 cells have no modality that takes part, and NaN" in caplog.text


def test_modalities_that_no_cell_links_are_spoken_of(whole, caplog):
    apart = together(rna=whole["rna"][:40].copy(), prot=whole["prot"][40:70].copy())
    with caplog.at_level(logging.WARNING, logger="scanpy_scgpt"):
        tl.integrate(apart, n_components=5, network_weight=0, **FAST)
    assert "no cell has 'rna', 'prot' beside another modality" in caplog.text


def test_a_model_of_another_kind_of_cells(mosaic, space):
    other = model.SCGPTMulti.load(space, adata=False, accelerator="cpu")
    with pytest.raises(TypeError, match="model is a SCGPTMulti, and these cells are an AnnData"):
        tl.integrate(mosaic.mod["rna"].copy(), model=other, device="cpu")
    other.joint = None
    with pytest.raises(ValueError, match="This SCGPTMulti is not trained"):
        tl.integrate(mosaic, model=other, device="cpu")


def test_what_a_query_brings_is_compared_with_the_model(whole, space, caplog):
    prot = whole["prot"][60:80].copy()
    prot.var_names = [name if i < 3 else f"other{i}" for i, name in enumerate(prot.var_names)]
    peaks = whole["prot"][60:80, :2].copy()
    peaks.var_names = ["chr1:10-20", "chr2:10-20"]
    query = together(prot=prot, atac=peaks)
    with caplog.at_level(logging.INFO, logger="scanpy_scgpt"):
        tl.integrate(query, model=space, layer={}, device="cpu")
    assert "modality 'atac' is atac, which the model was made without" in caplog.text
    assert "has 3 of the 14 proteins of the model" in caplog.text
    assert "3 of its 14 features of protein" in caplog.text


def test_cells_on_disk_and_proteins_without_background(mosaic, tmp_path):
    mosaic.mod["prot"].X = mosaic.mod["prot"].X - 30.0 * (mosaic.mod["prot"].X > 0)
    settings = {"n_components": 5, "network_weight": 0, **FAST}
    expected = tl.integrate(mosaic, copy=True, **settings).obsm["X_scgpt_integrated"]
    assert np.isfinite(expected).all()
    mosaic.mod["prot"].X = mosaic.mod["prot"].X.tocsr()
    mosaic.write(tmp_path / "cells.h5mu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        backed = mudata.read_h5mu(tmp_path / "cells.h5mu", backed=True)
    tl.integrate(backed, **settings)
    np.testing.assert_allclose(backed.obsm["X_scgpt_integrated"], expected, atol=1e-5)
    backed.file.close()


def test_batches_of_the_modalities(mosaic):
    mosaic.mod["rna"].obs["donor"] = np.where(np.arange(120) % 2, "d1", "d2")
    found = tl.integrate(mosaic, "donor", copy=True, n_components=10, **FAST)
    assert found.uns["scgpt"]["integrate"]["batches"] == ["d1", "d2"]
    assert "X_scgpt_integrated" not in mosaic.obsm
    assert "_scgpt_batch" not in found.obs
    with pytest.raises(KeyError, match="Did you mean 'donor'"):
        tl.integrate(mosaic, "donr", **FAST)


def test_log_ratios_of_proteins_are_accepted(mosaic):
    logged = np.log1p(mosaic.mod["prot"].X.toarray())
    mosaic.mod["prot"].X = logged - logged.mean(axis=1, keepdims=True)
    tl.integrate(mosaic, n_components=10, **FAST)
    assert np.isfinite(mosaic.obsm["X_scgpt_integrated"]).all()


def test_refused(mosaic, whole):
    with pytest.raises(TypeError, match=r"of a MuData say the modality too, such as layer=\{'rna': 'counts'\}"):
        tl.integrate(mosaic, layer="counts", **FAST)
    with pytest.raises(ValueError, match="a modality in layer='prt'.*did you mean 'prot'"):
        tl.integrate(mosaic, layer={"prt": "counts"}, **FAST)
    for verb in (tl.integrate, tl.embed):
        with pytest.raises(ValueError, match="use_raw=True: of a MuData say a layer"):
            verb(mosaic, use_raw=True, device="cpu")
    with pytest.raises(KeyError, match="no modality 'rn'"):
        tl.integrate(mosaic, modalities={"rn": "rna"}, **FAST)
    with pytest.raises(ValueError, match="key_added='a/b'"):
        tl.impute_modality(mosaic, "prot", key_added="a/b")
    with pytest.raises(ValueError, match="cannot write into a view"):
        tl.integrate(mosaic[:50], **FAST)
    with pytest.raises(TypeError, match="takes a MuData, this is AnnData"):
        tl.impute_modality(whole["rna"], "prot")
    with pytest.raises(KeyError, match=r"no modality 'atac'. Modalities: 'rna' \(rna\), 'prot' \(protein\)"):
        tl.impute_modality(mosaic, "atac")
    with pytest.raises(ValueError, match="Take its RNA: tl.embed"):
        tl.embed(mosaic, gene_embeddings=True)
    names = mosaic.mod["prot"].var_names
    mosaic.mod["prot"].var_names = [names[0], *names[:-1]]
    with pytest.raises(
        ValueError, match=r"has the protein 'CD14' twice. Tell them apart: mdata.mod\['prot'\].var_names"
    ):
        tl.integrate(mosaic, **FAST)
    mosaic.mod["prot"].var_names = names
    kept = mosaic.mod["prot"].X.copy()
    mosaic.mod["prot"].X = np.where(np.arange(14) == 3, np.nan, kept.toarray())
    with pytest.raises(ValueError, match=r"mdata.mod\['prot'\]: X: it holds .* NaN"):
        tl.integrate(mosaic, **FAST)
    mosaic.mod["prot"].X = kept
    for given, text in (({"level": 1.5}, "level=1.5"), ({"max_epochs": -1}, "max_epochs=-1")):
        with pytest.raises(ValueError, match=text):
            tl.impute_modality(mosaic, "prot", **given)


def test_imputed(mosaic, whole, tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="scanpy_scgpt"):
        tl.impute_modality(mosaic, "protein", **FAST)
    found = mosaic.obsm["scgpt_prot"]
    assert list(found.columns) == list(whole["prot"].var_names)
    assert (mosaic.obsm["scgpt_prot_lower"] <= mosaic.obsm["scgpt_prot_upper"]).all().all()
    record = mosaic.uns["scgpt"]["impute_prot"]
    truth = np.log1p(pd.DataFrame(whole["prot"].X.toarray(), whole["prot"].obs_names, found.columns)).loc[found.index]
    hidden = ~found.index.isin(mosaic.mod["prot"].obs_names)
    told = pd.Series(record["left_out"]["correlation"], record["features"])
    real = found[hidden].corrwith(truth[hidden])
    assert real.mean() > 0.5
    assert told.mean() == pytest.approx(real.mean(), abs=0.12)  # the built-in check tells the truth
    assert "60 cells without it, learned from 60" in caplog.text
    mosaic.write(tmp_path / "cells.h5mu")
    back = read(tmp_path / "cells.h5mu")
    pd.testing.assert_frame_equal(back.obsm["scgpt_prot"], found, check_names=False)
    with mpl.rc_context({"backend": "agg"}):
        back.obsm["X_umap"] = np.random.default_rng(0).normal(size=(120, 2))
        with pytest.raises(KeyError, match="scgpt_modalities"):
            pl.modalities(back, show=False)


def test_what_was_learned_from_whom_and_how_well(whole, caplog, tmp_path):
    prot = whole["prot"].copy()
    x = np.random.default_rng(0).normal(size=prot.shape).astype(np.float32)  # log ratios of nothing
    x[:, 0] = 1
    prot.X, prot.var_names = x, ["CD3/x", "CD3_x", *prot.var_names[2:]]
    mdata = together(rna=whole["rna"][:80].copy(), prot=prot[40:].copy())
    with caplog.at_level(logging.INFO, logger="scanpy_scgpt"):
        tl.impute_modality(mdata, network_weight=0, n_top_genes=100, **FAST)
    assert "of 40 cells without it, learned from 40" in caplog.text
    assert "40 cells have no other modality to predict prot from, and NaN" in caplog.text
    assert "hardly better than the mean" in caplog.text
    record = mdata.uns["scgpt"]["impute_prot"]
    assert record["scale"] == "log ratios above the lowest protein of the cell"
    assert mdata.obsm["scgpt_prot"].columns.is_unique
    assert mdata.obsm["scgpt_prot"].isna().all(axis=1).sum() == 40
    mdata.write(tmp_path / "cells.h5mu")


def test_genes_of_cells_that_have_proteins_alone(whole):
    mdata = together(rna=whole["rna"][:80].copy(), prot=whole["prot"].copy())
    found = tl.impute_modality(mdata, "rna", network_weight=0, n_top_genes=50, copy=True, **FAST)
    assert "scgpt_rna" not in mdata.obsm
    assert found.obsm["scgpt_rna"].shape == (120, 50)
    assert found.obsm["scgpt_rna"].notna().all(axis=None)


def test_embedded_by_what_the_checkpoint_knows(whole, caplog):
    mdata = together(rna=whole["rna"][:40].copy(), prot=whole["prot"][30:60].copy())
    with caplog.at_level(logging.WARNING, logger="scanpy_scgpt"):
        tl.embed(mdata, device="cpu")
    alone = whole["rna"][:40].copy()
    tl.embed(alone, device="cpu")
    found = pd.DataFrame(mdata.obsm["X_scgpt"], index=mdata.obs_names)
    np.testing.assert_array_equal(found.loc[alone.obs_names], alone.obsm["X_scgpt"])
    assert found.isna().all(axis=1).sum() == 20
    assert "20 cells have nothing that mini" in caplog.text
    assert mdata.obs["scgpt_modalities"].value_counts().to_dict() == {"rna": 30, "rna+protein": 10, "protein": 20}
    with pytest.raises(ValueError, match="knows nothing of these cells: 'prot' is protein"):
        tl.embed(together(prot=whole["prot"][:5].copy()), device="cpu")


def test_embedding_leaves_what_integration_was_told(whole):
    mdata = together(first=whole["rna"][:20].copy(), second=whole["prot"][10:30].copy())
    with pytest.raises(ValueError, match=r"No modality can be used.*var\['feature_types'\] = 'Antibody Capture'"):
        tl.embed(mdata, device="cpu")
    tl.integrate(mdata, modalities={"first": "rna", "second": "protein"}, network_weight=0, n_components=5, **FAST)
    before = mdata.obs["scgpt_modalities"].astype(str)
    tl.embed(mdata, device="cpu")
    assert mdata.obs["scgpt_modalities"].astype(str).equals(before)
    assert set(before) == {"rna", "protein", "rna+protein"}


def test_drawn(mosaic):
    tl.impute_modality(mosaic, "prot", **FAST)
    tl.integrate(mosaic, n_components=10, **FAST)
    mosaic.obsm["X_umap"] = mosaic.obsm["X_scgpt_integrated"][:, :2]
    with mpl.rc_context({"backend": "agg"}):
        axes = pl.modalities(mosaic, modality="prot", show=False)
        assert [len(ax.collections) for ax in axes] == [2, 4]
        assert axes[1].get_title() == "prot, 14 features"
        assert pl.modalities(mosaic, modality="protein", show=False)[1].get_title() == "prot, 14 features"
        mosaic.mod["rna"].obs["donor"] = np.where(np.arange(120) % 2, "d1", "d2")
        assert len(pl.modalities(mosaic, color="donor", show=False)) == 2
        with pytest.raises(KeyError, match="no 'umap'. Keys: .*'X_umap'.*Did you mean 'X_umap'"):
            pl.modalities(mosaic, "umap", show=False)
        with pytest.raises(TypeError, match="Of a MuData: pl.modalities"):
            pl.integration(mosaic, ["X_umap"], batch_key="donor", show=False)
        with pytest.raises(KeyError, match="impute_modality"):
            pl.modalities(mosaic, modality="atac", show=False)
        with pytest.raises(KeyError, match="X_pca"):
            pl.modalities(mosaic, "X_pca", show=False)
        mpl.pyplot.close("all")
