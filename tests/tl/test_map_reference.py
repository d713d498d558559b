"""`tl.build_index` and `tl.map_reference`: labels as by brute force, in memory and from files."""

from __future__ import annotations

import re

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import scanpy_scgpt as scgpt
from scanpy_scgpt import io
from scanpy_scgpt.neighbours import CellBlock, NeighbourIndex

SETTINGS = {"layer": None, "min_genes": 1, "device": "cpu"}
LABEL = "bulk_labels"
MAPPED, SHARE = "scgpt_map_bulk_labels", "scgpt_map_bulk_labels_share"


@pytest.fixture
def parts(counts):
    """400 reference cells and 300 queries."""
    counts.obs["side"] = np.where(np.arange(700) % 7 < 3, "left", "right")
    return counts[:400].copy(), counts[400:].copy()


@pytest.fixture(scope="session")
def model(checkpoint_folder):
    return str(checkpoint_folder)


def embedded(adata, model):
    other = adata.copy()
    scgpt.tl.embed(other, model, backend="torch", **SETTINGS)
    return other.obsm["X_scgpt"]


def by_hand(query, reference, labels, k):
    """Most frequent label among the `k` nearest by cosine, and its share; even votes to the nearer, then the first."""
    gaps = 1 - query.astype(float) @ reference.T.astype(float)
    near = np.argsort(gaps, axis=1, kind="stable")[:, :k]
    found, shares = [], []
    for i, rows in enumerate(near):
        table = (
            pd.DataFrame({"label": labels[rows], "gap": gaps[i, rows]}).groupby("label")["gap"].agg(["size", "mean"])
        )
        table = table.sort_values(["size", "mean"], ascending=[False, True])
        found.append(table.index[0])
        shares.append(table["size"].iloc[0] / k)
    distances = np.take_along_axis(gaps, near, axis=1)
    return np.array(found), np.array(shares), distances


def test_labels_are_those_of_brute_force(parts, model):
    reference, query = parts
    scgpt.tl.map_reference(query, reference, [LABEL, "side"], n_neighbors=9, model=model, **SETTINGS)
    vectors = embedded(query, model), embedded(reference, model)
    for key in (LABEL, "side"):
        labels, shares, distances = by_hand(*vectors, reference.obs[key].astype(str).to_numpy(), 9)
        got = query.obs[f"scgpt_map_{key}"]
        assert isinstance(got.dtype, pd.CategoricalDtype)
        assert set(got.cat.categories) == set(reference.obs[key])
        assert (got.astype(str).to_numpy() == labels).mean() > 0.99  # neighbours at one distance to rounding
        assert (np.abs(query.obs[f"scgpt_map_{key}_share"] - shares) < 1e-6).mean() > 0.99
        np.testing.assert_allclose(query.obs["scgpt_map_distance"], distances.mean(axis=1), atol=2e-6)
        np.testing.assert_allclose(query.obs["scgpt_map_nearest"], distances[:, 0], atol=2e-6)
    record = query.uns["scgpt"]["map_reference"]
    assert (record["n_neighbors"], record["n_reference"], record["method"]) == (9, 400, "exact")
    assert record["model_hash"] == record["reference_model_hash"] == io.read_checkpoint(model).digest


def test_nothing_else_is_written(parts, model, fingerprint, tmp_path, write_cells):
    reference, query = parts
    before = fingerprint(reference), fingerprint(query)
    scgpt.tl.map_reference(query, reference, LABEL, model=model, **SETTINGS)
    assert fingerprint(reference) == before[0]
    after = fingerprint(query)
    assert {name: after[name] for name in before[1]} == before[1]
    new = {name for name in after if name not in before[1] and not name.startswith("uns/scgpt/map_reference/")}
    assert new == {f"obs/{name}" for name in (MAPPED, SHARE, "scgpt_map_distance", "scgpt_map_nearest")}
    for suffix in ("h5ad", "zarr"):
        write_cells(query, tmp_path / f"query.{suffix}")


