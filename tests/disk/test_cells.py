"""Files of cells: the slots that are read, what is refused and how it is said, and rewriting."""

from __future__ import annotations

import os
import warnings

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import zarr
from scipy import sparse

from scanpy_scgpt import disk
from scanpy_scgpt._counts import choose_counts

KINDS = ("h5ad", "zarr")


@pytest.fixture
def full(counts, pbmc):
    """Cells with every slot filled: log-normalised X, counts in a layer, raw of other genes."""
    adata = pbmc[:, :700].copy()
    adata.layers["counts"] = counts.X[:, :700].copy()
    adata.layers["dense"] = counts.X[:, :700].toarray().astype(np.float32) + 1
    adata.raw = counts
    return adata


def write(adata, folder, kind, **options):
    path = folder / f"cells.{kind}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # which format of zarr is written
        getattr(adata, f"write_{kind}")(path, **options)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_the_slots_are_those_of_the_object(full, tmp_path, kind):
    path = write(full, tmp_path, kind)
    with disk.open_cells(path) as cells:
        assert (cells.path, cells.n_obs, cells.modality) == (path, 700, None)
        assert cells.obs_names.dtype.kind == "U"
        np.testing.assert_array_equal(cells.obs_names, full.obs_names)
        pd.testing.assert_frame_equal(cells.var, full.var)
        pd.testing.assert_frame_equal(cells.obs, full.obs)
        assert list(cells.obs_column("bulk_labels")) == list(full.obs["bulk_labels"])
        np.testing.assert_array_equal(cells.X[100:200].toarray(), full.X[100:200].toarray())
        assert sorted(cells.layers) == ["counts", "dense"]
        assert len(cells.layers) == 2
        np.testing.assert_array_equal(cells.layers["dense"][5:9], full.layers["dense"][5:9])
        np.testing.assert_array_equal(cells.raw.X[5:9].toarray(), full.raw.X[5:9].toarray())
        assert list(cells.raw.var.index) == list(full.raw.var_names)
        assert repr(cells) == f"CellFile(700 cells, {str(path)!r})"


@pytest.mark.parametrize("kind", KINDS)
def test_counts_are_chosen_as_from_the_object(full, tmp_path, kind):
    for change in (None, "counts", "raw"):
        if change == "counts":
            del full.layers["counts"]
        elif change == "raw":
            full.raw = None
        found = choose_counts(disk.open_cells(write(full, tmp_path, kind)))
        wanted = choose_counts(full)
        assert (found.where, found.kind(), found.n_obs) == (wanted.where, wanted.kind(), 700)
        np.testing.assert_array_equal(found.rows(30, 99).toarray(), wanted.rows(30, 99).toarray())


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_else_is_read(full, tmp_path, kind, monkeypatch):
    path, asked = write(full, tmp_path, kind), []
    monkeypatch.setattr(
        disk.CellFile, "read", lambda self, name: asked.append(name) or getattr(full, name.split("/")[0])
    )
    source = choose_counts(disk.open_cells(path))
    source.rows(0, 10)
    assert asked == ["var"]


def test_no_matrix(counts, tmp_path):
    path = write(ad.AnnData(obs=counts.obs, var=counts.var), tmp_path, "h5ad")
    cells = disk.open_cells(path)
    assert cells.X is None
    assert cells.raw is None
    assert dict(cells.layers) == {}
    with pytest.raises(ValueError, match="adata has no matrix: X is None, and there is no layer 'counts'"):
        choose_counts(cells)
    with pytest.raises(KeyError, match=r"cells.h5ad has no column 'x'\. Columns: bulk_labels, percent_mito\."):
        cells.obs_column("x")


@pytest.mark.parametrize("kind", KINDS)
def test_the_fingerprint_tells_files_apart(full, tmp_path, kind):
    path = write(full, tmp_path, kind)
    first = disk.open_cells(path).fingerprint()
    assert (first["path"], first["n_obs"], first["n_vars"]) == (path.name, 700, 700)
    assert disk.open_cells(path).fingerprint() == first
    inner = path if kind == "h5ad" else next(file for file in path.rglob("*") if file.is_file())
    os.utime(inner, (2e9, 2e9))
    assert disk.open_cells(path).fingerprint() != first


