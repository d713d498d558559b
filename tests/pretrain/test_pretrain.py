"""Pretraining: corpus, gene table, run, resume."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
import torch
from scipy import sparse

from scanpy_scgpt import io, pretrain
from scanpy_scgpt.pretrain._gene_table import coexpression_table
from scanpy_scgpt.tokenizer import GeneVocab, Tokens

SMALL = {
    "d_model": 16,
    "n_heads": 2,
    "n_layers": 1,
    "d_ff": 16,
    "dropout": 0.0,
    "max_length": 40,
    "batch_size": 32,
    "epoch_steps": 10,
    "lr": 5e-3,
    "warmup_steps": 5,
    "prompt_after": 15,
    "validation_share": 0.2,
}
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*exists and is not empty.*"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:.*GPU available but not used.*"),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Counts of two made-up cell types whose markers go together, in two files with different genes."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    paths = []
    for i, n_genes in enumerate((60, 50)):
        kind = rng.integers(2, size=200)
        rate = np.where((np.arange(n_genes) % 2)[None, :] == kind[:, None], 4.0, 0.4) * (1 + np.arange(n_genes) % 3)
        adata = ad.AnnData(sparse.csr_matrix(rng.poisson(rate).astype(np.int32)))
        adata.var_names = [f"G{j}" for j in range(n_genes)]
        adata.obs_names = [f"cell{j}" for j in range(200)]
        if i == 0:
            adata.obs["study"] = "first"
        adata.write_h5ad(folder / f"part{i}.h5ad")
        paths.append(folder / f"part{i}.h5ad")
    return paths


VOCAB = GeneVocab([f"G{j}" for j in range(60)])


def test_vocabulary_takes_what_is_expressed(files):
    names = [f"G{j}" for j in range(70)]
    assert pretrain.build_vocab(files, names, min_cells=1).genes == tuple(f"G{j}" for j in range(60))
    assert pretrain.build_vocab(files, names, min_cells=250).genes == tuple(
        g for g in pretrain.build_vocab(files, names, min_cells=250).genes if int(g[1:]) < 50
    )
    with pytest.raises(ValueError, match=r"part0\.h5ad"):
        adata = ad.read_h5ad(files[0])
        adata.X = adata.X * 0.5
        adata.write_h5ad(files[0].with_name("half_part0.h5ad"))
        pretrain.build_vocab([files[0].with_name("half_part0.h5ad")], names, min_cells=1)


def test_a_run_beats_the_mean_digit(files, tmp_path):
    done = pretrain.run(files, tmp_path, vocab=VOCAB, max_steps=100, accelerator="cpu", **{**SMALL, "lr": 0.02})
    losses, floor = done.info["losses"], done.info["mean_bin_mse"]
    assert floor["per_gene"] < 0.95 * floor["constant"]
    for term in ("gep", "prompt"):
        assert losses[f"{term}_validation"] < 0.85 * floor["per_gene"], term  # the other genes tell the cell type


def test_a_killed_run_goes_on_as_if_nothing_had_happened(files, tmp_path):
    rng_before = torch.get_rng_state()
    whole = pretrain.run(files, tmp_path / "whole", vocab=VOCAB, name="whole", max_steps=40, accelerator="cpu", **SMALL)
    assert torch.equal(torch.get_rng_state(), rng_before)
    assert whole.info["studies"] == {"first": 200, "part1": 200}
    assert whole.info["n_training_cells"] + whole.info["n_validation_cells"] == 400
    read = io.read_checkpoint(tmp_path / "whole" / "model")
    assert "| first | 200 |" in read.card
    assert (tmp_path / "whole" / "metrics.csv").is_file()

    class Killed(Exception):
        pass

    def stop(self, *_args):
        if self.global_step >= 27:
            raise Killed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr("scanpy_scgpt.train.TrainingPlan.on_train_batch_start", stop)
        pretrain.run(files, tmp_path / "parts", vocab=VOCAB, max_steps=40, accelerator="cpu", **SMALL)
    resumed = pretrain.run(files, tmp_path / "parts", vocab=VOCAB, max_steps=40, accelerator="cpu", **SMALL)
    for name, tensor in whole.weights.items():
        torch.testing.assert_close(resumed.weights[name], tensor, rtol=0, atol=1e-6)


def test_a_frozen_gene_table_stays(files, tmp_path):
    done = pretrain.run(
        files, tmp_path, vocab=VOCAB, max_steps=3, gene_lr_scale=0.0, contrast=True, accelerator="cpu", **SMALL
    )
    start = pretrain.run(files, tmp_path / "b", vocab=VOCAB, max_steps=1, gene_lr_scale=0.0, accelerator="cpu", **SMALL)
    name = "transformer.encoder.genes.embedding.weight"
    assert torch.equal(done.weights[name], start.weights[name])
    assert "contrast_validation" in done.info["losses"]


@pytest.mark.parametrize(
    ("changes", "text"),
    [({"ratios": (0.5, 1.0)}, "ratios="), ({"validation_share": 0}, "validation_share=0: use a share between 0 and 1")],
)
def test_settings_are_checked(changes, text):
    with pytest.raises(ValueError, match=text):
        pretrain.PretrainConfig(**changes)


def test_the_gene_table_follows_coexpression():
    """Genes of one made-up program lie together, genes of two do not; a shift between studies is not a program."""
    rng = np.random.default_rng(0)
    n_cells, n_genes = 400, 60
    study = rng.integers(2, size=n_cells)
    activity = rng.integers(2, size=(n_cells, 3))
    program = np.arange(n_genes) % 3
    digits = 1 + rng.poisson(2 + 12 * activity[:, program]) + 10 * study[:, None]
    tokens = Tokens(
        np.arange(n_cells + 1) * n_genes,
        np.tile(np.arange(n_genes, dtype=np.int32), n_cells),
        digits.clip(1, 50).astype(np.uint8).ravel(),
    )
    table = coexpression_table(tokens, study, n_tokens=63, d_model=16, rng=np.random.default_rng(1))
    assert table.shape == (63, 16)
    assert table.dtype == np.float32
    assert np.abs(table[:60].mean(axis=1)).max() < 1e-4  # the mean over channels is not used
    unit = table[:60] / np.linalg.norm(table[:60], axis=1, keepdims=True)
    cosine = unit @ unit.T
    same = program[:, None] == program[None, :]
    assert cosine[same & ~np.eye(60, dtype=bool)].mean() > 0.8
    assert np.abs(cosine[~same]).mean() < 0.3
    again = coexpression_table(tokens, study, n_tokens=63, d_model=16, rng=np.random.default_rng(1))
    np.testing.assert_allclose(again, table, atol=1e-4)


def test_a_cell_is_held_out_by_its_name():
    tokens = Tokens(np.arange(0, 3001, 3), np.zeros(3000, np.int32), np.ones(3000, np.uint8))
    names = np.array([f"c{i}" for i in range(1000)], dtype=object)
    corpus = pretrain.Corpus(tokens, names, names)
    training, held = corpus.split(share=0.1, rng=0)
    assert len(np.intersect1d(training, held)) == 0
    assert len(training) + len(held) == 1000
    assert 60 < len(held) < 140
    order = np.random.default_rng(0).permutation(1000)
    moved = pretrain.Corpus(tokens, names[order], names).split(share=0.1, rng=0)[1]
    assert set(names[order][moved]) == set(names[held])