def test_copy_and_key_added(parts, model):
    reference, query = parts
    made = scgpt.tl.map_reference(query, reference, LABEL, model=model, copy=True, key_added="blood", **SETTINGS)
    assert "blood_bulk_labels" in made.obs
    assert "map_reference_blood" in made.uns["scgpt"]
    assert "blood_bulk_labels" not in query.obs


def test_an_index_and_its_folder_give_what_the_reference_gives(parts, model, tmp_path):
    reference, query = parts
    scgpt.tl.map_reference(query, reference, LABEL, model=model, **SETTINGS)
    index = scgpt.tl.build_index(reference, [LABEL, "side"], model=model, path=tmp_path / "index", **SETTINGS)
    assert index.origin["model_hash"] == io.read_checkpoint(model).digest
    for i, given in enumerate((index, tmp_path / "index", str(tmp_path / "index"))):
        scgpt.tl.map_reference(query, given, LABEL, model=model, key_added=f"k{i}", **SETTINGS)
        pd.testing.assert_series_equal(query.obs[f"k{i}_bulk_labels"], query.obs[MAPPED], check_names=False)
        np.testing.assert_array_equal(query.obs[f"k{i}_distance"], query.obs["scgpt_map_distance"])
    scgpt.tl.map_reference(query, index, model=model, key_added="all", **SETTINGS)
    assert {"all_bulk_labels", "all_side"} <= set(query.obs)


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_files_give_what_memory_gives(parts, model, tmp_path, write_cells, suffix, monkeypatch):
    reference, query = parts
    monkeypatch.setattr("scanpy_scgpt.tl._vectors.BLOCK_ROWS", 150)
    halves = [write_cells(reference[i::2].copy(), tmp_path / f"reference{i}.{suffix}") for i in range(2)]
    cells = write_cells(query, tmp_path / f"query.{suffix}")
    index = scgpt.tl.build_index(halves, LABEL, model=model, path=tmp_path / "index", **SETTINGS)
    assert len(index) == 400
    out = tmp_path / f"out.{suffix}"
    assert scgpt.tl.map_reference(cells, index, model=model, out=out, **SETTINGS) == out
    scgpt.tl.map_reference(query, reference, LABEL, model=model, **SETTINGS)
    got = ad.read_zarr(out) if suffix == "zarr" else ad.read_h5ad(out)
    assert (got.obs[MAPPED].astype(str).to_numpy() == query.obs[MAPPED].astype(str).to_numpy()).mean() > 0.99
    np.testing.assert_allclose(got.obs["scgpt_map_distance"], query.obs["scgpt_map_distance"], atol=1e-5)
    np.testing.assert_allclose(got.obsm["X_scgpt"], embedded(query, model), atol=1e-5)
    assert got.obs[LABEL].tolist() == query.obs[LABEL].tolist()
    assert got.uns["scgpt"]["map_reference"]["n_cells"] == 300
    again = tmp_path / f"again.{suffix}"  # its vectors and record can be used as they are
    scgpt.tl.map_reference(out, index, use_rep="X_scgpt", out=again)
    other = ad.read_zarr(again) if suffix == "zarr" else ad.read_h5ad(again)
    assert other.obs[MAPPED].tolist() == got.obs[MAPPED].tolist()


def test_the_same_call_again_does_nothing_and_another_is_refused(parts, model, tmp_path, caplog):
    reference, query = parts
    query.write_h5ad(tmp_path / "query.h5ad")
    index = scgpt.tl.build_index(reference, LABEL, model=model, path=tmp_path / "index", **SETTINGS)
    given = {"model": model, "out": tmp_path / "out.zarr", **SETTINGS}
    scgpt.tl.map_reference(tmp_path / "query.h5ad", index, **given)
    with caplog.at_level("INFO", logger="scanpy_scgpt"):
        scgpt.tl.map_reference(tmp_path / "query.h5ad", index, **given)
    assert "is the result of this very call; nothing to do" in caplog.text
    with pytest.raises(FileExistsError, match="is not the result of this call"):
        scgpt.tl.map_reference(tmp_path / "query.h5ad", index, n_neighbors=3, **given)
    scgpt.tl.map_reference(tmp_path / "query.h5ad", index, n_neighbors=3, overwrite=True, **given)
    assert ad.read_zarr(tmp_path / "out.zarr").uns["scgpt"]["map_reference"]["n_neighbors"] == 3


