"""Principal components as the opponent."""

from __future__ import annotations

import numpy as np
import scanpy as sc

from scanpy_scgpt import baselines


def test_it_is_the_standard_workflow(counts):
    baselines.embed_pca(counts, n_top_genes=300, n_comps=20)
    work = counts.copy()
    work.X = work.X.astype(np.float32)
    sc.pp.normalize_total(work, target_sum=1e4)
    sc.pp.log1p(work)
    sc.pp.highly_variable_genes(work, n_top_genes=300)
    sc.pp.pca(work, n_comps=20, mask_var="highly_variable", random_state=0)
    ours, theirs = counts.obsm["X_pca_baseline"], work.obsm["X_pca"]
    assert ours.dtype == np.float32
    signs = np.sign((ours * theirs).sum(axis=0))
    np.testing.assert_allclose(ours * signs, theirs, atol=1e-2 * np.abs(theirs).max())


def test_logged_values_are_taken_as_they_are_and_the_input_stays(pbmc):
    before = pbmc.X.copy()
    result = baselines.embed_pca(pbmc, n_comps=5, key_added="pcs", copy=True)
    assert "pcs" not in pbmc.obsm
    assert result.obsm["pcs"].shape == (pbmc.n_obs, 5)
    assert (before != pbmc.X).nnz == 0


def test_counts_that_are_no_integers_are_scaled_and_logged_too(counts):
    baselines.embed_pca(counts, n_comps=5)
    corrected = counts.copy()
    corrected.X = corrected.X.astype(np.float32) * np.float32(50.25)  # the scale of a cell does not matter
    baselines.embed_pca(corrected, n_comps=5)
    np.testing.assert_allclose(corrected.obsm["X_pca_baseline"], counts.obsm["X_pca_baseline"], atol=1e-2)
