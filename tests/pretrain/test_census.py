"""Cells of an atlas query, against a small SOMA of the layout of CELLxGENE Census."""

from __future__ import annotations

import sys
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import tiledbsoma
import tiledbsoma.io
from scipy import sparse

from scanpy_scgpt.pretrain import CensusQuery, _census, _preparation, _sources, build_vocab, corpus_report, prepare

BLOOD = "tissue_general == 'blood'"


@pytest.fixture(scope="module")
def atlas(_shipped_cells, tmp_path_factory):
    """Real cells in a SOMA: a third of them secondary, two data sets, two tissues; and the same as an AnnData."""
    n = np.arange(700)
    obs = pd.DataFrame(
        {
            "is_primary_data": n % 3 > 0,
            "dataset_id": pd.Categorical(np.where(n < 300, "first", "second")),
            "tissue": pd.Categorical(np.where(n < 500, "blood", "lung parenchyma")),
            "tissue_general": pd.Categorical(np.where(n < 500, "blood", "lung")),
            "disease": pd.Categorical(np.where(n % 2 > 0, "normal", "COVID-19")),
        },
        index=n.astype(str),
    )
    ids = [f"ENSG{i:011d}" for i in range(_shipped_cells.n_vars)]
    var = pd.DataFrame({"feature_id": ids, "feature_name": _shipped_cells.var_names}, index=ids)
    cells = ad.AnnData(sparse.csr_matrix(_shipped_cells.layers["derived"], dtype=np.float32), obs, var)
    folder = str(tmp_path_factory.mktemp("atlas") / "soma")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of tiledbsoma
        with tiledbsoma.Collection.create(folder) as census:
            census.add_new_collection("census_data")
        where = f"{folder}/census_data/homo_sapiens"
        tiledbsoma.io.from_anndata(where, cells, measurement_name="RNA", X_layer_name="raw")
        with tiledbsoma.Collection.open(f"{folder}/census_data", "w") as data:
            data.set("homo_sapiens", tiledbsoma.Experiment.open(where), use_relative_uri=True)
    cells.var_names = cells.var["feature_name"].astype(str).to_numpy()
    return folder, cells


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(_preparation, "_SHARD", 100)
    monkeypatch.setattr(_census, "_ROWS", 30)


def test_a_query_gives_what_the_cells_give(atlas, vocab, tmp_path):
    folder, cells = atlas
    chosen = cells[(cells.obs["tissue_general"] == "blood") & cells.obs["is_primary_data"]].copy()
    chosen.obs["study"] = chosen.obs["dataset_id"]
    chosen.write_h5ad(tmp_path / "chosen.h5ad")
    expected = prepare(tmp_path / "chosen.h5ad", tmp_path / "file.tokens", vocab=vocab)
    store = prepare(CensusQuery(BLOOD, uri=folder), tmp_path / "census.tokens", vocab=vocab)
    assert store.names.tolist() == chosen.obs_names.tolist()
    mine, theirs = (x.take(np.arange(len(chosen))) for x in (store, expected))
    for name in ("indptr", "gene_ids", "values"):
        np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name))
    for column in ("study", "tissue"):
        assert store.column(column).tolist() == expected.column(column).tolist()
    assert set(store.column("file")) == {"census"}
    assert corpus_report(store)["files"]["census"] == {"cells": len(chosen), "kept": len(chosen), "removed": {}}
    assert build_vocab(CensusQuery(BLOOD, uri=folder)) == build_vocab(tmp_path / "chosen.h5ad")


@pytest.mark.parametrize(
    ("options", "keep"),
    [
        ({}, lambda obs: obs["is_primary_data"]),
        ({"primary_only": False}, lambda obs: obs["disease"] != ""),
        (
            {"obs_value_filter": f"{BLOOD} or disease == 'normal'"},
            lambda obs: obs["is_primary_data"] & ((obs["tissue"] == "blood") | (obs["disease"] == "normal")),
        ),
        (
            {"obs_value_filter": "dataset_id in ['second']", "primary_only": False},
            lambda obs: obs["dataset_id"] == "second",
        ),
    ],
)
def test_which_cells(atlas, options, keep):
    folder, cells = atlas
    found = _census.CensusCells(CensusQuery(uri=folder, **options))
    assert found.names(0, found.n_obs).tolist() == cells.obs_names[keep(cells.obs)].tolist()
    found.close()


