"""The forward-only encoder: packed cells give the vectors of padded ones."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from scanpy_scgpt.data import collate_digits, pack_digits
from scanpy_scgpt.module import CellEncoder
from scanpy_scgpt.nn import TransformerConfig
from scanpy_scgpt.tokenizer import Tokens

N_TOKENS, PAD, CLS, N_BINS = 600, 599, 598, 51


def _encoder(*, pooling="cls", d_model=64, n_heads=2, n_layers=3, dtype=torch.float32, **changes):
    config = TransformerConfig(
        n_tokens=N_TOKENS, pad_id=PAD, d_model=d_model, n_heads=n_heads, n_layers=n_layers, d_ff=48, **changes
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = CellEncoder(config, n_bins=N_BINS, cls_value=-2.0, pooling=pooling)
        with torch.no_grad():
            for parameter in encoder.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return encoder.prepare(dtype)


def _tokens(lengths):
    rng = np.random.default_rng(0)
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    genes = np.concatenate([rng.permutation(590)[:n] for n in lengths]).astype(np.int32)
    return Tokens(indptr, genes, rng.integers(1, N_BINS, indptr[-1]).astype(np.uint8))


def _both(encoder, tokens):
    cells = np.arange(len(tokens))
    padded = encoder(*collate_digits(tokens, cells, pad_id=PAD, cls_id=CLS, cls_digit=N_BINS))
    return padded, encoder.packed(*pack_digits(tokens, cells, cls_id=CLS, cls_digit=N_BINS))


RAGGED = {"short": [12, 0, 1, 12, 12, 40], "long": [300, 299, 299, 5, 0], "one": [7], "equal": [20, 20, 20]}


@pytest.mark.parametrize("lengths", RAGGED)
@pytest.mark.parametrize(
    ("scheme", "pooling"), list(itertools.product(["post", "pre", "legacy_pre"], ["cls", "mean", "weighted", "layers"]))
)
def test_packed_is_padded(scheme, pooling, lengths):
    tokens = _tokens(np.array(RAGGED[lengths]))
    padded, packed = _both(_encoder(norm_scheme=scheme, pooling=pooling), tokens)
    keep = torch.isfinite(padded).all(1)
    assert keep.all()
    assert packed.dtype == torch.float32
    torch.testing.assert_close(packed, padded, atol=1e-5 * padded.abs().max().item(), rtol=0)


@pytest.mark.parametrize("changes", [{"value_encoding": "scaling"}, {"value_encoding": "category"}, {"d_model": 24}])
def test_packed_is_padded_for_other_networks(changes):
    padded, packed = _both(_encoder(**changes), _tokens(np.array([300, 280, 3])))
    torch.testing.assert_close(packed, padded, atol=1e-5 * padded.abs().max().item(), rtol=0)


@pytest.mark.parametrize("pooling", ["cls", "mean", "weighted", "layers"])
def test_half_precision_is_near(pooling):
    tokens = _tokens(np.array([300, 280, 3, 0]))
    exact = _both(_encoder(pooling=pooling, n_layers=6), tokens)[0]
    for got in _both(_encoder(pooling=pooling, n_layers=6, dtype=torch.bfloat16), tokens):
        assert got.dtype == torch.float32
        assert torch.cosine_similarity(got, exact).min() >= 0.999


def test_tables_are_rounded_after_they_are_made():
    exact, half = _encoder(), _encoder(dtype=torch.bfloat16)
    torch.testing.assert_close(half.gene_table, exact.gene_table.bfloat16(), rtol=0, atol=0)
    torch.testing.assert_close(half.digits, exact.digits, rtol=0, atol=0)
    assert half.transformer.encoder.genes.embedding.weight.dtype == torch.float32


def test_traced_function_is_the_same():
    encoder, tokens = _encoder(), _tokens(np.array([12, 12]))
    batch = collate_digits(tokens, np.arange(2), pad_id=PAD, cls_id=CLS, cls_digit=N_BINS)
    with torch.no_grad():
        torch.testing.assert_close(encoder.trace(batch.gene_ids, batch.digits), encoder(*batch))