def test_order_and_subset_of_the_query_change_nothing(parts, model):
    reference, query = parts
    index = scgpt.tl.build_index(reference, LABEL, model=model, **SETTINGS)
    scgpt.tl.map_reference(query, index, model=model, **SETTINGS)
    some = query[np.random.default_rng(0).permutation(300)[:50]].copy()
    before = some.obs[[MAPPED, "scgpt_map_distance"]].copy()
    scgpt.tl.map_reference(some, index, model=model, **SETTINGS)
    assert some.obs[MAPPED].tolist() == before[MAPPED].tolist()
    np.testing.assert_allclose(some.obs["scgpt_map_distance"], before["scgpt_map_distance"], atol=1e-6)


def test_a_cell_is_not_its_own_neighbour(parts, caplog):
    reference, _ = parts
    given = {"use_rep": "X_pca", "n_neighbors": 5}
    scgpt.tl.map_reference(reference, reference, LABEL, **given)
    assert reference.uns["scgpt"]["map_reference"]["exclude_self"]
    assert reference.obs["scgpt_map_nearest"].min() > 1e-6
    index = scgpt.tl.build_index(reference, LABEL, use_rep="X_pca")
    scgpt.tl.map_reference(reference, index, key_added="same", exclude_self=True, **given)
    assert reference.obs["same_bulk_labels"].tolist() == reference.obs[MAPPED].tolist()
    with caplog.at_level("WARNING", logger="scanpy_scgpt"):
        scgpt.tl.map_reference(reference, index, key_added="own", **given)
    assert "400 cells have a reference cell of their own name in their own place" in caplog.text
    assert "exclude_self=True" in caplog.text
    assert reference.obs["own_nearest"].max() < 1e-6


def test_cells_without_a_label_do_not_vote(parts, caplog):
    reference, query = parts
    labels = reference.obs[LABEL].astype(object)
    labels.iloc[:150] = np.nan
    reference.obs["some"] = pd.Categorical(labels)
    with caplog.at_level("INFO", logger="scanpy_scgpt"):
        index = scgpt.tl.build_index(reference, ["some"], use_rep="X_pca")
    assert len(index) == 250
    assert "150 cells without any label of 'some'" in caplog.text
    index = scgpt.tl.build_index(reference, ["some", "side"], use_rep="X_pca")
    assert len(index) == 400
    scgpt.tl.map_reference(query, index, use_rep="X_pca", n_neighbors=1)
    got = query.obs["scgpt_map_some"]
    assert 0 < got.isna().sum() < 300
    assert query.obs["scgpt_map_some_share"].isna().sum() == got.isna().sum()
    record = query.uns["scgpt"]["map_reference"]
    assert record["n_reference_unlabelled"].tolist() == [150, 0]
    assert record["n_unmapped"].tolist() == [int(got.isna().sum()), 0]
    reference.obs["none"] = np.nan
    with pytest.raises(ValueError, match="There are no cells for the index"):
        scgpt.tl.build_index(reference, "none", use_rep="X_pca")


