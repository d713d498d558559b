"""Cells of files to a token store: tokens, filters, repeats, damaged files, killed and repeated calls."""

from __future__ import annotations

import shutil
import threading
import time
import tracemalloc
import warnings
from concurrent.futures import ThreadPoolExecutor

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import zarr
from scipy import sparse

from scanpy_scgpt import pp, pretrain
from scanpy_scgpt.disk import TokenStore
from scanpy_scgpt.pretrain import QualityFilters, _preparation, corpus_report, prepare
from scanpy_scgpt.pretrain._reader import Reader
from scanpy_scgpt.pretrain._repeats import Seen, count_keys
from scanpy_scgpt.pretrain._sources import places_of
from scanpy_scgpt.tokenizer import GeneVocab, TokenizerConfig


@pytest.fixture
def files(counts, tmp_path, write_cells):
    """Real cells in three files of three kinds, with different genes; the second and the third share 50 cells."""
    first, second, third = counts[:300, :600].copy(), counts[300:500, 100:].copy(), counts[450:, 100:].copy()
    first.obs = pd.DataFrame({"study": ["Zheng 2017"] * 300, "tissue": ["blood"] * 299 + [None]}, first.obs_names)
    write_cells(first, tmp_path / "a.h5ad")
    write_cells(second, tmp_path / "b.zarr")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about defaults of the next release of mudata
        rna = ad.AnnData(third.X, pd.DataFrame(index=third.obs_names), third.var)
        md.MuData({"rna": rna}).write(tmp_path / "c.h5mu")
    return [tmp_path / name for name in ("a.h5ad", "b.zarr", "c.h5mu")]


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(_preparation, "_SHARD", 100)


def cut(path, keep):
    path.write_bytes(path.read_bytes()[:keep])


def test_the_tokens_are_those_of_tokenize(files, vocab, tmp_path):
    store = prepare(files, tmp_path / "cells.tokens", vocab=vocab)
    store.verify()
    assert store.config == TokenizerConfig(ties="mid")
    pp.tokenize(files, vocab, ties="mid", min_genes=1, out=tmp_path / "other.tokens")
    other = TokenStore(tmp_path / "other.tokens")
    assert store.names.tolist() == other.names.tolist()
    mine, theirs = (x.take(np.arange(750)) for x in (store, other))
    for name in ("indptr", "gene_ids", "values"):
        np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name))
    assert store.column("file").tolist() == ["a.h5ad"] * 300 + ["b.zarr"] * 200 + ["c.h5mu"] * 250
    assert store.column("study").tolist() == ["Zheng 2017"] * 300 + ["b"] * 200 + ["c"] * 250
    assert store.column("tissue").tolist() == ["blood"] * 299 + ["unknown"] * 451


def test_columns_layer_and_symbols_are_taken_where_they_are_named(counts, vocab, tmp_path):
    counts.layers["raw"], counts.X = counts.X, counts.X * 0.5
    counts.obs["donor"], counts.obs["organ"] = "D1", "marrow"
    counts.var["mine"] = counts.var_names
    counts.var_names = [f"x{i}" for i in range(counts.n_vars)]
    counts.write_h5ad(tmp_path / "a.h5ad")
    store = prepare(
        tmp_path / "a.h5ad", tmp_path / "x.tokens", vocab=vocab, layer="raw", gene_symbols="mine", study_key="donor",
        tissue_key="organ",
    )  # fmt: skip
    assert set(store.column("study")) == {"D1"}
    assert set(store.column("tissue")) == {"marrow"}
    assert store.n_tokens > 0
    with pytest.raises(ValueError, match=r"a\.h5ad: X holds non-integer values; pretraining needs raw counts"):
        prepare(tmp_path / "a.h5ad", tmp_path / "y.tokens", vocab=vocab, gene_symbols="mine")
    with pytest.raises(KeyError, match=r"a\.h5ad: .*no layer 'nope'"):
        prepare(tmp_path / "a.h5ad", tmp_path / "y.tokens", vocab=vocab, layer="nope")
    with pytest.raises(KeyError, match=r"a\.h5ad: var of layers\['raw'\] has no column 'nope'"):
        prepare(tmp_path / "a.h5ad", tmp_path / "y.tokens", vocab=vocab, layer="raw", gene_symbols="nope")


