"""Mirrors of the original weights: a bare state dict beside another config."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from scanpy_scgpt import io, models, settings
from scanpy_scgpt.io import CheckpointError
from scanpy_scgpt.model import GeneLists, Generator
from scanpy_scgpt.nn import CellTransformer
from scanpy_scgpt.tokenizer import Tokens

VOCAB = {"A": 0, "B": 1, "<pad>": 2, "<cls>": 3, "<eoc>": 4}


def state_of(*, width=8, d_ff=6, layers=2, prefix=""):
    """Tensors by the names of the original, with numbers that can be told apart."""
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "encoder.embedding.weight": (len(VOCAB), width),
        "encoder.enc_norm.weight": (width,),
        "encoder.enc_norm.bias": (width,),
        "value_encoder.linear1.weight": (width, 1),
        "value_encoder.linear1.bias": (width,),
        "value_encoder.linear2.weight": (width, width),
        "value_encoder.linear2.bias": (width,),
        "value_encoder.norm.weight": (width,),
        "value_encoder.norm.bias": (width,),
        "flag_encoder.weight": (2, width),
        "rotary.inv_freq": (3,),
    }
    for i in range(layers):
        layer = f"transformer_encoder.layers.{i}."
        shapes[f"{layer}self_attn.in_proj_weight"] = (3 * width, width)
        shapes[f"{layer}self_attn.in_proj_bias"] = (3 * width,)
        shapes[f"{layer}self_attn.out_proj.weight"] = (width, width)
        shapes[f"{layer}self_attn.out_proj.bias"] = (width,)
        shapes[f"{layer}linear1.weight"], shapes[f"{layer}linear1.bias"] = (d_ff, width), (d_ff,)
        shapes[f"{layer}linear2.weight"], shapes[f"{layer}linear2.bias"] = (width, d_ff), (width,)
        for norm in ("norm1", "norm2"):
            shapes[f"{layer}{norm}.weight"] = shapes[f"{layer}{norm}.bias"] = (width,)
    return {prefix + name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def write(folder, state, *, weights="hf_pytorch_model.bin", config=None, name="config.json", vocab=True):
    folder.mkdir(parents=True)
    if weights.endswith(".safetensors"):
        save_file(state, folder / weights)
    else:
        torch.save(state, folder / weights)
    if config is not None:
        (folder / name).write_text(json.dumps(config))
    if vocab:
        (folder / "vocab.json").write_text(json.dumps(VOCAB))
    return folder


CONFIG = {
    "embsize": 8,
    "nhead": 4,
    "d_hid": 6,
    "nlayers": 2,
    "max_seq_len": 1536,
    "norm_scheme": "post",
    "pad_token_id": 0,
}


@pytest.mark.parametrize("weights", ["hf_pytorch_model.bin", "model.safetensors", "best_model.pt", "any.pt"])
@pytest.mark.parametrize("prefix", ["", "module.", "model.scgpt."])
def test_the_shapes_tell_the_network(tmp_path, weights, prefix):
    mirror = io.read_checkpoint(write(tmp_path / "m", state_of(prefix=prefix), weights=weights, config=CONFIG))
    shape = mirror.transformer
    assert (shape.n_tokens, shape.d_model, shape.n_layers, shape.d_ff, shape.n_heads) == (5, 8, 2, 6, 4)
    assert (shape.pad_id, shape.norm_scheme, mirror.tokenizer.max_length) == (2, "post", 1536)  # pad of the vocabulary
    assert (mirror.tokenizer.ties, mirror.tokenizer.cls_value) == ("random", -2.0)
    assert (mirror.name, mirror.info["heads_from"]) == ("m", "config.json")
    assert dict(mirror.ignored) == {"rotary.inv_freq": "no part of this release has such a tensor"}
    report = io.load_component(CellTransformer(shape), mirror, "transformer")
    assert not report.initialised


def test_it_equals_the_original_layout(tmp_path):
    state = state_of()
    original = io.read_checkpoint(
        write(tmp_path / "o", state, weights="best_model.pt", config={"nheads": 4}, name="args.json")
    )
    mirror = io.read_checkpoint(
        write(tmp_path / "m", state, weights="x.safetensors", config={"nheads": 4}, name="args.json")
    )
    assert original.info["format"] == "original release"
    assert mirror.info["format"] == "mirror of the original release"
    assert (mirror.transformer, mirror.vocab) == (original.transformer, original.vocab)
    assert all(torch.equal(mirror.weights[name], tensor) for name, tensor in original.weights.items())
    assert mirror.weights.keys() == original.weights.keys()


def test_it_generates_as_the_original_layout(tmp_path):
    """With the original's form of attention, also after a round trip through our format."""
    state, generator = state_of(), torch.Generator().manual_seed(1)
    for i, (n_out, n_in) in {0: (8, 8), 2: (8, 8), 4: (1, 8)}.items():
        state[f"decoder.fc.{i}.weight"] = torch.randn((n_out, n_in), generator=generator)
        state[f"decoder.fc.{i}.bias"] = torch.full((n_out,), 9.0 if i == 4 else 0.0)
    original, mirror = (
        io.read_checkpoint(write(tmp_path / name, state, weights=weights, config={"nheads": 4}, name="args.json"))
        for name, weights in (("o", "best_model.pt"), ("m", "x.safetensors"))
    )
    io.write_checkpoint(mirror, tmp_path / "own")
    own = io.read_checkpoint(tmp_path / "own")
    known = Tokens(np.array([0, 1]), np.array([0]), np.array([30.0]))
    asked, keys = GeneLists.repeated(np.array([1]), 1), np.array([7], dtype=np.uint64)

    def value(checkpoint):
        return Generator(checkpoint, device="cpu").generate(known, asked, keys=keys, n_steps=1).values

    assert 1 < value(original)[0] < 50
    for other in (mirror, own):
        assert other.info["legacy_generation"] is True
        np.testing.assert_array_equal(value(other), value(original))
    assert models.untrained(mirror).info["legacy_generation"] is True
    ours = replace(mirror, info={"format": "mirror of the original release"})
    assert np.abs(value(ours) - value(original)) > 0.01


