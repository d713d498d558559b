"""The network against the slow reference."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from scanpy_scgpt.nn import CellPool, CellTransformer, TransformerConfig, pool

_spec = importlib.util.spec_from_file_location("nn_reference", Path(__file__).with_name("reference.py"))
reference = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(reference)

CONFIG = TransformerConfig(n_tokens=50, pad_id=47, d_model=24, n_heads=3, n_layers=2, d_ff=20, dropout=0.3)


@pytest.fixture
def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = CellTransformer(CONFIG).double().eval()
        for parameter in network.parameters():
            parameter.data.normal_(std=0.5)
    return network


def _cells(lengths=(9, 4, 1)):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 47, (3, 9), generator=generator)
    values = torch.randint(-2, 51, (3, 9), generator=generator).double()
    padding = torch.arange(9)[None, :] >= torch.tensor(lengths)[:, None]
    return ids, values, padding


def test_forward_is_the_reference(network):
    ids, values, padding = _cells()
    hidden = network(ids, values, padding)
    for row, length in enumerate((9, 4, 1)):
        expected = reference.encode_cell(
            network.state_dict(), ids[row, :length], values[row, :length], n_layers=2, n_heads=3
        )
        torch.testing.assert_close(hidden[row, :length], expected, atol=1e-10, rtol=0)


def test_generative_form_is_the_reference(network):
    ids, values, _ = _cells()
    state = network.state_dict()
    known = network.encoder(ids[:1, :5], values[:1, :5])
    unknown = network.encoder.without_value(ids[:1, 5:])
    got = torch.cat(network.encode_generative(known, unknown), dim=1)[0]
    allowed = torch.zeros(9, 9, dtype=torch.bool)
    allowed[:, :5] = True
    allowed |= torch.eye(9, dtype=torch.bool)
    expected = reference.run_layers(
        state, torch.cat([known, unknown], dim=1)[0], n_layers=2, n_heads=3, allowed=allowed
    )
    torch.testing.assert_close(got, expected, atol=1e-10, rtol=0)


def test_tokens_have_no_position(network):
    ids, values, _ = _cells()
    order = torch.tensor([0, 5, 3, 1, 8, 7, 2, 4, 6])
    moved = network(ids[:1, order], values[:1, order])
    torch.testing.assert_close(moved, network(ids[:1], values[:1])[:, order])


def test_padding_changes_nothing(network):
    ids, values, padding = _cells()
    hidden = network(ids, values, padding)
    ids[1, 4:], values[1, 4:] = 3, 40.0
    torch.testing.assert_close(network(ids, values, padding)[1, :4], hidden[1, :4])
    torch.testing.assert_close(network(ids[1:2, :4], values[1:2, :4])[0], hidden[1, :4])


def test_pooling_leaves_padding_out(network):
    ids, values, padding = _cells()
    hidden = network(ids, values, padding)
    for how in ("cls", "mean", "weighted"):
        batch = pool(hidden, how=how, padding=padding, values=values)
        alone = pool(hidden[1:2, :4], how=how, values=values[1:2, :4])
        torch.testing.assert_close(batch[1:2], alone)


def test_all_layers_are_pooled_and_their_input(network):
    ids, values, padding = _cells()
    seen, cells = [], CellPool("layers", padding=padding, values=values)
    network(ids, values, padding, watch=lambda x: (seen.append(x), cells(x)))
    assert len(seen) == network.config.n_layers + 1
    torch.testing.assert_close(seen[0], network.encoder(ids, values))
    sums = sum(pool(x, how="weighted", padding=padding, values=values) for x in seen)
    torch.testing.assert_close(cells.result(), sums / sums.norm(dim=1, keepdim=True))
    for how in ("cls", "mean", "weighted"):
        last = CellPool(how, padding=padding, values=values)
        network(ids, values, padding, watch=last)
        torch.testing.assert_close(last.result(), pool(seen[-1], how=how, padding=padding, values=values))


def test_the_generative_pass_shows_its_known_tokens(network):
    ids, values, _ = _cells()
    known, unknown = network.encoder(ids[:, :4], values[:, :4]), network.encoder.without_value(ids[:, 4:])
    seen = []
    last, _ = network.encode_generative(known, unknown, watch=seen.append)
    assert [x.shape for x in seen] == [known.shape] * (network.config.n_layers + 1)
    torch.testing.assert_close(seen[-1], last)


@pytest.mark.parametrize("scheme", ["pre", "legacy_pre"])
def test_norm_schemes_differ_and_train(scheme):
    config = TransformerConfig.from_dict({**CONFIG.to_dict(), "norm_scheme": scheme})
    network = CellTransformer(config)
    ids, values, padding = _cells()
    network(ids, values.float(), padding)[~padding].square().mean().backward()
    grads = {name: parameter.grad for name, parameter in network.named_parameters()}
    assert all(grad is not None for name, grad in grads.items() if name != "encoder.unknown")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"n_heads": 5}, "d_model=24 is no multiple of n_heads=5"),
        ({"n_layers": 0}, "n_layers=0: must be at least 1"),
        ({"pad_id": 50}, "pad_id=50 is outside the gene table of 50 tokens"),
        ({"value_encoding": "ranks"}, "value_encoding='ranks': use one of 'continuous'"),
        ({"norm_scheme": "middle"}, "norm_scheme='middle': use one of 'post'"),
        ({"depth": 3}, "Unknown setting 'depth'"),
    ],
)
def test_configuration_is_checked(changes, text):
    with pytest.raises(ValueError, match=text):
        TransformerConfig.from_dict({**CONFIG.to_dict(), **changes})
