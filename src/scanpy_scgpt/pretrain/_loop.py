"""The loop: trainer, callbacks, the part of each process, and the weights that training leaves."""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as lp
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.utils.data import DataLoader

from scanpy_scgpt._settings import settings
from scanpy_scgpt.data import GenerativeBatches, StepSampler
from scanpy_scgpt.train import TrainingPlan

from ._config import PretrainConfig
from ._curves import Speed

VALIDATION_STEPS = 8
_PREFIX = "module."  # of the names in a checkpoint of Lightning


class _PromptAfter(lp.Callback):
    """Switch the pass from the cell vector on after some steps; validation has it before, if it is trained at all."""

    def __init__(self, config: PretrainConfig) -> None:
        step = config.prompt_after
        self.step = math.inf if step is None or step >= config.max_steps else step

    def on_train_batch_start(self, trainer: lp.Trainer, plan: TrainingPlan, *_: Any) -> None:
        plan.module.prompting = trainer.global_step >= self.step
        # Lightning numbers the logged steps one too high after each resume
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step

    def on_validation_start(self, _trainer: lp.Trainer, plan: TrainingPlan) -> None:
        plan.module.prompting = self.step < math.inf


class Clock(lp.Callback):
    """Seconds that a run took, over all calls that it went on in; those that a kill cost are not counted."""

    def __init__(self) -> None:
        self.earlier, self.started = 0.0, time.time()

    @property
    def seconds(self) -> float:
        """Seconds until now."""
        return self.earlier + time.time() - self.started

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint says."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        """Count on from a checkpoint."""
        self.earlier = state_dict["seconds"]


class _Steps(lp.LightningDataModule):
    """Steps of training and validation, those of the process that asks."""

    def __init__(self, shown: GenerativeBatches, held: GenerativeBatches, *, epoch_steps: int) -> None:
        super().__init__()
        self.shown, self.held, self.epoch_steps = shown, held, epoch_steps

    def _mine(self, batches: GenerativeBatches) -> GenerativeBatches:
        return batches.of_process(self.trainer.global_rank, self.trainer.world_size)

    def train_dataloader(self) -> DataLoader:
        sampler = StepSampler(self.epoch_steps, done=lambda: self.trainer.global_step)
        return DataLoader(self._mine(self.shown), batch_size=None, sampler=sampler)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self._mine(self.held), batch_size=None, sampler=range(VALIDATION_STEPS))


def trainer_of(
    out: Path,
    config: PretrainConfig,
    *,
    loggers: Sequence[Logger],
    clock: Clock,
    accelerator: str,
    devices: int | str | list[int],
    strategy: str | Strategy,
    num_nodes: int,
) -> lp.Trainer:
    """The trainer of a run; nothing is written yet.

    Raises
    ------
    ValueError
        When Lightning cannot use what is asked for; the text says what is there.
    """
    where = {"accelerator": accelerator, "devices": devices, "strategy": strategy, "num_nodes": num_nodes}
    with _on_this_machine(where):
        return _trainer(out, config, loggers, clock, where)


@contextmanager
def _on_this_machine(where: Mapping[str, Any]) -> Iterator[None]:
    """What Lightning says about accelerators and devices, with what was asked for and what is there."""
    try:
        yield
    except (MisconfigurationException, ValueError, TypeError, RuntimeError, ImportError) as error:
        asked = ", ".join(f"{name}={value!r}" for name, value in where.items())
        there = [f"{torch.cuda.device_count()} CUDA devices", f"{os.cpu_count()} CPU cores"]
        there += ["MPS"] if torch.backends.mps.is_available() else []
        msg = (
            f"No trainer for {asked}: {str(error).strip().rstrip('.')}. This machine has {', '.join(there)}. Use "
            "accelerator='auto' and devices=1, or a number of devices that are there."
        )
        raise ValueError(msg) from error


def _trainer(
    out: Path, config: PretrainConfig, loggers: Sequence[Logger], clock: Clock, where: Mapping[str, Any]
) -> lp.Trainer:
    return lp.Trainer(
        **where,
        precision=config.precision,
        max_steps=config.max_steps,
        logger=list(loggers),
        use_distributed_sampler=False,
        callbacks=[
            Speed(),
            ModelCheckpoint(
                out / "checkpoints",
                filename="last",  # save_last with save_top_k=0 writes nothing before the end of the run
                every_n_epochs=1,
                save_top_k=1,
                save_on_train_epoch_end=True,
                enable_version_counter=False,
            ),
            _PromptAfter(config),
            clock,
        ],
        enable_progress_bar=settings.progress_bar,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=config.epoch_steps,
    )


@contextmanager
def _alone(*, seed: int | None = None) -> Iterator[None]:
    """Leave the global random state as it was, and say nothing of what is meant to be so."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*exists and is not empty.*")  # that is how a run goes on
        if seed is not None:
            torch.manual_seed(seed)
        yield


def fit(
    trainer: lp.Trainer,
    plan: TrainingPlan,
    shown: GenerativeBatches,
    held: GenerativeBatches,
    *,
    epoch_steps: int,
    last: Path | None,
    seed: int,
) -> dict[str, float]:
    """Train and validate; the losses on the held-out cells."""
    steps = _Steps(shown, held, epoch_steps=epoch_steps)
    with _alone(seed=seed):
        trainer.fit(plan, datamodule=steps, ckpt_path=last)
    return validated(trainer, plan, held)


def validated(trainer: lp.Trainer, plan: TrainingPlan, held: GenerativeBatches) -> dict[str, float]:
    """The losses on held-out cells, means over all processes."""
    with _alone():
        (losses,) = trainer.validate(plan, datamodule=_Steps(held, held, epoch_steps=1), verbose=False)
    return dict(losses)


@contextmanager
def everywhere(trainer: lp.Trainer, what: str) -> Iterator[None]:
    """All processes leave this block together, and with an error when one of them failed in it: none waits for ever.

    Parameters
    ----------
    trainer
        Of the run, after training.
    what
        What the block makes, for the error.

    Raises
    ------
    RuntimeError
        In the processes that did not fail.
    """
    done = False
    try:
        yield
        done = True
    finally:
        all_done = trainer.strategy.reduce_boolean_decision(done)
    if not all_done:
        msg = f"Another process could not make {what}; its error says why. Mend that and repeat the same call."
        raise RuntimeError(msg)


def trained_weights(out: Path) -> dict[str, Tensor]:
    """Weights of the last step by the names of a checkpoint of ours, whatever the strategy spread them over."""
    saved = torch.load(out / "checkpoints" / "last.ckpt", map_location="cpu", weights_only=True, mmap=True)
    return {name.removeprefix(_PREFIX): tensor.clone() for name, tensor in saved["state_dict"].items()}
