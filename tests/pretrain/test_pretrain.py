"""Pretraining: corpus, gene table, run, resume."""

from __future__ import annotations

import json
import os
from dataclasses import asdict

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from scanpy_scgpt import io, pretrain, tl
from scanpy_scgpt.pretrain._curves import SPEED
from scanpy_scgpt.pretrain._gene_table import coexpression_table
from scanpy_scgpt.pretrain._resume import _different, identity_of, join_metrics, prepare_folder
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


def test_vocabulary_counts_a_cell_once(tmp_path):
    """Stored zeros are no counts, and two columns of one gene are one gene."""
    matrix = sparse.csr_matrix(np.array([[3, 1, 2, 0], [0, 4, 1, 1], [0, 2, 1, 0]], dtype=np.int32))
    zero = matrix.copy()
    zero.data[zero.indices == 0] = 0  # stays stored
    for name, x in (("counts", matrix), ("zeros", zero)):
        adata = ad.AnnData(x.copy())
        adata.var_names = ["G0", "ENSG1", "ENSG2", "G3"]
        adata.var["gene_symbols"] = ["G0", "G1", "G1", "G3"]
        adata.write_h5ad(tmp_path / f"{name}.h5ad")
    found = lambda name, n: pretrain.build_vocab([tmp_path / name], ["G0", "G1", "G3"], min_cells=n).genes  # noqa: E731
    assert found("counts.h5ad", 1) == ("G0", "G1", "G3")
    assert found("zeros.h5ad", 1) == ("G1", "G3")
    assert found("counts.h5ad", 3) == ("G1",)
    assert found("counts.h5ad", 4) == ()


def test_a_run_beats_the_mean_digit(files, tmp_path):
    done = pretrain.run(files, tmp_path, vocab=VOCAB, max_steps=250, accelerator="cpu", **{**SMALL, "lr": 0.02})
    assert list(done.info["errors"]) == ["0.25", "0.5", "0.75"]
    for found in done.info["errors"].values():
        assert found["ridge"] < 0.9 * found["gene_mean"]
        assert found["gene_mean"] < 0.95 * found["mean_digit"]
        for term in ("gep", "prompt"):
            assert found[term] < 0.85 * found["gene_mean"], term  # the other genes tell the cell type
    errors = [np.mean([found[term] for found in done.info["errors"].values()]) for term in ("gep", "prompt")]
    losses = [done.info["losses"][f"{term}_validation"] for term in ("gep", "prompt")]
    assert errors == pytest.approx(losses, rel=0.05)


class _Killed(Exception):
    pass


def _killed_run(files, out, *, at, **changes):
    """A run that ends at a step like a killed one."""

    def stop(self, *_args):
        if self.global_step >= at:
            raise _Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scanpy_scgpt.train.TrainingPlan.on_train_batch_start", stop)
        pretrain.run(files, out, vocab=VOCAB, accelerator="cpu", **{**SMALL, **changes})


