"""Counts by rows, from every kind of matrix in memory and on disk."""

from __future__ import annotations

import warnings

import anndata as ad
import dask.array as da
import h5py
import numpy as np
import pytest
import zarr
from scipy import sparse

from scanpy_scgpt._counts import CountSource, choose_counts
from scanpy_scgpt.disk import DiskMatrix, as_cells, open_cells


@pytest.fixture
def file(counts, tmp_path):
    path = tmp_path / "x.h5ad"
    counts.write_h5ad(path)
    with h5py.File(path, "r+") as opened:
        opened["dense"] = counts.X.toarray()
    return path


def _zarr(counts, folder):
    return zarr.create_array(folder / "x.zarr", data=counts.X.toarray())


def _lazy(file):
    from anndata.experimental import read_elem_lazy

    return read_elem_lazy(h5py.File(file, "r")["X"], chunks=(100, 765))


KINDS = {
    "csr": lambda counts, _: counts.X,
    "csc": lambda counts, _: counts.X.tocsc(),
    "csr array": lambda counts, _: sparse.csr_array(counts.X),
    "dense": lambda counts, _: counts.X.toarray(),
    "DiskMatrix": lambda _, file: DiskMatrix(file, "X"),
    "DiskMatrix dense": lambda _, file: DiskMatrix(file, "dense"),
    "backed": lambda _, file: ad.read_h5ad(file, backed="r").X,
    "h5py": lambda _, file: h5py.File(file, "r")["dense"],
    "zarr": lambda counts, file: _zarr(counts, file.parent),
    "dask of CSR": lambda counts, _: da.from_array(counts.X, chunks=(100, 765), asarray=False),
    "dask of dense": lambda counts, _: da.from_array(counts.X.toarray(), chunks=(130, 300)),
    "read_elem_lazy": lambda _, file: _lazy(file),
}


@pytest.mark.parametrize("kind", KINDS)
def test_rows_and_blocks_of_every_kind(counts, file, kind):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source = CountSource("X", KINDS[kind](counts, file), counts.var)
    assert source.n_obs == 700
    assert source.on_disk == (kind not in {"csr", "csc", "csr array", "dense"})
    assert source.kind() == "counts"
    wanted = counts.X.toarray()
    rows = source.rows(95, 205)
    assert rows.format == "csr"
    assert rows.has_canonical_format
    np.testing.assert_array_equal(rows.toarray(), wanted[95:205])
    blocks = source.take_blocks(np.array([600, 0, 50]), np.array([700, 50, 51]))
    np.testing.assert_array_equal(blocks.toarray(), wanted[[*range(600, 700), *range(51)]])
    assert source.take_blocks(np.array([], int), np.array([], int)).shape == (0, 765)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.nan, r"X: one of its blocks holds 1 NaN or infinite values\."),
        (np.inf, r"X: one of its blocks holds 1 NaN or infinite values\."),
        (-2.0, r"X has negative values \(minimum -2; \d+% of the entries looked at\): it looks scaled\."),
    ],
)
@pytest.mark.parametrize("dense", [True, False])
def test_bad_values_on_disk_are_found_in_their_block(counts, tmp_path, value, text, dense):
    counts = (
        counts.concatenate([counts] * 4) if not hasattr(ad, "concat") else ad.concat([counts] * 5, index_unique="-")
    )
    counts.X = counts.X.astype(np.float32)
    row = 1000  # between the places that are looked at beforehand
    counts.X.data[counts.X.indptr[row]] = value
    if dense:
        counts.X = counts.X.toarray()
    counts.write_h5ad(tmp_path / "x.h5ad")
    source = choose_counts(open_cells(tmp_path / "x.h5ad"))
    source.rows(0, row)
    source.take_blocks([row + 1], [row + 50])
    for read in (lambda: source.rows(row, row + 1), lambda: source.take_blocks([0, row], [5, row + 5])):
        with pytest.raises(ValueError, match=text):
            read()


def test_an_unsorted_file_is_sorted(counts, tmp_path):
    matrix = counts.X
    for row in range(700):
        part = slice(matrix.indptr[row], matrix.indptr[row + 1])
        matrix.indices[part], matrix.data[part] = matrix.indices[part][::-1].copy(), matrix.data[part][::-1].copy()
    wanted = matrix.toarray()
    with h5py.File(tmp_path / "x.h5ad", "w") as file:
        group = file.create_group("X")
        group.attrs.update({"encoding-type": "csr_matrix", "shape": matrix.shape})
        for part in ("data", "indices", "indptr"):
            group[part] = getattr(matrix, part)
    rows = CountSource("X", DiskMatrix(tmp_path / "x.h5ad", "X"), counts.var).take_blocks([5], [300])
    assert rows.has_canonical_format
    np.testing.assert_array_equal(rows.toarray(), wanted[5:300])


def test_a_backed_object_reads_as_in_memory(counts, file):
    backed = ad.read_h5ad(file, backed="r")
    plain, fast = choose_counts(backed), choose_counts(as_cells(backed))
    assert isinstance(fast.matrix, DiskMatrix)
    np.testing.assert_array_equal(fast.rows(3, 99).toarray(), plain.rows(3, 99).toarray())
    backed.file.close()


def test_columns_on_disk_are_refused(counts, tmp_path):
    counts.X = counts.X.tocsc()
    counts.write_h5ad(tmp_path / "x.h5ad")
    with pytest.raises(ValueError, match=r"X lies on disk by columns.*disk\.rewrite\('.*x\.h5ad', 'x-rows\.h5ad'\)"):
        choose_counts(open_cells(tmp_path / "x.h5ad"))
