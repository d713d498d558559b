"""The pretraining module without any file: its terms and which parts they train."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scanpy_scgpt.data import split_generative
from scanpy_scgpt.module import PretrainModule, initial_weights
from scanpy_scgpt.nn import TransformerConfig
from scanpy_scgpt.tokenizer import Tokens

CONFIG = TransformerConfig(n_tokens=60, pad_id=57, d_model=16, n_heads=2, n_layers=2, d_ff=16, dropout=0.0)


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    tokens = Tokens(np.array([0, 20, 26, 50]), rng.integers(0, 57, 50).astype(np.int32), rng.integers(1, 51, 50))
    return split_generative(
        tokens, ratio=0.5, max_length=18, pad_id=57, cls_id=58, cls_value=-2.0, rng=np.random.default_rng(1)
    )


def _module(**changes):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        module = PretrainModule(CONFIG, **changes)
    module.load_state_dict(initial_weights(CONFIG, seed=0), strict=not changes.get("distribution"))
    return module


def test_terms_and_weights(batch):
    module = _module(contrast=True, weights={"gep": 0.5, "contrast": 3.0})
    loss = module(batch)
    assert set(loss.terms) == {"gep", "gepc", "prompt", "contrast"}
    expected = 0.5 * loss.terms["gep"] + loss.terms["gepc"] + loss.terms["prompt"] + 3 * loss.terms["contrast"]
    torch.testing.assert_close(loss.total, expected)
    module.prompting = False
    assert set(module(batch).terms) == {"gep", "gepc", "contrast"}


def test_every_parameter_is_trained(batch):
    module = _module()
    module(batch).total.backward()
    assert not [name for name, parameter in module.named_parameters() if parameter.grad is None]


def test_similar_cells_are_found_by_the_genes_of_both_views(batch):
    """The targets are made of the known and the unknown genes of a cell, weighted by their bins."""
    module = _module(contrast=True, positives="similar", pooling="weighted")
    assert set(module(batch).terms) == {"gep", "gepc", "prompt", "contrast"}
    assert module(batch).terms["contrast"] != _module(contrast=True, pooling="weighted")(batch).terms["contrast"]
    genes, known = module.transformer.encoder.genes.table(), batch.known
    whole = module._gene_sum(batch)
    for i in range(len(whole)):
        shown = torch.ones_like(known.gene_ids[i], dtype=torch.bool) if known.padding is None else ~known.padding[i]
        shown[0], asked = False, ~batch.unknown_padding[i]
        expected = known.values[i, shown] @ genes[known.gene_ids[i, shown]]
        expected = expected + batch.targets[i, asked] @ genes[batch.unknown_ids[i, asked]]
        torch.testing.assert_close(whole[i], expected.detach())


@pytest.mark.parametrize("task", ["gen", "pcpt", "both"])
def test_a_parameter_needs_a_gradient_where_it_has_one(batch, task):
    """Else processes would wait for it for ever."""
    module = _module(task=task, distribution=True, contrast=True, positives="similar", pooling="layers")
    module(batch).total.backward()
    for name, parameter in module.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None), name
    assert module.transformer.encoder.unknown.requires_grad == (task != "pcpt")


def test_padding_of_unknown_genes_does_not_count(batch):
    module = _module()
    before = module(batch).terms
    targets = batch.targets.clone()
    targets[batch.unknown_padding] = 1e6
    after = module(batch._replace(targets=targets)).terms
    for name in ("gep", "gepc", "prompt"):
        torch.testing.assert_close(before[name], after[name])


def test_the_prompt_takes_the_place_of_cls(batch):
    module = _module().eval()
    with torch.no_grad():
        plain = module.generate(batch)
        cls = module.transformer.encoder(batch.known.gene_ids, batch.known.values)[:, 0]
        torch.testing.assert_close(module.generate(batch, cell=cls).unknown, plain.unknown)
        assert not torch.allclose(module.generate(batch, cell=plain.cell).unknown, plain.unknown)


def test_initial_weights_leave_the_random_state(batch):
    before = torch.get_rng_state()
    first, again = initial_weights(CONFIG, seed=3), initial_weights(CONFIG, seed=3)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = initial_weights(CONFIG, seed=4)
    more = initial_weights(CONFIG, seed=3, distribution=True)
    assert all(torch.equal(more[name], tensor) for name, tensor in first.items())
    assert any(name.startswith("distribution_head.") for name in more)
    assert not torch.equal(first["transformer.encoder.unknown"], other["transformer.encoder.unknown"])


def test_initial_weights_seed_no_other_device(monkeypatch):
    expected = initial_weights(CONFIG, seed=3)

    def refused(*_args):
        raise AssertionError("torch.manual_seed would queue a seed for CUDA")

    monkeypatch.setattr(torch, "manual_seed", refused)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", refused)
    again = initial_weights(CONFIG, seed=3)
    assert all(torch.equal(expected[name], again[name]) for name in expected)


@pytest.mark.parametrize("operator", ["_on_cpu", "_on_cpu_backward"])
def test_a_release_of_torch_without_the_private_operators(batch, monkeypatch, operator):
    expected = _module().eval()(batch).total
    monkeypatch.setattr(f"scanpy_scgpt.nn._fused.{operator}", None)
    monkeypatch.setattr("scanpy_scgpt.nn._attention._KnownPlusSelf", None)
    torch.testing.assert_close(_module().eval()(batch).total, expected)


def test_the_head_of_the_distribution(batch):
    assert _module().distribution_head is None
    module = _module(distribution=True).eval()
    found = module.generate(batch)
    assert _module().generate(batch).logits is None
    assert found.logits.shape == (*batch.unknown_ids.shape, CONFIG.n_bins)
    counted = ~batch.unknown_padding
    of_pass = lambda logits: torch.nn.functional.cross_entropy(logits[counted], batch.targets[counted].long())  # noqa: E731
    module.prompting = False
    torch.testing.assert_close(module(batch).terms["distribution"], of_pass(found.logits))
    module.prompting = True
    prompted = module.generate(batch, cell=found.cell)
    expected = (of_pass(found.logits) + of_pass(prompted.logits)) / 2
    torch.testing.assert_close(module(batch).terms["distribution"], expected)
    module(batch).total.backward()
    assert not [name for name, parameter in module.named_parameters() if parameter.grad is None]


def test_masked_genes_see_every_token(batch):
    """One pass over the known genes and the masked ones; an unknown gene sees the names of the other unknown ones."""
    module = _module(task="pcpt", distribution=True).eval()
    terms = module(batch).terms
    assert set(terms) == {"masked_gep", "masked_gepc", "distribution"}
    known = batch.known
    padding = torch.zeros_like(known.gene_ids, dtype=torch.bool) if known.padding is None else known.padding
    hidden = module.transformer(
        torch.cat([known.gene_ids, batch.unknown_ids], 1),
        torch.cat([known.values, torch.full_like(batch.targets, -1)], 1),
        torch.cat([padding, batch.unknown_padding], 1),
    )
    counted, n = ~batch.unknown_padding, known.gene_ids.shape[1]
    predicted = module.expression_head(hidden[:, n:]).values
    torch.testing.assert_close(terms["masked_gep"], (predicted - batch.targets)[counted].square().mean())
    changed = batch._replace(unknown_ids=batch.unknown_ids.flip(0))
    assert not torch.allclose(module(changed).terms["masked_gep"], terms["masked_gep"])
    both = _module(task="both").eval()(batch)
    alone = {**_module().eval()(batch).terms, **_module(task="pcpt").eval()(batch).terms}
    assert list(both.terms) == ["gep", "gepc", "prompt", "masked_gep", "masked_gepc"]
    for name, value in alone.items():
        torch.testing.assert_close(both.terms[name], value)
    torch.testing.assert_close(both.total, sum(alone.values()))
    assert set(_module(task="pcpt", contrast=True)(batch).terms) == {"masked_gep", "masked_gepc", "contrast"}
