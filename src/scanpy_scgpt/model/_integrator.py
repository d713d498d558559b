"""`SCGPTIntegrator`: one space for the cells of all batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scvi.train import merge_kwargs

from scanpy_scgpt._logging import get_logger
from scanpy_scgpt._validate import check_one_of
from scanpy_scgpt.data import InOrder, LabelledCells, batch_loader
from scanpy_scgpt.io import Checkpoint
from scanpy_scgpt.metrics import batch_mixing, structure_kept
from scanpy_scgpt.module.integrate import IntegrationModule
from scanpy_scgpt.train import Watch

from ._blocks import Block, fit_block
from ._criterion import check_integration, judged, sample, unit
from ._joint import Joint
from ._known_batches import EXPRESSION, NETWORK, KnownBatches
from ._latent import positions_of
from ._scgpt import SCGPT
from ._weights import tell, told, untold

if TYPE_CHECKING:
    from anndata import AnnData

    from scanpy_scgpt.data.splitter import TokenDataSplitter
    from scanpy_scgpt.module.finetune import Objective

logger = get_logger(__name__)
_FITTED = 50_000  # cells that components are fitted on
_JUDGED = 4_000  # cells that the criterion looks at
_MARGIN = 0.02  # by which mixing must gain more than structure loses
_WATCHED = "integration"


class SCGPTIntegrator(KnownBatches, SCGPT):
    """Lays batches over one another: a fine-tuned transformer beside principal components :cite:p:`Cui2024`.

    Training hides genes and predicts them from tokens (`gep`) and from the cell vector (`gepc`), pulls similar cells
    together (`ecs`) and sets the network against a classifier of batches (`dar`); decoders are told the batch, and
    `domain_norm` normalises what enters by batch. An epoch counts as better when batches mix more and cells keep the
    neighbours that they have inside their batch: no label is looked at, and the start is kept when that gains less
    than 0.1.

    The vector of a cell has two parts: principal components of its log-normalised expression, and those of the
    network's vector with `network_weight`. Both are laid over one another batch by batch (Harmony's clusters,
    :cite:p:`Korsunsky2019`, with fixed shifts) unless that costs more structure than it gains in mixing.

    Parameters
    ----------
    adata
        Cells that :meth:`SCGPT.setup_anndata` registered with `batch_key`.
    registry
        In place of `adata`.
    network_weight
        Length of the part of the network; that of expression is 1. 0 leaves the network out.
    expression
        False leaves the components of expression out.
    correct
        `True` and `False` in place of the criterion `None`.
    n_top_genes, n_components
        Highly variable genes (found batch by batch), and components of each part.
    batch_vectors, domain_norm, explicit_zeros
        Parts of the network, see :class:`~scanpy_scgpt.module.integrate.IntegrationModule`; zeros are predicted by
        default when they are shown (`include_zeros`).
    **settings
        As of :class:`SCGPT`.
    """

    _module_cls = IntegrationModule
    _keeps_expression = True
    least_gain = 0.1  # of an epoch over the start, in mixing and kept neighbours: less did not help to tell types apart
    _always_bridged = False  # whether cells to come may lack a block that no cell lacks now

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict[str, Any] | None = None,
        *,
        network_weight: float = 0.5,
        expression: bool = True,
        correct: bool | None = None,
        n_top_genes: int = 1200,
        n_components: int = 50,
        batch_vectors: bool = True,
        domain_norm: bool = True,
        explicit_zeros: bool | None = None,
        **settings: Any,
    ) -> None:
        check_integration(network_weight, expression=expression, n_top_genes=n_top_genes, n_components=n_components)
        zeros = bool(settings.get("include_zeros")) if explicit_zeros is None else explicit_zeros
        self._of_module = {"batch_vectors": batch_vectors, "domain_norm": domain_norm, "explicit_zeros": zeros}
        super().__init__(adata, registry, **settings)
        own = {
            "network_weight": network_weight,
            "expression": expression,
            "correct": correct,
            "n_top_genes": n_top_genes,
            "n_components": n_components,
        }
        self.init_params_["non_kwargs"].update(**own, **self._of_module)
        self.integration_ = own
        self.measured_: dict[str, dict[str, float]] = {}
        self.start_: float | None = None
        self.joint: Joint | None = None
        self.known_shifts_: dict[str, list[int]] | None = None  # of a query: what came with the reference
        self.other_genes_: list[str] | None = None

    @property
    def model_name(self) -> str:
        """Name of the checkpoint that it started from."""
        return self._checkpoint.label

    def _cells(self, adata: AnnData | None = None) -> LabelledCells:
        """As in the base class; genes outside the vocabulary count in the components of expression."""
        if self.other_genes_ is None and adata is not None and self.adata is not None:
            self._cells()  # the cells of the model say which genes there are
        cells = super()._cells(adata)
        if self.other_genes_ is None:
            self.other_genes_ = list(cells.others)
        return cells

    def _usual_objectives(self) -> tuple[Objective, ...]:
        first: tuple[Objective, ...] = ("gep", "gepc", "ecs")
        return (*first, "dar") if len(self.batches_) > 1 else first

    def train(self, *args: Any, **kwargs: Any) -> None:
        """As :meth:`SCGPT.train`; then finds the joint space.

        Parameters
        ----------
        *args, **kwargs
            Of :meth:`SCGPT.train`. By default 5 epochs at a rate of 1e-4, cells shown by at most 400 of their genes;
            with `max_epochs=0` the network stays as it is. `early_stopping` and `keep_best` go by the label-free
            criterion, on cells of `adata`. The joint space of a query stays that of its reference.
        """
        former = self.joint
        if self.known_shifts_ is None and self.adata is not None:
            self.joint = None  # that of a former training is of another network
        try:
            self._train(args, kwargs)
        except BaseException:
            self.joint = former
            raise
        if self.adata is not None and self.joint is None:
            self.fit_joint()
        elif self.known_shifts_ is not None and self.joint is not None:
            self.joint.forget(self.known_shifts_)  # new batches lie elsewhere now
            self._pending = True

    def _train(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = {**dict(zip(("max_epochs", "accelerator", "devices"), args, strict=False)), **kwargs}
        kwargs["max_epochs"] = 5 if given.get("max_epochs") is None else given["max_epochs"]
        self._to_accelerator(given.get("accelerator", "auto"), given.get("devices", "auto"))
        usual = {} if kwargs.get("lora_rank") else {"lr": 1e-4}
        kwargs["plan_kwargs"] = {
            **usual,
            **merge_kwargs(kwargs.pop("plan_config", None), kwargs.get("plan_kwargs"), name="plan"),
        }
        if kwargs["max_epochs"] and self.integration_["network_weight"]:
            if kwargs.get("datamodule") is None:
                own = self._split(kwargs.get("train_size"), kwargs.get("validation_size"))
                own |= kwargs.get("datasplitter_kwargs") or {}
                kwargs["datasplitter_kwargs"] = {"train_length": 400, **own}
                if len(self.batches_) > 1:
                    kwargs = self._watched(kwargs)
            super().train(kwargs.pop("max_epochs"), *args[1:], **kwargs)
        else:
            self.is_trained_ = True
            self.module.eval()

    def _watched(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Settings of a training that is judged by the label-free criterion."""
        cells = self._cells()
        codes = self._batches_of(cells)
        chosen = sample(judged(self._usable(cells), codes), _JUDGED // 2, self.rng_)
        codes = codes[chosen]
        reference = self._reference(self._coordinates(cells, chosen))

        def measure() -> float:
            vectors = unit(self._vectors(cells, chosen))
            return batch_mixing(vectors, codes) + structure_kept(reference, vectors, codes)

        self.start_ = measure()
        watch = Watch(_WATCHED, measure)
        given = kwargs.get("callbacks") or []
        callbacks = [watch, *(given if isinstance(given, list | tuple) else [given])]
        by = {"early_stopping_monitor": f"{_WATCHED}_validation", "early_stopping_mode": "max"}
        return {**by, **kwargs, "callbacks": callbacks}

    def _usable(self, cells: LabelledCells) -> np.ndarray:
        """Positions of the cells of which anything is known: the others take no part."""
        return np.arange(len(cells))

    def _split(self, train_size: float | None, validation_size: float | None) -> dict[str, Any]:
        """Settings of the splitter that leave cells out which take no part."""
        return {}

    def _reference(self, coordinates: Mapping[str, np.ndarray]) -> np.ndarray:
        """Where a cell has the neighbours that it should keep."""
        return coordinates.get(EXPRESSION, coordinates[NETWORK])

    def _start_value(self, splitter: TokenDataSplitter) -> float | None:
        if "cls" in self.module.objectives:
            return super()._start_value(splitter)
        return None if self.start_ is None else self.start_ + self.least_gain

    def fit_joint(self) -> None:
        """Find components, alignments, and whether aligning pays; from the cells of the model."""
        self._fit_on(self._cells())

    def _fit_on(self, cells: LabelledCells) -> None:
        seed = self.rng_
        codes = self._batches_of(cells)
        usable = self._usable(cells)
        fitted = sample(usable, _FITTED, seed)
        self.joint = self._new_joint(cells, fitted, codes)
        coordinates = self._coordinates(cells, np.arange(len(cells)))
        if len(np.unique(codes[codes >= 0])) > 1 and self.integration_["correct"] is not False:
            self.joint.align({name: x[fitted] for name, x in coordinates.items()}, codes[fitted], rng=seed)
            self.joint.learn(coordinates, codes)  # of small batches that are not among the fitted cells
            if not any(alignment is not None for alignment in self.joint.alignments.values()):
                logger.warning("%s cells are too few to lay batches over one another: not corrected.", len(fitted))
        elif self.integration_["correct"]:
            logger.warning("correct=True has no effect: the cells are of one batch.")
        self._choose(self._pays(coordinates, codes, usable), coordinates, codes)

    def _choose(self, corrected: bool, coordinates: Mapping[str, np.ndarray], codes: np.ndarray) -> None:  # noqa: FBT001
        """Correct or not, and what fills gaps then."""
        self.joint.corrected = corrected
        self.joint.bridge(coordinates, codes, always=self._always_bridged)

    def _new_joint(self, cells: LabelledCells, fitted: np.ndarray, codes: np.ndarray) -> Joint:
        """Components of every block."""
        given, joint = self.integration_, Joint({}, {})
        settings = {"n_components": given["n_components"], "rng": self.rng_}
        if given["expression"]:
            joint.blocks[EXPRESSION] = fit_block(
                cells.expression[fitted], "counts", batches=codes[fitted], n_top=given["n_top_genes"], **settings
            )
            joint.weights[EXPRESSION] = 1.0
        if given["network_weight"]:
            joint.blocks[NETWORK] = fit_block(self._vectors(cells, fitted), "vectors", **settings)
            joint.weights[NETWORK] = given["network_weight"]
        return joint

    def _coordinates(self, cells: LabelledCells, positions: np.ndarray) -> dict[str, np.ndarray]:
        """Coordinates of cells in every block, float32, shape `(n, n_dims)`; NaN where a cell has nothing of it."""
        joint = self.joint or self._new_joint(
            cells, sample(self._usable(cells), _FITTED, self.rng_), self._batches_of(cells)
        )
        return {name: self._block_coordinates(cells, name, block, positions) for name, block in joint.blocks.items()}

    def _block_coordinates(self, cells: LabelledCells, name: str, block: Block, positions: np.ndarray) -> np.ndarray:
        """Coordinates of cells in one block, `name`."""
        if block.kind == "vectors":
            return block.project(self._vectors(cells, positions))
        return block.project(cells.expression[positions], cells.measured)

    def _batches_of(self, cells: LabelledCells) -> np.ndarray:
        """Code of the batch of each cell; one for all where no batches were registered."""
        return np.asarray(cells.codes.get("batch", np.zeros(len(cells), dtype=np.int64)))

    def _pays(self, coordinates: Mapping[str, np.ndarray], codes: np.ndarray, usable: np.ndarray) -> bool:
        """Whether aligning mixes batches by more than it costs neighbours; keeps the figures."""
        asked = self.integration_["correct"]
        if not any(alignment is not None for alignment in self.joint.alignments.values()):
            return False
        chosen = sample(judged(usable, codes), _JUDGED, self.rng_)
        some = {name: x[chosen] for name, x in coordinates.items()}
        self.measured_, start = {}, np.zeros((0, 0), dtype=np.float32)
        for name, corrected in (("uncorrected", False), ("corrected", True)):
            self._choose(corrected, coordinates, codes)
            vectors = self.joint.joined(some, codes[chosen])
            start = vectors if not corrected else start
            mixing, kept = batch_mixing(vectors, codes[chosen]), structure_kept(start, vectors, codes[chosen])
            self.measured_[name] = {"mixing": float(mixing), "kept": float(kept)}
        gain = sum(self.measured_["corrected"].values()) - sum(self.measured_["uncorrected"].values())
        return gain > _MARGIN if asked is None else bool(asked)

    def get_latent_representation(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        batch_size: int | None = None,
        *,
        part: str = "joint",
        **kwargs: Any,
    ) -> np.ndarray:
        """Vectors of cells in the joint space.

        Parameters
        ----------
        adata, indices, batch_size
            As in :meth:`SCGPT.get_latent_representation`.
        part
            `"joint"`, or `"network"`: what the network alone gives, not corrected.
        **kwargs
            Of :meth:`SCGPT.get_latent_representation`, for the part of the network.

        Returns
        -------
        Array of float32, shape `(n_cells, n_dims)`: at most `n_components` of expression, then of the network.
        """
        check_one_of(part, ("joint", NETWORK), name="part")
        if part == NETWORK or kwargs.get("dataloader") is not None or self.joint is None:
            return super().get_latent_representation(adata, indices, batch_size, **kwargs)
        learned, cells = self._learn(), self._cells(adata)
        positions = positions_of(cells, indices)
        codes, usable = self._batches_of(cells), self._usable(cells)
        self._note_unknown(codes[usable], own=adata is None)
        if learned and adata is None:
            coordinates = {name: x[positions] for name, x in learned.items()}
        else:
            coordinates = self._coordinates(cells, positions)
        vectors = self.joint.joined(coordinates, codes[positions])
        vectors[~np.isin(positions, usable)] = np.nan
        return vectors

    def _live_checkpoint(self, name: str | None = None) -> Checkpoint:
        """Without what is told about batches: other functions know no batches."""
        live = super()._live_checkpoint(name)
        told = [
            part(torch.tensor(code, device=part.norm.weight.device)).detach()
            for part, code in ((self.module.batch_encoder, -1), (self.module.modality_encoder, 0))
            if part is not None
        ]
        mean = sum(told) if told else None
        norm = self.module.domain_norm
        info = {**live.info, "domain_norm": norm is not None and bool(norm.seen.any())}
        return replace(live, weights=untold(live.weights, mean), info=info)

    def _vectors(
        self, cells: LabelledCells, positions: np.ndarray, *, batch_size: int | None = None, start: bool = False
    ) -> np.ndarray:
        """As in the base class; with domain norms through the network itself, which is told the batches."""
        norm = self.module.domain_norm
        if start or norm is None or not bool(norm.seen.any()):
            return super()._vectors(cells, positions, batch_size=batch_size, start=start)
        training = self.module.training
        self.module.eval()
        order = np.argsort(cells.tokens.lengths_of(positions), kind="stable")
        vectors = np.zeros((len(positions), self.module.transformer.config.d_model), dtype=np.float32)
        with torch.inference_mode():
            done = 0
            for batch in batch_loader(cells, InOrder(positions[order], batch_size=batch_size or 64)):
                given = {**self.module._get_inference_input(batch), "hidden": None}
                found = self.module.inference(**given)["cell"].float().cpu().numpy()
                vectors[order[done : done + len(found)]] = found
                done += len(found)
        self.module.train(training)
        return vectors

    def _arrays(self) -> dict[str, np.ndarray]:
        self._learn()
        return {**super()._arrays(), **told(self.module), **({} if self.joint is None else self.joint.arrays())}

    def _set_arrays(self, arrays: Mapping[str, np.ndarray]) -> None:
        super()._set_arrays(arrays)
        tell(self.module, arrays)
        self.joint = Joint.from_arrays(arrays)
