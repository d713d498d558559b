"""A sparse layer written in blocks: what AnnData reads is what was given, in few and whole chunks."""

from __future__ import annotations

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import zarr
from scipy import sparse

from scanpy_scgpt.disk import _sparse, open_cells, write_sparse_layer


def read(path):
    return ad.read_zarr(path) if path.suffix == ".zarr" else ad.read_h5ad(path)


@pytest.fixture
def files(counts, tmp_path, write_cells):
    return [open_cells(write_cells(counts, tmp_path / "cells.h5ad"))]


def layer_of(counts):
    return sparse.csr_matrix(np.minimum(counts.X.toarray(), 255).astype(np.uint8))


def written(path, layer, step, files, counts):
    blocks = (layer[i : i + step] for i in range(0, layer.shape[0], step))
    var = pd.DataFrame(index=counts.var_names)
    return write_sparse_layer(path, blocks, layer="tokens", files=files, var=var, uns={"a": 1})


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
@pytest.mark.parametrize(("chunk", "step"), [(2**20, 100), (1000, 3), (64, 700), (50, 1)])
def test_blocks_make_the_layer(counts, files, tmp_path, monkeypatch, suffix, chunk, step):
    monkeypatch.setattr(_sparse, "_CHUNK", chunk)
    layer = layer_of(counts)[:60] if step == 1 else layer_of(counts)
    if step == 1:
        layer = sparse.vstack([layer, sparse.csr_matrix((640, layer.shape[1]), dtype=np.uint8)], format="csr")
    path = tmp_path / f"out.{suffix}"
    path.write_text("what is there is replaced")
    assert written(path, layer, step, files, counts) == path
    found = read(path)
    np.testing.assert_array_equal(found.layers["tokens"].toarray(), layer.toarray())
    assert found.layers["tokens"].dtype == np.uint8
    assert found.obs_names.tolist() == counts.obs_names.tolist()
    assert found.var_names.tolist() == counts.var_names.tolist()
    assert found.uns["a"] == 1


def test_no_cells_with_genes(counts, files, tmp_path):
    layer = sparse.csr_matrix(counts.shape, dtype=np.uint8)
    for suffix in ("h5ad", "zarr"):
        assert read(written(tmp_path / f"out.{suffix}", layer, 100, files, counts)).layers["tokens"].nnz == 0


@pytest.mark.parametrize("kind", [zarr.Array, h5py.Dataset])
def test_each_chunk_is_written_once(counts, files, tmp_path, monkeypatch, kind):
    """Small blocks are collected: a chunk that is written to again and again is read and written wholly each time."""
    monkeypatch.setattr(_sparse, "_CHUNK", 200)
    set_item, writes = kind.__setitem__, []

    def noted(array, key, values):
        if "layers" in array.name:
            writes.append((array.name.rpartition("/")[2], key.start, key.stop))
        set_item(array, key, values)

    monkeypatch.setattr(kind, "__setitem__", noted)
    suffix = "zarr" if kind is zarr.Array else "h5ad"
    written(tmp_path / f"out.{suffix}", layer_of(counts), 2, files, counts)
    for name, n in (("indptr", 701), ("data", layer_of(counts).nnz), ("indices", layer_of(counts).nnz)):
        bounds = [write[1:] for write in writes if write[0] == name]
        assert bounds[-1][1] == n
        assert all(start % 200 == 0 for start, _ in bounds)


def test_there_is_no_second_listing_of_the_arrays(counts, files, tmp_path):
    path = written(tmp_path / "out.zarr", layer_of(counts), 100, files, counts)
    assert not (path / ".zmetadata").exists()
    assert sum(file.stat().st_size for file in (path / "layers/tokens/indptr").iterdir()) < 10_000
