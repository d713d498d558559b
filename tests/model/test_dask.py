"""Embedding on the workers of a dask cluster."""

from __future__ import annotations

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anndata as ad
import dask.array as da
import numpy as np
import pytest
import torch
from distributed import Client, LocalCluster
from scipy import sparse

import scanpy_scgpt as scgpt
from scanpy_scgpt.model import Embedder, _dask, active_client
from scanpy_scgpt.tokenizer import match_genes

SETTINGS = {"min_genes": 1, "device": "cpu", "backend": "torch"}


@pytest.fixture(scope="module")
def client():
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def as_dask(adata: ad.AnnData, X=None) -> ad.AnnData:
    """The same cells with a dask array of CSR blocks of unequal size in X."""
    X = sparse.csr_matrix(adata.X if X is None else X)
    blocks = da.from_array(X.toarray(), chunks=((300, 150, 250), -1)).map_blocks(sparse.csr_matrix)
    return ad.AnnData(blocks, obs=adata.obs.copy(), var=adata.var.copy())


@pytest.fixture
def expected(counts, checkpoint):
    alone = counts.copy()
    scgpt.tl.embed(alone, checkpoint, **SETTINGS)
    return alone.obsm["X_scgpt"]


def test_without_a_client_nothing_is_distributed(counts, checkpoint, expected):
    assert active_client() is None
    lazy = as_dask(counts)
    scgpt.tl.embed(lazy, checkpoint, **SETTINGS)
    np.testing.assert_allclose(lazy.obsm["X_scgpt"], expected, atol=1e-6)
    assert lazy.uns["scgpt"]["embed"]["workers"] == 0


def test_two_workers_give_the_vectors_of_one_process(counts, checkpoint, client, expected):
    lazy = as_dask(counts)
    with client.as_current():
        assert active_client() is client
        scgpt.tl.embed(lazy, checkpoint, **SETTINGS)
    np.testing.assert_allclose(lazy.obsm["X_scgpt"], expected, atol=1e-6)
    assert lazy.uns["scgpt"]["embed"]["workers"] == 2
    ready = client.run(lambda: len(__import__("scanpy_scgpt.model._dask", fromlist=["_READY"])._READY))
    assert sum(ready.values()) >= 1, "the workers have the model"


@pytest.mark.parametrize("kind", ["csr", "dense"])
def test_cells_in_memory_are_sent_to_the_workers(counts, checkpoint, client, expected, kind):
    if kind == "dense":
        counts.X = counts.X.toarray()
    with client.as_current():
        scgpt.tl.embed(counts, checkpoint, **SETTINGS)
    np.testing.assert_allclose(counts.obsm["X_scgpt"], expected, atol=1e-6)


def test_what_the_workers_see_is_reported(counts, checkpoint, client):
    counts.X.data[counts.X.indptr[5] : counts.X.indptr[7]] = 0
    counts.X.eliminate_zeros()
    lazy = as_dask(counts)
    with client.as_current():
        scgpt.tl.embed(lazy, checkpoint, max_length=32, **SETTINGS)
    assert (lazy.obs["scgpt_qc"] == "empty").to_numpy().nonzero()[0].tolist() == [5, 6]
    scgpt.tl.embed(counts, checkpoint, max_length=32, **SETTINGS)
    cut = lazy.uns["scgpt"]["embed"]["n_cut_cells"]
    assert cut == counts.uns["scgpt"]["embed"]["n_cut_cells"] > 0


def test_a_bad_value_on_a_worker_is_told(counts, checkpoint, client):
    X = counts.X.toarray().astype(np.float32)
    X[350, 3] = np.nan
    bad = da.from_array(X, chunks=((300, 150, 250), -1)).map_blocks(sparse.csr_matrix)
    lazy = ad.AnnData(bad, obs=counts.obs.copy(), var=counts.var.copy())
    with client.as_current(), pytest.raises(ValueError, match="NaN or infinite values"):
        scgpt.tl.embed(lazy, checkpoint, **SETTINGS)


@pytest.mark.parametrize(("n_threads", "most"), [(1, 3), (3, 1)])
def test_threads_of_a_worker_do_not_multiply(counts, checkpoint, monkeypatch, n_threads, most):
    """Three tasks in one process: as many batches at a time as there are threads, not three times as many."""
    ids = match_genes(counts.var_names, checkpoint.vocab).ids
    job = _dask.EmbedJob(checkpoint, checkpoint.tokenizer, 0, ids, "X", {"device": "cpu", "backend": "torch"})
    lock, running, seen = threading.Lock(), [], []
    embed = Embedder.embed_tokens

    def noted(self, tokens):
        with lock:
            running.append(1)
            seen.append(len(running))
        time.sleep(0.3)
        try:
            return embed(self, tokens)
        finally:
            running.pop()

    monkeypatch.setattr(Embedder, "embed_tokens", noted)
    monkeypatch.setattr(_dask, "_READY", {})
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    names = counts.obs_names.to_numpy()[:20]
    try:
        with ThreadPoolExecutor(3) as pool:
            results = list(pool.map(lambda _: job(counts.X[:20], names)[0], range(3)))
    finally:
        torch.set_num_threads(before)
    assert max(seen) == most
    for vectors in results[1:]:
        np.testing.assert_allclose(vectors, results[0], atol=1e-6)


def test_a_worker_that_is_killed_does_not_matter(counts, checkpoint, client, expected, tmp_path):
    X, flag = counts.X.toarray(), str(tmp_path / "killed")

    def dies_once(block: np.ndarray) -> sparse.csr_matrix:
        """The worker process is killed when a block is made for the first time; sent whole, as it is no import."""
        if block.shape[0] == 150 and not Path(flag).exists():
            Path(flag).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return sparse.csr_matrix(block)

    blocks = da.from_array(X, chunks=((300, 150, 250), -1)).map_blocks(
        dies_once, dtype=X.dtype, meta=sparse.csr_matrix((0, 0), dtype=X.dtype)
    )
    lazy = ad.AnnData(blocks, obs=counts.obs.copy(), var=counts.var.copy())
    with client.as_current():
        scgpt.tl.embed(lazy, checkpoint, layer=None, use_raw=False, **SETTINGS)
    assert Path(flag).exists()
    np.testing.assert_allclose(lazy.obsm["X_scgpt"], expected, atol=1e-6)