@pytest.mark.parametrize("where", ["raw", "counts"])
def test_counts_are_found_where_they_are(pbmc, counts, vocab, tmp_path, caplog, where):
    """Beside log-normalised values; what is said of a file is said once, however often it is read."""
    if where == "raw":
        pbmc.raw = counts
    else:
        pbmc.layers["counts"] = counts.X
    pbmc.write_h5ad(tmp_path / "a.h5ad", compression="gzip")
    counts.write_h5ad(tmp_path / "b.h5ad")
    with caplog.at_level("WARNING", logger="scanpy_scgpt"):
        store = prepare(tmp_path / "a.h5ad", tmp_path / "a.tokens", min_cells=1)
    assert caplog.text.count("compressed") == 1
    other = prepare(tmp_path / "b.h5ad", tmp_path / "b.tokens", min_cells=1)
    np.testing.assert_array_equal(store.take(np.arange(700)).values, other.take(np.arange(700)).values)


def test_without_a_vocabulary_the_files_give_one(files, tmp_path):
    store = prepare(files, tmp_path / "cells.tokens", min_cells=5)
    assert store.vocab == pretrain.build_vocab(files, min_cells=5)
    with pytest.raises(ValueError, match="No gene is expressed in min_cells=1000 cells. Give more cells, or lower"):
        prepare(files, tmp_path / "none.tokens", min_cells=1000)


def test_a_folder_of_annbatch_is_its_files(counts, vocab, tmp_path, write_cells):
    for i, part in enumerate((counts[:500], counts[500:])):
        write_cells(part.copy(), tmp_path / f"dataset_{i}.zarr")
        (tmp_path / "cells.zarr").mkdir(exist_ok=True)
        shutil.move(tmp_path / f"dataset_{i}.zarr", tmp_path / "cells.zarr" / f"dataset_{i}")
    store = prepare(tmp_path / "cells.zarr", tmp_path / "cells.tokens", vocab=vocab)
    assert store.names.tolist() == counts.obs_names.tolist()
    assert list(corpus_report(store)["files"]) == ["dataset_0", "dataset_1"]
    assert set(store.column("study")) == {"cells"}, "the parts of a collection are cut anywhere, they are no studies"
    shutil.copytree(tmp_path / "cells.zarr", tmp_path / "lung" / "cells.zarr")
    write_cells(counts[:9].copy(), tmp_path / "dataset_0.zarr")
    places = places_of([tmp_path / "cells.zarr", tmp_path / "lung" / "cells.zarr", tmp_path / "dataset_0.zarr"])
    assert len({place.label for place in places}) == 5
    first = f"{tmp_path.name}/cells"
    assert [place.study for place in places] == [first, first, "lung/cells", "lung/cells", "dataset_0"]


def test_files_of_one_name_are_told_apart(counts, vocab, tmp_path):
    for folder, part in (("lung", counts[:300]), ("blood", counts[300:])):
        (tmp_path / folder).mkdir()
        part.write_h5ad(tmp_path / folder / "cells.h5ad")
    store = prepare([tmp_path / "lung/cells.h5ad", tmp_path / "blood/cells.h5ad"], tmp_path / "x.tokens", vocab=vocab)
    assert list(corpus_report(store)["files"]) == ["lung/cells.h5ad", "blood/cells.h5ad"]
    assert store.column("study").tolist() == ["lung/cells"] * 300 + ["blood/cells"] * 400


# What is filtered and what stands twice


