"""The training plan: one step, named logs, optimiser and schedule. No loss arithmetic."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as lp
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class PlanConfig:
    """Settings of :class:`TrainingPlan`.

    Attributes
    ----------
    lr
        Highest learning rate.
    total_steps
        Steps of the whole run: the cosine ends there.
    warmup_steps
        Steps of linear warm-up.
    weight_decay
        Decoupled weight decay of matrices; vectors have none.
    lr_scale
        Factor on the learning rate of parameters whose name starts with a key; 0 freezes them.
    """

    lr: float
    total_steps: int
    warmup_steps: int = 0
    weight_decay: float = 0.01
    lr_scale: Mapping[str, float] = field(default_factory=dict)


class TrainingPlan(lp.LightningModule):
    """Trains any module that turns a batch into a `Loss(total, terms)`.

    Logs `train_loss`, `validation_loss` and `<term>_train`, `<term>_validation`.
    """

    def __init__(self, module: nn.Module, config: PlanConfig) -> None:
        super().__init__()
        self.module, self.plan = module, config
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(self._scale(name) > 0)

    def _scale(self, name: str) -> float:
        return next((x for start, x in self.plan.lr_scale.items() if name.startswith(start)), 1.0)

    def training_step(self, batch: Any, _batch_idx: int) -> Tensor:  # noqa: ANN401: any batch of the module
        """Loss of one training batch."""
        return self._step(batch, "train")

    def validation_step(self, batch: Any, _batch_idx: int) -> Tensor:
        """Loss of one validation batch."""
        return self._step(batch, "validation")

    def _step(self, batch: Any, stage: str) -> Tensor:
        loss = self.module(batch)
        logged = {f"{stage}_loss": loss.total, **{f"{name}_{stage}": value for name, value in loss.terms.items()}}
        n_cells = len(batch[0][0] if isinstance(batch[0], tuple) else batch[0])
        self.log_dict(
            {name: value.detach().float() for name, value in logged.items()},
            on_step=False,
            on_epoch=True,
            batch_size=n_cells,
            sync_dist=stage == "validation",
        )
        return loss.total

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW with warm-up and cosine decay to zero, a step at a time."""
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in self.module.named_parameters():
            if parameter.requires_grad:
                decay = self.plan.weight_decay if parameter.ndim > 1 else 0.0
                groups.setdefault((self._scale(name), decay), []).append(parameter)
        optimizer = torch.optim.AdamW(
            [
                {"params": members, "lr": self.plan.lr * scale, "weight_decay": decay}
                for (scale, decay), members in groups.items()
            ],
            lr=self.plan.lr,
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _rate(self, step: int) -> float:
        warm = min(1.0, (step + 1) / max(self.plan.warmup_steps, 1))
        return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(self.plan.total_steps, 1))))
