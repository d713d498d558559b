"""Pretraining: only wires data, network, plan, loop and checkpoint."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as lp
import pandas as pd
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import Strategy

from scanpy_scgpt._logging import get_logger
from scanpy_scgpt._version import __version__
from scanpy_scgpt.disk import TokenStore
from scanpy_scgpt.io import Checkpoint, read_checkpoint, write_checkpoint
from scanpy_scgpt.models import load
from scanpy_scgpt.module import PretrainModule
from scanpy_scgpt.tokenizer import GeneVocab, TokenizerConfig
from scanpy_scgpt.train import PlanConfig, TrainingPlan

from ._arguments import check_kinds
from ._card import model_card
from ._comparison import add_rivals, compared_cells, errors_by_ratio
from ._config import PretrainConfig
from ._corpus import Corpus, store_corpus
from ._curves import loggers_of
from ._data import Split, require_batch, require_cells, split, steps_of, store_of
from ._filters import QualityFilters
from ._folder import alone_in, require_own
from ._loop import Clock, everywhere, fit, trained_weights, trainer_of
from ._preparation import Duplicates, OnError
from ._report import corpus_report
from ._resume import (
    checkpoint_to_resume,
    finished_model,
    identity_of,
    join_metrics,
    note_finished,
    prepare_folder,
)
from ._sources import Data
from ._start import CLS_VALUE, network, shape_from

logger = get_logger(__name__)


def run(
    data: Data,
    out: str | os.PathLike[str],
    *,
    vocab: GeneVocab | None = None,
    name: str = "pretrained",
    config: PretrainConfig | None = None,
    continue_from: str | os.PathLike[str] | Checkpoint | None = None,
    filters: QualityFilters | None = None,
    duplicates: Duplicates = "report",
    on_error: OnError = "raise",
    loggers: str | Logger | Sequence[str | Logger] = (),
    accelerator: str = "auto",
    devices: int | str | list[int] = 1,
    strategy: str | Strategy = "auto",
    num_nodes: int = 1,
    resume: bool = True,
    half: bool = False,
    notes: str = "",
    licence: str = "",
    rng: int = 0,
    **changes: Any,
) -> Checkpoint:
    """Pretrain a transformer on raw counts: expression from known genes, from the cell vector, and from a cell prompt.

    The generative objective of :cite:t:`Cui2024`: the genes of a cell are split into known and unknown ones, an unknown
    gene sees the known genes and itself. The cells are read from a token store on disk: peak memory does not depend on
    their number, but for some bytes of each.

    Parameters
    ----------
    data
        Files of raw counts, annbatch collections or a :class:`CensusQuery` (:func:`prepare` says which), which become
        the token store `out/corpus.tokens`; or one token store that :func:`prepare` or
        :func:`scanpy_scgpt.pp.tokenize` wrote.
    out
        Folder for `checkpoints/` and `run.json` (to resume), `metrics.csv` and the finished model in `model/`.
    vocab
        Genes of the model. By default those of the token store or of `continue_from`, else those that enough cells
        express.
    name
        Name of the model.
    config, **changes
        Settings; keyword arguments change single fields.
    continue_from
        Checkpoint to train on: its name, its folder or itself. It gives the shape of the network and the bins;
        `vocab` may have more genes than it. A head that it lacks starts anew.
    filters, duplicates, on_error
        Which cells enter `out/corpus.tokens`, as in :func:`prepare`; a token store takes none of them.
    loggers
        Where the curves go besides `metrics.csv`: `"tensorboard"`, `"wandb"`, a logger of Lightning, or several of
        them. They hold the losses, cells and tokens a second, the share of time spent on waiting for data, and the
        learning rate.
    accelerator, devices, strategy, num_nodes
        Passed to :class:`lightning.pytorch.Trainer`. With more than one device `"auto"` is data parallelism
        (`"ddp"`); `"fsdp"` (CUDA only) spreads the weights too; a strategy object of Lightning has all its options. In
        a script Lightning starts one process per device; processes that `torchrun` or SLURM started are found. All of
        them run this function with the same arguments and read and write the same folders; the first one writes.
    resume
        Go on from the last checkpoint in `out`, if there is one; `max_steps`, `lr`, `warmup_steps` and `precision` may
        have changed since. The model of a finished run is returned as it is. False deletes the checkpoint and starts
        anew; a `out/corpus.tokens` that was made of other data is replaced.
    half
        Store the weights in half precision.
    notes, licence
        For the card: what the model is meant for, and the terms under which others may use it.
    rng
        Seed of weights, split and batches. Global random state is left as it was.

    Returns
    -------
    The finished model as it was written to `out/model`. Its `info["errors"]` holds, for each share of unknown genes,
    the mean squared errors of the model and of three predictors without a network.

    Raises
    ------
    FileNotFoundError
        When a file is not there.
    ValueError
        When a file does not hold raw counts, a setting is out of range or contradicts `continue_from`, no cells are
        left for training or validation, there are more processes than cells of a step, the machine lacks what is asked
        for, another process trains in `out`, or `out` holds checkpoints of another run or files that none wrote.
    TypeError
        When an argument is of another kind.
    ImportError
        When a logger is not installed.
    NonFiniteError
        When a loss or gradient is not finite. The last checkpoint is good, but the same call would fail again: with a
        lower `lr`, more `warmup_steps` or another `precision` it goes on from there.
    RuntimeError
        In the other processes, when the first one could not write the model; that one raises what went wrong.
    """
    clock, out = Clock(), Path(out).expanduser()
    check_kinds(vocab=vocab, config=config, filters=filters, resume=resume, half=half)
    PretrainConfig.check_names(changes)
    require_own(out)
    config = replace(config or PretrainConfig(), **changes)
    parent = None if continue_from is None else load(continue_from)
    if parent is not None:
        config = shape_from(parent, config, changes)
    where = {"accelerator": accelerator, "devices": devices, "strategy": strategy, "num_nodes": num_nodes}
    trainer = trainer_of(out, config, loggers=loggers_of(loggers, out, name=name), clock=clock, **where)
    require_batch(trainer.world_size, config)
    preparing = {"vocab": vocab, "filters": filters, "duplicates": duplicates, "on_error": on_error}
    asked = {"name": name, "half": half, "notes": notes, "licence": licence}
    with alone_in(out, first=trainer.is_global_zero):
        return _train(
            data, out, config, trainer, clock, parent, preparing=preparing, asked=asked, resume=resume, rng=rng
        )


def _train(
    data: Data,
    out: Path,
    config: PretrainConfig,
    trainer: lp.Trainer,
    clock: Clock,
    parent: Checkpoint | None,
    *,
    preparing: Mapping[str, Any],
    asked: Mapping[str, Any],
    resume: bool,
    rng: int,
) -> Checkpoint:
    """From data to the finished model, in a folder that no other run writes."""
    tokenizer = _tokenizer(config, parent)
    store = store_of(data, out, parent=parent, tokenizer=tokenizer, rng=rng, overwrite=not resume, **preparing)
    identity = identity_of(store.digest, store.vocab, asdict(config), parent=parent and parent.label, rng=rng)
    if resume and (there := finished_model(out, identity, asked)) is not None:
        logger.info("pretraining: %s is the model of this very run; nothing to do.", out / "model")
        return there
    last = checkpoint_to_resume(out, identity, resume=resume)
    corpus = store_corpus(store)
    cells = split(corpus, config, rng=rng)
    require_cells(trainer.world_size, config, training=len(cells.training), validation=len(cells.validation))
    made = {"vocab": store.vocab, "cls_value": tokenizer.cls_value}
    shown = steps_of(corpus, cells.training, config, seed=rng, **made)
    held = steps_of(corpus, cells.validation, config, seed=rng + 1, held_out=True, **made)
    plan = _plan(network(corpus, cells.training, store.vocab, config, parent=parent, seed=rng), config, seed=rng)
    if trainer.is_global_zero:
        prepare_folder(out, identity, resumed=last is not None)
    losses = fit(trainer, plan, shown, held, epoch_steps=config.epoch_steps, last=last, seed=rng)
    errors = errors_by_ratio(trainer, plan, held, config.ratios)
    with everywhere(trainer, f"the model in {out / 'model'}"):
        if trainer.is_global_zero:
            info = {
                **_origin(corpus, store, parent, cells),
                "losses": losses,
                "errors": add_rivals(errors, shown, held, rng=rng),
                "compared_cells": compared_cells(shown, held),
                "pooling": config.pooling,
                "settings": asdict(config),
                "notes": asked["notes"],
                "licence": asked["licence"],
                "seconds": clock.seconds,
                "cells_per_second": join_metrics(out),
            }
            _write(out, plan, info, name=asked["name"], tokenizer=tokenizer, vocab=store.vocab, half=asked["half"])
            note_finished(out, identity, asked, digest=read_checkpoint(out / "model").digest)
    return read_checkpoint(out / "model")


def _tokenizer(config: PretrainConfig, parent: Checkpoint | None) -> TokenizerConfig:
    rule = {"n_bins": config.n_bins, "ties": config.ties, "max_length": max(config.max_length, 1200)}
    if parent is None:
        return TokenizerConfig(**rule, cls_value=CLS_VALUE)
    return replace(parent.tokenizer, **rule)


def _plan(module: PretrainModule, config: PretrainConfig, *, seed: int) -> TrainingPlan:
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


def _origin(corpus: Corpus, store: TokenStore, parent: Checkpoint | None, cells: Split) -> dict[str, Any]:
    """Where the model comes from."""
    report, form = corpus_report(store), "legacy_generation"  # of attention for unknown genes, see PretrainModule
    return {
        "files": list(report["files"]),
        "studies": _sizes(corpus.study),
        "tissues": _sizes(corpus.tissue),
        "corpus": report,
        "data": store.digest,
        "parent": None if parent is None else parent.label,
        **({form: True} if parent is not None and parent.info.get(form) else {}),
        "n_cells": len(store),
        "n_training_cells": len(cells.training),
        "n_validation_cells": len(cells.validation),
        "n_repeated_cells": cells.repeated,
        "n_unused_cells": corpus.n_unused,
        "version": __version__,
    }


def _sizes(groups: pd.Categorical) -> dict[str, int]:
    return {str(k): int(v) for k, v in pd.Series(groups).value_counts().sort_index().items()}


def _write(
    out: Path,
    plan: TrainingPlan,
    info: Mapping[str, Any],
    *,
    name: str,
    tokenizer: TokenizerConfig,
    vocab: GeneVocab,
    half: bool,
) -> None:
    weights = trained_weights(out)
    checkpoint = Checkpoint(
        name=name,
        transformer=plan.module.transformer.config,
        tokenizer=tokenizer,
        vocab=vocab,
        weights=weights,
        info=info,
        card=model_card(name, info, vocab=vocab, n_parameters=sum(x.numel() for x in weights.values())),
    )
    write_checkpoint(checkpoint, out / "model", half=half, overwrite=True)
