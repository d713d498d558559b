"""`scanpy-scgpt pretrain`: what reaches `pretrain.run`."""

from __future__ import annotations

import argparse
import inspect
import json
from types import SimpleNamespace

import pytest

from scanpy_scgpt import pretrain
from scanpy_scgpt.cli import main
from scanpy_scgpt.cli._pretrain import add_parser
from scanpy_scgpt.cli._pretrain import pretrain as command


@pytest.fixture
def call(monkeypatch):
    """Function: run the command with a stand-in for `pretrain.run`; gives what that was called with."""

    real = pretrain.run

    def run(*argv):
        seen = {}

        def stand_in(data, out, **given):
            inspect.signature(real).bind(data, out, **given)
            seen.update(data=data, out=out, **given)
            return SimpleNamespace(card="# the card")

        monkeypatch.setattr(pretrain, "run", stand_in)
        parser = argparse.ArgumentParser()
        add_parser(parser.add_subparsers())
        command(parser.parse_args(["pretrain", *map(str, argv)]))
        return seen

    return run


def test_everything_is_left_to_run(call, tmp_path, capsys):
    seen = call("a.h5ad", "b.zarr", "--out", tmp_path)
    assert [path.name for path in seen["data"]] == ["a.h5ad", "b.zarr"]
    expected = {"vocab": None, "filters": None, "continue_from": None, "devices": 1, "resume": True, "loggers": ()}
    assert {name: seen[name] for name in expected} == expected
    assert not {"config", "max_steps", "validation_by"} & seen.keys()
    assert capsys.readouterr().out == f"# the card\nModel: {tmp_path / 'model'}\n"
    assert call("cells.tokens", "--out", tmp_path)["data"].name == "cells.tokens", "it may be a token store"


def test_arguments(call, vocab, tmp_path):
    vocab.write(tmp_path / "vocab.json")
    (tmp_path / "settings.json").write_text(json.dumps({"d_model": 64, "lr": 0.01, "ratios": [0.3], "balance": None}))
    seen = call(
        "a.h5ad", "--out", tmp_path, "--name", "lung", "--vocab", tmp_path / "vocab.json", "--continue-from", "mini",
        "--config", tmp_path / "settings.json", "--set", "lr=1e-3", "--set", "balance=tissue", "--set", "contrast=True",
        "--set", "prompt_after=None", "--max-steps", 7, "--validation-studies", "a", "b", "--min-genes", 200,
        "--max-mito", 0.2, "--duplicates", "drop", "--on-error", "skip", "--devices", "auto", "--num-nodes", 2,
        "--strategy", "ddp", "--accelerator", "cpu", "--logger", "tensorboard", "--half", "--no-resume", "--seed", 3,
    )  # fmt: skip
    assert seen["vocab"] == vocab
    assert seen["filters"] == pretrain.QualityFilters(min_genes=200, max_mito=0.2)
    settings = {
        "d_model": 64, "lr": 0.001, "ratios": (0.3,), "balance": "tissue", "contrast": True, "prompt_after": None,
        "max_steps": 7, "validation_by": "study", "validation_studies": ("a", "b"),
    }  # fmt: skip
    others = {
        "name": "lung", "continue_from": "mini", "duplicates": "drop", "on_error": "skip", "devices": "auto",
        "num_nodes": 2, "strategy": "ddp", "accelerator": "cpu", "loggers": ("tensorboard",), "half": True,
        "resume": False, "rng": 3,
    }  # fmt: skip
    assert {name: seen[name] for name in [*settings, *others]} == {**settings, **others}
    pretrain.PretrainConfig(**settings)


def test_an_atlas(call, tmp_path):
    seen = call("--census", "tissue == 'lung'", "--census-version", "2025-01-30", "--max-cells", 9, "--out", tmp_path)
    query = pretrain.CensusQuery("tissue == 'lung'", census_version="2025-01-30", max_cells=9)
    assert seen["data"] == [query]
    assert call("a.h5ad", "--census", "", "--out", tmp_path)["data"][1] == pretrain.CensusQuery()


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        ([], "no cells are given. Name files of raw counts, or --census"),
        (["a.h5ad", "--set", "d_model"], r"--set d_model: write KEY=VALUE, such as --set d_model=128"),
        (
            ["a.h5ad", "--set", "dmodel=3"],
            r"a setting of pretraining='dmodel': use one of .*; did you mean 'd_model'\.",
        ),
        (["a.h5ad", "--set", "rng=3"], r"a setting of pretraining='rng': use one of "),
        (
            ["a.h5ad", "--max-cells", "9"],
            r'--max-cells 9 is about cells of the Census, .* Add --census "tissue_general',
        ),
        (["a.h5ad", "--organism", "mus_musculus"], r"--organism mus_musculus is about cells of the Census"),
        (["a.h5ad", "--census-version", "stable"], r"--census-version stable is about .* or leave it out"),
        (["a.h5ad", "--vocab", "list.json"], r"--vocab list\.json: this is no vocabulary \(.*JSON list.*\{\"CD3D\": 0"),
        (
            ["a.h5ad", "--vocab", "broken.json"],
            r"--vocab broken\.json: this is no vocabulary \(Expecting .*vocab\.write",
        ),
        (["a.h5ad", "--config", "broken.json"], r"broken\.json: no valid JSON .*Write it as \{\"d_model\": 128"),
        (["a.h5ad", "--config", "list.json"], r"list\.json holds a JSON list; write \{\"d_model\": 128"),
    ],
)
def test_mistakes(call, tmp_path, monkeypatch, argv, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.json").write_text("{d_model: 3")
    (tmp_path / "list.json").write_text("[3]")
    with pytest.raises(ValueError, match=text):
        call(*argv, "--out", tmp_path)


@pytest.mark.parametrize("option", ["--vocab", "--config"])
def test_a_file_that_is_not_there_is_named_with_its_option(call, tmp_path, option):
    with pytest.raises(FileNotFoundError, match=rf"{option} .*nope\.json: this file cannot be read .*Check the path"):
        call("a.h5ad", option, tmp_path / "nope.json", "--out", tmp_path)


@pytest.mark.parametrize("argument", ["resume=False", "overwrite=True of prepare, resume=False"])
def test_what_python_says_is_said_of_the_command_line_too(monkeypatch, tmp_path, capsys, argument):
    def run(*_args, **_given):
        msg = f"There is another run. Pass {argument}."
        raise ValueError(msg)

    monkeypatch.setattr(pretrain, "run", run)
    assert main(["pretrain", "a.h5ad", "--out", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert said.endswith(f"Pass {argument}. On the command line: --no-resume.\n")
