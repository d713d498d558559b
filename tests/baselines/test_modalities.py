"""The opponents for several modalities."""

from __future__ import annotations

import warnings

import anndata
import mudata
import numpy as np
import pandas as pd
import pytest
import torch

from scanpy_scgpt import baselines, metrics
from scanpy_scgpt._optional import is_installed
from scanpy_scgpt.baselines._glue import guidance
from scanpy_scgpt.baselines._modal_task import Task

pytestmark = [
    pytest.mark.filterwarnings("ignore:From 0.4 .update:FutureWarning"),  # of mudata, of its next release
    pytest.mark.filterwarnings("ignore:.*var_names:UserWarning"),  # genes and proteins share names
]


@pytest.fixture(scope="module")
def parts(data_dir):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = mudata.read_h5mu(data_dir / "cite_pbmc10k_10x.h5mu")
    rows = np.sort(np.random.default_rng(0).permutation(whole.n_obs)[:120])
    return {name: whole.mod[name][rows].copy() for name in ("rna", "prot")}


@pytest.fixture
def mosaic(parts):
    with mudata.set_options(pull_on_update=False), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # genes and proteins share names
        return mudata.MuData({"rna": parts["rna"].copy(), "prot": parts["prot"][:70].copy()})


def test_joint_spaces(mosaic):
    state = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    settings = {"n_top_genes": 300, "n_comps": 10, "max_epochs": 2}
    found = baselines.integrate_modalities(mosaic, methods=("pca", "harmony", "totalvi"), **settings)
    assert {name: x.embedding.shape for name, x in found.items()} == {
        "pca": (120, 20),
        "harmony": (120, 20),
        "totalvi": (120, 20),
    }
    assert all(np.isfinite(x.embedding).all() for x in found.values())
    mixing = {name: metrics.modality_mixing(found[name].embedding, np.arange(120) < 70) for name in ("pca", "harmony")}
    assert mixing["pca"] < mixing["harmony"]
    assert torch.equal(state[0], torch.random.get_rng_state())
    assert (state[1] == np.random.get_state()[1]).all()
    with pytest.raises(ValueError, match="MultiVI needs the modality 'atac', and the cells have 'rna', 'protein'"):
        baselines.integrate_modalities(mosaic, methods=["multivi"])
    with pytest.raises(ValueError, match="a method"):
        baselines.integrate_modalities(mosaic, methods=["wnn"])


def test_simple_imputation(mosaic, parts):
    found = baselines.impute_modality(mosaic, "protein", n_top_genes=300, n_comps=20)
    truth = np.log1p(pd.DataFrame(parts["prot"].X.toarray(), parts["prot"].obs_names, parts["prot"].var_names))
    hidden = mosaic.obs_names[~mosaic.obs_names.isin(mosaic.mod["prot"].obs_names)]
    scores = {name: metrics.imputation(truth.loc[hidden], table.loc[hidden]) for name, table in found.items()}
    assert found["mean"].nunique().eq(1).all()
    assert scores["ridge"]["pearson"].mean() > 0.5
    assert scores["neighbours"]["pearson"].mean() > 0.4
    assert scores["ridge"]["rmse"].mean() < scores["mean"]["rmse"].mean()


def test_what_the_opponents_refuse_and_how_they_are_called(mosaic, parts):
    settings = {"n_top_genes": 100, "n_comps": 5}
    one = baselines.impute_modality(mosaic, "prot", methods="ridge", **settings)
    pd.testing.assert_frame_equal(one["ridge"], baselines.impute_modality(mosaic, "protein", **settings)["ridge"])
    assert list(baselines.integrate_modalities(mosaic, methods="pca", **settings)) == ["pca"]
    with mudata.set_options(pull_on_update=False):
        apart = mudata.MuData({"rna": parts["rna"][:60].copy(), "prot": parts["prot"][60:].copy()})
    with pytest.raises(ValueError, match="0 cells have protein beside another modality, and at least 20"):
        baselines.impute_modality(apart, "prot", **settings)
    with pytest.raises(ValueError, match="use one of 'rna', 'prot', 'protein'"):
        baselines.impute_modality(mosaic, "atac", **settings)


def test_features_are_tied_to_the_genes_that_vary_with_them(mosaic):
    task = Task(mosaic, None, 300, 10, 0)
    parts = {
        kind: anndata.AnnData(np.zeros((1, len(names))), var=pd.DataFrame(index=[f"{kind}:{x}" for x in names]))
        for kind, names in task.features.items()
    }
    graph = guidance(task, parts)
    loops = [edge for edge in graph.edges if edge[0] == edge[1]]
    assert len(loops) == len(task.features["rna"]) + len(task.features["protein"])
    both = task.there["rna"] & task.there["protein"]
    genes, proteins = task.scaled["rna"][both].toarray(), task.scaled["protein"][both]
    name, j = "protein:CD3", list(task.features["protein"]).index("CD3")
    ties = {a: data for a, b, data in graph.edges(data=True) if b == name != a}
    assert 0 < len(ties) <= 5
    for gene, data in ties.items():
        i = list(task.features["rna"]).index(gene.removeprefix("rna:"))
        correlation = np.corrcoef(genes[:, i], proteins[:, j])[0, 1]
        assert data["weight"] == pytest.approx(abs(correlation), abs=1e-4)
        assert data["sign"] == np.sign(correlation)


@pytest.mark.skipif(is_installed("scglue"), reason="scglue is there")
def test_glue_says_how_to_install_it(mosaic):
    with pytest.raises(ImportError, match="glue"):
        baselines.integrate_modalities(mosaic, methods=["glue"], n_top_genes=300, n_comps=10)


def test_glue(mosaic):
    pytest.importorskip("scglue")
    found = baselines.integrate_modalities(mosaic, methods=["glue"], n_top_genes=300, n_comps=10, max_epochs=3)["glue"]
    assert found.embedding.shape[0] == mosaic.n_obs
    assert np.isfinite(found.embedding).all()