def test_filters_remove_what_scanpy_counts(counts, tmp_path):
    counts.var_names = [f"MT-{i}" if i < 20 else name for i, name in enumerate(counts.var_names)]
    counts.write_h5ad(tmp_path / "a.h5ad")
    vocab = GeneVocab(counts.var_names[:500])
    counts.var["mt"] = counts.var_names.str.startswith("MT-")
    sc.pp.calculate_qc_metrics(counts, qc_vars=["mt"], inplace=True, percent_top=None)
    n_genes = np.diff(counts[:, :500].X.indptr)
    total, mito = counts.obs["total_counts"].to_numpy(), counts.obs["pct_counts_mt"].to_numpy() / 100
    few, many = (int(n) for n in np.quantile(n_genes, [0.1, 0.9]))
    limits = {"min_genes": few, "max_genes": many, "min_counts": float(np.quantile(total, 0.2)), "max_mito": 0.025}
    broken = {
        "min_genes": n_genes < few,
        "max_genes": n_genes > many,
        "min_counts": total < limits["min_counts"],
        "max_mito": mito > 0.025,
    }
    expected, left = {}, np.ones(700, bool)
    for name, cells in broken.items():
        expected[name], left = int((left & cells).sum()), left & ~cells
    assert min(expected.values()) > 0
    store = prepare(tmp_path / "a.h5ad", tmp_path / "x.tokens", vocab=vocab, filters=QualityFilters(**limits))
    report = corpus_report(store)
    assert report["files"] == {"a.h5ad": {"cells": 700, "kept": left.sum(), "removed": expected}}
    assert report["filters"] == limits
    assert store.names.tolist() == counts.obs_names[left].tolist()
    for name, limit in limits.items():
        alone = prepare(tmp_path / "a.h5ad", tmp_path / name, vocab=vocab, filters=QualityFilters(**{name: limit}))
        assert alone.names.tolist() == counts.obs_names[~broken[name]].tolist()


def test_mitochondrial_genes_are_known_by_any_of_their_names(counts, tmp_path, caplog):
    counts = counts[:, ~counts.var_names.str.startswith("MT-")].copy()
    counts.var["gene_symbols"] = [f"mt-{i}" if i < 20 else name for i, name in enumerate(counts.var_names)]
    share = np.asarray(counts.X[:, :20].sum(axis=1)).ravel() / np.asarray(counts.X.sum(axis=1)).ravel()
    vocab = GeneVocab(counts.var_names)
    counts.write_h5ad(tmp_path / "a.h5ad")
    store = prepare(tmp_path / "a.h5ad", tmp_path / "x.tokens", vocab=vocab, filters=QualityFilters(max_mito=0.025))
    assert len(store) == (share <= 0.025).sum() < 700
    assert "max_mito removes none" not in caplog.text
    del counts.var["gene_symbols"]
    counts.write_h5ad(tmp_path / "b.h5ad")
    with caplog.at_level("WARNING", logger="scanpy_scgpt"):
        store = prepare(tmp_path / "b.h5ad", tmp_path / "y.tokens", vocab=vocab, filters=QualityFilters(max_mito=0.025))
    assert len(store) == 700
    assert "b.h5ad has no gene named MT-... or mt-...: max_mito removes none of its cells" in caplog.text


@pytest.mark.parametrize(
    ("limits", "text"),
    [
        ({"min_genes": -1}, "min_genes=-1: use a number of 0 or more, such as 200, or None for no limit"),
        ({"min_counts": -5}, "min_counts=-5: use a number of 0 or more, such as 500"),
        ({"max_mito": 20}, "max_mito=20: it is a share of the counts, from 0 to 1, such as 0.2"),
        ({"min_genes": 500, "max_genes": 200}, "min_genes=500 is more than max_genes=200: no cell is left"),
    ],
)
def test_limits_are_checked(limits, text):
    with pytest.raises(ValueError, match=text):
        QualityFilters(**limits)


