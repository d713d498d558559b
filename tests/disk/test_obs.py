"""Annotation of cells of files: names by ranges, and `obs` of a result written column by column."""

from __future__ import annotations

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import zarr
from anndata.io import read_elem, write_elem

from scanpy_scgpt.disk import _cells, _obs, open_cells, write_obs


@pytest.fixture(params=["h5ad", "zarr"])
def kind(request):
    return request.param


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(_cells, "_NAMES", 64)
    monkeypatch.setattr(_obs, "_NAMES", 100)


def file_of(obs, path, write_cells):
    return open_cells(write_cells(ad.AnnData(obs=obs), path))


def written(tmp_path, kind, files, extra=None, *, times=1):
    """What is read back after writing."""
    root = h5py.File(tmp_path / "out.h5", "w") if kind == "h5ad" else zarr.open_group(tmp_path / "out", zarr_format=2)
    for _ in range(times):
        write_obs(root, files, extra)
    found = read_elem(root["obs"])
    if kind == "h5ad":
        root.close()
    return found


def test_names_by_ranges(counts, tmp_path, kind, write_cells):
    cells, wanted = file_of(counts.obs, tmp_path / f"a.{kind}", write_cells), counts.obs_names.to_numpy().astype(str)
    for start, stop in ((0, 5), (5, 60), (60, 70), (650, 700), (690, 900), (0, 700), (10, 10), (700, 700)):
        names = cells.names(start, stop)
        assert names.dtype.kind == "U"
        np.testing.assert_array_equal(names, wanted[start:stop])


@pytest.mark.parametrize(
    "index",
    [np.arange(700), pd.Categorical([f"c{i % 9}" for i in range(700)]), np.array([f"é{i}" for i in range(700)], "O")],
)
def test_names_of_other_kinds(counts, tmp_path, kind, write_cells, index):
    path = tmp_path / f"a.{kind}"
    root = h5py.File(path, "w") if kind == "h5ad" else zarr.open_group(path, mode="w", zarr_format=2)
    for name in ("obs", "var"):
        write_elem(root, name, getattr(counts, name))
    name = root["obs"].attrs["_index"]
    del root["obs"][name]
    write_elem(root["obs"], name, index)
    if kind == "h5ad":
        root.close()
    cells = open_cells(path)
    assert cells.n_obs == 700
    np.testing.assert_array_equal(cells.names(3, 300), np.asarray(index, dtype=object).astype(str)[3:300])
    np.testing.assert_array_equal(cells.names(3, 300), cells.obs_names[3:300])


def test_obs_of_one_file_comes_back(pbmc, tmp_path, kind, write_cells):
    obs = pbmc.obs.copy()
    obs.index.name = "barcode"
    obs["text"] = np.array([f"t{i}" for i in range(700)], dtype=object)
    obs["whole"] = pd.array([None, *range(699)], dtype="Int64")
    obs["flag"] = np.arange(700) % 2 == 0
    cells = file_of(obs, tmp_path / f"a.{kind}", write_cells)
    extra = {"scgpt_qc": pd.Categorical.from_codes(np.zeros(700, np.int8), ["ok", "empty"])}
    found = written(tmp_path, kind, [cells], extra, times=2)
    pd.testing.assert_frame_equal(found, cells.obs.assign(**extra), check_column_type=False)


def test_obs_of_several_files(counts, tmp_path, kind, write_cells):
    first, second = counts.obs.iloc[:300].copy(), counts.obs.iloc[300:].copy()
    first["kind"], second["kind"] = pd.Categorical(["a"] * 300, ["b", "a"]), pd.Categorical(["c"] * 400)
    first["n"], second["n"] = np.arange(300), np.arange(400) / 2
    first["mixed"], second["mixed"] = np.arange(300), pd.Categorical(["x"] * 400)
    first["only"] = 1
    files = [
        file_of(first, tmp_path / "a.h5ad", write_cells),
        file_of(second.iloc[:, ::-1], tmp_path / "b.zarr", write_cells),
        file_of(second.iloc[:0], tmp_path / "c.h5ad", write_cells),
    ]
    found = written(tmp_path, kind, files, {"n": np.arange(700)})
    assert found.columns.tolist() == [*counts.obs.columns, "kind", "mixed", "scgpt_file", "n"]
    assert found.index.tolist() == counts.obs_names.tolist()
    assert found["bulk_labels"].tolist() == counts.obs["bulk_labels"].tolist()
    assert found["kind"].cat.categories.tolist() == ["b", "a", "c"]
    assert found["kind"].tolist() == ["a"] * 300 + ["c"] * 400
    assert found["mixed"].tolist() == [*map(str, range(300)), *["x"] * 400]
    assert found["scgpt_file"].tolist() == ["a.h5ad"] * 300 + ["b.zarr"] * 400
    assert found["scgpt_file"].cat.categories.tolist() == ["a.h5ad", "b.zarr", "c.h5ad"]
    assert found["n"].tolist() == list(range(700))


def test_categories_of_two_types_become_text(tmp_path, kind, write_cells):
    tables = [
        pd.DataFrame({"x": pd.Categorical(values)}, index=["a", "b"]) for values in ([1, 2], ["1", "z"], ["z", np.nan])
    ]
    files = [file_of(table, tmp_path / f"{i}.h5ad", write_cells) for i, table in enumerate(tables)]
    found = written(tmp_path, kind, files)["x"]
    assert found.astype(object).fillna("-").tolist() == ["1", "2", "1", "z", "z", "-"]
    assert found.cat.categories.tolist() == ["1", "2", "z"]


def test_a_table_without_columns_or_cells(tmp_path, kind, write_cells):
    empty = file_of(pd.DataFrame(index=pd.Index([], dtype=object)), tmp_path / "a.h5ad", write_cells)
    assert written(tmp_path, kind, [empty]).shape == (0, 0)
