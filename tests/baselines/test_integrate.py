"""The simple opponents of integration."""

from __future__ import annotations

import logging

import anndata as ad
import numpy as np
import pytest
import scanpy as sc
import scvi
import torch

from scanpy_scgpt import baselines, metrics


@pytest.fixture(scope="module")
def cells(data_dir):
    return ad.read_h5ad(data_dir / "pancreas_panc8_5tech_500.h5ad")


@pytest.fixture(scope="module")
def found(cells):
    return baselines.integrate(cells, "batch", max_epochs=2)


def test_every_method_gives_vectors(found, cells):
    assert list(found) == ["pca", "hvg", "harmony", "scvi"]
    for name, result in found.items():
        assert result.embedding.shape == (500, {"pca": 50, "hvg": 1200, "harmony": 50, "scvi": 30}[name])
        assert result.embedding.dtype == np.float32
        assert np.isfinite(result.embedding).all()
        assert result.seconds > 0


def test_harmony_mixes_what_components_do_not(found, cells):
    mixing = {name: metrics.batch_mixing(x.embedding, cells.obs["batch"]) for name, x in found.items()}
    assert mixing["harmony"] > mixing["pca"] + 0.2


def test_components_are_those_of_the_usual_workflow(found, cells):
    work = cells.copy()
    work.X = work.X.astype(np.float32)
    sc.pp.normalize_total(work, target_sum=1e4)
    sc.pp.log1p(work)
    expected = found["hvg"].embedding
    assert set(np.round(expected[0][expected[0] > 0], 4)) <= set(np.round(work.X[0].toarray()[0], 4))


def test_nothing_of_the_user_changes(cells):
    before, level, seed = cells.copy(), scvi.settings.verbosity, scvi.settings.seed
    torch.manual_seed(1)
    np.random.seed(1)
    expected = torch.rand(1), np.random.rand()
    torch.manual_seed(1)
    np.random.seed(1)
    baselines.integrate(cells, "batch", methods="scvi", max_epochs=1)
    assert (torch.rand(1), np.random.rand()) == expected
    assert (scvi.settings.verbosity, scvi.settings.seed) == (level, seed)
    assert list(cells.obs) == list(before.obs)
    assert set(cells.uns) == set(before.uns)


def test_it_repeats(cells, found):
    again = baselines.integrate(cells, "batch", methods=["harmony", "scvi"], max_epochs=2)
    for name in ("harmony", "scvi"):
        np.testing.assert_allclose(again[name].embedding, found[name].embedding, atol=1e-4)


def test_what_is_refused(cells, caplog):
    caplog.set_level(logging.ERROR)
    with pytest.raises(KeyError, match="did you mean 'batch'"):
        baselines.integrate(cells, "bach")
    with pytest.raises(ValueError, match="did you mean 'harmony'"):
        baselines.integrate(cells, "batch", methods=["harmoni"])
