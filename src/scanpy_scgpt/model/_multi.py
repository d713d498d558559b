"""`SCGPTMulti`: RNA, proteins and chromatin of a MuData in one space, also where cells lack some of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scvi.data import AnnDataManager
from scvi.data._manager import AnnDataManagerValidationCheck

from scanpy_scgpt import models
from scanpy_scgpt._logging import quiet
from scanpy_scgpt._modalities import KINDS, Kind, Modality, check_mudata, find_modalities, is_mudata, patterns
from scanpy_scgpt._validate import check_one_of
from scanpy_scgpt.data import LabelledCells
from scanpy_scgpt.data.fields import MISSING_BATCH
from scanpy_scgpt.data.modal_fields import JoinedCategoryField, ModalitiesField, check_layers
from scanpy_scgpt.data.splitter import shares_of, split_cells
from scanpy_scgpt.io import Checkpoint
from scanpy_scgpt.tokenizer import kinds_of_tokens

from ._blocks import Block, fit_block
from ._criterion import check_parts
from ._extend import extended, from_neighbours, from_partners
from ._impute import Imputed, Imputer, as_target
from ._integrator import SCGPTIntegrator
from ._joint import Joint
from ._known_batches import NETWORK
from ._modal_cells import modal_cells
from ._registry import state_of

if TYPE_CHECKING:
    from mudata import MuData

Start = Literal["partners", "nearby", "mean"]
_BLOCKS: Mapping[str, Any] = {"rna": "counts", "protein": "proteins", "atac": "peaks"}


class SCGPTMulti(SCGPTIntegrator):
    """Cells of several modalities in one space: paired, partly paired, or a mosaic :cite:p:`Cui2024`.

    Proteins (`p_CD3`) and peaks (`chr1:10-20`) become tokens beside those of genes; pretrained vectors of genes stay.
    A cell without a modality has no tokens of it: missing is missing, never zero. While training, whole modalities are
    hidden too, and the decoders are told the modality of a token.

    The vector of a cell has a part for each modality (principal components of its counts) and one of the network. A
    part that a cell lacks is filled by ridge regression from the parts that it has.

    Parameters
    ----------
    adata
        MuData that :meth:`setup_mudata` registered.
    registry
        In place of `adata`.
    weights_of
        Length of the part of a modality by its kind (`"rna"`, `"protein"`, `"atac"`); 1 by default.
    budgets
        Most tokens of a modality by its kind; by default, of the room that is left, all proteins (up to a fourth),
        and genes and peaks in halves.
    start
        Where the vectors of new tokens start: `"partners"` (mean of the genes that vary with the feature in cells
        that have both), `"nearby"` (of peaks: genes within 100,000 bases, where `var` of the RNA has `interval` or
        `chrom` and `start`), `"mean"` (of all genes).
    hide_modality
        Share of the cells with several modalities of which one is hidden while training.
    **settings
        As of :class:`SCGPTIntegrator`; `include_zeros` is not offered.
    """

    _always_bridged = True

    def __init__(
        self,
        adata: MuData | None = None,
        registry: dict[str, Any] | None = None,
        *,
        weights_of: Mapping[str, float] | None = None,
        budgets: Mapping[str, int] | None = None,
        start: Start = "partners",
        hide_modality: float = 0.3,
        **settings: Any,
    ) -> None:
        check_one_of(start, ("partners", "nearby", "mean"), name="start")
        check_parts(weights_of, budgets, hide_modality)
        if settings.get("include_zeros"):
            msg = "include_zeros is not offered for several modalities: the sequence has no room for it. Leave it out."
            raise ValueError(msg)
        self._hide_modality = hide_modality
        self.weights_of_ = dict.fromkeys(KINDS, 1.0) | {k: float(x) for k, x in (weights_of or {}).items()}
        self.budgets_ = {kind: int(most) for kind, most in (budgets or {}).items()}
        settings["model"] = self._with_features(settings.get("model"), adata, registry, start, settings.get("rng", 0))
        settings.setdefault("domain_norm", False)
        super().__init__(adata, registry, **settings)
        own = {"weights_of": self.weights_of_, "budgets": self.budgets_, "start": start, "hide_modality": hide_modality}
        self.init_params_["non_kwargs"].update(own)

    def _network_settings(self) -> dict[str, Any]:
        own = {"token_kinds": kinds_of_tokens(self._checkpoint.vocab.tokens), "hide_modality": self._hide_modality}
        return {**super()._network_settings(), **own}

    def _with_features(self, model: Any, adata: Any, registry: Any, start: Start, rng: int) -> Checkpoint:
        """The checkpoint with tokens for the features of the registered cells."""
        checkpoint = models.load(model)
        manager = None if adata is None else self._registered(adata)
        known = manager.registry if manager is not None else registry
        for kind, names in self._features_of(known).items():
            tokens = list(names)
            if all(token in checkpoint.vocab for token in tokens):
                continue
            vectors = None if manager is None else _start_vectors(manager, checkpoint, kind, tokens, start, rng)
            checkpoint = extended(checkpoint, tokens, vectors, rng=rng)
        return checkpoint

    def _registered(self, mdata: Any) -> AnnDataManager:
        """The manager of registered cells."""
        if not is_mudata(mdata):
            self.setup_anndata(mdata)
        try:
            return self._get_most_recent_anndata_manager(mdata, required=True)
        except ValueError as error:
            msg = "SCGPTMulti has not seen these cells. Register them first: SCGPTMulti.setup_mudata(mdata)."
            raise ValueError(msg) from error

    @staticmethod
    def _features_of(registry: Mapping[str, Any] | None) -> Mapping[str, Sequence[str]]:
        return {} if registry is None else state_of(registry, "X").get("features", {})

    @property
    def features_(self) -> dict[str, list[str]]:
        """Tokens of proteins and peaks by the kind of the modality."""
        return {kind: list(tokens) for kind, tokens in self._features_of(self.registry_).items()}

    @property
    def modalities_(self) -> dict[str, str]:
        """What each modality was taken as, by its name."""
        return dict(state_of(self.registry_, "X").get("modalities", {}))

    @classmethod
    def setup_anndata(cls, *_args: Any, **_kwargs: Any) -> None:
        """An AnnData has one modality.

        Raises
        ------
        TypeError
            Always.
        """
        msg = "SCGPTMulti takes a MuData: SCGPTMulti.setup_mudata(mdata). For one AnnData there is SCGPTIntegrator."
        raise TypeError(msg)

    @classmethod
    def setup_mudata(
        cls,
        mdata: MuData,
        batch_key: str | None = None,
        labels_key: str | None = None,
        *,
        modalities: Mapping[str, str] | None = None,
        layers: Mapping[str, str] | None = None,
        unlabeled_category: str | None = None,
        gene_symbols: str | None = None,
        n_top_peaks: int = 4000,
        **kwargs: Any,
    ) -> None:
        """Register a MuData as it is: cells may lack modalities.

        Parameters
        ----------
        mdata
            Cells; no view. Gets `uns["_scvi_uuid"]`, `uns["_scvi_manager_uuid"]` and, of the columns named,
            `obs["_scvi_batch"]` and `obs["_scvi_labels"]`.
        batch_key, labels_key
            Columns of `mdata.obs`, or of the modalities' `obs`.
        modalities
            Kind (`"rna"`, `"protein"`, `"atac"`) of each modality that takes part, by its name; by default guessed from
            `feature_types`, names, and the spelling of peaks.
        layers
            Layer with the counts by the name of the modality.
        unlabeled_category
            A label that means that there is none.
        gene_symbols
            Column of `var` of the RNA with the names of the genes, where the index has others.
        n_top_peaks
            Most peaks: those whose openness varies most between cells.
        **kwargs
            Of the data manager.

        Raises
        ------
        KeyError
            When a modality, layer or column is not there.
        ValueError
            When a modality cannot be told, cells have one name, values are NaN, or peaks are of another genome build.
        """
        arguments = cls._get_setup_method_args(**{name: x for name, x in locals().items() if name != "kwargs"})
        if not is_mudata(mdata):
            msg = (
                f"SCGPTMulti.setup_mudata takes a MuData, this is {type(mdata).__name__}: mu.MuData({{'rna': adata}})."
            )
            raise TypeError(msg)
        check_mudata(mdata, function="SCGPTMulti.setup_mudata")
        where = {"layers": layers, "gene_symbols": gene_symbols, "n_top_peaks": n_top_peaks}
        fields = [
            ModalitiesField(modalities, **where),
            JoinedCategoryField("batch", batch_key, missing=MISSING_BATCH),
            JoinedCategoryField("labels", labels_key, unlabeled=unlabeled_category),
        ]
        unpaired = AnnDataManagerValidationCheck(check_fully_paired_mudata=False)
        manager = AnnDataManager(fields=fields, setup_method_args=arguments, validation_checks=unpaired)
        manager.register_fields(mdata, **kwargs)
        cls.register_manager(manager)

    def _made_cells(self, manager: Any) -> LabelledCells:
        settings = {"min_genes": self.min_genes_, "max_length": self.max_length_, "budgets": self.budgets_}
        return modal_cells(manager, self._checkpoint, self.features_, **settings, others=self.other_genes_)

    def _new_joint(self, cells: LabelledCells, fitted: np.ndarray, codes: np.ndarray) -> Joint:
        given, joint = self.integration_, Joint({}, {})
        settings = {"n_components": given["n_components"], "rng": self.rng_}
        for kind, part in cells.parts.items() if given["expression"] else ():
            own = fitted[part.there[fitted]]
            more = {"batches": codes[own], "n_top": given["n_top_genes"]} if kind == "rna" else {}
            joint.blocks[kind] = fit_block(part.counts[own], _BLOCKS[kind], **more, **settings)
            joint.weights[kind] = self.weights_of_[kind]
        if given["network_weight"]:
            joint.blocks[NETWORK] = fit_block(self._vectors(cells, fitted), "vectors", **settings)
            joint.weights[NETWORK] = given["network_weight"]
        return joint

    def _block_coordinates(self, cells: LabelledCells, name: str, block: Block, positions: np.ndarray) -> np.ndarray:
        if block.kind == "vectors":
            found = super()._block_coordinates(cells, name, block, positions)
            found[~_any_of(cells)[positions]] = np.nan
            return found
        out = np.full((len(positions), block.n_dims), np.nan, dtype=np.float32)
        part = cells.parts.get(name)
        if part is not None:
            there = part.there[positions]
            out[there] = block.project(part.counts[positions[there]], part.measured)
        return out

    def _batches_of(self, cells: LabelledCells) -> np.ndarray:
        """Code of batch and modalities of each cell: what a cell lacks shifts its vector as a batch does."""
        batch = np.asarray(cells.codes.get("batch", np.zeros(len(cells), dtype=np.int64)))
        bits = sum(part.there.astype(np.int64) << KINDS.index(kind) for kind, part in cells.parts.items())
        return np.where((batch < 0) | ~_any_of(cells), -1, batch * 2 ** len(KINDS) + bits)

    def _usable(self, cells: LabelledCells) -> np.ndarray:
        return np.flatnonzero(_any_of(cells))

    def _split(self, train_size: float | None, validation_size: float | None) -> dict[str, Any]:
        usable = self._usable(self._cells())
        if len(usable) == len(self._cells()):
            return {}
        whole = split_cells(np.zeros(len(usable), np.int64), *shares_of(train_size, validation_size), rng=self.rng_)
        return {"external_indexing": [usable[part] for part in whole]}

    def _has(self, cells: LabelledCells, name: str) -> np.ndarray:
        if name == NETWORK:
            return _any_of(cells)
        return cells.parts[name].there if name in cells.parts else np.zeros(len(cells), dtype=bool)

    def _reference(self, coordinates: Mapping[str, np.ndarray]) -> np.ndarray:
        """All blocks side by side; cells of one code lack the same ones."""
        return np.nan_to_num(np.concatenate(list(coordinates.values()), axis=1))

    def impute(self, to: Kind, *, level: float = 0.9) -> Imputed:
        """A modality of all cells from their other modalities.

        What is learned, is learned from cells that have both: regressions on the components of the other modalities and
        of the network's vector without this modality, laid over one another batch by batch.

        Parameters
        ----------
        to
            `"rna"`, `"protein"` or `"atac"`: genes and proteins as logarithm of one plus the counts (of genes: of
            10,000 a cell), peaks as the share that is open.
        level
            Share of the cells whose value lies inside the interval.

        Returns
        -------
        Predictions for all cells. A cell that has the modality gets one by a model that was fitted without it.

        Raises
        ------
        ValueError
            When the model does not know the modality, fewer than 20 cells have it beside another, or `level` is no
            share.
        """
        if isinstance(level, str) or not 0 < level < 1:
            msg = f"level={level!r}: a share between 0 and 1, such as 0.9."
            raise ValueError(msg)
        cells = self._cells()
        if to not in cells.parts:
            msg = f"to={to!r}: the cells have {', '.join(map(repr, cells.parts))}. Name one of these."
            raise ValueError(msg)
        source = self._without(cells, to)
        if not source.parts:
            msg = f"to={to!r} is the only modality, so there is nothing to learn it from."
            raise ValueError(msg)
        kept = self.joint, self.measured_
        try:
            self._fit_on(source)
            x = self._predictors(source)
        finally:
            self.joint, self.measured_ = kept
        there = np.any([part.there for part in source.parts.values()], axis=0)
        columns, names = self._targets(cells, to)
        both = there & cells.parts[to].there
        y = as_target(cells.parts[to].counts[both], to)[:, columns].toarray()
        batches = cells.codes.get("batch", np.zeros(len(cells), dtype=np.int64))
        fitted = Imputer(level=level, rng=self.rng_).fit(x[both], y, batches[both], names)
        found = np.full((3, len(x), len(names)), np.nan, dtype=np.float32)
        found[:, both] = fitted.of_left_out()
        others = there & ~both
        if others.any():
            found[:, others] = fitted.predict(x[others])
        return Imputed(names, *found, table=fitted.table, weights=fitted.weights, measured=cells.parts[to].there)

    def _without(self, cells: LabelledCells, kind: Kind) -> LabelledCells:
        """The cells as if they had no such modality."""
        own = kinds_of_tokens(self._checkpoint.vocab.tokens) == KINDS.index(kind)
        tokens = cells.tokens.masked(~own[cells.tokens.gene_ids])
        return replace(cells, tokens=tokens, parts={name: x for name, x in cells.parts.items() if name != kind})

    def _predictors(self, cells: LabelledCells) -> np.ndarray:
        """Coordinates of all blocks of scale 1, gaps filled."""
        coordinates = self._coordinates(cells, np.arange(len(cells)))
        moved = self.joint.moved(coordinates, self._batches_of(cells))
        return np.concatenate([x / max(float(x.std()), 1e-6) for x in moved.values()], axis=1).astype(np.float32)

    def _targets(self, cells: LabelledCells, to: Kind) -> tuple[np.ndarray, list[str]]:
        """Columns of the counts that are predicted, and their names: of genes the highly variable ones."""
        if to != "rna":
            return np.arange(len(self.features_[to])), self.features_[to]
        own = cells.parts["rna"]
        chosen = fit_block(own.counts[own.there], "counts", n_top=self.integration_["n_top_genes"], n_components=2).ids
        tokens = [*self._checkpoint.vocab.tokens, *(self.other_genes_ or ())]
        return chosen, [tokens[i] for i in chosen]

    @staticmethod
    def _check_setup(adata: MuData, setup: Mapping[str, Any]) -> None:
        if setup.get("modalities") is not None:
            with quiet("scanpy_scgpt._modalities", level=logging.ERROR):
                find_modalities(adata, setup["modalities"])
        check_layers(adata, setup.get("layers"))

    def patterns(self, adata: MuData | None = None) -> tuple[np.ndarray, list[str]]:
        """Which modalities each cell has: a code for each cell, int64, shape `(n_obs,)`, and the names of the codes."""
        return patterns({kind: part.there for kind, part in self._cells(adata).parts.items()})


def _any_of(cells: LabelledCells) -> np.ndarray:
    """Cells that have a modality, bool, shape `(n_cells,)`."""
    return np.any([np.zeros(len(cells), dtype=bool), *(part.there for part in cells.parts.values())], axis=0)


def _start_vectors(
    manager: AnnDataManager, checkpoint: Checkpoint, kind: str, tokens: list[str], start: Start, rng: int
) -> np.ndarray | None:
    """Where the vectors of new tokens start; None where nothing is known."""
    named = state_of(manager.registry, "X")["modalities"]
    if start == "mean" or "rna" not in named.values():
        return None
    mdata = manager.adata
    field = next(x for x in manager.fields if isinstance(x, ModalitiesField))
    rna = Modality(next(name for name, kind in named.items() if kind == "rna"), "rna", "")
    genes = field.part(mdata, rna)
    names = genes.var_names if field.gene_symbols is None else genes.var[field.gene_symbols]
    ids = checkpoint.vocab.ids([str(name) for name in names])
    if start == "nearby" and kind == "atac":
        return from_neighbours(checkpoint, genes.var, ids, tokens)
    cells = modal_cells(manager, extended(checkpoint, tokens), {kind: tokens}, min_genes=0, max_length=2)
    both = cells.parts["rna"].there & cells.parts[kind].there
    if both.sum() <= 1:
        return None
    counts = cells.parts["rna"].counts[both][:, : len(checkpoint.vocab)]
    return from_partners(checkpoint, counts, np.arange(len(checkpoint.vocab)), cells.parts[kind].counts[both], rng=rng)
