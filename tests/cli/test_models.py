"""`scanpy-scgpt models`."""

from __future__ import annotations

import argparse
import io as memory
import re
import shutil

import pandas as pd
import pytest

from scanpy_scgpt import models, settings
from scanpy_scgpt.cli import _main
from scanpy_scgpt.cli import _models as command
from scanpy_scgpt.io import CheckpointError
from scanpy_scgpt.models import _records
from scanpy_scgpt.models._records import Record


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
        assert "33,000,000 203,273,199 scgpt.models.download('whole-human')" in " ".join(text.split())
        assert "10,300,000 by hand: scgpt.models.load('blood') says how" in " ".join(text.split())
        assert text.count("models.download(") == 1
    table = pd.read_csv(memory.StringIO(run("list", "--csv")), index_col="name")
    assert list(table.index) == list(models.available().index)
    assert list(table.columns) == list(models.available().columns)


def test_path_and_register(checkpoint_folder):
    assert run("register", "mine", checkpoint_folder) == f"{models.load('mine').label} → {checkpoint_folder}"
    assert run("path", "mine") == str(checkpoint_folder)
    assert run("download", "mini") == run("path", "mini")
    for name, how in (
        ("blood", "by hand: scgpt.models.load('blood') says how"),
        ("whole-human", "scgpt.models.download('whole-human')"),
    ):
        with pytest.raises(ValueError, match=re.escape(f"{name!r} is not on this machine ({how}).")):
            run("path", name)
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


def test_texts_name_the_options(checkpoint_folder, tmp_path, capsys):
    with pytest.raises(ValueError, match=re.escape("https://x/y.zip needs checksum= (--checksum), the SHA-256")):
        run("download", "https://x/y.zip")
    with pytest.raises(ValueError, match=re.escape("name='a b': use letters")):  # a value, no option to add
        run("register", "a b", checkpoint_folder)
    with pytest.raises(CheckpointError, match="is no checkpoint folder"):  # the class of an error stays
        run("register", "mine", tmp_path)
    models.register("mine", checkpoint_folder)
    other = shutil.copytree(checkpoint_folder, tmp_path / "other")
    argv = ["models", "register", "mine", str(other)]
    assert _main.main(argv) == 1
    text = capsys.readouterr().err
    assert "or pass overwrite=True" in text
    assert "--overwrite" in text
    assert _main.main([*argv, "--overwrite"]) == 0


def test_a_name_that_means_something_else_names_the_options(checkpoint_folder):
    _records.write("tiny", Record("cached", str(checkpoint_folder), source="https://x/a/tiny.zip"))
    with pytest.raises(ValueError, match=re.escape("Choose another with name= (--name), or pass force=True")):
        run("download", "https://x/b/tiny.zip", "--checksum", "0" * 64)
