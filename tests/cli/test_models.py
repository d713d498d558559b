"""`scanpy-scgpt models`."""

from __future__ import annotations

import argparse
import io as memory

import pandas as pd
import pytest

from scanpy_scgpt import models, settings
from scanpy_scgpt.cli import _models as command


@pytest.fixture(autouse=True)
def _cache(tmp_path):
    with settings.override(cache_dir=tmp_path / "cache"):
        yield


def run(*argv):
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers(dest="command"))
    return command.models(parser.parse_args(["models", *map(str, argv)]))


def test_the_list(checkpoint_folder):
    models.register("mine", checkpoint_folder)
    for text in (run(), run("list")):
        lines = text.splitlines()
        assert len(lines) == 1 + len(models.available())
        assert lines[1].split()[:2] == ["mini", "bundled"]
        assert "<NA>" not in text
        assert "33,000,000 203,273,199 scgpt.models.download('whole-human')" in text
    table = pd.read_csv(memory.StringIO(run("list", "--csv")), index_col="name")
    assert list(table.index) == list(models.available().index)
    assert list(table.columns) == list(models.available().columns)


def test_path_and_register(checkpoint_folder):
    assert run("register", "mine", checkpoint_folder) == f"{models.load('mine').label} → {checkpoint_folder}"
    assert run("path", "mine") == str(checkpoint_folder)
    assert run("download", "mini") == run("path", "mini")
    with pytest.raises(ValueError, match="'blood' is not on this machine. Get it: scgpt.models.download"):
        run("path", "blood")
    with pytest.raises(ValueError, match="No model 'mina'. Names: mini, mine, whole-human"):
        run("path", "mina")


def test_options_reach_the_functions(monkeypatch):
    calls = []
    monkeypatch.setattr(models, "download", lambda *a, **k: calls.append((a, k)) or "folder")
    monkeypatch.setattr(models, "push", lambda *a, **k: calls.append((a, k)) or "address")
    assert run("download", "lab/net", "--revision", "v1", "--name", "n", "--checksum", "0", "--force") == "folder"
    assert run("push", "mini", "lab/net", "--public", "--licence", "mit", "--revision", "b") == "address"
    options = {"revision": "v1", "checksum": "0", "name": "n", "force": True, "offline": None}
    assert calls[0] == (("lab/net",), options)
    assert calls[1] == (("mini", "lab/net"), {"private": False, "revision": "b", "licence": "mit"})