def test_corrected_shares_and_distances_weigh(parts):
    reference, query = parts
    for name, given in {"plain": {}, "near": {"weights": "distance"}, "fair": {"correct_shares": True}}.items():
        scgpt.tl.map_reference(query, reference, LABEL, use_rep="X_pca", n_neighbors=50, key_added=name, **given)
    rare = reference.obs[LABEL].value_counts().index[-4:]
    assert query.obs["fair_bulk_labels"].isin(rare).sum() > query.obs["plain_bulk_labels"].isin(rare).sum()
    assert (query.obs["near_bulk_labels_share"] != query.obs["plain_bulk_labels_share"]).any()


def test_an_embedding_by_the_same_model_is_used(parts, model, monkeypatch, caplog):
    reference, query = parts
    index = scgpt.tl.build_index(reference, LABEL, model=model, **SETTINGS)
    scgpt.tl.map_reference(query, index, model=model, **SETTINGS)
    scgpt.tl.embed(query, model, backend="torch", **SETTINGS)
    with caplog.at_level("INFO", logger="scanpy_scgpt"):
        scgpt.tl.map_reference(query, index, model=model, key_added="again", **SETTINGS)
    assert "vectors of obsm['X_scgpt']" in caplog.text
    np.testing.assert_allclose(query.obs["again_distance"], query.obs["scgpt_map_distance"], atol=1e-6)
    query.uns["scgpt"]["embed"]["model_hash"] = "other"
    with pytest.raises(ValueError, match=r"made differently \(model_hash: 'other' and .*Leave use_rep out"):
        scgpt.tl.map_reference(query, index, use_rep="X_scgpt")
    del query.uns["scgpt"]["embed"]
    caplog.clear()
    with caplog.at_level("WARNING", logger="scanpy_scgpt"):
        scgpt.tl.map_reference(query, index, use_rep="X_scgpt")
    assert "nothing says which model made the vectors of the query" in caplog.text


def test_another_model_is_refused(parts, model):
    reference, query = parts
    index = scgpt.tl.build_index(reference, LABEL, model=model, **SETTINGS)
    with pytest.raises(
        ValueError, match=r"The index was made by tiny@\w+, and this is mini@\w+: .*by model=, or build"
    ):
        scgpt.tl.map_reference(query, index, model="mini", **SETTINGS)
    with pytest.raises(ValueError, match=r"made by tiny@\w+, which is not found by its name. Name its folder: model="):
        scgpt.tl.map_reference(query, index, **SETTINGS)


def test_cells_without_a_gene_get_no_label(parts, model, caplog):
    reference, query = parts
    query.X = sparse.diags((np.arange(300) >= 3).astype(float)).tocsr() @ query.X
    reference.X = sparse.diags((np.arange(400) != 5).astype(float)).tocsr() @ reference.X
    with caplog.at_level("WARNING", logger="scanpy_scgpt"):
        scgpt.tl.map_reference(query, reference, LABEL, model=model, **SETTINGS)
    assert query.obs[MAPPED].isna().tolist() == [True] * 3 + [False] * 297
    assert "3 cells have no gene of the vocabulary; they get no label" in caplog.text
    assert "1 without a gene of the vocabulary are left out" in caplog.text
    assert query.uns["scgpt"]["map_reference"]["n_reference"] == 399


