"""Training on from a checkpoint: shape, vocabulary, heads."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from scanpy_scgpt import io, pretrain
from scanpy_scgpt.pretrain._start import network, require_extension, shape_from
from scanpy_scgpt.tokenizer import GeneVocab

SMALL = {
    "max_length": 60, "batch_size": 32, "max_steps": 2, "epoch_steps": 2, "warmup_steps": 0, "validation_share": 0.2,
    "accelerator": "cpu", "dropout": 0.0,
}  # fmt: skip
TABLE = "transformer.encoder.genes.embedding.weight"
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:.*GPU available but not used.*"),
]


@pytest.fixture
def cells(counts, tmp_path):
    counts.X = sparse.csr_matrix(counts.X).astype(np.int32)
    counts.obs = pd.DataFrame(index=counts.obs_names)
    counts.write_h5ad(tmp_path / "cells.h5ad")
    return tmp_path / "cells.h5ad"


@pytest.fixture
def longer(vocab, counts):
    """The vocabulary of the checkpoint in another order, with genes of the cells that it lacks and one unheard of."""
    more = [name for name in counts.var_names if name not in vocab]
    return GeneVocab([*more[:100], *vocab.tokens[::-1], *more[100:], "UNHEARD-OF"])


def test_a_run_goes_on_from_a_checkpoint(cells, checkpoint, checkpoint_folder, longer, tmp_path, caplog):
    with caplog.at_level("INFO"):
        done = pretrain.run(
            cells, tmp_path / "out", vocab=longer, continue_from=checkpoint_folder, gene_lr_scale=0.0, lr=1e-6, **SMALL
        )
    label = io.read_checkpoint(checkpoint_folder).label
    assert f"goes on from {label}; new heads: distribution_head; left out: nothing" in caplog.text
    assert done.info["parent"] == label
    assert f"- trained on from: {label}" in done.card
    assert done.transformer == replace(checkpoint.transformer, n_tokens=len(longer), pad_id=longer.pad_id)
    assert done.tokenizer == checkpoint.tokenizer
    assert (done.vocab, done.info["settings"]["d_model"], done.info["settings"]["ties"]) == (longer, 16, "random")
    known = done.weights[TABLE][longer.ids(checkpoint.vocab.tokens)]
    torch.testing.assert_close(known, checkpoint.weights[TABLE])
    new = done.weights[TABLE][longer.ids([name for name in longer.genes if name not in checkpoint.vocab])]
    mean = checkpoint.weights[TABLE][checkpoint.vocab.ids(checkpoint.vocab.genes)].mean(dim=0)
    torch.testing.assert_close(new[-1], mean)
    assert (new[:-1] - mean).norm(dim=1).min() > 0
    assert (new - mean).norm(dim=1).max() < 3 * (known - mean).norm(dim=1).max()
    assert any(name.startswith("distribution_head.") for name in done.weights)
    for name, tensor in checkpoint.weights.items():
        if name != TABLE:
            torch.testing.assert_close(done.weights[name], tensor, rtol=0, atol=1e-4)


def test_new_genes_start_where_their_neighbours_are(cells, vocab, tmp_path):
    """The table of a checkpoint that came from co-expression: a gene that it lacks is put near its true vector."""
    store = pretrain.prepare(cells, tmp_path / "cells.tokens", vocab=vocab)
    corpus, config = pretrain._corpus.store_corpus(store), pretrain.PretrainConfig(d_model=16, n_heads=2, n_layers=1)
    everyone = np.arange(len(store))
    whole = network(corpus, everyone, vocab, config, parent=None, seed=0)
    often = np.bincount(store.take(everyone).gene_ids, minlength=len(vocab)).argsort()[::-1][5:25]
    left = GeneVocab([token for i, token in enumerate(vocab.tokens) if i not in set(often.tolist())])
    rows = torch.from_numpy(vocab.ids(left.tokens))
    table = whole.transformer.encoder.genes.embedding.weight.detach()
    shape = replace(whole.transformer.config, n_tokens=len(left), pad_id=left.pad_id)
    parent = io.Checkpoint(
        "part", shape, store.config, left, {**whole.state_dict(), TABLE: table[rows]},
    )  # fmt: skip
    found = network(corpus, everyone, vocab, config, parent=parent, seed=1).transformer.encoder.genes.embedding.weight
    mean = table[rows[left.ids(left.genes)]].mean(dim=0)
    near = torch.nn.functional.cosine_similarity(found[often.copy()] - mean, table[often.copy()] - mean)
    assert near.mean() > 0.8


def test_a_checkpoint_of_the_transformer_alone(checkpoint, cells, tmp_path, caplog):
    """Heads that are not there start anew, predictions at the middle of the bins, and so does the unknown vector."""
    weights = {name: x for name, x in checkpoint.weights.items() if name.startswith("transformer.")}
    weights.pop("transformer.encoder.unknown")
    parent = replace(checkpoint, weights={**weights, "class_head.out.bias": torch.zeros(3)})
    store = pretrain.prepare(cells, tmp_path / "cells.tokens", vocab=checkpoint.vocab)
    corpus = pretrain._corpus.store_corpus(store)
    config = shape_from(parent, pretrain.PretrainConfig(), {})
    with caplog.at_level("INFO"):
        module = network(corpus, np.arange(600), checkpoint.vocab, config, parent=parent, seed=0)
    assert "new heads: expression_head, cell_to_gene_head, distribution_head; left out: class_head" in caplog.text
    assert module.expression_head.network[-1].bias.item() == 25.5
    assert module.transformer.encoder.unknown.abs().sum() > 0
    caplog.clear()
    with caplog.at_level("INFO"):
        network(corpus, np.arange(600), checkpoint.vocab, replace(config, distribution=False),
                parent=replace(parent, weights=module.state_dict()), seed=0)  # fmt: skip
    assert "new heads: none; left out: distribution_head" in caplog.text
    broken = replace(parent, weights={k: x for k, x in parent.weights.items() if ".attention." not in k})
    with pytest.raises(io.CheckpointMismatchError, match="attention tensors"):
        network(corpus, np.arange(600), checkpoint.vocab, config, parent=broken, seed=0)


def test_settings_that_contradict_the_checkpoint(checkpoint, longer):
    default = pretrain.PretrainConfig()
    assert shape_from(checkpoint, default, {}).n_layers == 2
    given = replace(default, n_layers=4)
    with pytest.raises(ValueError, match="n_layers=4, but continue_from='tiny' was trained with n_layers=2. Leave n_"):
        shape_from(checkpoint, given, {})
    with pytest.raises(ValueError, match="ties='mid', but .* with ties='random'. Leave ties out"):
        shape_from(checkpoint, default, {"ties": "mid"})
    table = replace(checkpoint, transformer=replace(checkpoint.transformer, value_encoding="category"))
    with pytest.raises(ValueError, match="looks its values up in a table of bins .* continuous values"):
        shape_from(table, default, {})
    require_extension(longer, checkpoint)
    text = r"lacks 531 of 535 tokens of continue_from='tiny', such as .*build_vocab\(files, extend=.*\)"
    with pytest.raises(ValueError, match=text.replace("531 of 535", r"\d+ of \d+")):
        require_extension(GeneVocab(longer.genes[:10]), checkpoint)
