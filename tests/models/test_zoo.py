"""Models by name."""

from __future__ import annotations

import pytest
import torch

from scanpy_scgpt import models, settings
from scanpy_scgpt.io import load_component
from scanpy_scgpt.nn import CellTransformer


def test_the_bundled_model_loads_and_is_small():
    assert models.available() == ["mini"]
    mini = models.load("mini")
    assert mini.name == "mini"
    assert mini.vocab["CD3D"] >= 0
    assert not load_component(CellTransformer(mini.transformer), mini, "transformer").initialised
    n_bytes = 2 * sum(tensor.numel() for tensor in mini.weights.values())
    assert n_bytes < 10e6
    assert "Training data" in mini.card


def test_its_losses_are_below_the_mean_digit_of_each_gene():
    info = models.load("mini").info
    assert info["losses"]["gep_validation"] < info["mean_bin_mse"]["per_gene"] < info["mean_bin_mse"]["constant"]
    assert info["losses"]["gepc_validation"] < info["mean_bin_mse"]["per_gene"]


def test_none_means_the_setting(tmp_path):
    with settings.override(model=str(tmp_path / "nowhere")), pytest.raises(ValueError, match="nowhere"):
        models.load()
    checkpoint = models.load("mini")
    assert models.load(checkpoint) is checkpoint


def test_untrained_has_the_shape_and_other_weights():
    mini, random = models.load("mini"), models.untrained("mini")
    assert random.name == "untrained mini"
    assert {k: v.shape for k, v in random.weights.items()} == {k: v.shape for k, v in mini.weights.items()}
    name = "transformer.layers.0.attention.in_proj.weight"
    assert not torch.allclose(random.weights[name], mini.weights[name])
    assert torch.equal(random.weights[name], models.untrained("mini").weights[name])