def test_a_modality(counts, pbmc, tmp_path):
    import mudata

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mudata.MuData({"rna": counts, "prot": pbmc[:, :9].copy()}).write(tmp_path / "x.h5mu")
    cells = disk.open_cells(tmp_path / "x.h5mu")
    assert cells.modality == "rna"
    np.testing.assert_array_equal(cells.X[5:9].toarray(), counts.X[5:9].toarray())
    assert disk.open_cells(tmp_path / "x.h5mu", modality="prot").X.shape == (700, 9)
    assert len(disk.open_cells(tmp_path / "x.h5mu", modality="prot").var) == 9
    with pytest.raises(KeyError, match=r"no modality 'atac'\. Modalities: 'prot', 'rna'\. Name one: modality='prot'\."):
        disk.open_cells(tmp_path / "x.h5mu", modality="atac")
    disk.rewrite(tmp_path / "x.h5mu", tmp_path / "rna.h5ad")
    np.testing.assert_array_equal(ad.read_h5ad(tmp_path / "rna.h5ad").X.toarray(), counts.X.toarray())
    with pytest.raises(ValueError, match=r"modality='rna', but .*rna.h5ad is no MuData\. Leave modality out\."):
        disk.open_cells(tmp_path / "rna.h5ad", modality="rna")


def _text(path):
    path.write_text("a,b\n1,2\n")


def _ten_x(path):
    with h5py.File(path, "w") as file:
        file.create_group("matrix")


def _old(path):
    with h5py.File(path, "w") as file:
        file["obs"], file["var"] = np.zeros(3), np.zeros(3)


@pytest.mark.parametrize(
    ("name", "make", "error", "text"),
    [
        ("x.h5ad", None, FileNotFoundError, "There is no file or folder {path}."),
        ("x.h5ad", lambda p: p.touch(), OSError, "{path} is no HDF5 file: it is empty. Give the path of an .h5ad file"),
        ("x.h5ad", _text, OSError, "{path} is no HDF5 file: its 8 bytes are something else. Give the path of"),
        ("x", lambda p: p.mkdir(), OSError, "{path} is a folder, but no zarr group ("),
        ("x.h5ad", lambda p: h5py.File(p, "w").close(), ValueError, "{path} is not the file of an AnnData: it has "
         "nothing and no 'obs'. Give the path of an .h5ad file or a .zarr folder."),
        ("x.zarr", lambda p: zarr.open_group(p, mode="w"), ValueError, "{path} is not the file of an AnnData: it has"),
        ("x.h5", _ten_x, ValueError, "{path} is a .h5 file, cells are read from .h5ad and .zarr. Convert it: "
         "scanpy.read_10x_h5('{path}').write_h5ad('{stem}.h5ad')."),
        ("x.h5ad", _ten_x, ValueError, "{path} is not the file of an AnnData: it has 'matrix' and no 'obs'. "
         "Convert it: scanpy.read_10x_h5("),
        ("x.loom", lambda p: p.touch(), ValueError, "{path} is a .loom file, cells are read from .h5ad and .zarr. "
         "Convert it: anndata.io.read_loom('{path}').write_h5ad("),
        ("x.csv", _text, ValueError, "Convert it: anndata.io.read_csv("),
        ("x.h5ad", _old, ValueError, "{path} was written by anndata before 0.7 (obs is one array). Write it anew: "
         "anndata.read_h5ad('{path}').write_h5ad('new.h5ad')."),
    ],
)  # fmt: skip
def test_what_is_no_file_of_cells(tmp_path, name, make, error, text):
    path = tmp_path / name
    if make is not None:
        make(path)
    with pytest.raises(error) as caught:
        disk.open_cells(path)
    assert text.format(path=path, stem=path.with_suffix("")) in str(caught.value)


def test_as_cells(full, tmp_path):
    path = write(full, tmp_path, "h5ad")
    assert disk.as_cells(full) is full
    assert isinstance(disk.as_cells(str(path)), disk.CellFile)
    for mode in ("r", "r+"):
        backed = ad.read_h5ad(path, backed=mode)
        cells = disk.as_cells(backed)
        assert isinstance(cells.X, disk.DiskMatrix)
        assert cells.var is backed.var
        assert cells.n_obs == 700
        assert disk.as_cells(backed[:5]).n_obs == 5
        np.testing.assert_array_equal(cells.X[3:9].toarray(), full.X[3:9].toarray())
        np.testing.assert_array_equal(cells.raw.X[3:9].toarray(), full.raw.X[3:9].toarray())
        source = choose_counts(cells, layer=None, use_raw=True)
        np.testing.assert_array_equal(source.rows(3, 9).toarray(), full.raw.X[3:9].toarray())
        backed.file.close()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("to", KINDS)
