"""`SCGPT`: the scvi-tools contract around one cell transformer. Connects data, network, plan and loop."""

from __future__ import annotations

import inspect
import os
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from scvi.data import AnnDataManager
from scvi.model.base import BaseModelClass

from scanpy_scgpt import models
from scanpy_scgpt._types import Pooling
from scanpy_scgpt._validate import check_anndata
from scanpy_scgpt.data.fields import (
    MISSING_BATCH,
    CategoryField,
    CountsField,
    MuDataCategoryField,
    MuDataCountsField,
)
from scanpy_scgpt.io import Checkpoint
from scanpy_scgpt.module.finetune import FineTuneModule, Objective, check_objectives, check_settings

from ._latent import LatentMixin
from ._predict import PredictMixin
from ._query import QueryMixin
from ._registry import categories_of
from ._store import StoreMixin
from ._training import TrainingMixin
from ._weights import fill

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

    from scanpy_scgpt.data import LabelledCells


def _settings_of(cls: type) -> set[str]:
    """Names of the arguments that a class is made with, besides the cells."""
    return set(inspect.signature(cls.__init__).parameters) - {"self", "adata", "registry"}


class SCGPT(StoreMixin, QueryMixin, PredictMixin, LatentMixin, TrainingMixin, BaseModelClass):
    """A pretrained cell transformer on registered cells: fine-tune, embed, save, map a query :cite:p:`Cui2024`.

    Parameters
    ----------
    adata
        Cells that :meth:`setup_anndata` or :meth:`setup_mudata` registered.
    registry
        In place of `adata`: the registry of a data module, or of a saved model.
    model
        Where the weights start: a name out of `models.available()`, a checkpoint folder, a checkpoint, or `None` for
        `settings.model`.
    objectives
        Terms of the loss: `"cls"` (labels), `"gep"`, `"gepc"` (hidden values, from tokens and from the cell), `"ecs"`
        (elastic similarity of cells), `"dar"` (batches, against the network). By default `"cls"` when labels were
        registered, else `"gep"` and `"gepc"`, and `"dar"` when there is more than one batch.
    pooling
        How token vectors become the cell vector; the checkpoint's own by default.
    max_length
        Longest sequence with `<cls>`; the checkpoint's own by default.
    include_zeros
        Genes that a cell does not express enter with value 0, as far as `max_length` lets them: those of `adata` that
        most cells express first. Takes several times as long.
    mask_ratio, ecs_threshold, weights
        Share of hidden genes, threshold of `ecs`, weight of each term (10 for `ecs`, 1 for the others).
    smoothing, head_layers
        Label smoothing of `cls`; number of affine maps of its head. With one, training starts from the logistic
        regression of the labels on the vectors of the network as it is.
    dropout
        Dropout while training; the checkpoint's own by default.
    from_scratch
        Take the shape and the vocabulary of the checkpoint, but random weights.
    min_genes
        Fewest genes of the cells that must be in the vocabulary.
    rng
        Seed of new weights, of the split, and of every draw while training.

    Examples
    --------
    >>> SCGPT.setup_anndata(adata, labels_key="cell_type", batch_key="donor")
    >>> model = SCGPT(adata)
    >>> model.train(max_epochs=5)
    >>> adata.obsm["X_scgpt"] = model.get_latent_representation()
    """

    _module_cls = FineTuneModule
    _default_objectives: tuple[Objective, ...] | None = None
    _of_module: Mapping[str, Any] = MappingProxyType({})  # settings of the network that a class adds

    def __init__(
        self,
        adata: AnnData | MuData | None = None,
        registry: dict[str, Any] | None = None,
        *,
        model: str | os.PathLike[str] | Checkpoint | None = None,
        objectives: Sequence[Objective] | None = None,
        pooling: Pooling | None = None,
        max_length: int | None = None,
        include_zeros: bool = False,
        mask_ratio: float = 0.4,
        ecs_threshold: float = 0.8,
        weights: Mapping[str, float] | None = None,
        smoothing: float = 0.0,
        head_layers: int = 3,
        dropout: float | None = None,
        from_scratch: bool = False,
        min_genes: int = 200,
        rng: int = 0,
    ) -> None:
        given = {name: value for name, value in locals().items() if name in _settings_of(SCGPT)}
        if adata is None and registry is None:
            msg = (
                f"{type(self).__name__} needs cells or a registry: {type(self).__name__}.setup_anndata(adata), then "
                f"{type(self).__name__}(adata)."
            )
            raise ValueError(msg)
        super().__init__(adata, registry)
        weakref.finalize(self, self._per_instance_manager_store.pop, self.id, None)  # scvi-tools keeps the cells else
        check_settings(mask_ratio=mask_ratio, smoothing=smoothing, head_layers=head_layers, pooling=pooling)
        checkpoint = models.load(model)
        checkpoint = models.untrained(checkpoint, rng=rng) if from_scratch else checkpoint
        self._checkpoint = checkpoint
        self.labels_ = categories_of(self.registry_, "labels")
        self.batches_ = categories_of(self.registry_, "batch")
        self.pooling_ = pooling or checkpoint.info.get("pooling", "cls")
        self.max_length_ = max_length or checkpoint.tokenizer.max_length
        self.rng_, self.include_zeros_, self.min_genes_ = rng, include_zeros, min_genes
        self.panel_: list[int] | None = None
        self.names_labels_ = False  # whether the head of the labels was trained
        self._tokens: dict[str, LabelledCells] = {}
        counts = {"n_labels": len(self.labels_), "n_batch": len(self.batches_)}
        chosen = check_objectives(objectives or self._usual_objectives(), weights=weights, **counts)
        shape = checkpoint.transformer if dropout is None else replace(checkpoint.transformer, dropout=dropout)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(rng)
            self.module = self._module_cls(
                shape,
                objectives=chosen,
                pooling=self.pooling_,
                mask_ratio=mask_ratio,
                ecs_threshold=ecs_threshold,
                weights=weights,
                smoothing=smoothing,
                head_layers=head_layers,
                **counts,
                **self._network_settings(),
            )
        self.load_report = fill(self.module, checkpoint)
        self._model_summary_string = (
            f"{type(self).__name__} from {checkpoint.label}: {len(self.labels_)} labels, {len(self.batches_)} batches, "
            f"objectives {', '.join(chosen)}"
        )
        # not by _get_init_params, which knows the arguments of the subclass alone
        self.init_params_ = {"kwargs": {}, "non_kwargs": {**given, "model": checkpoint.label, "objectives": chosen}}

    def _network_settings(self) -> dict[str, Any]:
        """Settings of the network that a class adds."""
        return dict(self._of_module)

    def _usual_objectives(self) -> tuple[Objective, ...]:
        if self._default_objectives is not None:
            return self._default_objectives
        first: tuple[Objective, ...] = ("cls",) if self.labels_ else ("gep", "gepc")
        return (*first, "dar") if len(self.batches_) > 1 else first

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str] | Checkpoint | None,
        adata: AnnData | MuData,
        *,
        layer: str | None = None,
        batch_key: str | None = None,
        labels_key: str | None = None,
        **settings: Any,
    ) -> SCGPT:
        """Register cells and make the model in one call.

        Parameters
        ----------
        model
            Name or folder of a checkpoint, or a checkpoint.
        adata
            Cells; an AnnData, or a MuData with a modality `rna`.
        layer, batch_key, labels_key
            As in :meth:`setup_anndata`.
        **settings
            Of the class.

        Returns
        -------
        The model; without training it gives the vectors of :func:`scanpy_scgpt.tl.embed`.
        """
        columns = {"batch_key": batch_key, "labels_key": labels_key}
        if hasattr(adata, "mod"):
            cls.setup_mudata(adata, rna_layer=layer, **columns)
        else:
            cls.setup_anndata(adata, layer=layer, **columns)
        return cls(adata, model=model, **settings)

    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        layer: str | None = None,
        batch_key: str | None = None,
        labels_key: str | None = None,
        *,
        unlabeled_category: str | None = None,
        gene_symbols: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Register cells.

        Parameters
        ----------
        adata
            Cells, shape `(n_obs, n_vars)`, counts or values in their order; no view. Gets `uns["_scvi_uuid"]`,
            `uns["_scvi_manager_uuid"]` and, of the columns named, `obs["_scvi_batch"]` and `obs["_scvi_labels"]`.
        layer
            Layer with the counts; by default `layers["counts"]`, else `X` if it looks like counts, else `raw.X`.
        batch_key
            Column of `obs` with the batches; missing values become `"unknown_batch"`.
        labels_key
            Column of `obs` with the labels; a cell without one is used for every objective but `"cls"`.
        unlabeled_category
            A label that means that there is none.
        gene_symbols
            Column of `var` with the names of the genes, where the index has others.
        **kwargs
            Of the data manager.

        Raises
        ------
        KeyError
            When a column or layer is not there; the nearest name is said.
        ValueError
            For NaN or negative values, a view, or a column without any value.
        """
        arguments = cls._get_setup_method_args(**{name: x for name, x in locals().items() if name != "kwargs"})
        check_anndata(adata, function=f"{cls.__name__}.setup_anndata")
        fields = [
            CountsField(layer, gene_symbols=gene_symbols),
            CategoryField("batch", batch_key, missing=MISSING_BATCH),
            CategoryField("labels", labels_key, unlabeled=unlabeled_category),
        ]
        manager = AnnDataManager(fields=fields, setup_method_args=arguments)
        manager.register_fields(adata, **kwargs)
        cls.register_manager(manager)

    @classmethod
    def setup_mudata(
        cls,
        mdata: MuData,
        rna_layer: str | None = None,
        batch_key: str | None = None,
        labels_key: str | None = None,
        *,
        unlabeled_category: str | None = None,
        gene_symbols: str | None = None,
        modalities: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        """Register a MuData; its RNA is used.

        Parameters
        ----------
        mdata
            Cells.
        rna_layer, batch_key, labels_key, unlabeled_category, gene_symbols
            As in :meth:`setup_anndata`, in the modality that `modalities` says.
        modalities
            Modality of each of `rna_layer`, `batch_key`, `labels_key`; all `"rna"` by default.
        **kwargs
            Of the data manager.

        Raises
        ------
        KeyError
            When a modality, column or layer is not there.
        """
        arguments = cls._get_setup_method_args(**{name: x for name, x in locals().items() if name != "kwargs"})
        names = {"rna_layer": "rna", "batch_key": "rna", "labels_key": "rna", **(modalities or {})}
        where = cls._create_modalities_attr_dict(names, arguments)
        for name in (where.rna_layer, where.batch_key, where.labels_key):
            if name not in mdata.mod:
                listed = ", ".join(map(repr, mdata.mod))
                msg = f"There is no modality {name!r}. Modalities: {listed}. Say it: modalities={{'rna_layer': ...}}."
                raise KeyError(msg)
        fields = [
            MuDataCountsField(rna_layer, gene_symbols=gene_symbols, mod_key=where.rna_layer, mod_required=True),
            MuDataCategoryField("batch", batch_key, missing=MISSING_BATCH, mod_key=where.batch_key),
            MuDataCategoryField("labels", labels_key, unlabeled=unlabeled_category, mod_key=where.labels_key),
        ]
        manager = AnnDataManager(fields=fields, setup_method_args=arguments)
        manager.register_fields(mdata, **kwargs)
        cls.register_manager(manager)