def test_a_killed_run_goes_on_as_if_nothing_had_happened(files, tmp_path):
    rng_before = torch.get_rng_state()
    whole = pretrain.run(files, tmp_path / "whole", vocab=VOCAB, name="whole", max_steps=40, accelerator="cpu", **SMALL)
    assert torch.equal(torch.get_rng_state(), rng_before)
    assert whole.info["studies"] == {"first": 200, "part1": 200}
    assert whole.info["n_training_cells"] + whole.info["n_validation_cells"] == 400
    read = io.read_checkpoint(tmp_path / "whole" / "model")
    assert "| first | 200 |" in read.card
    assert (tmp_path / "whole" / "metrics.csv").is_file()

    with pytest.raises(_Killed):
        _killed_run(files, tmp_path / "parts", at=27, max_steps=40)
    last = torch.load(tmp_path / "parts" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 20
    resumed = pretrain.run(files, tmp_path / "parts", vocab=VOCAB, max_steps=40, accelerator="cpu", **SMALL)
    assert [path.name for path in (tmp_path / "parts" / "checkpoints").iterdir()] == ["last.ckpt"]
    metrics = [pd.read_csv(tmp_path / folder / "metrics.csv") for folder in ("whole", "parts")]
    assert metrics[0].step.tolist() == metrics[1].step.tolist()
    tables = [table.drop(columns=list(SPEED)) for table in metrics]
    pd.testing.assert_frame_equal(*(table[sorted(table)] for table in tables), atol=1e-4, rtol=1e-4)
    assert not (tmp_path / "parts" / "metrics-earlier.csv").exists()
    assert whole.digest == read.digest
    for name, tensor in whole.weights.items():
        torch.testing.assert_close(resumed.weights[name], tensor, rtol=0, atol=1e-6)


def test_only_the_same_run_goes_on(files, tmp_path, caplog):
    short = {**SMALL, "epoch_steps": 3}
    for at in (4, 7):  # killed twice: the metrics of all parts stay
        with pytest.raises(_Killed):
            _killed_run(files, tmp_path, at=at, max_steps=9, epoch_steps=3)
    again = {"vocab": VOCAB, "max_steps": 9, "accelerator": "cpu", **short}
    checkpoint = (tmp_path / "checkpoints" / "last.ckpt").read_bytes()
    with pytest.raises(ValueError, match=rf"{tmp_path.name} holds .*different: batch_size\).*resume=False"):
        pretrain.run(files, tmp_path, **{**again, "batch_size": 16})
    with pytest.raises(ValueError, match=r"corpus\.tokens holds the store of another call"):
        pretrain.run(files, tmp_path, rng=1, **again)
    with pytest.raises(ValueError, match=r"corpus\.tokens holds the store of another call"):
        pretrain.run(files[:1], tmp_path, **again)
    with pytest.raises(ValueError, match=r"corpus\.tokens holds the store of another call"):
        pretrain.run(files, tmp_path, **{**again, "vocab": GeneVocab(VOCAB.genes[1:])})
    other = pretrain.prepare(files, tmp_path / "other.tokens", vocab=GeneVocab(VOCAB.genes[1:]))
    with pytest.raises(ValueError, match=r"different: vocab, rng, data\)"):
        pretrain.run(other.folder, tmp_path, rng=1, **{**again, "vocab": None})
    assert (tmp_path / "checkpoints" / "last.ckpt").read_bytes() == checkpoint
    with caplog.at_level("WARNING"):
        pretrain.run(files, tmp_path, **{**again, "max_steps": 12})
    assert (
        f"max_steps=12; the run in {tmp_path} had max_steps=9 until now: its steps are other ones from" in caplog.text
    )
    assert json.loads((tmp_path / "run.json").read_text())["max_steps"] == 12
    trained = pd.read_csv(tmp_path / "metrics.csv").dropna(subset="train_loss")
    assert trained.step.tolist() == [2, 5, 8, 11]
    (tmp_path / "checkpoints" / "notes.txt").touch()
    anew = pretrain.run(files, tmp_path, resume=False, **{**again, "lr": 1e-3, "max_steps": 3})
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"last.ckpt", "notes.txt"}
    assert pd.read_csv(tmp_path / "metrics.csv").dropna(subset="train_loss").step.tolist() == [2]
    assert anew.digest == io.read_checkpoint(tmp_path / "model").digest != ""
    (tmp_path / "run.json").unlink()
    with pytest.raises(ValueError, match="run.json"):
        pretrain.run(files, tmp_path, **again)


def test_files_are_on_disk_before_they_replace_others(tmp_path, monkeypatch):
    done = []
    for name in ("fsync", "replace"):
        whole = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *given, name=name, whole=whole: (done.append(name), whole(*given))[1])
    identity = identity_of("0a1b", VOCAB, asdict(pretrain.PretrainConfig()), parent=None, rng=0)
    (tmp_path / "metrics.csv").write_text("step,train_loss\n3,0.10\n")
    prepare_folder(tmp_path, identity, resumed=True)
    assert done[:2] == ["fsync", "replace"]
    assert done.count("replace") == 2, "the metrics and run.json"
    assert all(done[i - 1] == "fsync" for i, name in enumerate(done) if name == "replace")
    assert (tmp_path / "metrics-earlier.csv").read_text() == "step,train_loss\n3,0.10\n"
    assert json.loads((tmp_path / "run.json").read_text()) == identity
    assert join_metrics(tmp_path) is None
    assert (tmp_path / "metrics.csv").read_text() == "step,train_loss\n3,0.10\n"
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.csv", "run.json"}


def test_a_run_goes_on_with_other_micro_batches():
    """Where no term depends on them; a checkpoint whose steps were counted in another way is not taken."""

    def identity(parent=None, **changes):
        return identity_of("0a1b", VOCAB, asdict(pretrain.PretrainConfig(**changes)), parent=parent, rng=0)

    assert identity(max_tokens=4000) == identity()
    assert identity(max_tokens=4000, contrast=True) != identity(contrast=True)
    assert identity(contrast=True, positives="similar") != identity(contrast=True)
    earlier = {key: value for key, value in identity().items() if key != "format"}
    assert _different(earlier, identity()) == ["format"]
    assert _different(identity("mini@0"), identity("mini@1", dropout=0.3)) == ["dropout", "continue_from"]
    assert not _different(identity(), identity(lr=1e-3, warmup_steps=9, precision="bf16-mixed", max_steps=5))