def test_columns_and_most_cells(atlas):
    folder, cells = atlas
    query = CensusQuery(uri=folder, study_key="disease", tissue_key="tissue_general", max_cells=50)
    found, again = _census.CensusCells(query), _census.CensusCells(query)
    assert found.n_obs == 50
    assert found.names(0, 50).tolist() == again.names(0, 50).tolist()
    picked = cells.obs.loc[found.names(0, 50)]
    assert picked["is_primary_data"].all()
    assert found.obs_texts("disease", 0, 50).tolist() == picked["disease"].tolist()
    assert found.obs_texts("tissue_general", 10, 20).tolist() == picked["tissue_general"][10:20].tolist()
    np.testing.assert_array_equal(found.X[7:12].toarray(), cells[picked.index[7:12]].X.toarray())
    assert found.X[5:5].shape == (0, 765)


def test_files_and_a_query_together(atlas, counts, vocab, tmp_path):
    folder, _ = atlas
    counts[:100].write_h5ad(tmp_path / "a.h5ad")
    query = CensusQuery(uri=folder)
    store = prepare([query, tmp_path / "a.h5ad"], tmp_path / "x.tokens", vocab=vocab, duplicates="drop")
    report = corpus_report(store)
    assert list(report["files"]) == ["a.h5ad", "census"]
    n = int((np.arange(100) % 3 > 0).sum())
    assert report["duplicates"] == [["a.h5ad", "census", n]]


def test_a_finished_store_needs_no_network(atlas, vocab, tmp_path, monkeypatch):
    query = CensusQuery(uri=atlas[0])
    store = prepare(query, tmp_path / "x.tokens", vocab=vocab)
    monkeypatch.setattr(_sources, "CensusCells", None)
    assert prepare(query, tmp_path / "x.tokens", vocab=vocab).digest == store.digest
    with pytest.raises(ValueError, match=r"inputs\.census\.obs_value_filter \(None there, "):
        prepare(CensusQuery(BLOOD, uri=atlas[0]), tmp_path / "x.tokens", vocab=vocab)


def test_a_release_that_moves_on_is_noticed(atlas, vocab, tmp_path, monkeypatch):
    class KilledError(BaseException):
        pass

    def stop(*_args, **_kwargs):
        raise KilledError

    query = CensusQuery(uri=atlas[0])
    with monkeypatch.context() as patch:
        patch.setattr(_preparation.TokenStoreWriter, "finish", stop)
        with pytest.raises(KilledError):
            prepare(query, tmp_path / "x.tokens", vocab=vocab)
    monkeypatch.setattr(_census.CensusCells, "digest", "other")
    with pytest.raises(ValueError, match=r"census has other cells than when the store was begun .* Name the release"):
        prepare(query, tmp_path / "x.tokens", vocab=vocab)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"organism": "danio_rerio"}, ValueError, "organism='danio_rerio' is not there. Use one of 'homo_sapiens'"),
        ({"obs_value_filter": "tisue == 'blood'"}, ValueError, r"obs_value_filter=\"tisue == 'blood'\" cannot be read"),
        ({"obs_value_filter": "tissue == 'bone'"}, ValueError, "no cell fulfils .*tissue == 'bone'.* Loosen obs_value"),
        ({"study_key": "studdy"}, ValueError, "obs has no column 'studdy'. Columns: .*dataset_id, tissue"),
    ],
)
def test_queries_that_find_nothing(atlas, options, error, text):
    with pytest.raises(error, match=text):
        _census.CensusCells(CensusQuery(uri=atlas[0], **options))


def test_what_is_no_atlas(tmp_path, vocab):
    with pytest.raises(OSError, match=r"CensusQuery: uri='.*nothing' cannot be opened .* Check it and the network"):
        prepare(CensusQuery(uri=str(tmp_path / "nothing")), tmp_path / "x.tokens", vocab=vocab, on_error="skip")
    with pytest.raises(ValueError, match="max_cells=0: use a number of cells, such as 1_000_000, or None"):
        CensusQuery(max_cells=0)


def test_the_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cellxgene_census", None)
    text = r"A query of CELLxGENE Census needs `cellxgene_census`: pip install 'scanpy-scgpt\[census\]'"
    with pytest.raises(ImportError, match=text):
        _census.CensusCells(CensusQuery())
