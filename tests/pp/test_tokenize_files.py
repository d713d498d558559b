"""`pp.tokenize` of files: the layer of the cells in memory, or a token store; resumed after a kill."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import anndata as ad
import numpy as np
import pytest

import scanpy_scgpt as scgpt
from scanpy_scgpt.disk import TokenStore
from scanpy_scgpt.pp import _tokenize_files


def read(path):
    return ad.read_zarr(path) if path.suffix == ".zarr" else ad.read_h5ad(path)


@pytest.fixture(params=["h5ad", "zarr"])
def cells(request, counts, tmp_path, write_cells):
    return write_cells(counts, tmp_path / f"cells.{request.param}")


@pytest.mark.parametrize("suffix", ["zarr", "h5ad"])
def test_the_layer_is_that_of_the_cells_in_memory(cells, counts, checkpoint, vocab, tmp_path, suffix):
    out = tmp_path / f"tokens.{suffix}"
    assert scgpt.pp.tokenize(cells, vocab, out=out, min_genes=1) == out
    got = read(out)
    scgpt.pp.tokenize(counts, vocab, min_genes=1)
    assert got.layers["scgpt_bins"].dtype == np.uint8
    assert (got.layers["scgpt_bins"] != counts.layers["scgpt_bins"]).nnz == 0
    assert got.var["scgpt_token"].tolist() == counts.var["scgpt_token"].tolist()
    assert got.var["scgpt_match"].tolist() == counts.var["scgpt_match"].tolist()
    assert got.obs["bulk_labels"].tolist() == counts.obs["bulk_labels"].tolist()
    assert got.X is None
    record = dict(got.uns["scgpt"]["tokenize"])
    assert record["vocab_hash"] == vocab.digest
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".part")] == []


def test_several_files_share_the_genes_of_the_vocabulary(counts, vocab, tmp_path, write_cells):
    first, second = counts[:300, :500].copy(), counts[300:, 200:].copy()
    first.write_h5ad(tmp_path / "a.h5ad")
    write_cells(second, tmp_path / "b.zarr")
    scgpt.pp.tokenize([tmp_path / "a.h5ad", tmp_path / "b.zarr"], vocab, out=tmp_path / "both.h5ad", min_genes=1)
    got = read(tmp_path / "both.h5ad")
    for part, rows in ((first, slice(0, 300)), (second, slice(300, 700))):
        scgpt.pp.tokenize(part, vocab, min_genes=1)
        known = part.var_names[part.var["scgpt_token"] >= 0]
        assert (got[rows, known].layers["scgpt_bins"] != part[:, known].layers["scgpt_bins"]).nnz == 0
        assert got[rows].layers["scgpt_bins"].nnz == part.layers["scgpt_bins"].nnz
    assert got.obs["scgpt_file"].tolist() == ["a.h5ad"] * 300 + ["b.zarr"] * 400


def test_a_token_store(cells, counts, vocab, tmp_path, caplog, monkeypatch):
    out = tmp_path / "cells.tokens"
    assert scgpt.pp.tokenize(cells, vocab, out=out, min_genes=1) == out
    store = TokenStore(out)
    store.verify()
    assert store.names.tolist() == counts.obs_names.tolist()
    scgpt.pp.tokenize(counts, vocab, min_genes=1)
    bins = counts.layers["scgpt_bins"]
    tokens = store.take(np.arange(700))
    np.testing.assert_array_equal(tokens.lengths, np.diff(bins.indptr))
    np.testing.assert_array_equal(np.sort(tokens.values), np.sort(bins.data))
    assert store.column("file").tolist() == [cells.name] * 700
    monkeypatch.setattr(_tokenize_files, "_write_store", None)
    with caplog.at_level("INFO", logger="scanpy_scgpt"):
        scgpt.pp.tokenize(cells, vocab, out=out, min_genes=1)
    assert "is the result of this very call; nothing to do" in caplog.text


KILLED = """
import sys, time
import scanpy_scgpt as scgpt
from scanpy_scgpt import tokenizer
from scanpy_scgpt.pp import _tokenize_files

bins = tokenizer.Tokenizer.bins

def slowly(*args, **kwargs):
    time.sleep(0.3)
    return bins(*args, **kwargs)

tokenizer.Tokenizer.bins = slowly
_tokenize_files._SHARD = 100
vocab = tokenizer.GeneVocab.read(sys.argv[1])
scgpt.pp.tokenize(sys.argv[2], vocab, out=sys.argv[3], min_genes=1)
"""


@pytest.mark.parametrize("suffix", ["tokens", "zarr"])
def test_a_killed_call_goes_on_and_gives_the_same(cells, vocab, tmp_path, suffix, monkeypatch):
    monkeypatch.setattr(_tokenize_files, "_SHARD", 100)
    whole, out = tmp_path / f"whole.{suffix}", tmp_path / f"out.{suffix}"
    scgpt.pp.tokenize(cells, vocab, out=whole, min_genes=1)
    vocab.write(tmp_path / "vocab.json")
    shards = (out if suffix == "tokens" else tmp_path / f"{out.name}.part" / "tokens") / "shards"
    command = [sys.executable, "-c", KILLED, str(tmp_path / "vocab.json"), str(cells), str(out)]
    with subprocess.Popen(command) as process:
        end = time.monotonic() + 60
        while not (shards.is_dir() and any(shards.glob("*.json"))):
            assert time.monotonic() < end, "it takes too long"
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    kept = len(list(shards.glob("*.json")))
    assert 0 < kept < 7, "killed in the middle"
    calls = []
    bins = scgpt.tokenizer.Tokenizer.bins
    monkeypatch.setattr(scgpt.tokenizer.Tokenizer, "bins", lambda *a, **k: (calls.append(1), bins(*a, **k))[1])
    scgpt.pp.tokenize(cells, vocab, out=out, min_genes=1)
    assert len(calls) == 7 - kept
    if suffix == "tokens":
        assert TokenStore(out).digest == TokenStore(whole).digest
    else:
        assert (read(out).layers["scgpt_bins"] != read(whole).layers["scgpt_bins"]).nnz == 0


@pytest.mark.parametrize(
    ("out", "text"),
    [
        (None, r"needs a place for the tokens: out='cells.tokens' or 'cells.zarr'"),
        ("x.csv", r"ends in .tokens \(a token store, for training\), .zarr or .h5ad"),
    ],
)
def test_places(cells, vocab, tmp_path, out, text):
    with pytest.raises(ValueError, match=text):
        scgpt.pp.tokenize(cells, vocab, out=out and tmp_path / out, min_genes=1)
    with pytest.raises(ValueError, match="is one of the input files"):
        scgpt.pp.tokenize(cells, vocab, out=cells, min_genes=1)


def test_a_place_is_for_files(counts, vocab):
    with pytest.raises(ValueError, match="out= is for files"):
        scgpt.pp.tokenize(counts, vocab, out="x.zarr", min_genes=1)


def test_what_stands_there_is_not_replaced_without_asking(cells, vocab, tmp_path):
    for out in (tmp_path / "x.zarr", tmp_path / "x.tokens"):
        scgpt.pp.tokenize(cells, vocab, out=out, min_genes=1)
        with pytest.raises((FileExistsError, ValueError), match="overwrite=True"):
            scgpt.pp.tokenize(cells, vocab, out=out, min_genes=1, ties="mid")
        scgpt.pp.tokenize(cells, vocab, out=out, min_genes=1, ties="mid", overwrite=True)
