"""`NeighbourIndex`: methods, folders, appending, what is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from scanpy_scgpt import neighbours
from scanpy_scgpt._optional import is_installed
from scanpy_scgpt.neighbours import CellBlock, IndexFormatError, NeighbourIndex, _storage

needs_faiss = pytest.mark.skipif(not is_installed("faiss"), reason="needs faiss")
METHODS = ["exact", "pq", pytest.param("hnsw", marks=needs_faiss), pytest.param("ivf", marks=needs_faiss)]
each_method = pytest.mark.parametrize("method", METHODS)
N, D = 2500, 16


@pytest.fixture(scope="module")
def cells():
    """Vectors in groups, names, and a label that every tenth lacks."""
    rng = np.random.default_rng(0)
    group = rng.integers(12, size=N)
    vectors = (2 * rng.standard_normal((12, D)))[group] + rng.standard_normal((N, D))
    labels = np.array([None if i % 10 == 0 else f"group {g}" for i, g in enumerate(group)], dtype=object)
    return vectors.astype(np.float32), np.array([f"cell {i} ä" for i in range(N)]), {"group": labels}


@pytest.fixture(scope="module")
def queries():
    rng = np.random.default_rng(1)
    return (2 * rng.standard_normal((60, D))).astype(np.float32)


def of(cells, part=slice(None)):
    vectors, names, labels = cells
    return vectors[part], {"names": names[part], "labels": {key: values[part] for key, values in labels.items()}}


def build(cells, part=slice(None), **settings):
    vectors, given = of(cells, part)
    return NeighbourIndex.build(vectors, **given, **settings)


def recall(found, truth):
    return (found.rows[:, :, None] == truth.rows[:, None, :]).any(axis=1).mean()


@each_method
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_each_method_finds_what_exact_search_finds(cells, queries, method, metric):
    truth = build(cells, metric=metric, method="exact").search(queries, 10)
    found = build(cells, metric=metric, method=method).search(queries, 10)
    assert recall(found, truth) >= 0.95
    assert (np.diff(found.distances, axis=1) >= 0).all()


@each_method
def test_a_query_alone_has_the_neighbours_that_it_has_in_company(cells, queries, method):
    index = build(cells, method=method)
    whole = index.search(queries, 7)
    for i in (0, 31, 59):
        np.testing.assert_array_equal(index.search(queries[i : i + 1], 7).rows[0], whole.rows[i])
    np.testing.assert_array_equal(index.search(queries[::-1], 7).rows[::-1], whole.rows)


@each_method
def test_a_folder_gives_what_memory_gives(cells, queries, method, tmp_path):
    index = build(cells, method=method)
    saved = index.save(tmp_path / "one")
    loaded = NeighbourIndex.load(tmp_path / "one")
    loaded.verify()
    for other in (saved, loaded):
        np.testing.assert_array_equal(other.search(queries, 9).rows, index.search(queries, 9).rows)
        np.testing.assert_array_equal(other.search(queries, 9).distances, index.search(queries, 9).distances)
    rows = np.array([[3, 0], [2499, -1]])
    assert loaded.names(rows).tolist() == [["cell 3 ä", "cell 0 ä"], ["cell 2499 ä", ""]]
    assert loaded.labels_keys == ["group"]
    np.testing.assert_array_equal(loaded.codes("group"), index.codes("group"))
    assert loaded.codes("group")[0] == -1
    assert loaded.categories("group") == sorted(loaded.categories("group"))
    assert len(loaded) == N
    assert loaded.digest != build(cells, slice(100), method=method).save(tmp_path / "two").digest


@each_method
def test_appended_cells_are_found(cells, queries, method, tmp_path):
    index = build(cells, slice(2000), method=method)
    loaded = index.save(tmp_path / "index")
    vectors, given = of(cells, slice(2000, None))
    truth = build(cells, method="exact").search(queries, 10)
    for each in (index, loaded):
        each.append(vectors, **given)
        assert len(each) == N
        assert recall(each.search(queries, 10), truth) >= 0.9
        np.testing.assert_array_equal(each.search(vectors[:20], 1).rows[:, 0], np.arange(2000, 2020))
    again = NeighbourIndex.load(tmp_path / "index")
    again.verify()
    np.testing.assert_array_equal(again.search(queries, 10).rows, loaded.search(queries, 10).rows)
    assert again.names(np.array([2000])).tolist() == ["cell 2000 ä"]


@pytest.mark.parametrize("method", ["exact", "pq"])
def test_blocks_on_disk_are_the_whole_in_memory(cells, queries, method, tmp_path):
    parts = (of(cells, slice(start, start + 700)) for start in range(0, N, 700))
    blocks = (CellBlock(vectors, given["names"], given["labels"]) for vectors, given in parts)
    streamed = NeighbourIndex.build(blocks, n_cells=N, method=method, path=tmp_path / "index")
    whole = build(cells, method=method)
    np.testing.assert_array_equal(streamed.search(queries, 9).rows, whole.search(queries, 9).rows)
    codes, names = streamed.codes("group"), np.array([*streamed.categories("group"), ""], dtype=object)
    other, others = whole.codes("group"), np.array([*whole.categories("group"), ""], dtype=object)
    np.testing.assert_array_equal(names[codes], others[other])


def test_codes_are_small_and_vectors_half_as_large(cells, tmp_path):
    index = build(cells, method="pq", path=tmp_path / "index")
    listed = json.loads((tmp_path / "index" / "index.json").read_text())["arrays"]
    assert listed["vectors"]["dtype"] == "<f2"
    assert index.memory_bytes < build(cells, method="exact").memory_bytes


def test_what_auto_takes(monkeypatch, caplog):
    monkeypatch.setattr("scanpy_scgpt.neighbours._engine.is_installed", lambda name: True)
    taken = [neighbours.choose_method("auto", n) for n in (99_999, 100_000, 1_000_000, 1_000_001)]
    assert taken == ["exact", "hnsw", "hnsw", "pq"]
    monkeypatch.setattr("scanpy_scgpt.neighbours._engine.is_installed", lambda name: False)
    with caplog.at_level("INFO", logger="scanpy_scgpt"):
        assert neighbours.choose_method("auto", 200_000) == "exact"
    assert "200,000 cells are searched exactly, as faiss is not installed" in caplog.text
    assert "pip install 'scanpy-scgpt[faiss]'" in caplog.text
    assert neighbours.choose_method("auto", 2_000_000) == "pq"


def test_without_faiss_its_methods_name_the_extra(cells, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r"method='hnsw' needs `faiss`: pip install 'scanpy-scgpt\[faiss\]'"):
        build(cells, method="hnsw")


def test_what_is_refused(cells, tmp_path):
    vectors, given = of(cells, slice(10))
    with pytest.raises(ValueError, match=r"method='hsnw': use one of .* did you mean 'hnsw'"):
        NeighbourIndex.build(vectors, method="hsnw")
    with pytest.raises(ValueError, match=r"metric='l2': use one of 'cosine', 'euclidean'"):
        NeighbourIndex.build(vectors, metric="l2")
    with pytest.raises(ValueError, match=r"There are no cells for the index"):
        NeighbourIndex.build(vectors[:0])
    with pytest.raises(ValueError, match=r"names has 2 values for 10 cells"):
        NeighbourIndex.build(vectors, names=["a", "b"])
    with pytest.raises(ValueError, match=r"labels\['x'\] has 1 values for 10 cells"):
        NeighbourIndex.build(vectors, labels={"x": ["a"]})
    index = NeighbourIndex.build(vectors, **given)
    with pytest.raises(ValueError, match=r"queries have the shape \(1, 3\), needed is \(n, 16\)"):
        index.search(np.ones((1, 3)))
    with pytest.raises(ValueError, match=r"n_neighbors=0: a whole number of at least 1"):
        index.search(vectors, 0)
    with pytest.raises(ValueError, match=r"Labels are given for \[\], the index has \['group'\]"):
        index.append(vectors)
    assert len(index) == 10
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere"):
        index.save(tmp_path / "nowhere" / "index")


def test_places(cells, tmp_path):
    index = build(cells, slice(50))
    index.save(tmp_path / "index")
    with pytest.raises(FileExistsError, match=r"exists. Name another place, or pass overwrite=True"):
        index.save(tmp_path / "index")
    assert len(build(cells, slice(60)).save(tmp_path / "index", overwrite=True)) == 60
    loaded = NeighbourIndex.load(tmp_path / "index")
    assert len(loaded.save(tmp_path / "index", overwrite=True)) == 60  # onto itself
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("years")
    with pytest.raises(FileExistsError, match=r"is something else than an index: it is left alone"):
        index.save(tmp_path / "other", overwrite=True)
    with pytest.raises(FileNotFoundError, match=r"is no index: it has no index.json. Build one"):
        NeighbourIndex.load(tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index", "other"]


def test_damaged_folders(cells, tmp_path):
    build(cells, slice(50), path=tmp_path / "index")
    manifest = tmp_path / "index" / "index.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**content, "format_version": 99}))
    with pytest.raises(IndexFormatError, match=r"has format 99, this release reads up to 1. Update: pip install"):
        NeighbourIndex.load(tmp_path / "index")
    manifest.write_text("{")
    with pytest.raises(IndexFormatError, match=r"cannot be read .* build it anew"):
        NeighbourIndex.load(tmp_path / "index")
    manifest.write_text(json.dumps(content))
    file = tmp_path / "index" / content["arrays"]["vectors"]["file"]
    data = bytearray(file.read_bytes())
    data[5] ^= 1
    file.write_bytes(data)
    with pytest.raises(IndexFormatError, match=r"differs from its checksum"):
        NeighbourIndex.load(tmp_path / "index").verify()
    file.write_bytes(data[:-4])
    with pytest.raises(IndexFormatError, match=r"\(vectors\) has 3,196 bytes, 3,200 are needed"):
        NeighbourIndex.load(tmp_path / "index")
    file.unlink()
    with pytest.raises(IndexFormatError, match=r"\(vectors\) is missing"):
        NeighbourIndex.load(tmp_path / "index")


@pytest.mark.parametrize("method", ["exact", "pq", pytest.param("hnsw", marks=needs_faiss)])
def test_an_append_that_fails_changes_nothing(cells, queries, method, tmp_path, monkeypatch):
    for index in (
        build(cells, slice(2000), method=method),
        build(cells, slice(2000), method=method, path=tmp_path / "i"),
    ):
        before = index.search(queries, 5)
        vectors, given = of(cells, slice(2000, 2100))
        with monkeypatch.context() as patched:
            patched.setattr(type(index._arrays), "settle", lambda *_: (_ for _ in ()).throw(OSError("full")))
            with pytest.raises(OSError, match="full"):
                index.append(vectors, **given)
        assert len(index) == 2000
        np.testing.assert_array_equal(index.search(queries, 5).rows, before.rows)
        index.append(vectors, **given)
        assert len(index) == 2100
        assert index.search(vectors[:5], 1).rows[:, 0].tolist() == list(range(2000, 2005))
    NeighbourIndex.load(tmp_path / "i").verify()


def test_a_second_writer_is_told(cells, tmp_path):
    first = build(cells, slice(50), path=tmp_path / "index")
    second = NeighbourIndex.load(tmp_path / "index")
    vectors, given = of(cells, slice(50, 60))
    first.append(vectors, **given)
    with pytest.raises(RuntimeError, match=r"was changed by another process. Load it again"):
        second.append(vectors, **given)
    assert len(NeighbourIndex.load(tmp_path / "index")) == 60


def test_a_failed_build_leaves_nothing(cells, tmp_path, monkeypatch):
    monkeypatch.setattr(_storage.FolderArrays, "settle", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        build(cells, path=tmp_path / "index")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
@pytest.mark.parametrize("step", ["grow", "put", "settle"])
def test_a_kill_while_appending_loses_the_new_cells_alone(cells, step, tmp_path):
    index = build(cells, slice(2000), method="pq", path=tmp_path / "index")
    code = textwrap.dedent(f"""
        import os, signal, sys
        import numpy as np
        from scanpy_scgpt.neighbours import NeighbourIndex, _storage
        index = NeighbourIndex.load(sys.argv[1])
        done = _storage.FolderArrays.{step}
        def then_die(*given):
            if {step!r} != "settle":
                done(*given)
            os.kill(os.getpid(), signal.SIGKILL)
        _storage.FolderArrays.{step} = then_die
        index.append(np.ones((100, {D})), labels={{"group": ["a"] * 100}})
    """)
    killed = subprocess.run([sys.executable, "-c", code, tmp_path / "index"], check=False, env=dict(os.environ))
    assert killed.returncode == -signal.SIGKILL
    loaded = NeighbourIndex.load(tmp_path / "index")
    loaded.verify()
    assert len(loaded) == 2000
    np.testing.assert_array_equal(loaded.search(cells[0][:9], 3).rows, index.search(cells[0][:9], 3).rows)
    vectors, given = of(cells, slice(2000, 2100))
    loaded.append(vectors, **given)
    loaded = NeighbourIndex.load(tmp_path / "index")
    loaded.verify()
    assert loaded.search(vectors[:5], 1).rows[:, 0].tolist() == list(range(2000, 2005))
