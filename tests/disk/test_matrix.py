"""Matrices in files: every layout gives the rows of the matrix in memory; damage is named."""

from __future__ import annotations

import os
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context

import h5py
import numcodecs
import numpy as np
import pytest
import zarr
from scipy import sparse
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec

from scanpy_scgpt.disk import DiskMatrix, _matrix

LAYOUTS = {  # options of the arrays in the file; True where its bytes lie plain
    "h5ad": ({}, True),
    "h5ad chunked": ({"chunks": 1500}, True),
    "h5ad gzip": ({"chunks": 1500, "compression": "gzip"}, False),
    "h5ad lzf": ({"chunks": 1500, "compression": "lzf"}, False),
    "zarr2": ({"chunks": 1500, "compressors": None}, True),
    "zarr2 zstd": ({"chunks": 1500, "compressors": numcodecs.Zstd()}, False),
    "zarr3": ({"chunks": 1500, "compressors": None}, True),
    "zarr3 zstd": ({"chunks": 1500}, False),
    "zarr3 shards": ({"chunks": 1500, "shards": 6000, "compressors": None}, True),
    "zarr3 shards zstd": ({"chunks": 1500, "shards": 6000}, False),
}
each_layout = pytest.mark.parametrize("layout", LAYOUTS)


def written(folder, matrix, layout="h5ad"):
    """A file with the matrix under `X`."""
    kind, options = layout.split()[0], dict(LAYOUTS[layout][0])
    if kind == "h5ad":
        path = folder / "x.h5ad"
        root = h5py.File(path, "w")
        create = "create_dataset"
    else:
        path = folder / "x.zarr"
        root = zarr.open_group(path, mode="w", zarr_format=int(kind[-1]))
        create = "create_array"
    for name in ("chunks", "shards"):
        if name in options:
            rows = max(options[name] // matrix.shape[1], 1) * (1 + (name == "shards"))
            options[name] = (options[name],) if sparse.issparse(matrix) else (rows, matrix.shape[1])
    if sparse.issparse(matrix):
        group = root.create_group("X")
        group.attrs.update({"encoding-type": f"{matrix.format}_matrix", "shape": list(matrix.shape)})
        for part in ("data", "indices", "indptr"):
            values = getattr(matrix, part)
            chunked = {} if kind == "h5ad" and part == "indptr" else options
            getattr(group, create)(part, data=values, **chunked)
    else:
        getattr(root, create)("X", data=matrix, **options)
    if kind == "h5ad":
        root.close()
    return path


def same(found, wanted):
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype
    if sparse.issparse(found):
        np.testing.assert_array_equal(found.toarray(), wanted.toarray())
    else:
        np.testing.assert_array_equal(found, wanted)


@each_layout
@pytest.mark.parametrize("kind", ["csr", "dense"])
def test_rows_are_those_in_memory(counts, tmp_path, layout, kind):
    wanted = counts.X.astype(np.float32)
    wanted = wanted if kind == "csr" else wanted.toarray()
    matrix = DiskMatrix(written(tmp_path, wanted, layout), "X")
    assert (matrix.shape, matrix.dtype, matrix.format, matrix.on_disk) == (wanted.shape, np.float32, kind, True)
    assert kind == "dense" or matrix.parts[0].is_plain == LAYOUTS[layout][1]
    for rows in (slice(0, 64), slice(699, 700), slice(650, 900), slice(5, 5), slice(None), slice(-3, None)):
        same(matrix[rows], wanted[rows])
    starts = np.array([640, 0, 64, 128, 7, 320])
    stops = np.array([700, 64, 128, 128, 9, 321])
    blocks = [sparse.csr_matrix(wanted[a:b]) for a, b in zip(starts, stops, strict=True)]
    same(matrix.take_blocks(starts, stops), sparse.vstack(blocks, format="csr"))
    assert matrix.take_blocks([], []).shape == (0, 765)


@pytest.mark.parametrize("dtype", ["u1", "i2", "i8", "u4", "f2", "f8", ">f4", "?"])
def test_any_type_of_numbers(counts, tmp_path, dtype):
    dense = np.minimum(counts.X[:50].toarray(), 100).astype(dtype)
    matrix = DiskMatrix(written(tmp_path, dense, "h5ad"))
    same(matrix[10:20], dense[10:20].astype(np.dtype(dtype).newbyteorder("=")))
    np.testing.assert_array_equal(matrix.take_blocks([10], [20]).toarray(), dense[10:20])


def test_adjacent_ranges_are_one_read(counts, tmp_path, monkeypatch):
    matrix = DiskMatrix(written(tmp_path, counts.X))
    asked = []
    each = type(matrix.parts[0]).each
    monkeypatch.setattr(type(matrix.parts[0]), "each", lambda self, a, b: asked.append(len(a)) or each(self, a, b))
    matrix.take_blocks([64, 128, 0], [128, 192, 10])
    assert asked == [2, 2]


@pytest.mark.parametrize("layout", ["h5ad", "h5ad gzip", "zarr2", "zarr3 shards"])
@pytest.mark.parametrize("piece", [1, 1000, 2**16])
def test_rows_in_another_order(counts, tmp_path, layout, piece, monkeypatch):
    monkeypatch.setattr(_matrix, "_PIECE", piece)
    matrix = DiskMatrix(written(tmp_path, counts.X, layout))
    starts, stops = np.array([64, 600, 0, 5]), np.array([128, 700, 64, 5])
    rows = np.concatenate([np.arange(a, b) for a, b in zip(starts, stops, strict=True)])
    order = np.random.default_rng(0).permutation(rows.size)
    same(matrix.take_blocks(starts, stops, order), counts.X[rows[order]])
    for wrong in (order[1:], np.append(order[1:], order[1]), order + 1, order - 1):
        text = rf"X is asked for 228 rows in an order of {len(wrong)}: it must hold 0 to n - 1, each once"
        with pytest.raises(ValueError, match=text):
            matrix.take_blocks(starts, stops, wrong)


def test_dense_rows_in_another_order(counts, tmp_path):
    dense = counts.X.toarray()
    matrix = DiskMatrix(written(tmp_path, dense, "h5ad"))
    np.testing.assert_array_equal(matrix.take_blocks([3, 9], [5, 10], [2, 0, 1]).toarray(), dense[[9, 3, 4]])


def _rows(matrix, start, stop):
    return matrix[start:stop].sum()


@pytest.mark.parametrize("layout", ["h5ad", "h5ad gzip", "zarr3 zstd"])
def test_pickle_threads_and_processes(counts, tmp_path, layout):
    matrix = DiskMatrix(written(tmp_path, counts.X, layout))
    wanted = [int(counts.X[i : i + 50].sum()) for i in range(0, 700, 50)]
    ranges = [(matrix, i, i + 50) for i in range(0, 700, 50)]
    assert _rows(*ranges[0]) == wanted[0]  # a handle is open now, where one is needed
    again = pickle.loads(pickle.dumps(matrix))
    assert _rows(again, 0, 50) == wanted[0]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda args: _rows(*args), ranges)) == wanted
    if layout == "zarr3 zstd":
        return
    with get_context("fork").Pool(2) as processes:
        assert processes.starmap(_rows, ranges) == wanted


