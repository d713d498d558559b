"""Batches of an annbatch collection; read where the package is installed (Python 3.12 or later)."""

from __future__ import annotations

import importlib
import sys

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scanpy_scgpt._optional import is_installed
from scanpy_scgpt.disk import AnnbatchCells
from scanpy_scgpt.tokenizer import GeneVocab, Tokenizer, match_genes


def test_the_missing_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "annbatch", None)
    with pytest.raises(ImportError, match=r"needs `annbatch`: pip install 'scanpy-scgpt\[annbatch\]'"):
        AnnbatchCells(tmp_path, Tokenizer(GeneVocab(["G1"])))


if is_installed("annbatch"):
    pytestmark = pytest.mark.filterwarnings("ignore")  # those of annbatch

    @pytest.fixture
    def collection(tmp_path):
        annbatch = importlib.import_module("annbatch")
        paths = []
        for i in range(2):
            X = sparse.random(300, 50 - 10 * i, density=0.3, format="csr", dtype=np.float32, random_state=i)
            X.data = np.ceil(9 * X.data)
            obs = pd.DataFrame({"study": [f"study{i}"] * 300}, index=[f"{i}-{j}" for j in range(300)])
            cells = ad.AnnData(X, obs=obs, var=pd.DataFrame(index=[f"G{j}" for j in range(X.shape[1])]))
            cells.write_h5ad(tmp_path / f"{i}.h5ad")
            paths.append(tmp_path / f"{i}.h5ad")
        annbatch.DatasetCollection(tmp_path / "cells.zarr", mode="a").add_adatas(paths)
        return tmp_path / "cells.zarr", [ad.read_h5ad(path) for path in paths]

    def test_every_cell_comes_once_with_its_tokens(collection):
        path, parts = collection
        tokenizer = Tokenizer(GeneVocab([f"G{j}" for j in range(0, 50, 2)]))
        cells = AnnbatchCells(path, tokenizer, batch_size=64, block_size=16, pool_blocks=4, min_genes=1, rng=3)
        batches = list(cells)
        assert [len(batch.tokens) for batch in batches[:-1]] == [64] * 9
        assert len(batches) == len(cells)
        names = np.concatenate([batch.obs.index.to_numpy().astype(str) for batch in batches])
        assert sorted(names) == sorted(np.concatenate([part.obs_names.to_numpy().astype(str) for part in parts]))
        assert batches[0].obs["study"].nunique() == 2, "files are mixed"
        wanted = {}
        for part in parts:
            ids = match_genes(part.var_names, tokenizer.vocab).ids
            tokens = tokenizer.encode(sparse.csr_matrix(part.X), ids, part.obs_names.to_numpy().astype(str), seed=3)
            for i, name in enumerate(part.obs_names):
                one = tokens.take(np.array([i]))
                wanted[name] = dict(zip(one.gene_ids.tolist(), one.values.tolist(), strict=True))
        for batch in batches:
            for i, name in enumerate(batch.obs.index):
                one = batch.tokens.take(np.array([i]))
                assert dict(zip(one.gene_ids.tolist(), one.values.tolist(), strict=True)) == wanted[name]
        assert [batch.obs.index.tolist() for batch in cells] == [batch.obs.index.tolist() for batch in batches]
        cells.set_epoch(1)
        assert [batch.obs.index.tolist() for batch in cells] != [batch.obs.index.tolist() for batch in batches]
