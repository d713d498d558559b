"""Components of what was measured, side by side."""

from __future__ import annotations

import anndata as ad
import mudata
import numpy as np
import pytest
import scanpy as sc
from scipy import sparse
from sklearn.decomposition import PCA

from scanpy_scgpt.model._blocks import fit_block
from scanpy_scgpt.model._joint import Joint


@pytest.fixture(scope="module")
def counts(data_dir):
    adata = ad.read_h5ad(data_dir / "pancreas_panc8_5tech_500.h5ad")
    return sparse.csr_matrix(adata.X, dtype=np.float32), adata.obs["technology"].astype(
        "category"
    ).cat.codes.to_numpy().astype(np.int64)


def test_components_are_those_of_the_usual_workflow(counts):
    x, _ = counts
    block = fit_block(x, "counts", n_top=10_000, n_components=10)
    cells = ad.AnnData(x.copy())
    sc.pp.normalize_total(cells, target_sum=1e4)
    sc.pp.log1p(cells)
    expected = PCA(10, svd_solver="full").fit_transform(cells.X.toarray())
    found = block.project(x)
    assert found.dtype == np.float32
    for i in range(10):
        assert abs(np.corrcoef(found[:, i], expected[:, i])[0, 1]) > 0.999


def test_genes_are_variable_inside_batches(counts):
    x, batches = counts
    block = fit_block(x, "counts", batches=batches, n_top=300, n_components=10)
    assert len(block.ids) == 300
    cells = ad.AnnData(x.copy(), obs={"batch": batches.astype(str)})
    sc.pp.normalize_total(cells, target_sum=1e4)
    sc.pp.log1p(cells)
    table = sc.pp.highly_variable_genes(cells, n_top_genes=300, batch_key="batch", inplace=False)
    assert len(np.intersect1d(block.ids, np.flatnonzero(table["highly_variable"]))) >= 299


def test_a_gene_that_was_not_measured_counts_as_its_mean(counts):
    x, _ = counts
    block = fit_block(x, "counts", n_top=200, n_components=5)
    lost = block.ids[:20]
    measured = np.setdiff1d(np.arange(x.shape[1]), lost)
    found = block.project(x, measured)
    values = x.toarray()
    values = np.log1p(1e4 * values / values.sum(axis=1, keepdims=True))
    values[:, lost] = block.mean[:20]
    np.testing.assert_allclose(found, (values[:, block.ids] - block.mean) @ block.components.T, atol=1e-3)


def test_proteins_are_centred_in_the_cell_and_peaks_lose_their_depth():
    rng = np.random.default_rng(0)
    proteins = sparse.csr_matrix(rng.poisson(20, size=(200, 10)).astype(np.float32))
    block = fit_block(proteins, "proteins", n_components=5)
    np.testing.assert_allclose(block.project(proteins), block.project(fit := proteins.copy()), atol=1e-6)
    assert fit.shape == (200, 10)
    depth = rng.uniform(0.1, 0.9, size=200)
    peaks = sparse.csr_matrix((rng.random((200, 400)) < depth[:, None]).astype(np.float32))
    found = fit_block(peaks, "peaks", n_components=5).project(peaks)
    assert max(abs(np.corrcoef(found[:, i], depth)[0, 1]) for i in range(5)) < 0.4


def test_few_features_and_few_cells():
    x = sparse.csr_matrix(np.array([[1, 0], [0, 2], [3, 1]], dtype=np.float32))
    assert fit_block(x, "counts").project(x).shape == (3, 2)
    assert np.isfinite(fit_block(x[:1], "counts").project(x)).all()


def _joint(counts):
    x, batches = counts
    half = fit_block(x[:, :900], "counts", n_top=300, n_components=8)
    rest = fit_block(x[:, 900:], "counts", n_top=300, n_components=6)
    joint = Joint({"a": half, "b": rest}, {"a": 1.0, "b": 0.5})
    coordinates = {"a": half.project(x[:, :900]), "b": rest.project(x[:, 900:])}
    return joint, coordinates, batches


def test_parts_have_their_lengths(counts):
    joint, coordinates, batches = _joint(counts)
    joint.align(coordinates, batches, rng=0)
    vectors = joint.joined(coordinates, batches)
    assert vectors.shape == (500, 14)
    np.testing.assert_allclose(np.linalg.norm(vectors[:, :8], axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors[:, 8:], axis=1), 0.5, atol=1e-5)
    assert not np.allclose(vectors, joint.joined(coordinates, batches, corrected=False))


def test_a_gap_is_filled_from_the_other_block(counts):
    joint, coordinates, batches = _joint(counts)
    truth = coordinates["b"].copy()
    coordinates["b"][::2] = np.nan
    joint.align(coordinates, batches, rng=0)
    joint.corrected = False
    joint.bridge(coordinates, batches)
    filled = joint.moved(coordinates, batches)["b"]
    np.testing.assert_array_equal(filled[1::2], truth[1::2])
    right = [np.corrcoef(filled[::2, i], truth[::2, i])[0, 1] for i in range(2)]
    assert min(right) > 0.3  # rare genes say little, and other genes say that little
    assert np.isfinite(joint.joined(coordinates, batches)).all()


def test_it_can_be_saved(counts):
    joint, coordinates, batches = _joint(counts)
    coordinates["b"][:9] = np.nan
    joint.align(coordinates, batches, rng=0)
    joint.bridge(coordinates, batches)
    back = Joint.from_arrays(joint.arrays())
    np.testing.assert_array_equal(back.joined(coordinates, batches), joint.joined(coordinates, batches))
    assert Joint.from_arrays({}) is None


def test_proteins_that_a_panel_lacks_have_no_say(data_dir):
    counts = mudata.read_h5ad(data_dir / "cite_pbmc10k_10x.h5mu", "prot").X
    block = fit_block(counts[:100], "proteins")
    whole = block.project(counts[100:150])
    panel = np.arange(0, counts.shape[1], 2)
    zeros = counts[100:150].toarray()
    zeros[:, 1::2] = 0
    found = block.project(zeros, panel)
    zeros[:, 1::2] = 77
    np.testing.assert_array_equal(block.project(zeros, panel), found)

    def cosine(x):
        return ((x * whole).sum(axis=1) / np.linalg.norm(x, axis=1) / np.linalg.norm(whole, axis=1)).mean()

    zeros[:, 1::2] = 0
    assert cosine(found) > cosine(block.project(zeros)) + 0.1