def test_columns_are_refused_with_the_mending_line(counts, tmp_path):
    matrix = DiskMatrix(written(tmp_path, counts.X.tocsc()))
    assert matrix.format == "csc"
    with pytest.raises(ValueError, match=r"x.h5ad: X lies on disk by columns \(CSC\).*Rewrite it by rows: a = "):
        matrix[:3]
    assert "by columns" in matrix.layout_advice()


@pytest.mark.parametrize("where", ["array", "shards", "index"])
def test_bytes_in_the_other_order(counts, tmp_path, where):
    """Numbers of the other order are read by the library, those in shards and the tables of shards too."""
    path, other = tmp_path / "x.zarr", {"little": "big", "big": "little"}[sys.byteorder]
    root = zarr.open_group(path, mode="w", zarr_format=3)
    group = root.create_group("X")
    group.attrs.update({"encoding-type": "csr_matrix", "shape": list(counts.X.shape)})
    for part in ("data", "indices", "indptr"):
        values = getattr(counts.X, part)
        order = BytesCodec(endian=sys.byteorder if where == "index" else other)
        if where == "array":
            layout = {"serializer": order, "chunks": (1500,), "compressors": None}
        else:
            index = [BytesCodec(endian="big" if where == "index" else "little"), Crc32cCodec()]
            shard = ShardingCodec(chunk_shape=(1500,), codecs=[order], index_codecs=index)
            layout = {"serializer": shard, "chunks": (6000,), "compressors": None}
        group.create_array(part, shape=values.shape, dtype=values.dtype, **layout)[:] = values
    matrix = DiskMatrix(path, "X")
    same(matrix[30:300], counts.X[30:300])
    assert not matrix.parts[0].is_plain


def test_only_ranges_of_rows(counts, tmp_path):
    matrix = DiskMatrix(written(tmp_path, counts.X))
    with pytest.raises(TypeError, match=r"X is read by ranges of rows, matrix\[start:stop\]; asked for 3\."):
        matrix[3]
    with pytest.raises(IndexError, match=r"X has 700 rows, asked for 699:701\."):
        matrix.take_blocks([699], [701])


@pytest.mark.parametrize(
    ("layout", "word"),
    [("h5ad", None), ("h5ad chunked", None), ("zarr3", None), ("zarr3 shards", None), ("h5ad gzip", "gzip"),
     ("h5ad lzf", "lzf"), ("zarr2 zstd", "zstd"), ("zarr3 zstd", "zstd")],
)  # fmt: skip
def test_advice_on_the_layout(counts, tmp_path, layout, word):
    advice = DiskMatrix(written(tmp_path, counts.X, layout)).layout_advice()
    if word is None:
        assert advice is None
    else:
        assert f"X is compressed ({word}): blocks of cells are read slowly. Rewrite it once: disk.rewrite('" in advice


