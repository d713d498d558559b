"""The network of integration: against recorded numbers, and what being told the batch changes."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from scanpy_scgpt.io._legacy import renamed
from scanpy_scgpt.module.integrate import IntegrationModule
from scanpy_scgpt.nn import CategoryEncoder, DomainNorm, TransformerConfig

EVERY = ("gep", "gepc", "ecs", "dar")
CONFIG = TransformerConfig(n_tokens=30, pad_id=27, d_model=16, n_heads=2, n_layers=1, d_ff=16, dropout=0.0)


def _recorded(fixtures_dir):
    numbers = np.load(fixtures_dir / "heads.npz")
    state = torch.load(fixtures_dir / "heads.state.pt", weights_only=True)
    state = {k.removeprefix("integration/"): v for k, v in state.items() if k.startswith("integration/")}
    weights, ignored = renamed(state)
    for name in ignored:
        new = re.sub(r"^batch_encoder\.enc_norm", "batch_encoder.norm", name)
        new = re.sub(r"^grad_reverse_discriminator\._decoder\.", "adversary_head.network.", new)
        new = new.replace("grad_reverse_discriminator.out_layer", "adversary_head.network.6")
        weights[new] = state[name]
    for ours, theirs in (("mean", "running_mean"), ("variance", "running_var")):
        weights[f"domain_norm.{ours}"] = torch.stack([state[f"dsbn.bns.{i}.{theirs}"] for i in range(3)])
    weights["domain_norm.seen"] = torch.ones(3, dtype=torch.bool)
    prefix = "integration/"
    return weights, {
        k.removeprefix(prefix): torch.from_numpy(numbers[k]) for k in numbers.files if k.startswith(prefix)
    }


def test_the_heads_of_the_original_are_reproduced(fixtures_dir):
    weights, values = _recorded(fixtures_dir)
    config = TransformerConfig(n_tokens=103, pad_id=100, d_model=32, n_heads=4, n_layers=2, d_ff=48)
    module = IntegrationModule(config, objectives=EVERY, n_batch=3, domain_norm=True, explicit_zeros=True).eval()
    own = {name: tensor for name, tensor in weights.items() if name in module.state_dict()}
    lacking = module.load_state_dict(own, strict=False)
    assert set(lacking.missing_keys) == {"transformer.encoder.unknown"}
    pad = values["in/pad"]
    with torch.no_grad():
        first = module.inference(
            values["in/src"], values["in/values"], pad, domains=values["in/same_batch_labels"].long()
        )
        heads = module.generative(first["tokens"], first["cell"], values["in/src"], first["domains"])
    for ours, theirs in (
        (first["cell"], "cell_emb"),
        (heads["from_cell"], "mvc_output"),
        (heads["from_cell_nonzero"], "mvc_zero_probs"),
        (heads["batches"], "dab_output"),
        (heads["values"], "mlm_output"),
        (heads["values_nonzero"], "mlm_zero_probs"),
    ):
        expected = values[f"out/grad/{theirs}"]
        where = ~pad if ours.shape == pad.shape else slice(None)
        scale = max(1.0, float(expected.abs().max()))
        assert float((ours - expected)[where].abs().max()) < 1e-5 * scale, theirs


def test_statistics_are_those_of_each_domain_and_leave_padding_out():
    torch.manual_seed(0)
    norm, x = DomainNorm(3, 4), torch.randn(6, 5, 4) * 3 + 1
    domains, padding = torch.tensor([0, 1, 0, 1, 1, 0]), torch.zeros(6, 5, dtype=torch.bool)
    padding[::2, 3:] = True
    out = norm(x, domains, padding)
    for domain in (0, 1):
        kept = out[domains == domain][~padding[domains == domain]]
        torch.testing.assert_close(kept.mean(dim=0), torch.zeros(4), atol=1e-5, rtol=0)
        torch.testing.assert_close(kept.var(dim=0, unbiased=False), torch.ones(4), atol=1e-3, rtol=0)
    assert norm.seen.tolist() == [True, True, False]
    alone = torch.nn.BatchNorm1d(4, eps=6.1e-5, affine=False)
    alone(x[domains == 1][~padding[domains == 1]])
    torch.testing.assert_close(norm.mean[1], alone.running_mean)
    torch.testing.assert_close(norm.variance[1], alone.running_var)
    changed = x.clone()
    changed[padding] = 1e6
    norm.eval()
    torch.testing.assert_close(norm(changed, domains, padding)[~padding], norm(x, domains, padding)[~padding])


def test_an_unseen_domain_gets_the_mean_of_the_others_and_a_new_norm_changes_nothing():
    norm, x = DomainNorm(2, 4), torch.randn(3, 5, 4)
    torch.testing.assert_close(norm.eval()(x, torch.tensor([0, 1, -1])), x, atol=1e-4, rtol=1e-4)
    norm.train()(x + 5, torch.zeros(3, dtype=torch.int64))
    norm.eval()
    torch.testing.assert_close(norm(x, torch.tensor([-1, 1, 0])), norm(x, torch.tensor([0, 0, 0])))


def test_an_unknown_category_gets_the_mean_vector():
    torch.manual_seed(0)
    encoder = CategoryEncoder(3, 8)
    found = encoder(torch.tensor([0, 2, -1]))
    torch.testing.assert_close(found[2], encoder(torch.arange(3)).mean(dim=0))
    assert not torch.allclose(found[0], found[1])


def _batch(n=6, length=9):
    torch.manual_seed(1)
    ids = torch.randint(0, 27, (n, length))
    values = torch.randint(0, 51, (n, length)).float()
    batch = torch.arange(n) % 2
    return {
        "gene_ids": ids,
        "values": values,
        "padding": torch.zeros(n, length, dtype=torch.bool),
        "labels": torch.full((n, 1), -1),
        "batch": batch[:, None],
    }


@pytest.mark.parametrize("zeros", [False, True])
def test_every_term_is_there_and_reaches_the_network(zeros):
    module = IntegrationModule(CONFIG, objectives=EVERY, n_batch=2, domain_norm=True, explicit_zeros=zeros)
    loss = module(_batch())[2]
    expected = {*EVERY, *(("gep_zeros", "gepc_zeros") if zeros else ())}
    assert set(loss.extra_metrics) == expected
    loss.loss.backward()
    untouched = {n for n, p in module.named_parameters() if p.requires_grad and p.grad is None}
    assert not untouched


def test_the_decoders_are_told_the_batch_and_the_cell_vector_is_not():
    module = IntegrationModule(CONFIG, objectives=EVERY, n_batch=2).eval()
    given, other = _batch(), _batch()
    other["batch"] = 1 - other["batch"]
    torch.manual_seed(0)
    one = module.inference(**module._get_inference_input(given))
    torch.manual_seed(0)
    two = module.inference(**module._get_inference_input(other))
    torch.testing.assert_close(one["cell"], two["cell"])
    first, second = (module.generative(x["tokens"], x["cell"], given["gene_ids"], x["domains"]) for x in (one, two))
    assert not torch.allclose(first["values"], second["values"])
    assert not torch.allclose(first["from_cell"], second["from_cell"])


def test_without_batches_nothing_is_told():
    module = IntegrationModule(CONFIG, objectives=("gep", "gepc"), n_batch=1, domain_norm=True)
    assert module.batch_encoder is None
    assert module.domain_norm is None
    assert torch.isfinite(module(_batch())[2].loss)