def test_what_is_refused(parts, model, tmp_path):
    reference, query = parts
    index = scgpt.tl.build_index(reference, LABEL, use_rep="X_pca")
    for error, text, call in (
        (KeyError, "obs of the reference has no column 'bulk_label'; did you mean 'bulk_labels'",
         lambda: scgpt.tl.map_reference(query, reference, "bulk_label", use_rep="X_pca")),
        (KeyError, "The index has no column 'side'",
         lambda: scgpt.tl.map_reference(query, index, "side", use_rep="X_pca")),
        (KeyError, "obsm has no column 'X_pcs'; did you mean 'X_pca'",
         lambda: scgpt.tl.map_reference(query, index, use_rep="X_pcs")),
        (ValueError, "labels_keys is needed with an AnnData as reference. Columns of its obs: 'bulk_labels'",
         lambda: scgpt.tl.map_reference(query, reference)),
        (ValueError, "name each column of labels once", lambda: scgpt.tl.build_index(reference, [], use_rep="X_pca")),
        (ValueError, "n_neighbors=0: a whole number of at least 1",
         lambda: scgpt.tl.map_reference(query, index, n_neighbors=0, use_rep="X_pca")),
        (ValueError, "metric='euclidean', but the index was made for 'cosine'",
         lambda: scgpt.tl.map_reference(query, index, metric="euclidean", use_rep="X_pca")),
        (ValueError, "Nothing says which model made the vectors of the index",
         lambda: scgpt.tl.map_reference(query, index)),
        (ValueError, "are both given: vectors are made or taken",
         lambda: scgpt.tl.map_reference(query, index, model=model, use_rep="X_pca")),
        (ValueError, "is a file of cells. Make an index of it first", lambda: scgpt.tl.map_reference(query, "a.h5ad")),
        (FileNotFoundError, "is no index: there is no such folder",
         lambda: scgpt.tl.map_reference(query, tmp_path / "no")),
        (ValueError, "of a file needs a place for the result", lambda: scgpt.tl.map_reference("q.h5ad", index)),
        (ValueError, "of files needs a place for the index: path='r.index'",
         lambda: scgpt.tl.build_index("r.h5ad", LABEL)),
        (ValueError, "with a slash", lambda: scgpt.tl.map_reference(query, index, use_rep="X_pca", key_added="a/b")),
        (TypeError, "takes an AnnData, this is a dict", lambda: scgpt.tl.map_reference(query, {}, LABEL)),
    ):  # fmt: skip
        with pytest.raises(error, match=re.escape(text)):
            call()
    query.obsm["X_two"] = query.obsm["X_pca"][:, :2]
    with pytest.raises(ValueError, match=r"vectors of the query have 2 values, those of the index 50"):
        scgpt.tl.map_reference(query, index, use_rep="X_two")
    assert not [name for name in query.obs if name.startswith("scgpt_map")]


def test_the_receipt(parts, caplog):
    reference, query = parts
    with caplog.at_level("INFO", logger="scanpy_scgpt"):
        index = scgpt.tl.build_index(reference, LABEL, use_rep="X_pca")
        scgpt.tl.map_reference(query, index, use_rep="X_pca")
    built, mapped = caplog.messages
    assert built.startswith(
        "build_index: 400 reference cells (exact, cosine) · 10 labels of 'bulk_labels' · vectors of"
    )
    assert mapped.startswith(
        "map_reference: 300 cells · vectors of obsm['X_pca'] · 400 reference cells (exact, cosine)"
    )
    assert "15 neighbours · 10 labels of 'bulk_labels', mean share 0." in mapped
    assert isinstance(index, NeighbourIndex)


def test_even_votes_do_not_depend_on_blocks(tmp_path):
    """Equal vectors of two labels, first met in another order: the label first in the alphabet is elected."""
    vectors = np.ones((4, 3), np.float32)
    labels = np.array(["b", "a", "b", "a"])
    blocks = (CellBlock(vectors[i : i + 1], [str(i)], {"label": labels[i : i + 1]}) for i in range(4))
    streamed = NeighbourIndex.build(blocks, path=tmp_path / "index", origin={"use_rep": "X"})
    whole = NeighbourIndex.build(vectors, labels={"label": labels}, origin={"use_rep": "X"})
    assert streamed.categories("label") == ["b", "a"]
    query = ad.AnnData(obs=pd.DataFrame(index=["one", "two"]), obsm={"X": vectors[:2]})
    for index in (streamed, whole):
        scgpt.tl.map_reference(query, index, use_rep="X", n_neighbors=4)
        assert query.obs["scgpt_map_label"].tolist() == ["a", "a"]
        assert query.obs["scgpt_map_label"].cat.categories.tolist() == ["a", "b"]
        np.testing.assert_allclose(query.obs["scgpt_map_label_share"], 0.5)
