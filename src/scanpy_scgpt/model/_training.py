"""Training of a registered model: what is split, frozen, adapted, watched."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from logging import ERROR
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from scvi.model.base import UnsupervisedTrainingMixin
from scvi.train import merge_kwargs
from sklearn.metrics import f1_score

from scanpy_scgpt._logging import quiet
from scanpy_scgpt._settings import settings
from scanpy_scgpt._validate import check_one_of
from scanpy_scgpt.data import LabelledCells
from scanpy_scgpt.data.splitter import TokenDataSplitter
from scanpy_scgpt.nn import add_low_rank, merge_low_rank
from scanpy_scgpt.train import FineTuningPlan, KeepBest

from ._probe import fit_probe
from ._registry import setup_of
from ._tokenized import tokenized

if TYPE_CHECKING:
    from anndata import AnnData
    from lightning.pytorch import LightningDataModule

Part = Literal["genes", "values", "encoder", "layers", "transformer", "heads"]
PARTS: Mapping[str, tuple[str, ...]] = {
    "genes": ("transformer.encoder.genes",),
    "values": ("transformer.encoder.values",),
    "encoder": ("transformer.encoder",),
    "layers": ("transformer.layers",),
    "transformer": ("transformer",),
    "heads": ("expression_head", "cell_to_gene_head"),
}
"""Parts of the network that can be frozen, and how the names of their parameters start."""
_LOW_RANK = ("attention.in_proj", "attention.out_proj", "feed_forward.linear1", "feed_forward.linear2")
_ARGUMENTS = frozenset({"max_epochs", "accelerator", "devices"})  # of train itself, which win over trainer_config
_PATIENCE = 3  # validations without a better one


class TrainingMixin(UnsupervisedTrainingMixin):
    """`train` with the arguments of scvi-tools, and those of fine-tuning."""

    _data_splitter_cls = TokenDataSplitter
    _training_plan_cls = FineTuningPlan
    _keeps_expression = False
    other_genes_: Sequence[str] | None = ()  # genes outside the vocabulary whose counts are kept too
    _knows_start = True  # whether the checkpoint is that of the start: not of a model that was loaded
    _strength = 0.1  # inverse of the penalty of the regression that the head starts from
    _remembers_start = False  # whether a calibration needs the vectors of the start
    _started: tuple[np.ndarray, np.ndarray] | None = None  # cells, and their vectors before the training

    def train(
        self,
        max_epochs: int | None = None,
        accelerator: str = "auto",
        devices: int | list[int] | str = "auto",
        train_size: float | None = None,
        validation_size: float | None = None,
        shuffle_set_split: bool = True,  # noqa: FBT001, FBT002 - the signature of scvi-tools
        load_sparse_tensor: bool = False,  # noqa: FBT001, FBT002
        batch_size: int = 32,
        early_stopping: bool = False,  # noqa: FBT001, FBT002
        datasplitter_kwargs: Mapping[str, Any] | None = None,
        plan_config: Any = None,
        plan_kwargs: Any = None,
        datamodule: LightningDataModule | None = None,
        trainer_config: Any = None,
        *,
        freeze: Sequence[Part] = (),
        lora_rank: int | None = None,
        layer_decay: float = 1.0,
        keep_best: bool = True,
        **trainer_kwargs: Any,
    ) -> None:
        """Train the objectives of the model.

        Parameters
        ----------
        max_epochs
            Passes over the training cells, 10 by default.
        accelerator, devices
            As Lightning takes them.
        train_size, validation_size
            Shares of the cells, 0.9 and 0.1 by default; cells of a label are split alike.
        shuffle_set_split
            False splits in the order of the cells.
        load_sparse_tensor
            Has no effect: tokens are sparse as they are.
        batch_size
            Cells of a step.
        early_stopping
            Stop when the macro F1 of the validation cells (without labels: the loss) was not better for three epochs.
        datasplitter_kwargs
            Of :class:`~scanpy_scgpt.data.splitter.TokenDataSplitter`: `external_indexing`, `balance_key`,
            `balance_power`, `rng`, and what a data loader takes.
        plan_config, plan_kwargs
            Of :class:`~scanpy_scgpt.train.FineTuningPlan`: `lr`, `weight_decay`, `schedule`, `warmup`, `rates`, ...
        datamodule
            Batches of your own, of tokens or of counts (`"X"`), for a model that was made from a registry.
        trainer_config
            Further settings of the trainer.
        freeze
            Parts to keep as they are: `"genes"`, `"values"`, `"encoder"` (both), `"layers"`, `"transformer"`,
            `"heads"`.
        lora_rank
            Train low-rank partners of this rank in place of the weights of the layers; merged at the end.
        layer_decay
            Factor on the learning rate from one layer to the one below it; the embeddings are the lowest.
        keep_best
            Put back the weights of the best validated epoch. A `SaveCheckpoint` of scvi-tools with `load_best_on_end`
            does so in its place.
        **trainer_kwargs
            Of scvi-tools' trainer: `callbacks`, `logger`, `precision`, `strategy`, `gradient_clip_val`, ...

        Raises
        ------
        ValueError
            For an unknown part, or when nothing is left to train.
        NonFiniteError
            When the loss is no number.
        """
        if lora_rank is not None and lora_rank < 1:
            msg = f"lora_rank={lora_rank!r}: a rank of at least 1, such as 8, or None to train the weights themselves."
            raise ValueError(msg)
        freeze = (freeze,) if isinstance(freeze, str) else freeze
        for part in freeze:
            check_one_of(part, get_args(Part), name="a part in freeze")
        plan = {
            "lr": 1e-3 if lora_rank else 3e-4,
            "seed": self.rng_,
            **merge_kwargs(plan_config, plan_kwargs, name="plan"),
        }
        plan["rates"] = self._rates(freeze, layer_decay, plan.get("rates", {}))
        if datamodule is None:
            sizes = {"train_size": train_size, "validation_size": validation_size, "batch_size": batch_size}
            usual = {"balance_key": "labels" if "cls" in self.module.objectives else None, "rng": self.rng_}
            given = {**sizes, "shuffle_set_split": shuffle_set_split, **usual, **(datasplitter_kwargs or {})}
            datamodule = self._data_splitter_cls(self._cells(), **given)
            self._check_split(datamodule, early_stopping=early_stopping)
            self._to_accelerator(accelerator, devices)
            start = self._start_value(datamodule)
        else:
            start = None
            plan["prepare"] = self._count_batches()
        trainer = self._trainer_settings(merge_kwargs(trainer_config, trainer_kwargs, name="trainer"))
        early_stopping = trainer.pop("early_stopping", early_stopping)
        if keep_best and not any(getattr(given, "load_best_on_end", False) for given in trainer["callbacks"]):
            best = KeepBest(trainer["early_stopping_monitor"], trainer["early_stopping_mode"], start=start)
            trainer["callbacks"].append(best)
        if not self.history_:
            self.is_trained_ = False  # the first training of this object: scvi-tools adds to a history only
        self.module.train()  # Lightning leaves it as it is: a loaded or once trained network has no dropout
        with self._adapted(lora_rank), _without_advice():
            super().train(
                10 if max_epochs is None else max_epochs,
                accelerator,
                devices,
                early_stopping=early_stopping,
                plan_kwargs=plan,
                datamodule=datamodule,
                **trainer,
            )
        self.names_labels_ = self.names_labels_ or "cls" in self.module.objectives

    def _to_accelerator(self, accelerator: str, devices: int | list[int] | str) -> None:
        """Where the trainer will be: vectors are made before it is."""
        if accelerator in {"auto", "gpu", "cuda"} and torch.cuda.is_available():
            self.to_device(f"cuda:{devices[0]}" if isinstance(devices, list) and devices else "cuda")

    def _check_split(self, splitter: TokenDataSplitter, *, early_stopping: bool) -> None:
        """There must be something to learn from, and to stop by."""
        known = np.ones(len(splitter.cells), dtype=bool)
        if "cls" in self.module.objectives:
            known = splitter.cells.codes["labels"] >= 0
        if not known[splitter.train_idx].any():
            msg = "No training cell has a label, which the objective 'cls' learns from. Choose others."
            raise ValueError(msg)
        if early_stopping and not known[splitter.val_idx].any():
            cells = "cells" if known.all() else "cells with labels"
            msg = f"early_stopping needs validation {cells}, and there are none: validation_size=0.1."
            raise ValueError(msg)

    def _trainer_settings(self, given: Mapping[str, Any]) -> dict[str, Any]:
        by_label = "cls" in self.module.objectives
        shown = settings.progress_bar and (sys.stderr.isatty() or "ipykernel" in sys.modules)
        callbacks = given.get("callbacks") or []
        return {
            "check_val_every_n_epoch": 1,
            "early_stopping_monitor": "macro_f1_validation" if by_label else "validation_loss",
            "early_stopping_mode": "max" if by_label else "min",
            "early_stopping_patience": _PATIENCE,
            "enable_progress_bar": shown,
            "gradient_clip_val": 1.0,
            "use_distributed_sampler": False,  # the sampler shares the cells out itself
            **{name: value for name, value in given.items() if name not in _ARGUMENTS},
            "callbacks": list(callbacks) if isinstance(callbacks, list | tuple) else [callbacks],
        }

    def _start_value(self, splitter: TokenDataSplitter) -> float | None:
        """What the best epoch must beat: the watched value of the network before it is trained, where it is known."""
        return self._start_head(splitter)

    @torch.no_grad()
    def _start_head(self, splitter: TokenDataSplitter) -> float | None:
        """Start a head of one affine map from logistic regression on the vectors; its macro F1 on validation cells."""
        head = self.module.class_head
        if self.names_labels_ or "cls" not in self.module.objectives or len(head.hidden):
            return None
        cells, labels = splitter.cells, splitter.cells.codes["labels"]
        train, held = (self._vectors(cells, positions) for positions in (splitter.train_idx, splitter.val_idx))
        if self._remembers_start:
            self._started = np.concatenate([splitter.train_idx, splitter.val_idx]), np.concatenate([train, held])
        of_train, of_held = labels[splitter.train_idx], labels[splitter.val_idx]
        probe = fit_probe(train, of_train, held, of_held, n_labels=len(self.labels_))
        self._strength = probe.strength
        head.out.weight.copy_(torch.from_numpy(probe.weight))
        head.out.bias.copy_(torch.from_numpy(probe.bias))
        known = of_held >= 0
        if not known.any():
            return None
        predicted = probe.scores(held).argmax(axis=1)
        return float(f1_score(of_held[known], predicted[known], labels=np.unique(of_held[known]), average="macro"))

    def _rates(self, freeze: Sequence[Part], layer_decay: float, given: Mapping[str, float]) -> dict[str, float]:
        """Factors by the start of a name, what counts most first: what is frozen, what the user says, the layers."""
        n_layers = len(self.module.transformer.layers)
        frozen = {start: 0.0 for part in freeze for start in PARTS[part]}
        by_layer = {f"transformer.layers.{i}.": layer_decay ** (n_layers - i) for i in range(n_layers)}
        usual = {**by_layer, "transformer.encoder": layer_decay ** (n_layers + 1)}
        rates: dict[str, float] = {}
        for name, rate in (*frozen.items(), *given.items(), *usual.items()):
            rates.setdefault(name, rate)
        return rates

    @contextmanager
    def _adapted(self, rank: int | None) -> Iterator[None]:
        """With low-rank partners while training, every trained part free again afterwards."""
        asked = {name: parameter.requires_grad for name, parameter in self.module.named_parameters()}
        if rank:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(self.rng_)
                add_low_rank(self.module.transformer.layers, rank=rank, names=_LOW_RANK)
        try:
            yield
        finally:
            merge_low_rank(self.module)
            for name, parameter in self.module.named_parameters():
                parameter.requires_grad_(asked[name])

    def _cells(self, adata: AnnData | None = None) -> LabelledCells:
        """Tokens of registered cells; those of the model's own cells are kept."""
        if adata is None and self.adata is None:
            msg = f"This {type(self).__name__} holds no cells: pass them (adata=...), or load it with its cells."
            raise ValueError(msg)
        if adata is not None and not adata.n_obs:
            msg = "adata has no cells. Look at the filter that it comes out of."
            raise ValueError(msg)
        if self.adata is None:
            setup_of(type(self), self.registry_)
        adata = self._validate_anndata(adata)
        manager = self.get_anndata_manager(adata, required=True)
        own = manager is self.adata_manager
        if own and manager.id in self._tokens:
            return self._tokens[manager.id]
        cells = self._made_cells(manager)
        if own:
            self._tokens = {manager.id: cells}
        return cells

    def _made_cells(self, manager: Any) -> LabelledCells:
        """Tokens of the cells of a manager."""
        if self.include_zeros_ and self.panel_ is None:
            self.panel_ = self._panel(self.adata_manager)
        panel = None if self.panel_ is None else np.asarray(self.panel_)
        settings = {"min_genes": self.min_genes_, "panel": panel, "max_length": self.max_length_}
        kept = {"expression": self._keeps_expression, "others": self.other_genes_}
        return tokenized(manager, self._checkpoint, **settings, **kept)

    def _panel(self, manager: Any) -> list[int]:
        """Genes of the cells, the one that most cells express first."""
        plain = tokenized(manager, self._checkpoint, min_genes=self.min_genes_, panel=None, max_length=self.max_length_)
        counted = np.bincount(plain.tokens.gene_ids, minlength=len(self._checkpoint.vocab))
        order = np.argsort(-counted, kind="stable")
        return order[counted[order] > 0].tolist()


@contextmanager
def _without_advice() -> Iterator[None]:
    """Without the advice of Lightning that does not concern the user of a model."""
    with warnings.catch_warnings(), quiet("lightning.pytorch", "lightning.fabric", "pytorch_lightning", level=ERROR):
        for text in (".*does not have many workers", ".*smaller than the logging interval", ".*`isinstance.treespec",
                     ".*No positive class", ".*is experiencing a deprecation", ".*`LeafSpec",
                     "Total length of `list` across ranks is zero"):  # fmt: skip
            warnings.filterwarnings("ignore", message=text)
        yield
