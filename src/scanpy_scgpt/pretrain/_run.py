"""Pretraining: only wires corpus, batches, module, plan and checkpoint."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning.pytorch.strategies import Strategy
from torch import Tensor

from scanpy_scgpt._types import Ties
from scanpy_scgpt._validate import file_paths
from scanpy_scgpt._version import __version__
from scanpy_scgpt.data import GenerativeBatches
from scanpy_scgpt.disk import TokenStore
from scanpy_scgpt.io import Checkpoint, read_checkpoint, write_checkpoint
from scanpy_scgpt.module import PretrainModule
from scanpy_scgpt.nn import TransformerConfig
from scanpy_scgpt.tokenizer import GeneVocab, Tokenizer, TokenizerConfig
from scanpy_scgpt.train import PlanConfig, TrainingPlan

from ._card import model_card
from ._corpus import Corpus, build_corpus, store_corpus
from ._gene_table import coexpression_table
from ._loop import everywhere, fit, trained_weights, trainer_of
from ._mean_bin import mean_bin_error
from ._resume import checkpoint_to_resume, identity_of, join_metrics, prepare_folder

_COEXPRESSION_CELLS = 100_000  # looked at for the first gene table


@dataclass(frozen=True)
class PretrainConfig:
    """Settings of :func:`run`.

    Attributes
    ----------
    d_model, n_heads, n_layers, d_ff, dropout
        Shape of the network.
    n_bins, ties
        Value bins of input and target; `"mid"` keeps all signal and no noise in the targets.
    max_length
        Longest sequence while training, `<cls>` included; longer cells are sampled anew at each step.
    batch_size
        Cells per step of the optimiser, over all devices: more devices make a step faster, they do not change it.
    max_tokens
        Most tokens that are computed at once on a device, padding and `<cls>` included. A step with more is cut into
        micro-batches of cells of similar length, which saves memory and padding and leaves the gradient of the step as
        it is. None computes the cells of a device at once. The contrastive term alone changes: its negatives are the
        cells of a micro-batch.
    max_steps
        Steps of the whole run.
    epoch_steps
        Steps between two validations and checkpoints: what a killed run can lose.
    lr, warmup_steps
        Highest learning rate; linear warm-up, then cosine to zero.
    gene_lr_scale
        Factor on the learning rate of the gene table; 0 keeps it as it was started.
    ratios
        Shares of unknown genes, one drawn per step.
    prompt_after
        Step from which the pass from the cell vector is trained too.
    weights
        Weight of the terms `gep`, `gepc`, `prompt`, `contrast`.
    contrast
        Train the contrastive term between two disjoint sets of genes of a cell; its negatives are the cells that are
        computed at once on a device.
    panel_share
        Share of steps whose cells are shown as a smaller gene panel would show them, digits taken anew.
    validation_share
        Share of cells held out.
    precision
        Precision of Lightning's trainer, such as `"32-true"` or `"bf16-mixed"`.
    """

    d_model: int = 512
    n_heads: int = 8
    n_layers: int = 12
    d_ff: int = 512
    dropout: float = 0.2
    n_bins: int = 51
    ties: Ties = "mid"
    max_length: int = 1200
    batch_size: int = 64
    max_tokens: int | None = None
    max_steps: int = 10_000
    epoch_steps: int = 100
    lr: float = 1e-4
    warmup_steps: int = 1000
    gene_lr_scale: float = 1.0
    ratios: tuple[float, ...] = (0.25, 0.5, 0.75)
    prompt_after: int = 1000
    weights: dict[str, float] = field(default_factory=dict)
    contrast: bool = False
    panel_share: float = 0.0
    validation_share: float = 0.03
    precision: str = "32-true"

    def __post_init__(self) -> None:
        if not self.ratios or not all(0 < ratio < 1 for ratio in self.ratios):
            msg = f"ratios={self.ratios!r}: shares of unknown genes lie between 0 and 1, as in (0.25, 0.5, 0.75)."
            raise ValueError(msg)
        if not 0 < self.validation_share < 1:
            msg = f"validation_share={self.validation_share!r}: use a share between 0 and 1, such as 0.03."
            raise ValueError(msg)
        if self.max_tokens is not None and self.max_tokens < 1:
            msg = f"max_tokens={self.max_tokens!r}: use a number of tokens, such as 40_000, or None for no limit."
            raise ValueError(msg)


def run(
    files: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    vocab: GeneVocab | None = None,
    name: str = "pretrained",
    config: PretrainConfig | None = None,
    accelerator: str = "auto",
    devices: int | str | list[int] = 1,
    strategy: str | Strategy = "auto",
    num_nodes: int = 1,
    resume: bool = True,
    half: bool = False,
    rng: int = 0,
    **changes: Any,
) -> Checkpoint:
    """Pretrain a transformer on raw counts: expression from known genes, from the cell vector, and from a cell prompt.

    The generative objective of :cite:t:`Cui2024`: the genes of a cell are split into known and unknown ones, an unknown
    gene sees the known genes and itself. The gene table starts from factorised co-expression.

    Parameters
    ----------
    files
        `.h5ad` files with raw counts (or `.h5mu` with a modality `rna`); `obs["study"]` names the study. Or one token
        store that :func:`scanpy_scgpt.pp.tokenize` wrote: its cells stay on disk, whatever their number.
    out
        Folder for `checkpoints/` and `run.json` (to resume), `metrics.csv` and the finished model in `model/`.
    vocab
        Genes of the model; may be left out with a token store, which has its own.
    name
        Name of the model.
    config, **changes
        Settings; keyword arguments change single fields.
    accelerator, devices, strategy, num_nodes
        Passed to :class:`lightning.pytorch.Trainer`. With more than one device `"auto"` is data parallelism
        (`"ddp"`); `"fsdp"` (CUDA only) spreads the weights too; a strategy object of Lightning has all its options. In
        a script Lightning starts one process per device; processes that `torchrun` or SLURM started are found. All of
        them run this function with the same arguments and read and write the same folders; the first one writes.
    resume
        Go on from the last checkpoint in `out`, if there is one; False deletes `out/checkpoints` and starts anew.
    half
        Store the weights in half precision.
    rng
        Seed of weights, split and batches. Global random state is left as it was.

    Returns
    -------
    The finished model as it was written to `out/model`.

    Raises
    ------
    FileNotFoundError
        When a file is not there.
    ValueError
        When a file does not hold raw counts, a setting is out of range, no cells are left for training or validation,
        there are more processes than cells of a step, or `out` holds checkpoints of another run.
    RuntimeError
        In the other processes, when the first one could not write the model; that one raises what went wrong.
    """
    config = replace(config or PretrainConfig(), **changes)
    out, files = Path(out), file_paths(files)
    started = time.time()
    trainer = trainer_of(
        out,
        max_steps=config.max_steps,
        epoch_steps=config.epoch_steps,
        prompt_after=config.prompt_after,
        precision=config.precision,
        accelerator=accelerator,
        devices=devices,
        strategy=strategy,
        num_nodes=num_nodes,
    )
    _require_batch(trainer.world_size, config)
    tokenizer = TokenizerConfig(
        n_bins=config.n_bins, ties=config.ties, max_length=max(config.max_length, 1200), cls_value=-2.0
    )
    store = _store_of(files, vocab, tokenizer)
    vocab = vocab if store is None else store.vocab
    identity = identity_of(files, vocab, asdict(config), rng=rng)
    last = checkpoint_to_resume(out, identity, resume=resume)
    corpus = build_corpus(files, Tokenizer(vocab, tokenizer), rng=rng) if store is None else store_corpus(store)
    training, validation = _split(corpus, config, rng=rng)
    shown = _batches(corpus, training, vocab, config, seed=rng)
    held = _batches(corpus, validation, vocab, replace(config, panel_share=0.0), seed=rng + 1)
    _require_cells(trainer.world_size, config, training=len(training), validation=len(validation))
    plan = _plan(corpus, training, vocab, config, seed=rng)
    if trainer.is_global_zero:
        prepare_folder(out, identity, resumed=last is not None)
    losses = fit(trainer, plan, shown, held, epoch_steps=config.epoch_steps, last=last, seed=rng)
    info = {
        "files": [path.name for path in files],
        "studies": {str(k): int(v) for k, v in pd.Series(corpus.study).value_counts().sort_index().items()},
        "n_cells": len(corpus.tokens),
        "n_training_cells": len(training),
        "n_validation_cells": len(validation),
        "losses": losses,
        "settings": asdict(config),
        "version": __version__,
        "pooling": "cls",
    }
    with everywhere(trainer, f"the model in {out / 'model'}"):
        if trainer.is_global_zero:
            info["mean_bin_mse"] = mean_bin_error(corpus.tokens, training, held, rng=rng)
            info["seconds"] = time.time() - started
            join_metrics(out)
            shape, weights = plan.module.transformer.config, trained_weights(out)
            _write(out / "model", shape, weights, name=name, tokenizer=tokenizer, vocab=vocab, info=info, half=half)
    return read_checkpoint(out / "model")


def _store_of(files: list[Path], vocab: GeneVocab | None, tokenizer: TokenizerConfig) -> TokenStore | None:
    """The token store among what was given, None for files of cells."""
    if missing := [path for path in files if not path.exists()]:
        msg = f"{missing[0]}: there is no such file or token store. Check the path."
        raise FileNotFoundError(msg)
    stores = [path for path in files if path.is_dir() and path.suffix != ".zarr"]
    if not stores:
        if vocab is None:
            msg = "vocab=None: files of cells need a vocabulary (pretrain.build_vocab makes one)."
            raise ValueError(msg)
        return None
    if len(files) > 1:
        msg = f"{stores[0]} is a token store: give it alone. pp.tokenize([...], out=...) puts several files into one."
        raise ValueError(msg)
    store = TokenStore(stores[0])
    if vocab is not None:
        store.require_vocab(vocab)
    there, asked = ((config.n_bins, config.ties) for config in (store.config, tokenizer))
    if there != asked:
        msg = (
            f"{stores[0]} was made with n_bins={there[0]}, ties={there[1]!r}; the run asks for n_bins={asked[0]}, "
            f"ties={asked[1]!r}. Pass n_bins={there[0]}, ties={there[1]!r} to the run, or tokenise anew."
        )
        raise ValueError(msg)
    return store


def _split(corpus: Corpus, config: PretrainConfig, *, rng: int) -> tuple[np.ndarray, np.ndarray]:
    training, validation = corpus.split(share=config.validation_share, rng=rng)
    if len(training) and len(validation):
        return training, validation
    usable, part = len(training) + len(validation), "validation" if len(training) else "training"
    found = (
        f"{len(corpus.tokens):,} cells in the files, {usable:,} of them with two or more genes of the vocabulary; "
        f"validation_share={config.validation_share} leaves {len(training):,} for training and {len(validation):,} for "
        f"validation: no {part} cells."
    )
    fix = (
        "Give more cells, or change validation_share or rng."
        if usable > 1
        else "Give more cells, or a vocabulary with the names of their genes (pretrain.build_vocab makes one)."
    )
    msg = f"{found} {fix}"
    raise ValueError(msg)


def _require_cells(world: int, config: PretrainConfig, *, training: int, validation: int) -> None:
    """Each process needs a cell in each step of training and of validation."""
    if world > min(training, validation):
        msg = (
            f"{training:,} cells for training and {validation:,} for validation are too few for {world} processes. "
            f"Give more cells, change validation_share={config.validation_share}, or use fewer devices."
        )
        raise ValueError(msg)


def _require_batch(world: int, config: PretrainConfig) -> None:
    if world > config.batch_size:
        msg = (
            f"batch_size={config.batch_size} is the number of cells of a step over all processes, and there are "
            f"{world} processes. Use batch_size={world} or more, or fewer devices."
        )
        raise ValueError(msg)


def _write(
    folder: Path,
    shape: TransformerConfig,
    weights: dict[str, Tensor],
    *,
    name: str,
    tokenizer: TokenizerConfig,
    vocab: GeneVocab,
    info: Mapping[str, Any],
    half: bool,
) -> None:
    checkpoint = Checkpoint(
        name=name,
        transformer=shape,
        tokenizer=tokenizer,
        vocab=vocab,
        weights=weights,
        info=info,
        card=model_card(name, info, vocab=vocab, n_parameters=sum(x.numel() for x in weights.values())),
    )
    write_checkpoint(checkpoint, folder, half=half, overwrite=True)


def _batches(
    corpus: Corpus, cells: np.ndarray, vocab: GeneVocab, config: PretrainConfig, *, seed: int
) -> GenerativeBatches:
    return GenerativeBatches(
        corpus.tokens,
        cells,
        batch_size=min(config.batch_size, len(cells)),
        max_length=config.max_length,
        ratios=config.ratios,
        pad_id=vocab.pad_id,
        cls_id=vocab.cls_id,
        cls_value=-2.0,
        panel_share=config.panel_share,
        n_tokens=len(vocab),
        n_bins=config.n_bins,
        max_tokens=config.max_tokens,
        seed=seed,
    )


def _plan(corpus: Corpus, training: np.ndarray, vocab: GeneVocab, config: PretrainConfig, *, seed: int) -> TrainingPlan:
    shape = TransformerConfig(
        n_tokens=len(vocab),
        pad_id=vocab.pad_id,
        d_model=config.d_model,
        n_heads=config.n_heads,
        n_layers=config.n_layers,
        d_ff=config.d_ff,
        dropout=config.dropout,
        n_bins=config.n_bins,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # the CPU's alone: the weights are drawn there
        module = PretrainModule(shape, contrast=config.contrast, weights=config.weights)
    rng = np.random.default_rng(seed)
    if len(training) > _COEXPRESSION_CELLS:
        training = np.sort(rng.choice(training, _COEXPRESSION_CELLS, replace=False))
    table = coexpression_table(
        corpus.tokens.take(training),
        np.unique(corpus.study.codes[training], return_inverse=True)[1],
        n_tokens=len(vocab),
        d_model=config.d_model,
        rng=rng,
    )
    module.start_from(torch.from_numpy(table), mean_digit=config.n_bins / 2)
    return TrainingPlan(
        module,
        PlanConfig(
            lr=config.lr,
            total_steps=config.max_steps,
            warmup_steps=config.warmup_steps,
            lr_scale={"transformer.encoder.genes.embedding": config.gene_lr_scale},
            seed=seed,
        ),
    )
