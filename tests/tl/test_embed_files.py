"""`tl.embed` of files: the same vectors as in memory, streamed, resumed after a kill, shared by processes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import anndata as ad
import numpy as np
import pytest

import scanpy_scgpt as scgpt
from scanpy_scgpt import model
from scanpy_scgpt.cli import main

SETTINGS = {"layer": None, "min_genes": 1, "device": "cpu", "backend": "torch"}


def read(path: Path) -> ad.AnnData:
    return ad.read_zarr(path) if path.suffix == ".zarr" else ad.read_h5ad(path)


@pytest.fixture
def in_memory(counts, checkpoint):
    scgpt.tl.embed(counts, checkpoint, **SETTINGS)
    return counts.obsm["X_scgpt"]


@pytest.fixture(params=["h5ad", "zarr"])
def cells(request, counts, tmp_path, write_cells):
    return write_cells(counts, tmp_path / f"cells.{request.param}")


@pytest.fixture
def many(counts, tmp_path):
    """3,500 cells in five files whose genes are in different orders and partly missing."""
    paths = []
    for i in range(5):
        part = counts[:, np.random.default_rng(i).permutation(counts.n_vars)[: 700 + 10 * i]].copy()
        part.obs_names = [f"{i}-{name}" for name in part.obs_names]
        paths.append(tmp_path / f"part{i}.h5ad")
        part.write_h5ad(paths[-1])
    return paths


@pytest.mark.parametrize("suffix", ["zarr", "h5ad"])
def test_vectors_are_those_of_the_cells_in_memory(cells, in_memory, checkpoint, tmp_path, suffix, counts):
    out = tmp_path / f"vectors.{suffix}"
    assert scgpt.tl.embed(cells, checkpoint, out=out, **SETTINGS) == out
    got = read(out)
    np.testing.assert_allclose(got.obsm["X_scgpt"], in_memory, atol=1e-6)
    assert got.obs_names.tolist() == counts.obs_names.tolist()
    assert got.obs["bulk_labels"].tolist() == counts.obs["bulk_labels"].tolist()
    assert got.uns["scgpt"]["embed"]["n_cells"] == 700
    assert got.uns["scgpt"]["embed"]["model_hash"] == checkpoint.digest


def test_files_with_different_genes(many, checkpoint, tmp_path):
    out = tmp_path / "all.zarr"
    scgpt.tl.embed(many, checkpoint, out=out, **SETTINGS)
    got = read(out)
    alone = []
    for path in many:
        adata = ad.read_h5ad(path)
        scgpt.tl.embed(adata, checkpoint, **SETTINGS)
        alone.append(adata.obsm["X_scgpt"])
    np.testing.assert_allclose(got.obsm["X_scgpt"], np.concatenate(alone), atol=1e-6)
    assert got.obs["scgpt_file"].value_counts().to_dict() == {path.name: 700 for path in many}


def test_the_same_call_again_does_nothing(cells, checkpoint, tmp_path, monkeypatch, caplog):
    out = tmp_path / "vectors.zarr"
    scgpt.tl.embed(cells, checkpoint, out=out, **SETTINGS)
    monkeypatch.setattr(model.Embedder, "embed_tokens", None)
    with caplog.at_level("INFO", logger="scanpy_scgpt"):
        scgpt.tl.embed(cells, checkpoint, out=out, **SETTINGS)
    assert "is the result of this very call; nothing to do" in caplog.text
    with pytest.raises(FileExistsError, match="other input, model or settings"):
        scgpt.tl.embed(cells, checkpoint, out=out, **{**SETTINGS, "max_length": 64})


KILLED = """
import sys, time
import scanpy_scgpt as scgpt
from scanpy_scgpt import io, model

encode = model.Embedder.embed_tokens

def slowly(self, tokens):
    vectors = encode(self, tokens)
    time.sleep(0.5)
    return vectors