def test_rewriting_keeps_everything(full, tmp_path, kind, to, fingerprint):
    full.layers["dense_zeros"] = full.layers["counts"].toarray().astype(np.float32)
    path = write(full, tmp_path, kind, **({"compression": "gzip"} if kind == "h5ad" else {}))
    out = disk.rewrite(path, tmp_path / f"out.{to}", chunk=5000)
    wanted, found = full.copy(), getattr(ad, f"read_{to}")(out)
    wanted.layers["dense_zeros"] = sparse.csr_matrix(wanted.layers["dense_zeros"])
    for part in (found.X, found.layers["counts"], found.raw.X):
        assert part.format == "csr"
    assert fingerprint(found).keys() == fingerprint(wanted).keys()
    for name, matrix in (("counts", found.layers["counts"]), ("dense_zeros", found.layers["dense_zeros"])):
        np.testing.assert_array_equal(matrix.toarray(), wanted.layers[name].toarray())
    np.testing.assert_array_equal(found.layers["dense"], wanted.layers["dense"])
    np.testing.assert_array_equal(found.X.toarray(), wanted.X.toarray())
    np.testing.assert_array_equal(found.raw.X.toarray(), wanted.raw.X.toarray())
    pd.testing.assert_frame_equal(found.obs, wanted.obs)
    pd.testing.assert_frame_equal(found.var, wanted.var)
    np.testing.assert_array_equal(found.obsm["X_pca"], wanted.obsm["X_pca"])
    assert (found.obsp["distances"] != wanted.obsp["distances"]).nnz == 0
    cells = disk.open_cells(out)
    for matrix in (cells.X, *cells.layers.values(), cells.raw.X):
        assert matrix.layout_advice() is None
    assert sorted(item.name for item in tmp_path.iterdir()) == sorted({path.name, out.name})


@pytest.mark.parametrize("budget", [1000, 20_000, 2**25])
def test_columns_are_rewritten_in_passes(counts, tmp_path, budget, monkeypatch):
    from scanpy_scgpt.disk import _rewrite

    monkeypatch.setattr(_rewrite, "_BY_COLUMNS", budget)
    monkeypatch.setattr(_rewrite, "_STEP", 7000)
    wanted = counts.X.tocsr()
    counts.X = counts.X.tocsc()
    disk.rewrite(write(counts, tmp_path, "h5ad"), tmp_path / "rows.h5ad")
    found = ad.read_h5ad(tmp_path / "rows.h5ad").X
    assert found.format == "csr"
    assert found.has_canonical_format
    np.testing.assert_array_equal(found.toarray(), wanted.toarray())


def test_rewriting_replaces_only_when_asked(counts, tmp_path):
    path = write(counts, tmp_path, "h5ad")
    for out in (tmp_path / "out.h5ad", tmp_path / "out.zarr"):
        disk.rewrite(path, out)
        with pytest.raises(FileExistsError, match=r"exists\. Name another place, or pass overwrite=True\."):
            disk.rewrite(path, out)
        disk.rewrite(path, out, overwrite=True)
    disk.rewrite(path, path, overwrite=True)  # onto itself
    np.testing.assert_array_equal(ad.read_h5ad(path).X.toarray(), counts.X.toarray())
    with pytest.raises(ValueError, match=r"out\.loom': the name must end in \.h5ad or \.zarr\."):
        disk.rewrite(path, tmp_path / "out.loom")
    with pytest.raises(ValueError, match=r"chunk=0: use 1 or more values per chunk; 262,144 are a good start\."):
        disk.rewrite(path, tmp_path / "new.h5ad", chunk=0)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["cells.h5ad", "out.h5ad", "out.zarr"]


def test_a_failed_rewriting_leaves_nothing(counts, tmp_path):
    path = write(counts, tmp_path, "h5ad")
    with h5py.File(path, "r+") as file:
        file["X/indices"][-1] = 10_000
    disk.rewrite(write(counts, tmp_path, "zarr"), tmp_path / "out.h5ad")
    before = (tmp_path / "out.h5ad").read_bytes()
    with pytest.raises(ValueError, match="X has indices from"):
        disk.rewrite(path, tmp_path / "out.h5ad", overwrite=True)
    assert (tmp_path / "out.h5ad").read_bytes() == before
    assert sorted(item.name for item in tmp_path.iterdir()) == ["cells.h5ad", "cells.zarr", "out.h5ad"]


@pytest.mark.parametrize("kind", KINDS)
def test_names_and_columns_with_a_mask(counts, tmp_path, kind):
    """As newer releases of anndata write them: nullable text, also as the index; of a categorical with short names."""
    counts.obs_names = pd.Index(pd.array(counts.obs_names, dtype="string"))
    counts.obs["text"] = pd.array(["a", None, *["b"] * 698], dtype="string")
    counts.obs["whole"] = pd.array([None, *range(699)], dtype="Int64")
    with ad.settings.override(allow_write_nullable_strings=True):
        path = write(counts, tmp_path, kind)
    cells = disk.open_cells(path)
    assert cells.names(5, 9).tolist() == counts.obs_names[5:9].tolist()
    assert cells.obs_texts("text", 0, 3).tolist() == ["a", "nan", "b"]
    assert cells.obs_texts("whole", 0, 3).tolist() == ["<NA>", "0", "1"]
