"""`tl.denoise`: no entry sees itself, zeros stay zero, and the errors that are reported."""

from __future__ import annotations

import logging

import anndata as ad
import numpy as np
import pytest
from scipy import sparse

from scanpy_scgpt import pp, tl

LAYER, SPREAD = "scgpt_denoised", "scgpt_denoised_sd"
SETTINGS = {"device": "cpu", "min_genes": 1}


@pytest.fixture
def few(counts):
    """40 real cells with integers in X."""
    return counts[:40].copy()


def denoised(adata, model, **kwargs):
    """The layer as a dense array; the cells are left alone."""
    return tl.denoise(adata, model, copy=True, **{**SETTINGS, **kwargs}).layers[LAYER].toarray()


def bins_of(adata, model, **kwargs):
    return (
        pp.tokenize(adata, model.vocab, copy=True, min_genes=1, **kwargs).layers["scgpt_bins"].toarray().astype(float)
    )


def test_what_is_written(few, generative, fingerprint, caplog):
    before = fingerprint(few)
    with caplog.at_level(logging.INFO, logger="scanpy_scgpt"):
        assert tl.denoise(few, generative, **SETTINGS) is None
    after = fingerprint(few)
    assert {slot: after[slot] for slot in before} == before
    new = {slot for slot in after.keys() - before.keys() if not slot.startswith("uns/scgpt/denoise/")}
    assert new == {f"layers/{LAYER}", f"layers/{SPREAD}"}
    for name in (LAYER, SPREAD):
        layer = few.layers[name]
        assert isinstance(layer, sparse.csr_matrix)
        assert layer.dtype == np.float32
        assert layer.has_sorted_indices
        np.testing.assert_array_equal(layer.toarray() > 0, bins_of(few, generative) > 0)
    assert few.layers[LAYER].data.max() <= 50
    record = few.uns["scgpt"]["denoise"]
    assert (record["n_folds"], record["n_denoised"]) == (4, few.layers[LAYER].nnz)
    assert f"mean squared error {record['error']:.1f} of held-out bins (mean bin of the gene: " in caplog.text


def test_errors_are_those_of_the_layer(few, generative):
    tl.denoise(few, generative, **SETTINGS)
    bins, record = bins_of(few, generative), few.uns["scgpt"]["denoise"]
    there = bins > 0
    assert record["error"] == pytest.approx(np.square(bins - few.layers[LAYER].toarray())[there].mean(), rel=1e-5)
    misses = []
    for column in bins.T:
        expressed = column[column > 0]
        for i, value in enumerate(expressed):
            others = np.delete(expressed, i)
            misses.append(value - (others.mean() if others.size else bins[there].mean()))
    assert record["error_gene_mean"] == pytest.approx(np.square(misses).mean(), rel=1e-6)
    assert (np.count_nonzero(bins, axis=0) == 1).any(), "a gene of one cell is among them"


def test_no_entry_has_a_part_in_its_own_prediction(few, generative):
    """Other counts of one gene change the predictions of other genes, not its own."""
    before = denoised(few, generative)
    column = int(np.argmax(np.count_nonzero(before, axis=0)))
    other = few.copy()
    dense = other.X.toarray()
    there = dense[:, column] > 0
    dense[there, column] = np.random.default_rng(0).permutation(40)[: there.sum()] + 1
    other.X = sparse.csr_matrix(dense)
    after = denoised(other, generative)
    np.testing.assert_allclose(after[:, column], before[:, column], atol=1e-4)
    assert np.abs(np.delete(after - before, column, axis=1)).max() > 0.1


@pytest.mark.parametrize("n_folds", [2, 7])
def test_order_and_batch_change_nothing(few, generative, n_folds):
    whole = denoised(few, generative, n_folds=n_folds)
    rows = np.random.default_rng(0).permutation(40)[:15]
    columns = np.random.default_rng(1).permutation(few.n_vars)
    got = denoised(few[rows][:, columns].copy(), generative, n_folds=n_folds, max_tokens=300)
    np.testing.assert_allclose(got, whole[rows][:, columns], atol=1e-3)


def test_folds_and_seed_matter(few, generative):
    first = denoised(few, generative)
    assert np.abs(first - denoised(few, generative, n_folds=9)).max() > 0.1
    assert np.abs(first - denoised(few, generative, rng=1)).max() > 0.1


