"""The module of fine-tuning: each term against a slow reference, what is hidden, what asks for a gradient."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from scanpy_scgpt.data import LabelledCells
from scanpy_scgpt.module.finetune import FineTuneModule, check_objectives
from scanpy_scgpt.nn import POOLINGS, TransformerConfig
from scanpy_scgpt.tokenizer import Tokens

CONFIG = TransformerConfig(n_tokens=60, pad_id=57, d_model=16, n_heads=2, n_layers=2, d_ff=16, dropout=0.0)
ALL = ("cls", "gep", "gepc", "ecs", "dar")


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    lengths = np.array([20, 6, 24, 1])
    genes = np.concatenate([rng.permutation(57)[:n] for n in lengths]).astype(np.int32)
    tokens = Tokens(np.concatenate([[0], np.cumsum(lengths)]), genes, rng.integers(1, 51, 51).astype(np.uint8))
    codes = {"labels": np.array([2, 0, -1, 1]), "batch": np.array([0, 1, 1, -1])}
    return LabelledCells(tokens, codes, 57, 58, -2.0).batch(np.arange(4))


def _module(config=CONFIG, **changes):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        return FineTuneModule(config, **{"objectives": ALL, "n_labels": 3, "n_batch": 2, **changes})


def _call(module, batch, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return module(batch)


def test_the_loss_is_the_weighted_sum_of_its_terms(batch):
    module = _module(weights={"gep": 0.5, "dar": 2.0})
    _, _, out = _call(module, batch)
    terms = out.extra_metrics
    assert set(terms) == set(ALL)
    expected = terms["cls"] + 0.5 * terms["gep"] + terms["gepc"] + 10 * terms["ecs"] + 2 * terms["dar"]
    torch.testing.assert_close(out.loss, expected)
    assert out.n_obs_minibatch == 4
    assert all(value.ndim == 0 for value in terms.values())


def test_values_of_hidden_genes_are_predicted_from_tokens_and_cells(batch):
    module = _module()
    inference, _, out = _call(module, batch)
    hidden = inference["hidden"]
    shown = torch.where(hidden, torch.tensor(-1.0), batch["values"])
    tokens = module.transformer(batch["gene_ids"], shown, batch["padding"])
    torch.testing.assert_close(inference["tokens"], tokens)
    genes = module.transformer.encoder.genes(batch["gene_ids"])
    squares = {"gep": [], "gepc": []}
    for cell, gene in hidden.nonzero().tolist():
        truth = batch["values"][cell, gene]
        squares["gep"].append((module.expression_head(tokens[cell, gene]).values - truth) ** 2)
        from_cell = module.cell_to_gene_head(tokens[cell : cell + 1, 0], genes[cell : cell + 1]).values
        squares["gepc"].append((from_cell[0, gene] - truth) ** 2)
    for name, values in squares.items():
        torch.testing.assert_close(out.extra_metrics[name], torch.stack(values).mean(), rtol=1e-4, atol=1e-4)


def test_labels_batches_and_similarity(batch):
    module = _module(smoothing=0.1)
    inference, _, out = _call(module, batch)
    cell = inference["cell"]
    logs = torch.log_softmax(module.class_head(cell), dim=1)
    known = torch.tensor([0, 1, 3])
    exact = -logs[known, batch["labels"][known, 0]].mean()
    torch.testing.assert_close(out.extra_metrics["cls"], 0.9 * exact - 0.1 * logs[known].mean())
    logs = torch.log_softmax(module.adversary_head(cell), dim=1)
    torch.testing.assert_close(out.extra_metrics["dar"], -logs[[0, 1, 2], batch["batch"][:3, 0]].mean())
    unit = torch.nn.functional.normalize(cell, dim=1)
    cosine = torch.relu(unit @ unit.T).fill_diagonal_(0)
    torch.testing.assert_close(out.extra_metrics["ecs"], 1 - ((cosine - 0.8) ** 2).mean(), rtol=1e-4, atol=1e-5)


def test_neither_cls_nor_padding_is_ever_hidden(batch):
    module = _module(mask_ratio=1.0)
    hidden = module._get_inference_input(batch)["hidden"]
    assert not hidden[:, 0].any()
    assert torch.equal(hidden[:, 1:], ~batch["padding"][:, 1:])
    assert module._get_inference_input({**batch, "padding": None})["hidden"][:, 1:].all()


def test_genes_are_hidden_at_the_ratio_and_only_for_terms_that_need_it(batch):
    module = _module(mask_ratio=0.25)
    drawn = torch.stack([module._get_inference_input(batch)["hidden"] for _ in range(400)]).float()
    share = drawn.mean(dim=0)[~batch["padding"] & (torch.arange(25) > 0)]
    assert (share - 0.25).abs().max() < 5 * (0.25 * 0.75 / 400) ** 0.5
    assert _module(objectives=("cls", "ecs"))._get_inference_input(batch)["hidden"] is None


def test_a_hidden_value_is_not_seen(batch):
    """Whatever the value of a hidden gene, vectors are the same: also where values weigh the tokens."""
    for pooling in POOLINGS:
        module = _module(pooling=pooling).eval()
        hidden = torch.zeros_like(batch["padding"])
        hidden[:, 1] = True
        changed = batch["values"].clone()
        changed[:, 1] = 50
        inputs = (batch["gene_ids"], batch["values"], batch["padding"], hidden)
        first = module.inference(*inputs)["cell"]
        assert torch.equal(first, module.inference(inputs[0], changed, *inputs[2:])["cell"])
        assert not torch.equal(first, module.inference(inputs[0], changed, inputs[2])["cell"])


@pytest.mark.parametrize("pooling", POOLINGS)
def test_padding_changes_nothing(batch, pooling):
    module = _module(pooling=pooling).eval()
    whole = module.inference(batch["gene_ids"], batch["values"], batch["padding"])["cell"]
    alone = module.inference(batch["gene_ids"][1:2, :7], batch["values"][1:2, :7])["cell"]
    torch.testing.assert_close(whole[1:2], alone, rtol=0, atol=1e-5)


def test_a_table_of_values_has_rows_for_cls_and_hidden(batch):
    module = _module(replace(CONFIG, value_encoding="category"))
    n_bins = CONFIG.n_bins
    marks = module._marks(torch.tensor([[-2.0, 0.0, 1.0, n_bins - 1.0, -1.0]]))
    assert marks.tolist() == [[n_bins, 0.0, 1.0, n_bins - 1.0, n_bins + 1]]
    _, _, out = _call(module, batch)
    out.loss.backward()
    grad = module.transformer.encoder.values.embedding.weight.grad
    assert grad[n_bins + 1].abs().sum() > 0


def test_the_network_is_trained_against_the_batches(batch):
    """Behind the turn the gradient is that of the term, in front of it the opposite."""
    grads = {}
    for turned in (True, False):
        module = _module(objectives=("dar",)).double()
        doubled = {name: x.double() if x.is_floating_point() else x for name, x in batch.items()}
        if turned:
            module(doubled)[2].loss.backward()
        else:
            cell = module.inference(doubled["gene_ids"], doubled["values"], doubled["padding"])["cell"]
            scores = module.adversary_head(cell)
            torch.nn.functional.cross_entropy(scores[:3], doubled["batch"][:3, 0]).backward()
        grads[turned] = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    for name, grad in grads[True].items():
        sign = 1 if name.startswith("adversary_head") else -1
        torch.testing.assert_close(grad, sign * grads[False][name], rtol=1e-6, atol=1e-12)


def test_no_label_is_a_term_of_0(batch):
    without = {**batch, "labels": torch.full((4, 1), -1), "batch": torch.full((4, 1), -1)}
    _, _, out = _call(_module(objectives=("cls", "dar")), without)
    assert out.loss.item() == 0
    out.loss.backward()


def test_one_gene_and_none_hidden(batch):
    _, _, out = _call(_module(mask_ratio=0.0), batch)
    assert out.extra_metrics["gep"].item() == 0
    assert torch.isfinite(out.loss)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_a_parameter_needs_a_gradient_where_it_has_one(batch, n):
    """Else processes would wait for it for ever."""
    for objectives in itertools.combinations(ALL, n):
        module = _module(objectives=objectives)
        _call(module, batch)[2].loss.backward()
        for name, parameter in module.named_parameters():
            assert parameter.requires_grad == (parameter.grad is not None), (objectives, name)


def test_there_are_no_samples():
    with pytest.raises(NotImplementedError, match=r"scanpy_scgpt\.tl\.generate"):
        _module().sample()


def test_objectives_that_the_data_cannot_serve():
    assert check_objectives(("gep", "cls", "gep"), n_labels=2, n_batch=0) == ("gep", "cls")
    assert check_objectives("ecs", n_labels=0, n_batch=0) == ("ecs",)
    for objectives, text in {
        ("gpe",): "an objective='gpe': use one of 'cls', 'gep', 'gepc', 'ecs', 'dar'; did you mean",
        (): "objectives is empty: name at least one of 'cls', 'gep'",
        ("cls",): r"The objective 'cls' needs labels: name their column in setup_anndata\(adata, labels_key=",
        ("dar",): "The objective 'dar' tells batches apart, and there are 0. Leave it out, or name a column",
    }.items():
        with pytest.raises(ValueError, match=text):
            check_objectives(objectives, n_labels=0, n_batch=0)
    with pytest.raises(
        ValueError, match="tells labels apart, and there is 1. Name a column with several as labels_key"
    ):
        check_objectives(("cls",), n_labels=1, n_batch=0)
    with pytest.raises(ValueError, match="tells batches apart, and there is 1"):
        check_objectives(("dar",), n_labels=0, n_batch=1)
    with pytest.raises(ValueError, match="an objective in weights='gpe': use one of"):
        check_objectives(("gep",), n_labels=0, n_batch=0, weights={"gpe": 1.0})
