"""Shuffled batches of rows: each row once, as it is in the matrix."""

from __future__ import annotations

import threading

import h5py
import numpy as np
import pytest
from scipy import sparse

from scanpy_scgpt._counts import CountSource
from scanpy_scgpt.disk import DiskMatrix, open_cells, row_batches


@pytest.fixture(params=["csr", "csr zarr", "dense", "half", "in memory"])
def matrix(request, counts, tmp_path, write_cells):
    if request.param == "in memory":
        return CountSource("X", counts.X, counts.var)
    if request.param == "dense":
        counts.X = counts.X.toarray().astype(np.float32)
    if request.param == "half":
        path = write_cells(counts, tmp_path / "x.h5ad")
        with h5py.File(path, "r+") as file:
            data = file["X/data"][:].astype(np.float16)
            del file["X/data"]
            file["X/data"] = data
        return open_cells(path).X
    return open_cells(write_cells(counts, tmp_path / ("x.zarr" if "zarr" in request.param else "x.h5ad"))).X


@pytest.mark.parametrize(
    ("batch_size", "block_size", "pool_blocks"), [(64, 64, 64), (7, 5, 3), (100, 3, 4), (1000, 64, 2)]
)
@pytest.mark.parametrize("ahead", [True, False])
def test_each_row_once(counts, matrix, batch_size, block_size, pool_blocks, ahead):
    wanted = counts.X.copy()
    sizes = {"batch_size": batch_size, "block_size": block_size, "pool_blocks": pool_blocks}
    batches = list(row_batches(matrix, seed=3, ahead=ahead, **sizes))
    for batch in batches:
        assert batch.rows.format == "csr"
        assert sparse.csr_matrix((batch.rows.data, batch.rows.indices, batch.rows.indptr)).has_canonical_format
        np.testing.assert_array_equal(batch.rows.toarray(), sparse.csr_matrix(wanted[batch.cells]).toarray())
    cells = np.concatenate([batch.cells for batch in batches])
    np.testing.assert_array_equal(np.sort(cells), np.arange(700))
    assert (np.diff(cells) != 1).any()
    assert {len(batch.cells) for batch in batches[:-1]} <= {batch_size}
    again = row_batches(matrix, seed=3, ahead=not ahead, **sizes)
    np.testing.assert_array_equal(cells, np.concatenate([batch.cells for batch in again]))


def test_ranks_and_workers_share_the_rows(counts, tmp_path, write_cells):
    matrix = open_cells(write_cells(counts, tmp_path / "x.h5ad")).X
    places = [(r, w) for r in range(2) for w in range(3)]
    shares = [
        [b.cells for b in row_batches(matrix, rank=r, world_size=2, worker=w, n_workers=3, epoch=1)] for r, w in places
    ]
    cells = np.concatenate([x for share in shares for x in share])
    np.testing.assert_array_equal(np.sort(cells), np.arange(700))
    ordered = np.concatenate([b.cells for b in row_batches(matrix, shuffle=False, batch_size=33)])
    np.testing.assert_array_equal(ordered, np.arange(700))


def test_an_early_stop_ends_the_thread(counts, tmp_path, write_cells):
    batches = row_batches(open_cells(write_cells(counts, tmp_path / "x.h5ad")).X, block_size=8, pool_blocks=4)
    next(batches)
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("cells")]


def edited(counts, path, part, change):
    counts.X = counts.X.astype(np.float32)
    counts.write_h5ad(path)
    with h5py.File(path, "r+") as file:
        file[f"X/{part}"][:] = change(file[f"X/{part}"][:])
    return DiskMatrix(path)


def test_unsorted_and_repeated_columns_are_put_right(counts, tmp_path):
    matrix = counts.X.astype(np.float32)
    first = slice(matrix.indptr[9], matrix.indptr[10])

    def change(columns):
        columns[first] = columns[first][::-1]
        columns[first.start] = columns[first.start + 1]
        return columns

    disk = edited(counts, tmp_path / "x.h5ad", "indices", change)
    wanted = matrix[:].copy()
    wanted.indices[:] = change(wanted.indices)
    for batch in row_batches(disk):
        np.testing.assert_array_equal(
            batch.rows.toarray(), sparse.csr_matrix((wanted.data, wanted.indices, wanted.indptr))[batch.cells].toarray()
        )
        assert batch.rows.has_canonical_format


@pytest.mark.parametrize(("value", "text"), [(np.nan, "holds 1 NaN or infinite"), (-1.0, "X has negative values")])
def test_values_of_a_source_are_looked_at(counts, tmp_path, value, text):
    def change(data):
        data[1000] = value
        return data

    matrix = edited(counts, tmp_path / "x.h5ad", "data", change)
    with pytest.raises(ValueError, match=text):
        list(row_batches(CountSource("X", matrix, counts.var)))
    assert sum(len(batch.cells) for batch in row_batches(matrix)) == 700


def test_damage_is_told(counts, tmp_path):
    matrix = edited(counts, tmp_path / "x.h5ad", "indices", lambda x: x + 1)
    with pytest.raises(
        ValueError, match=r"X has indices from \d+ to 765, and shape \(700, 765\)\. The file is damaged"
    ):
        list(row_batches(matrix))
    with pytest.raises(ValueError, match=r"batch_size=0: use 1 or more\."):
        row_batches(matrix, batch_size=0)
    with pytest.raises(ValueError, match=r"block_size=0: use 1 or more"):
        row_batches(matrix, block_size=0)
