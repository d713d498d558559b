"""The plan of fine-tuning, for scvi-tools' trainer: named logs, schedule, measures of labels. No loss arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Literal, get_args

import lightning.pytorch as lp
import torch
from torch import Tensor, nn

from scanpy_scgpt._validate import check_one_of

from ._plan import NonFiniteError, seeded

Schedule = Literal["cosine", "step", "constant"]


class FineTuningPlan(lp.LightningModule):
    """Trains a module whose call gives (inference, generative, loss), as scvi-tools' modules do.

    Logs `train_loss`, `validation_loss`, `<term>_train`, `<term>_validation`, and where cells have labels
    `accuracy_validation` and `macro_f1_validation`, over all validation cells of the epoch.

    Parameters
    ----------
    module
        Network with its loss; parameters that need no gradient stay.
    lr
        Highest learning rate.
    weight_decay
        Decoupled weight decay of matrices; vectors have none.
    schedule
        `"cosine"` to zero, `"step"` (times `gamma` after each epoch, as the original), or `"constant"`.
    gamma
        Factor of `"step"`.
    warmup
        Share of all steps in which the rate grows linearly.
    rates
        Factor on the rate by the start of a parameter's name; the first that fits counts, 0 freezes.
    seed
        Masks and dropout of a batch depend on (seed, step, batch, process) alone.
    prepare
        Turns a batch of a data module of the user's into tensors of tokens, or None.

    Raises
    ------
    ValueError
        For an unknown schedule.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        lr: float = 1e-4,
        weight_decay: float = 0.01,
        schedule: Schedule = "cosine",
        gamma: float = 0.9,
        warmup: float = 0.1,
        rates: Mapping[str, float] | None = None,
        seed: int = 0,
        prepare: Callable[[Any], Any] | None = None,
    ) -> None:
        super().__init__()
        check_one_of(schedule, get_args(Schedule), name="schedule")
        self.module, self.lr, self.weight_decay = module, lr, weight_decay
        self.schedule, self.gamma, self.warmup, self.seed = schedule, gamma, warmup, seed
        self.rates, self.prepare = dict(rates or {}), prepare
        self._confusion: Tensor | None = None
        for name, parameter in module.named_parameters():
            if self._rate(name) == 0:
                parameter.requires_grad = False

    def _rate(self, name: str) -> float:
        return next((rate for start, rate in self.rates.items() if name.startswith(start)), 1.0)

    def _ready(self, batch: Any) -> Mapping[str, Tensor]:
        """Batches of a data module of the user's become tokens here."""
        if self.prepare is None:
            return batch
        return {name: tensor.to(self.device) for name, tensor in self.prepare(batch).items()}

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        """Loss of a step."""
        batch = self._ready(batch)
        with self._draws(self.global_step, batch_idx):
            _, _, out = self.module(batch)
        if not torch.isfinite(out.loss):
            named = ", ".join(f"{name}={value.item():.3g}" for name, value in out.extra_metrics.items())
            msg = (
                f"Step {self.global_step + 1}: the loss is not finite ({named}; lr={self.lr:.3g}, precision="
                f"{str(self.trainer.precision)!r}). Train again with a lower rate: plan_kwargs={{'lr': "
                f"{self.lr / 3:.1g}}}."
            )
            raise NonFiniteError(msg)
        self._log(out, "train")
        return out.loss

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Loss of a batch of validation cells; counts its labels."""
        batch = self._ready(batch)
        with self._draws(batch_idx):  # the same hidden genes at each epoch
            _, generative, out = self.module(batch)
        self._log(out, "validation")
        if generative.get("classes") is not None:
            self._count(batch["labels"].flatten(), generative["classes"])

    def _count(self, labels: Tensor, scores: Tensor) -> None:
        n, known = scores.shape[1], labels >= 0
        cells = labels[known] * n + scores.argmax(dim=1)[known]
        counted = torch.bincount(cells, minlength=n * n).view(n, n)
        self._confusion = counted if self._confusion is None else self._confusion + counted

    def on_validation_epoch_end(self) -> None:
        """Log what the labels of the epoch say."""
        if self._confusion is None:
            return
        confusion = self.all_gather(self._confusion).reshape(-1, *self._confusion.shape).sum(dim=0).float()
        self._confusion = None
        truth, predicted, right = confusion.sum(dim=1), confusion.sum(dim=0), confusion.diagonal()
        f1 = 2 * right / (truth + predicted).clamp(min=1)
        if truth.sum() > 0:
            self.log("accuracy_validation", right.sum() / truth.sum(), sync_dist=True)
            self.log("macro_f1_validation", f1[truth > 0].mean(), prog_bar=True, sync_dist=True)

    def _draws(self, *numbers: int) -> AbstractContextManager[None]:
        return seeded(self.device, self.seed, *numbers, int(self.module.training), self.global_rank)

    def _log(self, out: Any, stage: str) -> None:
        values = {f"{stage}_loss": out.loss, **{f"{name}_{stage}": x for name, x in out.extra_metrics.items()}}
        values = {name: value.detach() for name, value in values.items()}
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=out.n_obs_minibatch, sync_dist=True)

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW, its groups by rate and decay."""
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in self.module.named_parameters():
            if parameter.requires_grad:
                decay = self.weight_decay if parameter.ndim > 1 else 0.0
                groups.setdefault((self._rate(name), decay), []).append(parameter)
        if not groups:
            msg = "Nothing is left to train: every part is frozen. Name fewer parts in freeze."
            raise ValueError(msg)
        optimizer = torch.optim.AdamW(
            [{"params": kept, "lr": self.lr * rate, "weight_decay": decay} for (rate, decay), kept in groups.items()]
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _factor(self, step: int) -> float:
        total = max(self._total_steps(), 1)
        if math.isinf(total):  # batches of a data module that does not know how many it has
            return 1.0
        warm = min(1.0, (step + 1) / max(self.warmup * total, 1))
        if self.schedule == "cosine":
            return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, step / total)))
        if self.schedule == "step":
            per_epoch = max(total // max(self.trainer.max_epochs, 1), 1)
            return warm * self.gamma ** (step // per_epoch)
        return warm

    def _total_steps(self) -> float:
        if not hasattr(self, "_steps"):
            self._steps = self.trainer.estimated_stepping_batches
        return self._steps