@pytest.mark.parametrize("advice", [{"lr": 1e-3}, {"warmup_steps": 30}, {"precision": "bf16-mixed"}])
def test_a_loss_that_overflows_is_mended_by_what_the_error_says(files, tmp_path, monkeypatch, caplog, advice):
    """The fault stays: in single precision, the loss of a step is infinite where the rate of the optimiser is high."""

    def overflow(plan, batch, *_):
        rate = max(group["lr"] for group in plan.optimizers().param_groups)
        if rate > 4.3e-3 and plan.trainer.precision == "32-true":
            batch.batches[0].targets.fill_(torch.inf)

    monkeypatch.setattr("scanpy_scgpt.train.TrainingPlan.on_train_batch_start", overflow)
    given = {
        **SMALL,
        "vocab": VOCAB,
        "accelerator": "cpu",
        "max_steps": 12,
        "epoch_steps": 4,
        "lr": 6e-3,
        "distribution": False,
    }
    for _ in range(2):  # the same call again comes to the same end
        with pytest.raises(
            pretrain.NonFiniteError, match="Step 5: .*lower lr, such as lr=0.002, .*warmup_steps than 5"
        ):
            pretrain.run(files, tmp_path, **given)
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 4
    caplog.clear()
    done = pretrain.run(files, tmp_path, **{**given, **advice})
    ((name, value),) = advice.items()
    assert f"{name}={value}; the run in {tmp_path} had {name}={given.get(name, '32-true')} until now" in caplog.text
    assert done.info["settings"][name] == value
    trained = pd.read_csv(tmp_path / "metrics.csv").dropna(subset="train_loss")
    assert trained.step.tolist() == [3, 7, 11]


def test_a_finished_run_is_left_as_it_is(files, tmp_path, monkeypatch, caplog):
    given = {**SMALL, "vocab": VOCAB, "accelerator": "cpu", "max_steps": 4, "epoch_steps": 2}
    now = [1000.0]
    monkeypatch.setattr("time.time", lambda: now[0])

    def slow(plan, *_):
        now[0] += 100
        if plan.global_step == killed_at:
            raise _Killed

    monkeypatch.setattr("scanpy_scgpt.train.TrainingPlan.on_train_batch_start", slow)
    killed_at = 3
    with pytest.raises(_Killed):
        pretrain.run(files, tmp_path, **given)
    killed_at = None
    done = pretrain.run(files, tmp_path, **given)
    assert done.info["seconds"] == pytest.approx(400), "two steps of each call"
    written = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    now[0] += 9000
    with caplog.at_level("INFO"):
        again = pretrain.run(files, tmp_path, **given)
    assert "model is the model of this very run; nothing to do" in caplog.text
    assert (again.digest, again.info) == (done.digest, done.info)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == written
    named = pretrain.run(files, tmp_path, notes="for a test", **given)
    assert "intended use: for a test" in named.card
    assert named.digest == done.digest
    assert named.info["seconds"] == pytest.approx(400)
    (tmp_path / "model" / "card.md").unlink()
    for path in (tmp_path / "model").glob("*.safetensors"):
        path.write_bytes(b"cut")
    assert pretrain.run(files, tmp_path, notes="for a test", **given).digest == done.digest, "written anew"


def test_an_empty_split_says_what_to_change(files, tmp_path):
    small = {"max_steps": 1, "accelerator": "cpu", **SMALL}
    for share, part in ((1e-9, "validation"), (1 - 1e-9, "training")):
        with pytest.raises(ValueError, match=rf"400 cells .* no {part} cells\. .*change validation_share"):
            pretrain.run(files, tmp_path, vocab=VOCAB, **{**small, "validation_share": share})
    single = pretrain.prepare(files, tmp_path / "single.tokens", vocab=GeneVocab(["G0"]))
    with pytest.raises(ValueError, match=r"0 of them with two or more genes.*vocabulary with the names"):
        pretrain.run(single.folder, tmp_path, **small)
    assert not (tmp_path / "run.json").exists()


def test_the_saved_tokens_are_as_long_as_those_of_training(files, tmp_path):
    config = {**SMALL, "max_length": 1500}
    done = pretrain.run(files, tmp_path, vocab=VOCAB, max_steps=1, accelerator="cpu", half=True, **config)
    assert done.tokenizer.max_length == 1500
    for name, tensor in io.read_checkpoint(tmp_path / "model").weights.items():
        assert torch.equal(done.weights[name], tensor)


def test_the_recipe_of_mini_trains_and_embeds(files, tmp_path):
    """Contrast by similar cells, pooling over all layers, a quiet start; the pooling goes along with the model."""
    recipe = {"contrast": True, "positives": "similar", "pooling": "layers", "quiet_start": True, "step_from": "study"}
    done = pretrain.run(files, tmp_path, vocab=VOCAB, max_steps=3, accelerator="cpu", **recipe, **SMALL)
    assert done.info["pooling"] == "layers"
    assert np.isfinite(done.info["losses"]["contrast_validation"])
    adata = ad.read_h5ad(files[0])
    tl.embed(adata, done, device="cpu", min_genes=1)
    assert adata.uns["scgpt"]["embed"]["pooling"] == "layers"
    np.testing.assert_allclose(np.linalg.norm(adata.obsm["X_scgpt"], axis=1), 1, atol=1e-5)


def test_a_frozen_gene_table_stays(files, tmp_path):
    done = pretrain.run(
        files, tmp_path, vocab=VOCAB, max_steps=3, gene_lr_scale=0.0, contrast=True, accelerator="cpu", **SMALL
    )
    start = pretrain.run(files, tmp_path / "b", vocab=VOCAB, max_steps=1, gene_lr_scale=0.0, accelerator="cpu", **SMALL)
    name = "transformer.encoder.genes.embedding.weight"
    assert torch.equal(done.weights[name], start.weights[name])
    assert "contrast_validation" in done.info["losses"]


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
