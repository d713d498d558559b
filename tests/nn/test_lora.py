"""Low-rank partners: nothing changes at first, merging is exact, names stay."""

from __future__ import annotations

import pytest
import torch

from scanpy_scgpt.module import initial_weights
from scanpy_scgpt.nn import CellTransformer, TransformerConfig, add_low_rank, merge_low_rank

CONFIG = TransformerConfig(n_tokens=20, pad_id=17, d_model=16, n_heads=2, n_layers=2, d_ff=12, dropout=0.0)
NAMES = ("attention.in_proj", "feed_forward.linear2")
IDS = torch.randint(0, 17, (3, 9), generator=torch.Generator().manual_seed(0))
VALUES = torch.arange(27.0).reshape(3, 9)


@pytest.fixture
def network():
    network = CellTransformer(CONFIG).eval()
    start = initial_weights(CONFIG, seed=0)
    network.load_state_dict({k.removeprefix("transformer."): x for k, x in start.items() if k.startswith("transfo")})
    return network


def _tune(network):
    for name, parameter in network.named_parameters():
        if name.endswith(".up"):
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(len(name)))


def test_the_output_is_the_same_at_first(network):
    before = network(IDS, VALUES, None)
    assert add_low_rank(network.layers, rank=2, names=NAMES) == 4
    assert torch.equal(network(IDS, VALUES, None), before)


def test_only_partners_of_adapted_maps_are_trained(network):
    add_low_rank(network.layers, rank=2, names=NAMES)
    network(IDS, VALUES, None).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.requires_grad != name.endswith("weight.original"), name
    partner = network.layers[0].attention.in_proj.parametrizations.weight[0]
    assert partner.up.grad.abs().sum() > 0
    assert (partner.down.shape, partner.up.shape) == ((2, 16), (48, 2))


@pytest.mark.parametrize(("alpha", "scale"), [(None, 1.0), (8.0, 4.0)])
def test_merging_is_exact_and_keeps_the_names(network, alpha, scale):
    names, start = list(network.state_dict()), network.layers[0].attention.in_proj.weight.detach().clone()
    before = network(IDS, VALUES, None)
    add_low_rank(network.layers, rank=2, names=NAMES, alpha=alpha)
    _tune(network)
    partner = network.layers[0].attention.in_proj.parametrizations.weight[0]
    expected = start + scale * partner.up @ partner.down
    tuned = network(IDS, VALUES, None)
    assert not torch.allclose(tuned, before, atol=1e-3)
    assert merge_low_rank(network) == 4
    assert sorted(network.state_dict()) == sorted(names)
    assert torch.equal(network(IDS, VALUES, None), tuned)
    torch.testing.assert_close(network.layers[0].attention.in_proj.weight, expected)
    assert merge_low_rank(network) == 0