model.Embedder.embed_tokens = slowly
*files, folder, out = sys.argv[1:]
scgpt.tl.embed(files, folder, out=out, min_genes=1, device="cpu", backend="torch")
"""


def wait_for(condition, *, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.02)


@pytest.mark.parametrize("suffix", ["zarr", "h5ad"])
def test_a_killed_call_goes_on_and_gives_the_same(many, checkpoint_folder, tmp_path, suffix):
    whole, out = tmp_path / f"whole.{suffix}", tmp_path / f"vectors.{suffix}"
    scgpt.tl.embed(many, checkpoint_folder, out=whole, **SETTINGS)
    done = tmp_path / f"{out.name}.part" / "done"
    command = [sys.executable, "-c", KILLED, *map(str, many), str(checkpoint_folder), str(out)]
    with subprocess.Popen(command) as process:
        wait_for(lambda: done.is_dir() and any(done.glob("0*.json")))
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    before = {path.name: path.stat().st_mtime_ns for path in done.glob("0*.json")}
    assert 0 < len(before) < 4, "killed in the middle"
    assert not out.exists()
    os.utime(tmp_path)
    embedded = []
    encode = model.Embedder.embed_tokens
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.Embedder, "embed_tokens", lambda self, t: (embedded.append(len(t)), encode(self, t))[1])
        scgpt.tl.embed(many, checkpoint_folder, out=out, **SETTINGS)
    assert len(embedded) == 4 - len(before), "what was done is not done again"
    first, second = read(whole), read(out)
    np.testing.assert_array_equal(second.obsm["X_scgpt"], first.obsm["X_scgpt"])
    assert second.obs.equals(first.obs)
    assert not (tmp_path / f"{out.name}.part").exists()


def test_shards_of_several_processes_make_one_result(many, checkpoint, tmp_path):
    whole, out = tmp_path / "whole.zarr", tmp_path / "shared.zarr"
    scgpt.tl.embed(many, checkpoint, out=whole, **SETTINGS)
    for which in (2, 0):
        scgpt.tl.embed(many, checkpoint, out=out, shard=(which, 3), **SETTINGS)
        assert not out.exists()
    scgpt.tl.embed(many, checkpoint, out=out, shard=(1, 3), **SETTINGS)
    np.testing.assert_array_equal(read(out).obsm["X_scgpt"], read(whole).obsm["X_scgpt"])


def test_processes_that_start_together_share_the_work(many, checkpoint_folder, tmp_path):
    whole, out = tmp_path / "whole.zarr", tmp_path / "shared.zarr"
    scgpt.tl.embed(many, checkpoint_folder, out=whole, **SETTINGS)
    arguments = ["embed", *map(str, many), "--out", str(out), "--model", str(checkpoint_folder), "--device", "cpu"]
    command = [sys.executable, "-m", "scanpy_scgpt", *arguments, "--shard"]
    processes = [subprocess.Popen([*command, f"{which}/2"]) for which in range(2)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    np.testing.assert_allclose(read(out).obsm["X_scgpt"], read(whole).obsm["X_scgpt"], atol=1e-6)
    assert not out.with_name("shared.zarr.part").exists()


def test_one_share_is_not_worked_on_twice(many, checkpoint, tmp_path, monkeypatch):
    out = tmp_path / "vectors.zarr"
    encode, told = model.Embedder.embed_tokens, []

    def once_more(self, tokens):
        if not told:
            told.append("")
            with pytest.raises(RuntimeError, match=r"Another process is at work on share \(0, 1\).*shard=\(0, 2\) and"):
                scgpt.tl.embed(many, checkpoint, out=out, **SETTINGS)
        return encode(self, tokens)

    monkeypatch.setattr(model.Embedder, "embed_tokens", once_more)
    scgpt.tl.embed(many, checkpoint, out=out, **SETTINGS)
    assert told
    assert read(out).n_obs == 3500


def test_the_command_line_embeds_files(cells, checkpoint_folder, tmp_path, capsys):
    out = tmp_path / "vectors.zarr"
    arguments = ["embed", str(cells), "--out", str(out), "--model", str(checkpoint_folder), "--device", "cpu"]
    assert main([*arguments, "--shard", "0/1"]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert read(out).n_obs == 700
    with pytest.raises(SystemExit):
        main([*arguments, "--shard", "one"])
    assert "write WHICH/OF, counted from 0, such as 0/4" in capsys.readouterr().err


def test_empty_cells_are_marked(counts, checkpoint, tmp_path):
    counts.X.data[: counts.X.indptr[3]] = 0
    counts.X.eliminate_zeros()
    counts.write_h5ad(tmp_path / "cells.h5ad")
    out = tmp_path / "vectors.h5ad"
    scgpt.tl.embed(tmp_path / "cells.h5ad", checkpoint, out=out, **SETTINGS)
    got = read(out)
    assert got.obs["scgpt_qc"].tolist() == ["empty"] * 3 + ["ok"] * 697
    assert got.uns["scgpt"]["embed"]["n_empty_cells"] == 3


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"out": None}, r"needs a place for the result: out='cells_scgpt.zarr'"),
        ({"out": "x.csv"}, r"ends in .zarr or .h5ad, such as 'x.zarr'"),
        ({"shard": (4, 4)}, r"shard=\(4, 4\): give \(which, of how many\), counted from 0"),
        ({"copy": True}, "neither gene_embeddings nor a copy"),
        ({"gene_embeddings": True}, "neither gene_embeddings nor a copy"),
    ],
)
def test_arguments_that_do_not_fit_files(cells, checkpoint, tmp_path, changes, text):
    arguments = {"out": tmp_path / "x.zarr", **SETTINGS, **changes}
    with pytest.raises(ValueError, match=text):
        scgpt.tl.embed(cells, checkpoint, **arguments)


def test_the_input_is_no_place_for_the_result(cells, checkpoint):
    with pytest.raises(ValueError, match="is one of the input files"):
        scgpt.tl.embed(cells, checkpoint, out=cells, **SETTINGS)


def test_arguments_of_files_with_an_anndata(counts, checkpoint):
    with pytest.raises(ValueError, match="out= and shard= are for files"):
        scgpt.tl.embed(counts, checkpoint, out="x.zarr", **SETTINGS)


def test_lists_of_files(cells, checkpoint, tmp_path):
    with pytest.raises(ValueError, match="Give each file once: .* is there twice"):
        scgpt.tl.embed([cells, cells], checkpoint, out=tmp_path / "x.zarr", **SETTINGS)
    with pytest.raises(ValueError, match="The list of files is empty"):
        scgpt.tl.embed([], checkpoint, out=tmp_path / "x.zarr", **SETTINGS)


def test_a_compressed_file_works_and_says_what_is_faster(counts, checkpoint, in_memory, tmp_path, caplog, monkeypatch):
    counts.write_h5ad(tmp_path / "cells.h5ad", compression="gzip")
    with caplog.at_level("WARNING", logger="scanpy_scgpt"):
        scgpt.tl.embed(tmp_path / "cells.h5ad", checkpoint, out=tmp_path / "x.zarr", **SETTINGS)
    assert re.search(r"is compressed \(gzip\).*Rewrite it once: disk.rewrite\('.*cells.h5ad', '.*'\)", caplog.text)
    np.testing.assert_allclose(read(tmp_path / "x.zarr").obsm["X_scgpt"], in_memory, atol=1e-6)
    monkeypatch.chdir(tmp_path)
    line = caplog.text.split("Rewrite it once: ")[1].split("\n")[0]
    plain = eval(line, {"disk": scgpt.disk})
    caplog.clear()
    scgpt.tl.embed(plain, checkpoint, out=tmp_path / "y.zarr", **SETTINGS)
    assert "is compressed" not in caplog.text
    np.testing.assert_array_equal(read(tmp_path / "y.zarr").obsm["X_scgpt"], read(tmp_path / "x.zarr").obsm["X_scgpt"])


def test_a_matrix_by_columns_is_refused_with_the_way_out(counts, checkpoint, tmp_path):
    counts.X = counts.X.tocsc()
    counts.write_h5ad(tmp_path / "cells.h5ad")
    with pytest.raises(ValueError, match=r"by columns \(CSC\).*disk.rewrite\('.*cells.h5ad', 'cells-rows.h5ad'\)"):
        scgpt.tl.embed(tmp_path / "cells.h5ad", checkpoint, out=tmp_path / "x.zarr", **SETTINGS)
    assert not (tmp_path / "x.zarr.part").exists()


def test_a_file_that_was_cut_off(counts, checkpoint, tmp_path):
    path = tmp_path / "cells.h5ad"
    counts.write_h5ad(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(OSError, match="cells.h5ad is cut off or damaged: .* bytes are there"):
        scgpt.tl.embed(path, checkpoint, out=tmp_path / "x.zarr", **SETTINGS)


def test_a_file_without_cells(counts, checkpoint, tmp_path):
    counts[:0].copy().write_h5ad(tmp_path / "none.h5ad")
    counts.write_h5ad(tmp_path / "cells.h5ad")
    scgpt.tl.embed(tmp_path / "none.h5ad", checkpoint, out=tmp_path / "x.zarr", **SETTINGS)
    assert read(tmp_path / "x.zarr").obsm["X_scgpt"].shape == (0, 16)
    scgpt.tl.embed(tmp_path / "cells.h5ad", checkpoint, out=tmp_path / "y.zarr", shard=(3, 4), **SETTINGS)
    assert not (tmp_path / "y.zarr").exists(), "a share without a block is done at once"


def test_errors_name_the_file_and_the_way_out(counts, checkpoint, tmp_path):
    good, bad, few = (tmp_path / f"{name}.h5ad" for name in ("good", "bad", "few"))
    counts.write_h5ad(good)
    counts[:, :5].copy().write_h5ad(few)
    with pytest.raises(scgpt.tokenizer.GeneMatchError, match=r"few.h5ad: .* of 5 genes"):
        scgpt.tl.embed([good, few], checkpoint, out=tmp_path / "x.zarr", **{**SETTINGS, "min_genes": 100})
    counts.X = counts.X.astype(np.float32)
    counts.X.data[7] = np.nan
    counts.write_h5ad(bad)
    with pytest.raises(ValueError, match=r"bad.h5ad: X: one of its blocks holds 1 NaN .* a.write_h5ad\('new.h5ad'\)"):
        scgpt.tl.embed([good, bad], checkpoint, out=tmp_path / "x.zarr", **SETTINGS)


def test_a_key_with_a_slash(counts, checkpoint):
    with pytest.raises(ValueError, match="key_added='my/key': a name with a slash"):
        scgpt.tl.embed(counts, checkpoint, key_added="my/key", **SETTINGS)


def test_the_command_line_says_what_is_wrong_in_one_line(cells, checkpoint_folder, tmp_path, capsys):
    arguments = ["embed", str(cells), "--out", str(tmp_path / "x.zarr"), "--model", str(checkpoint_folder)]
    assert main([*arguments, "--layer", "nope"]) == 1
    assert "There is no layer 'nope'" in capsys.readouterr().err
