"""Checkpoints on disk."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil

import pytest
import torch

from scanpy_scgpt import io
from scanpy_scgpt.io._legacy import renamed
from scanpy_scgpt.module import initial_weights
from scanpy_scgpt.nn import CellTransformer, TransformerConfig
from scanpy_scgpt.tokenizer import GeneVocab, TokenizerConfig


@pytest.fixture(scope="module")
def checkpoint():
    vocab = GeneVocab([f"G{i}" for i in range(17)])
    config = TransformerConfig(n_tokens=20, pad_id=vocab.pad_id, d_model=8, n_heads=2, n_layers=2, d_ff=8)
    weights = initial_weights(config, seed=0)
    tokenizer = TokenizerConfig(ties="mid", max_length=99)
    return io.Checkpoint("tiny", config, tokenizer, vocab, weights, info={"pooling": "mean"}, card="# tiny\n")


@pytest.mark.parametrize("half", [False, True])
def test_round_trip(checkpoint, tmp_path, half):
    io.write_checkpoint(checkpoint, tmp_path / "a" / "tiny", half=half)
    back = io.read_checkpoint(tmp_path / "a" / "tiny")
    assert (back.name, back.transformer, back.tokenizer, back.vocab) == (
        checkpoint.name,
        checkpoint.transformer,
        checkpoint.tokenizer,
        checkpoint.vocab,
    )
    assert dict(back.info) == {"pooling": "mean"}
    assert back.card == "# tiny\n"
    assert len(back.digest) == 8
    assert set(back.weights) == set(checkpoint.weights)
    for name, tensor in checkpoint.weights.items():
        assert back.weights[name].dtype == torch.float32
        torch.testing.assert_close(back.weights[name], tensor.half().float() if half else tensor, rtol=0, atol=0)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["tiny"]  # no draft is left


def test_a_folder_that_exists_is_not_replaced_unasked(checkpoint, tmp_path):
    io.write_checkpoint(checkpoint, tmp_path / "tiny")
    with pytest.raises(FileExistsError, match="pass overwrite=True"):
        io.write_checkpoint(checkpoint, tmp_path / "tiny")
    (tmp_path / "tiny" / "card.md").write_text("former")
    io.write_checkpoint(checkpoint, tmp_path / "tiny", overwrite=True)
    assert io.read_checkpoint(tmp_path / "tiny").card == "# tiny\n"
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_what_is_not_ours_is_never_replaced(checkpoint, tmp_path):
    io.write_checkpoint(checkpoint, tmp_path / "tiny")
    (tmp_path / "tiny" / "thesis.tex").write_text("mine")
    with pytest.raises(FileExistsError, match="holds thesis.tex, which is no part of a checkpoint"):
        io.write_checkpoint(checkpoint, tmp_path / "tiny", overwrite=True)
    assert (tmp_path / "tiny" / "thesis.tex").read_text() == "mine"
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="is no folder, so it is not replaced"):
        io.write_checkpoint(checkpoint, tmp_path / "file", overwrite=True)
    assert (tmp_path / "file").read_text() == "mine"
    (tmp_path / ".other.old").mkdir()
    (tmp_path / ".other.old" / "notes").write_text("mine")
    with pytest.raises(FileExistsError, match="holds notes"):
        io.write_checkpoint(checkpoint, tmp_path / "other")


def test_a_link_stays_and_its_folder_is_replaced(checkpoint, tmp_path):
    io.write_checkpoint(checkpoint, tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    io.write_checkpoint(dataclasses.replace(checkpoint, card="new"), tmp_path / "link", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert io.read_checkpoint(tmp_path / "real").card == "new"


def test_a_kill_between_the_renamings_loses_nothing(checkpoint, tmp_path):
    folder, old = tmp_path / "tiny", tmp_path / ".tiny.old"
    io.write_checkpoint(checkpoint, folder)
    folder.rename(old)
    assert io.read_checkpoint(folder).name == "tiny"
    assert not old.exists()
    folder.rename(old)
    with pytest.raises(FileExistsError, match="pass overwrite=True"):
        io.write_checkpoint(checkpoint, folder)
    shutil.copytree(folder, old)  # killed after the new folder was in place
    io.write_checkpoint(checkpoint, folder, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_a_failed_renaming_puts_the_former_folder_back(checkpoint, tmp_path, monkeypatch):
    io.write_checkpoint(checkpoint, tmp_path / "tiny")
    replace = os.replace

    def broken(source, target):
        if ".tiny-" in str(source):
            raise OSError("no renaming")
        replace(source, target)

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="no renaming"):
        io.write_checkpoint(dataclasses.replace(checkpoint, card="new"), tmp_path / "tiny", overwrite=True)
    assert io.read_checkpoint(tmp_path / "tiny").card == "# tiny\n"
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_a_checkpoint_is_itself_and_prints_short(checkpoint):
    assert checkpoint == checkpoint
    assert checkpoint != dataclasses.replace(checkpoint)
    assert len({checkpoint, checkpoint}) == 1
    assert "tensor" not in repr(checkpoint)
    assert len(repr(checkpoint)) < 700


def test_a_failed_write_leaves_the_old_folder(checkpoint, tmp_path, monkeypatch):
    io.write_checkpoint(checkpoint, tmp_path / "tiny")
    digest = io.read_checkpoint(tmp_path / "tiny").digest

    def broken(*_args, **_kwargs):
        raise OSError("disk full")

    monkeypatch.setattr("scanpy_scgpt.io._checkpoint.save_file", broken)
    with pytest.raises(OSError, match="disk full"):
        io.write_checkpoint(checkpoint, tmp_path / "tiny", overwrite=True)
    assert io.read_checkpoint(tmp_path / "tiny").digest == digest
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_strict_loading_reports_and_refuses(checkpoint):
    network = CellTransformer(checkpoint.transformer)
    report = io.load_component(network, checkpoint, "transformer")
    assert report.summary() == f"{len(network.state_dict())} tensors loaded, 0 newly initialised, 0 ignored"
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    without = {k: v for k, v in checkpoint.weights.items() if ".attention." not in k}
    broken = io.Checkpoint("x", checkpoint.transformer, checkpoint.tokenizer, checkpoint.vocab, without)
    with pytest.raises(io.CheckpointMismatchError, match="8 of 8 attention tensors"):
        io.load_component(network, broken, "transformer")
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_what_may_be_missing_is_reported(checkpoint):
    weights = {k: v for k, v in checkpoint.weights.items() if not k.endswith("encoder.unknown")}
    partial = io.Checkpoint("x", checkpoint.transformer, checkpoint.tokenizer, checkpoint.vocab, weights)
    network = CellTransformer(checkpoint.transformer)
    report = io.load_component(network, partial, "transformer", optional=frozenset({"encoder.unknown"}))
    assert report.initialised == ("transformer.encoder.unknown",)
    with pytest.raises(io.CheckpointMismatchError, match="Missing: encoder.unknown"):
        io.load_component(network, partial, "transformer")


def test_names_of_the_original_in_every_variant():
    state = {
        "module.transformer_encoder.layers.3.self_attn.Wqkv.weight": torch.zeros(3),
        "transformer_encoder.layers.4.self_attn._impl.Wqkv.bias": torch.zeros(3),
        "transformer_encoder.layers.5.self_attn.in_proj_weight": torch.zeros(3),
        "transformer_encoder.layers.5.self_attn._impl.out_proj.bias": torch.zeros(3),
        "flag_encoder.weight": torch.tensor([[1.0], [2.0]]),
        "something.else": torch.zeros(1),
    }
    weights, ignored = renamed(state)
    assert set(weights) == {
        "transformer.layers.3.attention.in_proj.weight",
        "transformer.layers.4.attention.in_proj.bias",
        "transformer.layers.5.attention.in_proj.weight",
        "transformer.layers.5.attention.out_proj.bias",
        "transformer.encoder.unknown",
    }
    assert weights["transformer.encoder.unknown"].tolist() == [2.0]
    assert list(ignored) == ["something.else"]


def test_original_folders(fixtures_dir, tmp_path):
    checkpoint = io.read_checkpoint(fixtures_dir / "ckpt_flash")
    assert checkpoint.transformer.d_model == 64
    assert (checkpoint.transformer.n_heads, checkpoint.transformer.n_layers) == (4, 3)
    assert checkpoint.tokenizer == TokenizerConfig(n_bins=51, ties="random", max_length=1200, cls_value=-2.0)
    assert checkpoint.vocab.pad_id == 200
    network = CellTransformer(checkpoint.transformer)
    assert not io.load_component(network, checkpoint, "transformer").initialised
    io.write_checkpoint(checkpoint, tmp_path / "ours")
    again = io.read_checkpoint(tmp_path / "ours")
    assert all(torch.equal(again.weights[name], tensor) for name, tensor in checkpoint.weights.items())

    folder = tmp_path / "odd"
    shutil.copytree(fixtures_dir / "ckpt_plain", folder)
    args = json.loads((folder / "args.json").read_text())
    del args["nheads"]
    (folder / "args.json").write_text(json.dumps(args))
    with pytest.raises(io.CheckpointError, match="does not give the number of heads"):
        io.read_checkpoint(folder)


def test_a_wrapped_state_dict_loads(fixtures_dir, tmp_path):
    folder = tmp_path / "wrapped"
    shutil.copytree(fixtures_dir / "ckpt_plain", folder)
    state = torch.load(folder / "best_model.pt", weights_only=True)
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, folder / "best_model.pt")
    plain = io.read_checkpoint(fixtures_dir / "ckpt_plain").weights
    assert all(torch.equal(io.read_checkpoint(folder).weights[name], tensor) for name, tensor in plain.items())


def _original(folder, *, args=None, flash=True, **tensors):
    """A folder of the original release with two genes and one layer."""
    attention = "transformer_encoder.layers.0.self_attn."
    state = {
        "encoder.embedding.weight": torch.zeros(5, 4),
        attention + ("Wqkv.weight" if flash else "in_proj_weight"): torch.zeros(12, 4),
        "transformer_encoder.layers.0.linear1.weight": torch.zeros(4, 4),
        **tensors,
    }
    folder.mkdir()
    torch.save(state, folder / "best_model.pt")
    (folder / "args.json").write_text(json.dumps({"nheads": 2, **(args or {})}))
    vocab = {"A": 0, "B": 1, "<pad>": 2, "<cls>": 3, "<eoc>": 4}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    return folder


@pytest.mark.parametrize("name", ["bn.weight", "module.bn.running_mean", "dsbn.bns.0.weight"])
def test_a_normalised_input_is_refused(tmp_path, name):
    folder = _original(tmp_path / "x", **{name: torch.ones(4)})
    with pytest.raises(io.CheckpointMismatchError, match=f"{name}.* that normalise the input of the network"):
        io.read_checkpoint(folder)


@pytest.mark.parametrize(
    ("pre_norm", "flash", "scheme"),
    [(True, True, "legacy_pre"), (True, False, "post"), (False, True, "post"), (None, True, "post")],
)
def test_place_of_the_norms_of_the_original(tmp_path, pre_norm, flash, scheme):
    folder = _original(tmp_path / "x", args={"pre_norm": pre_norm}, flash=flash)
    assert io.read_checkpoint(folder).transformer.norm_scheme == scheme


def test_values_of_the_original_that_are_null(tmp_path):
    folder = _original(tmp_path / "x", args=dict.fromkeys(["pad_value", "max_seq_len", "n_bins", "dropout"]))
    assert io.read_checkpoint(folder).tokenizer.cls_value == -2
