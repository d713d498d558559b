"""A generative network of random weights for the real cells, and one that learned two made-up cell types."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
import torch
from scipy import sparse

from scanpy_scgpt import io
from scanpy_scgpt.data import split_generative
from scanpy_scgpt.module import PretrainModule
from scanpy_scgpt.nn import TransformerConfig
from scanpy_scgpt.tokenizer import GeneVocab, Tokenizer, TokenizerConfig

N_GENES = 40


@pytest.fixture(scope="session")
def generative(checkpoint):
    """The tiny checkpoint with a value distribution and larger random weights, so that answers differ."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        module = PretrainModule(checkpoint.transformer, distribution=True)
        for tensor in module.parameters():
            tensor.data.add_(0.3 * torch.randn(tensor.shape))
    return io.Checkpoint("random", module.transformer.config, TokenizerConfig(), checkpoint.vocab, module.state_dict())


@pytest.fixture(scope="session")
def two_types():
    """Cells of two types; even genes are high in the first, odd ones in the second."""
    rng = np.random.default_rng(0)
    kind = rng.integers(2, size=300)
    rate = np.where((np.arange(N_GENES) % 2)[None, :] == kind[:, None], 9.0, 1.0) * rng.lognormal(0, 0.3, size=(300, 1))
    adata = ad.AnnData(sparse.csr_matrix(rng.poisson(rate).astype(np.float32)))
    adata.var_names = [f"G{j}" for j in range(N_GENES)]
    adata.obs_names = [f"cell{j}" for j in range(300)]
    adata.obs["kind"] = kind
    return adata


@pytest.fixture(scope="session")
def learned(two_types):
    """A network that saw the first 200 of these cells a few times, gene prompt and cell prompt."""
    vocab, config = GeneVocab(list(two_types.var_names)), TokenizerConfig(ties="mid", max_length=60)
    shape = TransformerConfig(
        n_tokens=len(vocab), pad_id=vocab.pad_id, d_model=16, n_heads=2, n_layers=2, d_ff=16, dropout=0.0
    )
    first = two_types[:200]
    tokens = Tokenizer(vocab, config).encode(first.X, vocab.ids(list(first.var_names)), first.obs_names.to_numpy())
    rng, weights = np.random.default_rng(0), {"gep": 0.01, "gepc": 0.01, "prompt": 0.01}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        module = PretrainModule(shape, distribution=True, weights=weights)
        table = torch.randn(len(vocab), 16)
        table[:N_GENES, 0] = torch.tensor([2.0, -2.0]).repeat(N_GENES // 2)  # as co-expression would have it
        module.start_from(table, mean_digit=25.0)
        steps = torch.optim.AdamW(module.parameters(), lr=1e-2)
        for _ in range(120):
            batch = split_generative(
                tokens.take(rng.integers(200, size=24)),
                ratio=0.5, max_length=60, pad_id=vocab.pad_id, cls_id=vocab.cls_id, cls_value=-2.0, rng=rng,
            )  # fmt: skip
            steps.zero_grad()
            module(batch).total.backward()
            steps.step()
    return io.Checkpoint("learned", shape, config, vocab, module.state_dict())