def test_repeated_cells_are_reported_and_dropped(files, vocab, tmp_path, caplog):
    with caplog.at_level("INFO", logger="scanpy_scgpt"):
        store = prepare(files, tmp_path / "report.tokens", vocab=vocab)
    assert len(store) == 750
    assert corpus_report(store)["duplicates"] == [["b.zarr", "c.h5mu", 50]]
    assert "50 cells of c.h5mu have the counts of a cell of b.zarr" in caplog.text
    assert "about 50 cells of c.h5mu have the name of a cell of b.zarr; are they the same cells?" in caplog.text
    store = prepare(files, tmp_path / "drop.tokens", vocab=vocab, duplicates="drop")
    assert len(store) == 700
    assert len(set(store.names)) == 700
    assert store.column("file").tolist().count("c.h5mu") == 200, "the first of two stays"
    report = corpus_report(store)
    assert report["duplicates"] == [["b.zarr", "c.h5mu", 50]]
    assert report["files"]["c.h5mu"] == {"cells": 250, "kept": 200, "removed": {"duplicates": 50}}


def test_keys_of_counts(counts):
    """Equal for equal counts whatever the order of the genes, names of columns and type of numbers; else different."""
    ids = np.arange(counts.n_vars)
    keys = count_keys(counts.X, ids, n_tokens=800)
    dense = {counts.X[i].toarray().tobytes() for i in range(700)}
    assert np.unique(keys).size == len(dense)
    order = np.random.default_rng(0).permutation(counts.n_vars)
    np.testing.assert_array_equal(count_keys(counts.X[:, order].astype(np.float32), ids[order], n_tokens=800), keys)
    halves = sparse.hstack([counts.X, counts.X], format="csr")
    np.testing.assert_array_equal(
        count_keys(halves, np.r_[ids, ids], n_tokens=800), count_keys(2 * counts.X, ids, n_tokens=800)
    )
    assert (count_keys(counts.X, ids[::-1].copy(), n_tokens=800) != keys).all()
    few = counts.X[:, :20]
    few = few[np.diff(few.indptr) < 10]
    assert few.shape[0] > 10
    assert (count_keys(few, ids[:20], n_tokens=800) == 0).all(), "too few genes to tell"


def test_what_was_seen_first():
    """Against a dictionary, in blocks of uneven sizes."""
    rng, seen, known = np.random.default_rng(0), Seen(), {}
    for file in range(60):
        keys = rng.integers(0, 3000, size=rng.integers(1, 200)).astype(np.uint64)
        found = seen.first(keys, file)
        for key, first in zip(keys.tolist(), found.tolist(), strict=True):
            assert first == (known.get(key, -1) if key else -1)
            known.setdefault(key, file) if key else None
    assert len(seen._runs) < 12
    seen.forget(0)
    gone = np.array([key for key, file in known.items() if file == 0], dtype=np.uint64)
    assert (seen.first(gone, 99) == -1).all()


# Files that cannot be read


def test_a_cut_file_is_named_and_skipped_only_when_asked(files, vocab, tmp_path, caplog):
    whole = prepare([files[0], files[2]], tmp_path / "whole.tokens", vocab=vocab)
    files[1] = tmp_path / "b.h5ad"
    shutil.copy(files[0], files[1])
    cut(files[1], 5000)
    with pytest.raises(OSError, match=r"b\.h5ad is cut off or damaged: 5,000 bytes are there"):
        prepare(files, tmp_path / "x.tokens", vocab=vocab)
    for given in (vocab, None):
        out = tmp_path / f"{given is None}.tokens"
        store = prepare(files, out, vocab=given, on_error="skip")
        assert store.names.tolist() == whole.names.tolist()
        report = corpus_report(store)
        assert list(report["files"]) == ["a.h5ad", "c.h5mu"]
        assert list(report["skipped"]) == ["b.h5ad"]
        assert "is cut off or damaged" in report["skipped"]["b.h5ad"]
    assert "b.h5ad is left out" in caplog.text
    assert "b.h5ad was left out" in caplog.text


def test_a_file_that_breaks_in_the_middle_leaves_nothing(counts, vocab, tmp_path, write_cells):
    """Its first shard is taken back, and copies of its cells in a later file stay."""
    write_cells(counts[:400].copy(), tmp_path / "bad.zarr")
    write_cells(counts.copy(), tmp_path / "good.zarr")
    array = zarr.open_array(tmp_path / "bad.zarr/X/data", mode="r+")
    array[int(counts.X.indptr[250])] = -3
    files = [tmp_path / "bad.zarr", tmp_path / "good.zarr"]
    with pytest.raises(ValueError, match=r"bad\.zarr: X holds negative values \(minimum -3\); pretraining needs raw"):
        prepare(files, tmp_path / "x.tokens", vocab=vocab, duplicates="drop")
    store = prepare(files, tmp_path / "y.tokens", vocab=vocab, duplicates="drop", on_error="skip")
    assert store.names.tolist() == counts.obs_names.tolist()
    assert set(store.column("file")) == {"good.zarr"}
    assert "negative values" in corpus_report(store)["skipped"]["bad.zarr"]


