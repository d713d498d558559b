"""Results that are written block by block: resumed, guarded, put in place."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scanpy_scgpt.disk import RowWriter, RunFolder, check_suffix, open_cells, run_of

N, WIDTH, ROWS = 23, 4, 5
VALUES = np.arange(N * WIDTH, dtype=np.float32).reshape(N, WIDTH)
IDENTITY = {"verb": "embed", "inputs": [{"name": "a.h5ad", "size": 3}], "seed": "0"}


def writer_of(out, *, identity=IDENTITY, overwrite=False):
    run = RunFolder(out, identity, found=run_of(out, verb="embed"), overwrite=overwrite)
    return RowWriter(run, key="X_scgpt", n_obs=N, width=WIDTH, block_rows=ROWS)


def fill(writer, blocks=None):
    for block in writer.todo() if blocks is None else blocks:
        start, stop = writer.bounds(block)
        writer.write(block, VALUES[start:stop], n=stop - start)


def finish(writer):
    return writer.finish([cells_of(writer)], lambda: ({"embed": {"run": writer.run.digest, "names": ["x", "y"]}}, {}))


def cells_of(writer):
    """A file with the annotation of the cells."""
    path = writer.run.out.parent / "cells" / "cells.h5ad"
    if not path.exists():
        path.parent.mkdir()
        names = pd.Index([f"cell{i}" for i in range(writer.n_obs)], dtype=object)
        ad.AnnData(obs=pd.DataFrame({"label": pd.Categorical(["a"] * writer.n_obs)}, index=names)).write_h5ad(path)
    return open_cells(path)


@pytest.fixture(params=[".zarr", ".h5ad"])
def out(request, tmp_path):
    return tmp_path / f"vectors{request.param}"


def left_beside(out):
    return [path.name for path in out.parent.iterdir() if path != out and path.name != "cells"]


def read(path):
    return ad.read_zarr(path) if path.suffix == ".zarr" else ad.read_h5ad(path)


def test_blocks_in_any_order_give_an_anndata(out):
    writer = writer_of(out)
    assert (writer.n_blocks, writer.complete) == (5, False)
    fill(writer, [4, 0, 2, 3, 1])
    assert writer.complete
    assert writer.noted(4) == {"crc32": writer.noted(4)["crc32"], "n": 3}
    assert finish(writer)
    adata = read(out)
    assert (adata.shape, adata.X) == ((N, 0), None)
    assert adata.obsm["X_scgpt"].dtype == np.float32
    np.testing.assert_array_equal(adata.obsm["X_scgpt"], VALUES)
    assert adata.obs["label"].tolist() == ["a"] * N
    assert adata.obs_names[-1] == "cell22"
    assert adata.uns["scgpt"]["embed"]["run"] == run_of(out, verb="embed")
    assert left_beside(out) == [], "nothing else is left"


def test_only_what_is_missing_or_damaged_is_done_again(out):
    first = writer_of(out)
    fill(first, [0, 1, 3])
    (first.run.path / "done" / "000000001.json").write_text("{", encoding="utf-8")  # half a note
    first._rows[15:20] = 0  # rows that are not what was noted
    again = writer_of(out)
    assert again.todo() == [1, 2, 3, 4]
    fill(again)
    finish(again)
    np.testing.assert_array_equal(read(out).obsm["X_scgpt"], VALUES)


def test_shards_share_the_blocks(out):
    writer = writer_of(out)
    shares = [writer.todo((which, 3)) for which in range(3)]
    assert sorted(block for share in shares for block in share) == [0, 1, 2, 3, 4]
    assert shares[1] == [1, 4]


def test_a_finished_run_is_known_again(out):
    writer = writer_of(out)
    fill(writer)
    finish(writer)
    assert RunFolder(out, IDENTITY, found=run_of(out, verb="embed")).finished
    assert not out.with_name(out.name + ".part").exists()


def test_another_result_is_not_replaced_without_asking(out):
    writer = writer_of(out)
    fill(writer)
    finish(writer)
    before = read(out).obsm["X_scgpt"]
    other = {**IDENTITY, "seed": "1"}
    with pytest.raises(FileExistsError, match="exists and is not the result of this call .* pass overwrite=True"):
        writer_of(out, identity=other)
    second = writer_of(out, identity=other, overwrite=True)
    np.testing.assert_array_equal(read(out).obsm["X_scgpt"], before, "it stays until the new one is complete")
    for block in range(5):
        start, stop = second.bounds(block)
        second.write(block, -VALUES[start:stop])
    finish(second)
    np.testing.assert_array_equal(read(out).obsm["X_scgpt"], -VALUES)
    assert left_beside(out) == []


def test_a_foreign_file_is_not_replaced(out):
    out.write_text("notes", encoding="utf-8")
    with pytest.raises(FileExistsError, match="is not the result of this call"):
        writer_of(out)


def test_the_beginnings_of_another_run_are_not_mixed_in(out):
    fill(writer_of(out), [0])
    other = {**IDENTITY, "inputs": [{"name": "a.h5ad", "size": 4}]}
    with pytest.raises(FileExistsError, match=r"beginnings of another run \(different: inputs\).* overwrite=True"):
        writer_of(out, identity=other)
    assert writer_of(out, identity=other, overwrite=True).todo() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_no_run_is_left_alone(out, overwrite):
    (writer_of(out).run.path / "run.json").write_text("{", encoding="utf-8")
    with pytest.raises(FileExistsError, match="is in the way: it has no readable run.json.* Move it"):
        writer_of(out, overwrite=overwrite)


def test_a_folder_of_something_else_is_never_replaced(out):
    (out / "letters").mkdir(parents=True)
    with pytest.raises(FileExistsError, match="is a folder, and no zarr file: it is left alone"):
        writer_of(out, overwrite=True)
    assert (out / "letters").is_dir()


def test_beginnings_without_any_work_do_not_block(out):
    writer_of(out)
    assert writer_of(out, identity={**IDENTITY, "seed": "1"}).todo() == [0, 1, 2, 3, 4]


def test_no_folder_to_write_to(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder .*missing. Make it first"):
        writer_of(tmp_path / "missing" / "x.zarr")


def test_a_name_of_another_kind(tmp_path):
    with pytest.raises(ValueError, match=r"ends in .zarr or .h5ad, such as 'vectors.zarr'"):
        check_suffix(tmp_path / "vectors.npy")


def test_a_full_disk_keeps_what_is_done(out, monkeypatch):
    writer = writer_of(out)
    fill(writer, [0, 1])
    replace = os.replace

    def full(source, target, **kwargs):
        if str(target).endswith("000000002.json"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return replace(source, target, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(
            OSError, match="The disk is full: 2 of 5 blocks are safe in .* repeat the same call"
        ) as caught:
            fill(writer)
    assert caught.value.errno == errno.ENOSPC
    again = writer_of(out)
    assert again.todo() == [2, 3, 4]
    fill(again)
    finish(again)
    np.testing.assert_array_equal(read(out).obsm["X_scgpt"], VALUES)


def test_other_errors_of_the_disk_keep_their_text(out, monkeypatch):
    writer = writer_of(out)

    def broken(*_args, **_kwargs):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="Input/output error"):
        fill(writer, [0])


def test_a_kill_between_the_two_moves_of_a_replacement(out):
    """The old result is aside, the new one not yet in place: the same call finishes."""
    writer = writer_of(out)
    fill(writer)
    finish(writer)
    other = {**IDENTITY, "seed": "1"}
    second = writer_of(out, identity=other, overwrite=True)
    fill(second)
    os.replace(out, second.run.path / "replaced")
    third = writer_of(out, identity=other, overwrite=True)
    assert third.todo() == []
    finish(third)
    assert json.loads(json.dumps(read(out).uns["scgpt"]["embed"]["run"])) == third.run.digest
    assert left_beside(out) == []


def test_one_process_at_a_time_puts_the_result_in_place(out):
    first, second = writer_of(out), writer_of(out)
    fill(first)
    with first.run.alone() as alone:
        assert alone
        assert not finish(second)
    assert finish(second)
    assert not finish(first), "it is there already"


def test_rows_that_are_lost_are_not_put_in_place(out):
    """The note of another share is there, its rows are not: as after a power cut."""
    writer = writer_of(out)
    fill(writer)
    (writer.run.path / "result.zarr" / "obsm" / "X_scgpt" / "1.0").unlink()
    with pytest.raises(OSError, match=r"1 of 5 blocks in .* are damaged \(the first: 1\). Repeat the same call"):
        finish(writer)
    again = writer_of(out)
    assert again.todo() == [1]
    fill(again)
    finish(again)
    np.testing.assert_array_equal(read(out).obsm["X_scgpt"], VALUES)


START = """
import sys
from scanpy_scgpt.disk import RowWriter, RunFolder
print("ready", flush=True)
sys.stdin.readline()
for i in range(20):
    run = RunFolder(f"{sys.argv[1]}/{i}.zarr", {"seed": 0}, found=None)
    RowWriter(run, key="x", n_obs=4, width=2, block_rows=2).todo()
    RowWriter(run, key="x", n_obs=4, width=2, block_rows=2)._rows
"""


def test_processes_may_begin_at_the_same_time(tmp_path):
    command = [sys.executable, "-c", START, str(tmp_path)]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    for process in processes:
        process.stdout.readline()
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=60)
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"{i}.zarr.part" for i in range(20))


def test_no_cells_at_all(out):
    run = RunFolder(out, IDENTITY, found=None)
    writer = RowWriter(run, key="X_scgpt", n_obs=0, width=WIDTH, block_rows=ROWS)
    assert writer.complete
    writer.finish([cells_of(writer)], lambda: ({"embed": {"run": run.digest}}, {}))
    assert read(out).obsm["X_scgpt"].shape == (0, WIDTH)
