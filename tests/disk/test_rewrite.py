"""Drafts of rewritten files: a killed call leaves nothing behind that the next one does not clear."""

from __future__ import annotations

import anndata as ad
import pytest

from scanpy_scgpt import disk
from scanpy_scgpt.disk import _rewrite


class _Killed(BaseException):
    """As SIGKILL: nothing is tidied up."""


@pytest.fixture
def path(counts, tmp_path, write_cells):
    return write_cells(counts, tmp_path / "cells.h5ad")


def killed(*_args, **_options):
    raise _Killed


def names(folder):
    return sorted(file.name for file in folder.iterdir())


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_the_draft_of_a_killed_call_is_cleared(path, counts, tmp_path, monkeypatch, suffix):
    out = tmp_path / f"out.{suffix}"
    for pid in (11, 12):
        with monkeypatch.context() as patch:
            patch.setattr(_rewrite, "_place", killed)
            patch.setattr(_rewrite.os, "getpid", lambda pid=pid: pid)
            patch.setattr(_rewrite, "_remove", lambda _path: None)
            with pytest.raises(_Killed):
                disk.rewrite(path, out)
    assert len(names(tmp_path)) == 2
    disk.rewrite(path, out)
    assert names(tmp_path) == ["cells.h5ad", out.name]
    found = ad.read_h5ad(out) if suffix == "h5ad" else ad.read_zarr(out)
    assert (found.X != counts.X).nnz == 0


def test_a_call_killed_between_two_renames(path, tmp_path, monkeypatch):
    out = tmp_path / "out.zarr"
    disk.rewrite(path, out)
    before = (out / "X" / "data" / ".zarray").read_bytes()
    rename = _rewrite.Path.rename

    def once(source, target):
        if target == out:
            raise _Killed
        return rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(_rewrite.Path, "rename", once)
        with pytest.raises(_Killed):
            disk.rewrite(path, out, overwrite=True)
    assert not out.exists()
    with pytest.raises(FileExistsError, match=r"out\.zarr' exists\. Name another place, or pass overwrite=True"):
        disk.rewrite(path, out)
    assert (out / "X" / "data" / ".zarray").read_bytes() == before
    disk.rewrite(path, out, overwrite=True)
    assert names(tmp_path) == ["cells.h5ad", "out.zarr"]
