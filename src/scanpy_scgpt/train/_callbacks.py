"""Callbacks of fine-tuning."""

from __future__ import annotations

from collections.abc import Callable

import lightning.pytorch as lp
import torch
from torch import Tensor


class KeepBest(lp.Callback):
    """Keeps the weights of the best validated epoch in memory and puts them back at the end of training.

    Parameters
    ----------
    monitor
        Name of the logged value.
    mode
        `"min"` or `"max"`.
    start
        Value of the weights as they are before training, or None when it is not known.

    Attributes
    ----------
    best_epoch
        Number of that epoch from 0, or None when none was better than the start.
    best
        Its value.
    """

    def __init__(self, monitor: str, mode: str, *, start: float | None = None) -> None:
        self.monitor, self.mode = monitor, mode
        self.best = start
        self.best_epoch: int | None = None
        self._weights: dict[str, Tensor] = {}
        self._start: dict[str, Tensor] = {}

    def on_fit_start(self, trainer: lp.Trainer, pl_module: lp.LightningModule) -> None:
        """Take the weights of the start."""
        self._start = self._taken(pl_module)
        if self.best is not None:
            self._weights = self._start

    @staticmethod
    def _taken(pl_module: lp.LightningModule) -> dict[str, Tensor]:
        module, state = pl_module.module, pl_module.module.state_dict()
        trained = {name for name, p in module.named_parameters() if p.requires_grad}
        counted = {name for name, _ in module.named_buffers()} & set(state)
        return {name: state[name].detach().clone() for name in trained | counted}

    def on_validation_end(self, trainer: lp.Trainer, pl_module: lp.LightningModule) -> None:
        """Take the weights when the value is better than ever before."""
        value = trainer.callback_metrics.get(self.monitor)
        if trainer.sanity_checking or value is None or not torch.isfinite(value):
            return
        value = float(value)
        better = self.best is None or (value >= self.best if self.mode == "max" else value <= self.best)
        if better:
            self.best, self.best_epoch = value, trainer.current_epoch
            self._weights = self._taken(pl_module)

    def on_fit_end(self, trainer: lp.Trainer, pl_module: lp.LightningModule) -> None:
        """Put them back."""
        if self._weights:
            pl_module.module.load_state_dict(self._weights, strict=False)
        self._weights = self._start = {}

    def on_exception(self, trainer: lp.Trainer, pl_module: lp.LightningModule, exception: BaseException) -> None:
        """Put back the best, or else the start: what failed may have left numbers that are none."""
        if self._weights or self._start:
            pl_module.module.load_state_dict(self._weights or self._start, strict=False)


class Watch(lp.Callback):
    """Measures something of the network after each validation, and logs it as `<name>_validation`.

    Parameters
    ----------
    name
        Of the value.
    measure
        Gives the value for the network as it is.
    """

    def __init__(self, name: str, measure: Callable[[], float]) -> None:
        self.name, self.measure = name, measure

    def on_validation_epoch_end(self, trainer: lp.Trainer, pl_module: lp.LightningModule) -> None:
        """Measure; in every process, since all hold the same network."""
        pl_module.log(f"{self.name}_validation", float(self.measure()), prog_bar=True, sync_dist=True)