def test_halves_beyond_the_sample_are_found(counts, vocab, tmp_path):
    """Of a matrix on disk a sample is looked at first; what it misses is found when the cells are read."""
    big = ad.concat([counts] * 5, index_unique="-")
    big.X = big.X.astype(np.float32)
    big.X.data[big.X.indptr[1000]] = 0.5
    big.write_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(ValueError, match=r"a\.h5ad: X holds non-integer values; pretraining needs raw counts"):
        prepare(tmp_path / "a.h5ad", tmp_path / "x.tokens", vocab=vocab)


def test_no_gene_in_the_vocabulary(files, tmp_path):
    with pytest.raises(
        ValueError,
        match=r"a\.h5ad: 0 of 600 genes are in the vocabulary of 2 genes, .* First names without a match: 'HES4', .*"
        r"gene_symbols='<column>'.* such as 'Gm1', 'Gm2'\. Else leave .*build_vocab\(files, extend=vocab\)\.",
    ):
        prepare(files, tmp_path / "x.tokens", vocab=GeneVocab(["Gm1", "Gm2"]))
    assert not (tmp_path / "x.tokens").exists()


def test_what_is_no_file_of_cells(files, counts, vocab, tmp_path):
    out = tmp_path / "x.tokens"
    with pytest.raises(FileNotFoundError, match=r"nope\.h5ad: there is no such file"):
        prepare([files[0], tmp_path / "nope.h5ad"], out, vocab=vocab, on_error="skip")
    with pytest.raises(TypeError, match=r"this is a AnnData\. Write an AnnData first: adata\.write_h5ad"):
        prepare(counts, out, vocab=vocab)
    with pytest.raises(ValueError, match="Give each file once"):
        prepare([files[0], files[0]], out, vocab=vocab)
    with pytest.raises(ValueError, match="The list of files is empty"):
        prepare([], out, vocab=vocab)
    prepare(files, out, vocab=vocab)
    with pytest.raises(ValueError, match=r"x\.tokens is a token store, .* Give it to pretrain\.run alone"):
        prepare(out, tmp_path / "y.tokens", vocab=vocab)
    with pytest.raises(ValueError, match="duplicates='remove': use one of 'report', 'drop'"):
        prepare(files, out, vocab=vocab, duplicates="remove")
    with pytest.raises(ValueError, match="on_error='ignore': use one of 'raise', 'skip'"):
        prepare(files, out, vocab=vocab, on_error="ignore")


def test_no_cell_is_left(files, vocab, tmp_path):
    with pytest.raises(ValueError, match=r"No cell is left: 750 removed by min_genes\. Loosen the filters"):
        prepare(files, tmp_path / "x.tokens", vocab=vocab, filters=QualityFilters(min_genes=10_000))
    prepare(files, tmp_path / "x.tokens", vocab=vocab)  # nothing is in the way
    cut(files[0], 100)
    with pytest.raises(ValueError, match=r"No cell is left: .*a\.h5ad is cut off.*give other files"):
        prepare(files[0], tmp_path / "y.tokens", vocab=vocab, on_error="skip")


# Killed, repeated and simultaneous calls


class _Killed(BaseException):
    pass


