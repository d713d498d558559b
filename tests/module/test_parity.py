"""The network and its heads against numbers recorded from the original implementation (tolerance 1e-5)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scanpy_scgpt._batch import CellBatch, GenerativeBatch
from scanpy_scgpt.io import read_checkpoint
from scanpy_scgpt.io._legacy import renamed
from scanpy_scgpt.module import CellEncoder, PretrainModule
from scanpy_scgpt.nn import CellToGeneHead, CellTransformer, ClassHead, ExpressionHead, TransformerConfig, pool
from scanpy_scgpt.objectives import contrastive_cells, elastic_similarity, masked_mse

TOLERANCE = 1e-5


def _close(got, expected, where=None):
    """Equal to 1e-5 of the largest number (values of this size are up to 50)."""
    got, expected = torch.as_tensor(got), torch.as_tensor(expected)
    got, expected = (got, expected) if where is None else (got[where], expected[where])
    scale = max(1.0, expected.abs().max().item())
    assert torch.isfinite(got).all()
    assert (got - expected).abs().max().item() <= TOLERANCE * scale


def _variant(fixtures_dir, variant, *, file="heads"):
    recorded = np.load(fixtures_dir / f"{file}.npz")
    state = torch.load(fixtures_dir / f"{file}.state.pt", weights_only=True)
    state = {k.removeprefix(f"{variant}/"): v for k, v in state.items() if k.startswith(f"{variant}/")}
    weights, ignored = renamed(state)
    values = {
        k.removeprefix(f"{variant}/"): torch.from_numpy(recorded[k])
        for k in recorded.files
        if k.startswith(f"{variant}/")
    }
    return weights, ignored, values


def _fill(module, weights, component):
    own = {k.removeprefix(f"{component}."): v for k, v in weights.items() if k.startswith(f"{component}.")}
    missing = module.load_state_dict(own, strict=False)
    assert set(missing.missing_keys) <= {"encoder.unknown"}
    assert not missing.unexpected_keys
    return module.eval()


class _Network:
    """Transformer and heads of a recorded variant, as its tensors say."""

    def __init__(self, weights, **changes):
        n_tokens, d = weights["transformer.encoder.genes.embedding.weight"].shape
        d_ff = weights["transformer.layers.0.feed_forward.linear1.weight"].shape[0]
        n_layers = 1 + max(int(k.split(".")[2]) for k in weights if k.startswith("transformer.layers."))
        config = TransformerConfig(
            n_tokens=n_tokens, pad_id=100, d_model=d, n_heads=4, n_layers=n_layers, d_ff=d_ff, **changes
        )
        zeros = "expression_head.nonzero.0.weight" in weights
        self.transformer = _fill(CellTransformer(config), weights, "transformer")
        self.expression = _fill(ExpressionHead(d_model=d, explicit_zeros=zeros), weights, "expression_head")
        self.cell_to_gene = _fill(CellToGeneHead(d_model=d, explicit_zeros=zeros), weights, "cell_to_gene_head")

    def __call__(self, given, *, how="cls", masked_pooling=True):
        ids, values, pad = given["in/src"], given["in/values"], given["in/pad"]
        hidden = self.transformer(ids, values, pad)
        cell = pool(hidden, how=how, padding=pad if masked_pooling else None, values=values)
        genes = self.transformer.encoder.genes(ids)
        return hidden, cell, self.expression(hidden), self.cell_to_gene(cell, genes)


VARIANTS = {
    "base": {},
    "zero_prob": {},
    "scaling": {"value_encoding": "scaling"},
    "category": {"value_encoding": "category"},
    "mvc_detach": {},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_heads(fixtures_dir, variant):
    weights, ignored, given = _variant(fixtures_dir, variant)
    assert not ignored
    network = _Network(weights, **VARIANTS[variant])
    with torch.no_grad():
        _, cell, expression, from_cell = network(given)
    kept = ~given["in/pad"]
    _close(cell, given["out/nograd/cell_emb"])
    _close(expression.values, given["out/nograd/mlm_output"], kept)
    _close(from_cell.values, given["out/nograd/mvc_output"], kept)
    if variant == "zero_prob":
        _close(expression.nonzero, given["out/nograd/mlm_zero_probs"], kept)
        _close(from_cell.nonzero, given["out/nograd/mvc_zero_probs"], kept)


@pytest.mark.parametrize(("variant", "how"), [("avg_pool", "mean"), ("w_pool", "weighted")])
def test_poolings_with_the_padding_of_the_original(fixtures_dir, variant, how):
    """The original pools over padding too; on its path without gradient the padded vectors are zero."""
    weights, _, given = _variant(fixtures_dir, variant)
    network = _Network(weights)
    with torch.no_grad():
        hidden = network(given)[0].masked_fill(given["in/pad"].unsqueeze(-1), 0)
        cell = pool(hidden, how=how, values=given["in/values"])
        genes = network.transformer.encoder.genes(given["in/src"])
        from_cell = network.cell_to_gene(cell, genes)
    _close(cell, given["out/nograd/cell_emb"])
    _close(from_cell.values, given["out/nograd/mvc_output"], ~given["in/pad"])


def test_losses_and_gradients_of_the_base_variant(fixtures_dir):
    weights, _, given = _variant(fixtures_dir, "base")
    network = _Network(weights)
    classes = _fill(ClassHead(d_model=32, n_classes=5), weights, "class_head")
    _, cell, expression, from_cell = network(given)
    _close(classes(cell), given["train/cls_output"])
    _close(contrastive_cells(cell, cell), given["train/loss_cce"])
    counted = given["in/values"] == -1
    terms = {
        "gep": masked_mse(expression.values, given["in/target"], counted),
        "mvc": masked_mse(from_cell.values, given["in/target"], counted),
        "cls": torch.nn.functional.cross_entropy(classes(cell), given["in/celltypes"]),
        "ecs_x10": 10 * elastic_similarity(cell, threshold=0.3),
    }
    for name, value in terms.items():
        _close(value, given[f"loss/{name}"])
    sum(terms.values()).backward()
    grads = {name: given[f"grad/{name}"] for name in (k.removeprefix("grad/") for k in given if k.startswith("grad/"))}
    expected, _ = renamed(grads)
    ours = {
        f"{component}.{name}": parameter.grad
        for component, module in (
            ("transformer", network.transformer),
            ("expression_head", network.expression),
            ("cell_to_gene_head", network.cell_to_gene),
            ("class_head", classes),
        )
        for name, parameter in module.named_parameters()
    }
    assert len(expected) > 40
    for name, gradient in expected.items():
        _close(ours[name], gradient)


@pytest.mark.parametrize("style", ["concat query", "sum query"])
def test_query_styles_of_the_cell_to_gene_head(fixtures_dir, style):
    weights, _, given = _variant(fixtures_dir, style.replace(" ", "_"))
    head = _fill(CellToGeneHead(d_model=32, style=style), weights, "cell_to_gene_head")
    with torch.no_grad():
        got = head(given["in/cell_emb"], given["in/gene_embs"]).values
    _close(got, given["out/module_alone"])


@pytest.mark.parametrize(("variant", "scheme"), [("flash_post", "post"), ("flash_pre", "legacy_pre")])
def test_norm_schemes_of_the_flash_layer(fixtures_dir, variant, scheme):
    weights, _, given = _variant(fixtures_dir, variant, file="heads_flash")
    with torch.no_grad():
        _, cell, expression, _ = _Network(weights, norm_scheme=scheme)(given)
    _close(cell, given["out/nograd/cell_emb"])
    _close(expression.values, given["out/nograd/mlm_output"], ~given["in/pad"])


@pytest.mark.parametrize("folder", ["ckpt_plain", "ckpt_flash"])
def test_original_checkpoints(fixtures_dir, folder):
    """Both spellings of the attention give the recorded heads and embeddings."""
    checkpoint = read_checkpoint(fixtures_dir / folder)
    assert not checkpoint.ignored
    recorded = np.load(fixtures_dir / "ckpt_plain_heads.npz")
    ids, values, pad = (torch.from_numpy(recorded[f"in/{name}"]) for name in ("src", "values", "pad"))
    module = PretrainModule(checkpoint.transformer).eval()
    missing = module.load_state_dict(dict(checkpoint.weights), strict=False)
    assert set(missing.missing_keys) <= {"transformer.encoder.unknown"}
    with torch.no_grad():
        hidden = module.transformer(ids, values, pad)
        _close(hidden[:, 0], recorded["out/nograd/cell_emb"])
        _close(module.expression_head(hidden).values, recorded["out/nograd/mlm_output"], ~pad)
        _close(module.from_cell(hidden[:, 0], ids), recorded["out/nograd/mvc_output"], ~pad)


@pytest.mark.parametrize("length", ["full", "truncated"])
def test_recorded_embedding_batches(fixtures_dir, length):
    """The forward-only encoder with lookup tables and the `<cls>` row alone gives the recorded embeddings."""
    checkpoint = read_checkpoint(fixtures_dir / "ckpt_flash")
    encoder = CellEncoder(checkpoint.transformer, n_bins=51, cls_value=-2.0)
    encoder.transformer.load_state_dict(
        {k.removeprefix("transformer."): v for k, v in checkpoint.weights.items() if k.startswith("transformer.")}
    )
    encoder.prepare()
    recorded = np.load(fixtures_dir / "embed.npz")
    vectors = []
    for b in range(3):
        ids, values, pad = (
            torch.from_numpy(recorded[f"{length}/batch{b}_{name}"]) for name in ("gene_ids", "values", "pad")
        )
        digits = values.long().clamp(min=0)
        digits[:, 0] = 51
        vectors.append(torch.nn.functional.normalize(encoder(ids, digits, pad), dim=1))
    _close(torch.cat(vectors), recorded[f"{length}/embedding"])


def test_generative_pretraining(fixtures_dir):
    """Both passes, their losses, and the pass without unknown genes."""
    recorded = {k: torch.from_numpy(v) for k, v in np.load(fixtures_dir / "generative.npz").items() if v.ndim}
    losses = np.load(fixtures_dir / "generative.npz")
    weights, ignored = renamed(torch.load(fixtures_dir / "generative.state.pt", weights_only=True))
    assert not ignored
    pad_id = 100
    config = TransformerConfig(n_tokens=103, pad_id=pad_id, d_model=32, n_heads=4, n_layers=2, d_ff=48)
    module = PretrainModule(config, legacy_generation=True).eval()
    module.load_state_dict(weights)
    known_ids, known_values = recorded["collated/pcpt_gene"], recorded["collated/pcpt_expr"]
    unknown_ids, targets = recorded["collated/gen_gene"], recorded["collated/gen_expr_target"]
    batch = GenerativeBatch(
        CellBatch(known_ids, known_values, known_ids == pad_id), unknown_ids, targets, unknown_ids == pad_id
    )
    kept_known, kept = known_ids != pad_id, unknown_ids != pad_id
    with torch.no_grad():
        first = module.generate(batch)
        second = module.generate(batch, cell=first.cell)
        mvc = module.from_cell(first.cell, torch.cat([known_ids, unknown_ids], dim=1))
        loss = module(batch)
    for got, name in ((first, "pass1"), (second, "pass2")):
        _close(got.known, recorded[f"{name}/pcpt_preds"], kept_known)
        _close(got.unknown, recorded[f"{name}/gen_preds"], kept)
        _close(got.cell, recorded[f"{name}/cell_emb"])
    _close(mvc, recorded["pass1/mvc_output"], torch.cat([kept_known, kept], dim=1))
    for ours, theirs in (("gep", "gen1"), ("gepc", "mvc"), ("prompt", "gen2")):
        _close(loss.terms[ours], losses[f"loss/{theirs}"])
    empty = batch._replace(unknown_ids=unknown_ids[:, :0])
    with torch.no_grad():
        alone = module.generate(empty)
    _close(alone.known, recorded["pcpt_only/pcpt_preds"], kept_known)
    _close(alone.cell, recorded["pcpt_only/cell_emb"])
