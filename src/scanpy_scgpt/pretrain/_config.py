"""Settings of a pretraining run: one flat table, every value checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Literal, get_args

from scanpy_scgpt._types import Pooling, Ties
from scanpy_scgpt._validate import check_one_of
from scanpy_scgpt.module import TERMS, Positives, Task

from ._gene_table import GENE_TABLES, GeneTableStart

Grouping = Literal["tissue", "study"]
_PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "bf16-true", "64-true")


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
    gene_table
        What the gene table of a new model starts from: `"random"`, `"coexpression"` (of the corpus, factorised),
        `"knowledge"` (:func:`scanpy_scgpt.datasets.gene_features`) or `"both"`.
    quiet_start
        The layers of a new model add little at first, so that its pooled tokens start close to the pooled vectors of
        their genes.
    pooling
        How token vectors become the cell vector that `contrast` compares, and that :func:`scanpy_scgpt.tl.embed` gives
        by default: `"cls"`, `"mean"`, `"weighted"` by the bins, or `"layers"`: such a sum of every layer and its input.
    task
        `"gen"`: an unknown gene sees the known genes and itself (terms `gep`, `gepc`, `prompt`). `"pcpt"`: unknown
        genes stay in the sequence as masked values and every token sees every token (`masked_gep`, `masked_gepc`).
        `"both"`: the sum of the two.
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
        Step from which the pass from the cell vector is trained too; None, or a step after the last one, leaves it out.
    weights
        Weight of the terms `gep`, `gepc`, `prompt`, `masked_gep`, `masked_gepc`, `distribution`, `contrast`; 1 where
        none is given. The squared errors are in bins squared, some fifty times the size of the other two.
    distribution
        Train the head of the value distribution: a probability of each bin, which tells how sure the model is.
    contrast
        Train the contrastive term between two disjoint sets of genes of a cell; its negatives are the cells that are
        computed at once on a device.
    positives
        What belongs together in that term: `"self"`, the two sets of one cell; `"similar"`, the sets of cells that are
        alike by the gene vectors of both sets together. A gene table that is learned moves these targets.
    panel_share
        Share of steps whose cells are shown as a smaller gene panel would show them, digits taken anew.
    balance, balance_power
        Groups between which each pass is balanced: `"tissue"`, `"study"` or None. A group of `n` cells gets a share of
        the pass that grows with `n ** (1 - balance_power)`: 0 takes groups as large as they are, 1 all equally.
    step_from
        All cells of a step come from one `"study"` or one `"tissue"` (groups of fewer cells than a step go together),
        so that contrasted cells cannot be told apart by batch effects. None takes the cells of a step from everywhere.
    validation_share
        Share of cells held out.
    validation_by
        `"cell"` holds out single cells; `"study"` whole studies, until about the share is reached.
    validation_studies
        Names of the studies to hold out, with `validation_by="study"`; empty draws them.
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
    gene_table: GeneTableStart = "coexpression"
    quiet_start: bool = False
    pooling: Pooling = "cls"
    task: Task = "gen"
    batch_size: int = 64
    max_tokens: int | None = None
    max_steps: int = 10_000
    epoch_steps: int = 100
    lr: float = 1e-4
    warmup_steps: int = 1000
    gene_lr_scale: float = 1.0
    ratios: tuple[float, ...] = (0.25, 0.5, 0.75)
    prompt_after: int | None = 1000
    weights: dict[str, float] = field(default_factory=dict)
    distribution: bool = True
    contrast: bool = False
    positives: Positives = "self"
    panel_share: float = 0.0
    balance: Grouping | None = None
    balance_power: float = 0.5
    step_from: Grouping | None = None
    validation_share: float = 0.03
    validation_by: Literal["cell", "study"] = "cell"
    validation_studies: tuple[str, ...] = ()
    precision: str = "32-true"

    def __post_init__(self) -> None:
        for name in ("ratios", "validation_studies"):
            value = getattr(self, name)
            object.__setattr__(self, name, tuple(value) if isinstance(value, list | tuple) else (value,))
        self._check_numbers()
        self._check_choices()
        if self.d_model % self.n_heads:
            msg = f"d_model={self.d_model} is no multiple of n_heads={self.n_heads}: use d_model={self._near_width()}."
            raise ValueError(msg)
        if self.positives != "self" and not self.contrast:
            msg = f"positives={self.positives!r} is about the contrastive term. Pass contrast=True with it."
            raise ValueError(msg)
        if self.validation_studies and self.validation_by != "study":
            msg = (
                f"validation_studies={self.validation_studies!r} holds out whole studies, validation_by="
                f"{self.validation_by!r} single cells. Pass validation_by='study' with it."
            )
            raise ValueError(msg)

    @classmethod
    def check_names(cls, names: Iterable[str]) -> None:
        """Names of settings are fields of this class.

        Raises
        ------
        ValueError
            For the first unknown one, with the nearest that there is.
        """
        for name in names:
            check_one_of(name, [item.name for item in fields(cls)], name="a setting of pretraining")

    def _near_width(self) -> int:
        return max(round(self.d_model / self.n_heads), 1) * self.n_heads

    def _check_numbers(self) -> None:
        for name in ("d_model", "n_heads", "n_layers", "d_ff", "batch_size", "max_steps", "epoch_steps"):
            _check(self, name, _whole(1), "a whole number above 0")
        for name in ("n_bins", "max_length"):
            _check(self, name, _whole(3), "a whole number above 2")
        _check(self, "warmup_steps", _whole(0), "a number of steps, 0 for no warm-up")
        _check(self, "max_tokens", _or_none(_whole(1)), "a number of tokens, such as 40_000, or None for no limit")
        _check(self, "prompt_after", _or_none(_whole(0)), "a number of steps, or None for no pass from the cell vector")
        _check(self, "lr", _between(0, math.inf), "a number above 0, such as 1e-4")
        _check(self, "gene_lr_scale", _between(0, math.inf, lowest=True), "0 for a frozen table, or a factor above it")
        _check(self, "dropout", _between(0, 1, lowest=True), "a share from 0 to below 1, such as 0.2")
        _check(self, "validation_share", _between(0, 1), "a share between 0 and 1, such as 0.03")
        for name in ("panel_share", "balance_power"):
            _check(self, name, _between(0, 1, lowest=True, highest=True), "a share from 0 to 1")
        if not self.ratios or not all(_between(0, 1)(ratio) for ratio in self.ratios):
            msg = f"ratios={self.ratios!r}: shares of unknown genes lie between 0 and 1, as in (0.25, 0.5, 0.75)."
            raise ValueError(msg)

    def _check_choices(self) -> None:
        check_one_of(self.ties, get_args(Ties), name="ties")
        check_one_of(self.gene_table, GENE_TABLES, name="gene_table")
        check_one_of(self.task, get_args(Task), name="task")
        check_one_of(self.positives, get_args(Positives), name="positives")
        check_one_of(self.pooling, get_args(Pooling), name="pooling")
        for name in ("balance", "step_from"):
            check_one_of(getattr(self, name), (*get_args(Grouping), None), name=name)
        check_one_of(self.validation_by, ("cell", "study"), name="validation_by")
        check_one_of(self.precision, _PRECISIONS, name="precision")
        for name in ("quiet_start", "distribution", "contrast"):
            check_one_of(getattr(self, name), (True, False), name=name)
        if not isinstance(self.weights, Mapping):
            msg = f"weights={self.weights!r}: name the terms, as in weights={{'gep': 1.0, 'contrast': 20.0}}."
            raise ValueError(msg)
        for name, weight in self.weights.items():
            check_one_of(name, TERMS, name="a key of weights")
            if not _between(0, math.inf, lowest=True)(weight):
                msg = f"weights={{{name!r}: {weight!r}}}: use a number, 0 or above."
                raise ValueError(msg)


def _check(config: PretrainConfig, name: str, fits: Callable[[object], bool], wanted: str) -> None:
    value = getattr(config, name)
    if not fits(value):
        msg = f"{name}={value!r}: use {wanted}."
        raise ValueError(msg)


def _whole(least: int) -> Callable[[object], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= least


def _or_none(fits: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: value is None or fits(value)


def _between(low: float, high: float, *, lowest: bool = False, highest: bool = False) -> Callable[[object], bool]:
    """Whether a value is a number between two others; `lowest`, `highest`: these count too."""

    def fits(value: object) -> bool:
        if not isinstance(value, int | float) or isinstance(value, bool):
            return False
        return low < value < high or (lowest and value == low) or (highest and value == high)

    return fits