@pytest.mark.parametrize(("rows", "word"), [(1, "tiny chunks (765 values)"), (3000, "large chunks (2,295,000 values")])
def test_advice_on_chunks(tmp_path, rows, word):
    with h5py.File(tmp_path / "x.h5ad", "w") as file:
        file.create_dataset("X", shape=(3000, 765), dtype="f4", chunks=(rows, 765))
    assert f"X lies in {word}" in DiskMatrix(tmp_path / "x.h5ad").layout_advice()


def test_a_file_cut_in_half(counts, tmp_path):
    path = written(tmp_path, counts.X)
    matrix = DiskMatrix(path)
    same(matrix[690:], counts.X[690:])
    size = path.stat().st_size
    os.truncate(path, size // 2)
    with pytest.raises(OSError, match=rf"x.h5ad is cut off or damaged: {size // 2:,} bytes are there \(.*truncated"):
        matrix[690:]
    with pytest.raises(OSError, match=r"x.h5ad is cut off or damaged.*Copy or download it again\."):
        DiskMatrix(path)


@pytest.mark.parametrize("layout", ["zarr2", "zarr3", "zarr3 shards"])
def test_a_chunk_cut_or_lost(counts, tmp_path, layout):
    path = written(tmp_path, counts.X, layout)
    matrix = DiskMatrix(path)
    chunk = path / "X" / "data" / ("0" if layout == "zarr2" else "c/0")
    if "shards" not in layout:
        os.truncate(chunk, 500)
        with pytest.raises(
            OSError, match=r"X/data is cut off: .*0 has 500 bytes, [\d,]+ are needed\. Copy or download"
        ):
            matrix[:5]
    chunk.unlink()
    with pytest.raises(OSError, match=r"X/data lacks chunk 0 \(file .*0\)\. Copy or download it again\."):
        matrix[:5]


def test_a_damaged_compressed_chunk(counts, tmp_path):
    path = written(tmp_path, counts.X, "zarr3 zstd")
    (path / "X/data/c/0").write_bytes(b"nonsense")
    with pytest.raises(OSError, match=r"x.zarr: X/data cannot be read \(.*Copy or download it again\."):
        DiskMatrix(path)[:5]


def _edit(path, part, change):
    with h5py.File(path, "r+") as file:
        values = change(file[f"X/{part}"][:])
        del file[f"X/{part}"]
        file[f"X/{part}"] = values


@pytest.mark.parametrize(
    ("part", "change", "text"),
    [
        ("indptr", lambda x: x[:-1], r"X has 174,400 data, 174,400 indices and 700 indptr for shape \(700, 765\)"),
        ("data", lambda x: x[:1000], r"X has 1,000 data, 174,400 indices and 701 indptr"),
        ("indptr", lambda x: x // 2, r"X has an indptr from 0 to [\d,]+, but 174,400 data\. The file was not"),
        (
            "indptr",
            lambda x: np.roll(x, 1) * 0 + x[[0, *range(2, 700), 1, 700]],
            r"X has an indptr .* that falls in between, but 174",
        ),
        ("indices", lambda x: x + 1, r"X has indices from \d+ to 765, and shape \(700, 765\)\. The file is damaged"),
        ("indices", lambda x: x - 1, r"X has indices from -1 to \d+, and shape"),
    ],
)
def test_parts_that_do_not_fit(counts, tmp_path, part, change, text):
    path = written(tmp_path, counts.X)
    _edit(path, part, change)
    with pytest.raises(ValueError, match=rf"x.h5ad: {text}"):
        DiskMatrix(path)[:]


def test_a_file_that_is_written_to_is_read_anew(counts, tmp_path):
    path = written(tmp_path, counts.X)
    matrix = DiskMatrix(path)
    _ = matrix[:1]
    _edit(path, "data", lambda x: x + 1)
    np.testing.assert_array_equal(matrix[:5].data, counts.X[:5].data + 1)
    _edit(path, "data", lambda x: x[:-1])
    with pytest.raises(OSError, match=r"X/data was int64 of shape \(\d+,\), and is .* now: somebody wrote to the file"):
        matrix[:5]


def test_what_is_no_matrix(counts, tmp_path):
    path = written(tmp_path, counts.X)
    with pytest.raises(KeyError, match=r"x.h5ad has no element 'layers/counts'. It has: 'X'\."):
        DiskMatrix(path, "layers/counts")
    with pytest.raises(ValueError, match=r"X/data is no matrix but int64 of shape"):
        DiskMatrix(path, "X/data")
    with h5py.File(path, "r+") as file:
        del file["X/data"]
    with pytest.raises(ValueError, match=r"X is no matrix \(encoding 'csr_matrix', without 'data'\)"):
        DiskMatrix(path)
