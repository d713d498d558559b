"""The forward-only loop: exact rewrites, batching, devices."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scanpy_scgpt import io
from scanpy_scgpt.model import Embedder, choose_device
from scanpy_scgpt.module import initial_weights
from scanpy_scgpt.nn import CellTransformer, TransformerConfig, pool
from scanpy_scgpt.tokenizer import GeneVocab, TokenizerConfig, Tokens

VOCAB = GeneVocab([f"G{i}" for i in range(97)])


def _checkpoint(**changes):
    config = TransformerConfig(n_tokens=100, pad_id=VOCAB.pad_id, d_model=24, n_heads=3, n_layers=3, d_ff=20, **changes)
    weights = {
        name: tensor + 0.3 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(len(name)))
        for name, tensor in initial_weights(config, seed=0).items()
    }
    return io.Checkpoint("tiny", config, TokenizerConfig(), VOCAB, weights)


@pytest.fixture(scope="module")
def tokens():
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 60, 80)
    lengths[:3] = 0, 1, 59
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    genes = np.concatenate([rng.permutation(97)[:n] for n in lengths]).astype(np.int32)
    return Tokens(indptr, genes, rng.integers(1, 51, indptr[-1]).astype(np.uint8))


def _one_by_one(checkpoint, tokens, how):
    """The plain network on each cell alone."""
    network = CellTransformer(checkpoint.transformer).eval()
    io.load_component(network, checkpoint, "transformer")
    vectors = []
    for start, stop in zip(tokens.indptr[:-1], tokens.indptr[1:], strict=True):
        ids = torch.tensor([[VOCAB.cls_id, *tokens.gene_ids[start:stop].tolist()]])
        values = torch.tensor([[-2.0, *tokens.values[start:stop].tolist()]])
        with torch.no_grad():
            vectors.append(pool(network(ids, values), how=how, values=values)[0])
    return torch.stack(vectors).numpy()


@pytest.mark.parametrize("pooling", ["cls", "mean", "weighted"])
@pytest.mark.parametrize("scheme", ["post", "pre", "legacy_pre"])
def test_vectors_are_those_of_the_plain_network(tokens, pooling, scheme):
    checkpoint = _checkpoint(norm_scheme=scheme)
    got = Embedder(checkpoint, device="cpu", pooling=pooling).embed_tokens(tokens)
    expected = _one_by_one(checkpoint, tokens, pooling)
    np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("encoding", ["scaling", "category"])
def test_value_encodings(tokens, encoding):
    checkpoint = _checkpoint(value_encoding=encoding)
    got = Embedder(checkpoint, device="cpu").embed_tokens(tokens)
    assert np.isfinite(got).all()
    if encoding == "scaling":  # the category table has no row for the negative mark of <cls>
        np.testing.assert_allclose(got, _one_by_one(checkpoint, tokens, "cls"), atol=1e-5 * np.abs(got).max())


@pytest.mark.parametrize("max_tokens", [1, 100, 10**6])
def test_batching_changes_nothing(tokens, max_tokens):
    checkpoint = _checkpoint()
    whole = Embedder(checkpoint, device="cpu").embed_blocks([tokens], n_obs=80)
    order = np.random.default_rng(1).permutation(80)
    shuffled = tokens.take(order)
    parts = [shuffled.take(np.arange(i, min(i + 13, 80))) for i in range(0, 80, 13)]
    got = Embedder(checkpoint, device="cpu", max_tokens=max_tokens).embed_blocks(parts, n_obs=80)
    np.testing.assert_allclose(got, whole[order], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("n_threads", [1, 3])
def test_threads_change_nothing_and_are_given_back(tokens, n_threads):
    checkpoint = _checkpoint()
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        got = Embedder(checkpoint, device="cpu", max_tokens=100).embed_tokens(tokens)
        assert torch.get_num_threads() == n_threads
    finally:
        torch.set_num_threads(before)
    expected = _one_by_one(checkpoint, tokens, "cls")
    np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())


def test_gene_vectors_are_the_normalised_table():
    checkpoint = _checkpoint()
    vectors = Embedder(checkpoint, device="cpu").gene_vectors(np.array([3, -1, 50]))
    network = CellTransformer(checkpoint.transformer)
    io.load_component(network, checkpoint, "transformer")
    expected = network.encoder.genes.table().detach().numpy()
    np.testing.assert_allclose(vectors[[0, 2]], expected[[3, 50]], atol=1e-6)
    assert np.isnan(vectors[1]).all()


def test_device_that_is_not_there():
    assert choose_device("cpu").type == "cpu"
    with pytest.raises(ValueError, match=r"device='nonsense' is not available .*device='auto'"):
        choose_device("nonsense")


def test_weights_are_never_random():
    checkpoint = _checkpoint()
    weights = {k: v for k, v in checkpoint.weights.items() if "in_proj" not in k}
    broken = io.Checkpoint("x", checkpoint.transformer, checkpoint.tokenizer, VOCAB, weights)
    with pytest.raises(io.CheckpointMismatchError, match="6 of 12 attention tensors"):
        Embedder(broken, device="cpu")