@pytest.mark.parametrize("given", ["vocabulary", "none"])
def test_a_killed_call_goes_on_and_gives_the_same(files, vocab, tmp_path, monkeypatch, given):
    options = {"vocab": vocab if given == "vocabulary" else None, "duplicates": "drop"}
    whole = prepare(files, tmp_path / "whole.tokens", **options)
    block, calls = Reader.block, []

    def killed(*args, **kwargs):
        if len(calls) == 4:
            raise _Killed
        calls.append(1)
        return block(*args, **kwargs)

    monkeypatch.setattr(Reader, "block", killed)
    with pytest.raises(_Killed):
        prepare(files, tmp_path / "x.tokens", **options)
    with pytest.raises(ValueError, match="is unfinished"):
        TokenStore(tmp_path / "x.tokens")
    calls.clear()
    monkeypatch.setattr(Reader, "block", lambda *args, **kwargs: (calls.append(1), block(*args, **kwargs))[1])
    monkeypatch.setattr(_preparation, "vocabulary_of", None)
    store = prepare(files, tmp_path / "x.tokens", **options)
    assert len(calls) == 8 - 4
    assert store.digest == whole.digest
    assert corpus_report(store) == corpus_report(whole)


def test_the_same_call_opens_its_store_and_another_is_refused(files, vocab, tmp_path, monkeypatch, caplog):
    out = tmp_path / "x.tokens"
    first = prepare(files, out, vocab=vocab)
    with pytest.raises(
        ValueError,
        match=r"holds the store of another call, which differs in inputs\.c\.h5mu \(only there\); filters\.min_genes "
        r"\(None there, 5 here\)\. Choose another folder, or replace it: overwrite=True of prepare, resume=False of",
    ):
        prepare(files[:2], out, vocab=vocab, filters=QualityFilters(min_genes=5))
    with pytest.raises(ValueError, match=r"differs in vocab \('\w+' there, 'of 20 cells or more' here\)"):
        prepare(files, out)
    other = prepare(files[:2], out, vocab=vocab, overwrite=True)
    assert len(other) == 500
    monkeypatch.setattr(_preparation.Preparation, "write", None)
    with caplog.at_level("INFO", logger="scanpy_scgpt"):
        assert prepare(files[:2], out, vocab=vocab).digest == other.digest != first.digest
    assert "is the result of this very call; nothing to do" in caplog.text
    files[1].touch() if files[1].is_file() else next(files[1].rglob("zarr.json")).touch()
    with pytest.raises(ValueError, match=r"inputs\.b\.zarr\.mtime_ns"):
        prepare(files[:2], out, vocab=vocab)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    monkeypatch.undo()
    with pytest.raises(ValueError, match="holds notes.txt, which no token store has"):
        prepare(files, tmp_path / "mine", vocab=vocab)


def test_calls_at_once_make_one_store(files, vocab, tmp_path, monkeypatch, caplog):
    """Locks hold between open files, so threads stand in for processes."""
    block, calls, barrier = Reader.block, [], threading.Barrier(3)

    def slowly(*args, **kwargs):
        calls.append(1)
        time.sleep(0.02)
        return block(*args, **kwargs)

    def call():
        barrier.wait()
        return prepare(files, tmp_path / "x.tokens", vocab=vocab)

    monkeypatch.setattr(Reader, "block", slowly)
    with caplog.at_level("INFO", logger="scanpy_scgpt"), ThreadPoolExecutor(3) as pool:
        stores = list(pool.map(lambda _: call(), range(3)))
    assert len(calls) == 8
    assert len({store.digest for store in stores}) == 1
    assert "another process makes" in caplog.text


def test_memory_does_not_grow_with_the_cells(counts, vocab, tmp_path):
    """Eight times the cells, in one file each; the bytes at the peak stay about the same."""
    counts.write_h5ad(tmp_path / "small.h5ad")
    ad.concat([counts] * 8, index_unique="-").write_h5ad(tmp_path / "large.h5ad")
    peaks = {}
    for name in ("small", "small", "large"):  # the first fills caches
        shutil.rmtree(tmp_path / "x.tokens", ignore_errors=True)
        tracemalloc.start()
        prepare(tmp_path / f"{name}.h5ad", tmp_path / "x.tokens", vocab=vocab)
        peaks[name] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    whole = 12 * 8 * counts.X.nnz
    assert peaks["large"] - peaks["small"] < 0.05 * whole