def test_heads_are_named_asked_for_or_those_of_the_originals(tmp_path):
    small = write(tmp_path / "small", state_of(), config={})
    text = r"no tensor tells the number of attention heads, and .*config.json does not give it. Say it: .*n_heads=4"
    with pytest.raises(CheckpointError, match=text):
        io.read_checkpoint(small)
    assert io.read_checkpoint(small, n_heads=2).transformer.n_heads == 2
    assert io.read_checkpoint(write(tmp_path / "named", state_of(), config=CONFIG), n_heads=2).transformer.n_heads == 2
    wide = io.read_checkpoint(write(tmp_path / "wide", state_of(width=512, layers=1)))
    assert (wide.transformer.n_heads, wide.info["heads_from"]) == (8, "every original of width 512")


def test_a_vocabulary_is_needed_or_given(tmp_path):
    folder = write(tmp_path / "m", state_of(), config=CONFIG, vocab=False)
    with pytest.raises(
        CheckpointError, match=r"m has no vocabulary.*io.read_checkpoint\('.*m', vocab='path/to/vocab.json'\)"
    ):
        io.read_checkpoint(folder)
    (tmp_path / "vocab.json").write_text(json.dumps(VOCAB))
    assert io.read_checkpoint(folder, vocab=tmp_path / "vocab.json").vocab["B"] == 1
    with settings.override(cache_dir=tmp_path / "cache"):
        models.register("mine", folder, vocab=tmp_path / "vocab.json", n_heads=2)
        loaded = models.load("mine")
    assert (loaded.name, loaded.transformer.n_heads) == ("mine", 2)
    (tmp_path / "vocab.json").write_text(json.dumps({"A": 0, "<pad>": 1, "<cls>": 2, "<eoc>": 3}))
    with pytest.raises(CheckpointError, match="has 5 rows, vocab.json 4 tokens"):
        io.read_checkpoint(folder, vocab=tmp_path / "vocab.json")


def test_only_a_mirror_takes_heads_and_vocabulary(checkpoint_folder):
    with pytest.raises(ValueError, match="is no mirror: it has its own settings and vocabulary. Leave n_heads"):
        io.read_checkpoint(checkpoint_folder, n_heads=2)


def test_files_that_are_no_mirror(tmp_path):
    with pytest.raises(
        CheckpointError, match="no tensor is named 'encoder.embedding.weight'.* First names: lin.weight"
    ):
        io.read_checkpoint(write(tmp_path / "other", {"lin.weight": torch.ones(2)}, config=CONFIG))
    two = write(tmp_path / "two", state_of(), weights="a.bin", config=CONFIG)
    torch.save(state_of(), two / "b.bin")
    with pytest.raises(CheckpointError, match="Several files may be the weights: a.bin, b.bin. Keep one"):
        io.read_checkpoint(two)
    damaged = write(tmp_path / "damaged", state_of(), weights="model.safetensors", config=CONFIG)
    (damaged / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match="model.safetensors is damaged"):
        io.read_checkpoint(damaged)
    with pytest.raises(CheckpointError, match=r"config.json holds a JSON list; the settings of a model are an object"):
        io.read_checkpoint(write(tmp_path / "list", state_of(), config=[]))


def test_the_files_of_a_checkpoint():
    ours = ["config.json", "vocab.json", "weights.safetensors"]
    original = ["args.json", "best_model.pt", "vocab.json"]
    assert io.checkpoint_files([*ours, *original, "card.md", "README.md"]) == ["card.md", *ours]
    assert io.checkpoint_files([*original, "config.json", "model.safetensors"]) == original
    assert io.checkpoint_files(["config.json", "pytorch_model.bin", "x.txt"]) == ["config.json", "pytorch_model.bin"]
    assert io.checkpoint_files(["model.safetensors", "model.bin"]) == ["model.safetensors"]
    with pytest.raises(CheckpointError, match=r"There are no weights \(\*.safetensors, .* among these files: x.txt"):
        io.checkpoint_files(["x.txt"])
