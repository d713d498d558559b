"""The training plan: one step, named logs, optimiser and schedule. No loss arithmetic."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as lp
import numpy as np
import torch
from torch import Tensor, nn

from scanpy_scgpt._batch import GenerativeStep

_WRAPPED = "_fsdp_wrapped_module."  # what FSDP puts into the names of parameters
_FUSED = {"cpu", "cuda"}  # devices whose AdamW updates all parameters in one kernel
_LEAST_SCALE = 1e-3  # of half-precision gradients, which starts at 65,536 and halves at each overflow


class NonFiniteError(ValueError):
    """A loss or gradient is infinite or no number; the weights are those of the step before."""


@contextmanager
def seeded(device: torch.device, *numbers: int) -> Iterator[None]:
    """What PyTorch draws on the CPU and on the device follows from the numbers; the old state comes back at the end."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        if device.type not in {"cpu", "cuda"}:
            torch.manual_seed(seed)
        else:  # torch.manual_seed asks every kind of device there is, which takes a tenth of a small step
            torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


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
    clip
        Largest norm of the gradient of all parameters together; None leaves it as it is.
    seed
        Seed of dropout: with it the dropout of a step depends on (seed, step, process) alone, so that a resumed run
        repeats it. None takes the global random state as it is.
    """

    lr: float
    total_steps: int
    warmup_steps: int = 0
    weight_decay: float = 0.01
    lr_scale: Mapping[str, float] = field(default_factory=dict)
    clip: float | None = 1.0
    seed: int | None = None


class TrainingPlan(lp.LightningModule):
    """Trains any module that turns a batch into a `Loss(total, terms)`; parameters that need no gradient stay.

    A :class:`~scanpy_scgpt._batch.GenerativeStep` is trained one micro-batch after another: each loss is weighted with
    its shares, so the gradient is that of the whole step whatever its division into micro-batches and processes, and
    processes exchange gradients once. Any other batch is a step of its own.

    Logs `train_loss`, `validation_loss` and `<term>_train`, `<term>_validation`, means over all processes.
    """

    def __init__(self, module: nn.Module, config: PlanConfig) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.module, self.plan = module, config
        self._losses: dict[str, Tensor] = {}  # of the step that is under way
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and self._scale(name) > 0)
        # asked before FSDP makes every parameter a vector
        self._matrices = {name for name, parameter in module.named_parameters() if parameter.ndim > 1}

    def _scale(self, name: str) -> float:
        return next((x for start, x in self.plan.lr_scale.items() if name.startswith(start)), 1.0)

    def training_step(self, batch: Any, _batch_idx: int) -> None:
        """One step of the optimiser."""
        optimizer, schedule = self.optimizers(), self.lr_schedulers()
        parts, scale = self._parts(batch), self._scale_of(batch)
        self._losses = logged = {}
        with self._dropout():
            for i, (part, shares) in enumerate(parts):
                loss = self._loss(part, shares)
                with nullcontext() if i + 1 == len(parts) else self._without_exchange():
                    self.manual_backward(loss.total * scale)
                _add(logged, loss, scale)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        self._log(logged, "train")

    def validation_step(self, batch: Any, _batch_idx: int) -> None:
        """Losses of one validation step."""
        logged: dict[str, Tensor] = {}
        for part, shares in self._parts(batch):
            _add(logged, self._loss(part, shares), self._scale_of(batch))
        self._log(logged, "validation")

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the gradient: after it was unscaled and exchanged, before it is used.

        Raises
        ------
        NonFiniteError
            When it is not finite: in all processes, for they have exchanged it.
        """
        whole, most = self.trainer.strategy.model, math.inf if self.plan.clip is None else self.plan.clip
        if hasattr(whole, "clip_grad_norm_"):  # FSDP: each process holds a part of the gradient
            norm = whole.clip_grad_norm_(most)
        else:
            members = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            norm = nn.utils.clip_grad_norm_(members, most)
        if not torch.isfinite(norm):
            self._refuse_step()

    def _refuse_step(self) -> None:
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler is not None and scaler.get_scale() > _LEAST_SCALE:
            return  # half precision overflows now and then: the scaler leaves the step out
        named = {name: value.item() for name, value in self._losses.items() if name != "total"}
        wrong = ", ".join(f"{name}={value}" for name, value in named.items() if not math.isfinite(value))
        precision = str(self.trainer.precision)
        other = "" if precision.startswith("32") else ', or with precision="32-true"'
        warm = max(self.plan.warmup_steps, self.global_step + 1)
        msg = (
            f"Step {self.global_step + 1}: {wrong or 'no loss of this process, but the gradient'} is not finite "
            f"(lr={self.learning_rate:.3g}, precision={precision!r}). The step was not taken, and the last checkpoint "
            "is good. The same call would come to the same end: repeat it with a lower lr, such as "
            f"lr={self.plan.lr / 3:.1g}, or with more warmup_steps than {warm}{other}; it goes on from the last "
            "checkpoint."
        )
        raise NonFiniteError(msg)

    @property
    def learning_rate(self) -> float:
        """Learning rate of the step that comes, for parameters whose scale is 1."""
        return self._rate_of(self.global_step)

    @staticmethod
    def _parts(batch: Any) -> list[tuple[Any, Mapping[str, float] | None]]:
        return list(zip(*batch, strict=True)) if isinstance(batch, GenerativeStep) else [(batch, None)]

    def _scale_of(self, batch: Any) -> int:
        """Processes average gradients and logs; the shares of a step add up over them."""
        return self.trainer.world_size if isinstance(batch, GenerativeStep) else 1

    def _loss(self, part: Any, shares: Mapping[str, float] | None) -> Any:
        loss = self.module(part)
        return loss if shares is None else loss.shared(shares)

    def _without_exchange(self) -> AbstractContextManager:
        """The gradients of a micro-batch stay in this process; the last one sends the sum."""
        block = getattr(self.trainer.strategy, "block_backward_sync", nullcontext)
        return block()

    @contextmanager
    def _dropout(self) -> Iterator[None]:
        if self.plan.seed is None:
            yield
            return
        with seeded(self.device, self.plan.seed, self.global_step, self.global_rank):
            yield

    def _log(self, logged: Mapping[str, Tensor], stage: str) -> None:
        names = {name: f"{stage}_loss" if name == "total" else f"{name}_{stage}" for name in logged}
        values = {names[name]: value for name, value in logged.items()}
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW with warm-up and cosine decay to zero, a step at a time."""
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for wrapped, parameter in self.module.named_parameters():
            name = wrapped.replace(_WRAPPED, "")
            if parameter.requires_grad:
                decay = self.plan.weight_decay if name in self._matrices else 0.0
                groups.setdefault((self._scale(name), decay), []).append(parameter)
        # the fused kernel would undo the scale of half-precision gradients itself, after they were clipped
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        optimizer = torch.optim.AdamW(
            [
                {"params": members, "lr": scale, "weight_decay": decay}  # the schedule has the rest of the rate
                for (scale, decay), members in groups.items()
            ],
            fused=True if self.device.type in _FUSED and not scaled else None,
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate_of)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        """Go on with the learning rate of this plan: the optimiser of a checkpoint has that of its own."""
        schedule = self.lr_schedulers()
        for group in schedule.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * self._rate_of(schedule.last_epoch)

    def _rate_of(self, step: int) -> float:
        warm = min(1.0, (step + 1) / max(self.plan.warmup_steps, 1))
        return self.plan.lr * warm * 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(self.plan.total_steps, 1))))


def _add(logged: dict[str, Tensor], loss: Any, scale: int) -> None:
    for name, value in {"total": loss.total, **loss.terms}.items():
        logged[name] = logged.get(name, 0) + scale * value.detach().float()
