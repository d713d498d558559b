"""Curves of a run: where they go, and how fast training is."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as lp
from lightning.pytorch.loggers import CSVLogger, Logger

from scanpy_scgpt._optional import require
from scanpy_scgpt._validate import check_one_of
from scanpy_scgpt.train import TrainingPlan

SPEED = ("cells_per_second", "tokens_per_second", "data_wait")  # the columns that no two runs have in common
_NAMES = ("tensorboard", "wandb")


def loggers_of(given: str | Logger | Sequence[str | Logger], out: Path, *, name: str) -> list[Logger]:
    """`metrics.csv` in `out`, and the loggers that were asked for.

    Parameters
    ----------
    given
        `"tensorboard"` (files in `out/tensorboard`), `"wandb"` (project "scanpy-scgpt"), or a logger of Lightning; or
        several of them.
    out
        Folder of the run.
    name
        Name of the model.

    Raises
    ------
    ImportError
        When the package of a logger is not installed.
    ValueError
        For an unknown name.
    """
    given = [given] if isinstance(given, str | Logger) else given
    return [CSVLogger(out, name="", version=""), *(_logger(each, out, name) for each in given)]


def _logger(given: str | Logger, out: Path, name: str) -> Logger:
    if isinstance(given, Logger):
        return given
    check_one_of(given, _NAMES, name="a logger")
    require(given, extra=given, needed_for=f"loggers={given!r}")
    if given == "tensorboard":
        from lightning.pytorch.loggers import TensorBoardLogger

        return TensorBoardLogger(out, name="tensorboard", version="")
    from lightning.pytorch.loggers import WandbLogger

    return WandbLogger(name=name, project="scanpy-scgpt", save_dir=out)


class Speed(lp.Callback):
    """Log the speed of each epoch, and the learning rate.

    Cells and tokens (padding and `<cls>` included) a second over all processes, and the share of time that a process
    waited for data.
    """

    def __init__(self) -> None:
        self._restart()

    def _restart(self) -> None:
        self.cells = self.tokens = 0
        self.waited = 0.0
        self.started = self.ready = time.perf_counter()

    def on_train_epoch_start(self, *_: Any) -> None:
        self._restart()

    def on_train_batch_start(self, _trainer: lp.Trainer, _plan: TrainingPlan, batch: Any, *_: Any) -> None:
        self.waited += time.perf_counter() - self.ready
        self.cells += sum(len(part.targets) for part in batch.batches)
        self.tokens += sum(part.known.gene_ids.numel() + part.unknown_ids.numel() for part in batch.batches)

    def on_train_batch_end(self, *_: Any) -> None:
        self.ready = time.perf_counter()

    def on_train_epoch_end(self, trainer: lp.Trainer, plan: TrainingPlan) -> None:
        if not self.cells:  # a run that goes on ends the epoch before once more
            return
        seconds = max(self.ready - self.started, 1e-9)
        values = (self.cells * trainer.world_size / seconds, self.tokens * trainer.world_size / seconds)
        logged = dict(zip(SPEED, (*values, self.waited / seconds), strict=True))
        plan.log_dict({**logged, "lr": plan.learning_rate}, on_step=False, on_epoch=True, sync_dist=True)