def test_a_trained_network_beats_the_mean_of_the_gene(two_types, learned):
    """On cells that it did not see, whose own mean the rival knows; the spread says where it errs."""
    cells = two_types[200:].copy()
    tl.denoise(cells, learned, **SETTINGS)
    record = cells.uns["scgpt"]["denoise"]
    assert record["error"] < 0.8 * record["error_gene_mean"]
    bins = pp.tokenize(cells, learned.vocab, ties="mid", copy=True, min_genes=1).layers["scgpt_bins"].toarray()
    missed = np.abs(bins - cells.layers[LAYER].toarray())[bins > 0]
    spread = cells.layers[SPREAD].toarray()[bins > 0]
    assert np.corrcoef(missed, spread)[0, 1] > 0.1
    assert 0.5 < np.mean(missed < spread) < 0.85


def test_several_columns_of_a_gene(few, generative):
    """They are summed, lie in one part, and the first holds the value."""
    names = [name for name in few.var_names if name in generative.vocab]
    column = few.var_names.get_loc(names[0])
    dense = few.X.toarray()
    extra = few[:, [names[0]]].copy()
    half = dense[:, column] // 2
    extra.X = sparse.csr_matrix(half[:, None])
    dense[:, column] -= half
    split = few.copy()
    split.X = sparse.csr_matrix(dense)
    split.var["symbol"], extra.var["symbol"] = split.var_names, extra.var_names
    extra.var_names = ["again"]
    split = ad.concat([split, extra], axis=1)
    got = denoised(split, generative)
    np.testing.assert_allclose(got[:, :-1], denoised(few, generative), atol=1e-3)
    assert not got[:, -1].any()


def test_genes_of_raw_that_var_lacks_help_all_the_same(few, generative):
    whole = denoised(few, generative)
    few.raw = few
    half = few[:, ::2].copy()
    np.testing.assert_allclose(denoised(half, generative, use_raw=True), whole[:, ::2], atol=1e-4)


def test_without_a_distribution(few, checkpoint, generative):
    tl.denoise(few, generative, **SETTINGS)
    tl.denoise(few, checkpoint, **SETTINGS)
    assert list(few.layers) == [LAYER]
    assert (few.layers[LAYER].data >= 1).all()


def test_cells_without_genes(few, generative):
    dense = few.X.toarray()
    dense[3] = 0
    only = int(np.flatnonzero((dense[7] > 0) & few.var_names.isin(generative.vocab.genes))[0])
    dense[7, np.arange(few.n_vars) != only] = 0
    few.X = sparse.csr_matrix(dense)
    tl.denoise(few, generative, **SETTINGS)
    assert [few.layers[LAYER][row].nnz for row in (3, 7)] == [0, 1]
    assert np.isfinite(few.layers[LAYER].data).all()
    none = few[:0].copy()
    tl.denoise(none, generative, **SETTINGS)
    assert none.layers[LAYER].shape == (0, few.n_vars)
    assert none.uns["scgpt"]["denoise"]["error"] == 0


@pytest.mark.parametrize("n_folds", [1, 2.0, True])
def test_too_few_parts(few, generative, n_folds):
    with pytest.raises(ValueError, match="n_folds") as caught:
        tl.denoise(few, generative, n_folds=n_folds, **SETTINGS)
    assert str(caught.value) == (
        f"n_folds={n_folds}: a whole number of at least 2, as a part is predicted from the others."
    )
    assert list(few.layers) == []


def test_other_inputs(few, generative, tmp_path, write_cells):
    expected = denoised(few, generative)
    backed = ad.read_h5ad(write_cells(few, tmp_path / "cells.h5ad"), backed="r")
    tl.denoise(backed, generative, key_added="mine", **SETTINGS)
    np.testing.assert_allclose(backed.layers["mine"].toarray(), expected, atol=1e-4)
    assert backed.uns["scgpt"]["denoise_mine"]["key"] == "mine"
    backed.file.close()
    with pytest.raises(TypeError, match=r"tl.denoise takes an AnnData, this is a ndarray"):
        tl.denoise(few.X.toarray(), generative)


def test_views_and_dask_arrays(few, generative):
    expected = denoised(few, generative)
    view = few[5:25]
    with pytest.warns(UserWarning, match="initializing view as actual"):
        tl.denoise(view, generative, **SETTINGS)
    np.testing.assert_allclose(view.layers[LAYER].toarray(), expected[5:25], atol=1e-4)
    assert list(few.layers) == []
    array = pytest.importorskip("dask.array")
    few.X = array.from_array(few.X, chunks=(7, few.n_vars), asarray=False)
    np.testing.assert_allclose(denoised(few, generative), expected, atol=1e-4)
