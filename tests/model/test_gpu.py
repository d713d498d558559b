"""Models on a GPU: the vectors of the CPU, training in every form, and a model that goes on on a CPU."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
import torch

from scanpy_scgpt import model, models
from scanpy_scgpt.model import CellTokens, Embedder
from scanpy_scgpt.tokenizer import Tokens

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
HALF = {"precision": "bf16-mixed"}


@pytest.fixture(scope="module")
def tokens(data_dir):
    """Tokens of 300 blood cells."""
    mini = models.load("mini")
    adata = ad.read_h5ad(data_dir / "pbmc3k_10x.h5ad")[:300].copy()
    return Tokens.concatenate(list(CellTokens(adata, mini, mini.tokenizer)))


def _unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize("pooling", ["cls", "mean", "weighted", "layers"])
def test_vectors_of_the_cpu(tokens, pooling):
    mini = models.load("mini")
    shared = {"pooling": pooling, "backend": "torch"}
    expected = _unit(Embedder(mini, device="cpu", precision="fp32", **shared).embed_tokens(tokens))
    exact = Embedder(mini, device="cuda", precision="fp32", **shared)
    np.testing.assert_allclose(_unit(exact.embed_tokens(tokens)), expected, atol=1e-5)
    half = Embedder(mini, device="cuda", precision="bf16", **shared)
    assert (_unit(half.embed_tokens(tokens)) * expected).sum(1).min() >= 0.999


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_order_and_batches_do_not_matter(tokens, precision):
    mini = models.load("mini")
    shared = {"device": "cuda", "precision": precision, "backend": "torch"}
    expected = _unit(Embedder(mini, **shared).embed_tokens(tokens))
    order = np.random.default_rng(0).permutation(len(tokens))
    found = _unit(Embedder(mini, max_tokens=5000, **shared).embed_tokens(tokens.take(order)))[np.argsort(order)]
    if precision == "fp32":
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert (found * expected).sum(1).min() >= 0.999


@pytest.mark.parametrize("rank", [None, 4])
@pytest.mark.parametrize("settings", [{}, HALF])
@pytest.mark.parametrize("name", ["SCGPT", "SCGPTAnnotator"])
def test_training_and_the_way_back_to_the_cpu(name, settings, rank, cells, make, tmp_path):
    made = make(name, cells)
    made.train(max_epochs=1, train_size=0.7, batch_size=16, accelerator="cuda", lora_rank=rank, **settings)
    assert made.device.type == "cuda"
    _same_on_the_cpu(made, cells, tmp_path / "model")


@pytest.mark.parametrize("settings", [{}, HALF])
@pytest.mark.parametrize("zeros", [False, True])
def test_integration_and_the_way_back_to_the_cpu(settings, zeros, cells, make, tmp_path):
    shape = {"domain_norm": True, "explicit_zeros": zeros, "n_components": 10}
    made = make("SCGPTIntegrator", cells, setup={"labels_key": None}, **shape)
    made.train(max_epochs=1, train_size=0.7, batch_size=16, accelerator="cuda", **settings)
    assert made.device.type == "cuda"
    _same_on_the_cpu(made, cells, tmp_path / "model")


def _same_on_the_cpu(made, cells, folder):
    vectors = made.get_latent_representation()
    made.save(folder)
    back = getattr(model, type(made).__name__).load(folder, cells.copy(), accelerator="cpu")
    assert back.device.type == "cpu"
    np.testing.assert_allclose(back.get_latent_representation(), vectors, atol=1e-3 * np.abs(vectors).max())
    if made.labels_:
        np.testing.assert_allclose(back.predict(soft=True), made.predict(soft=True), atol=1e-3)


def test_attention_and_vectors_of_genes(cells, make):
    made = make("SCGPT", cells)
    made.train(max_epochs=1, train_size=0.7, batch_size=16, accelerator="cuda")
    genes = [gene for gene in made._checkpoint.vocab.genes if gene in set(cells.var_names)][:4]
    on_gpu = made.get_attention(genes=genes), made.get_gene_embeddings(genes)
    made.to_device("cpu")
    for found, expected in zip(on_gpu, (made.get_attention(genes=genes), made.get_gene_embeddings(genes)), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4)
