"""`SCGPTPerturber`: effects of perturbations that were not made; an anchor, and what the network adds to it."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from scanpy_scgpt import models
from scanpy_scgpt._effects import Effects
from scanpy_scgpt._logging import get_logger
from scanpy_scgpt._perturbations import parse_perturbations
from scanpy_scgpt._validate import check_one_of
from scanpy_scgpt.datasets import gene_features
from scanpy_scgpt.io import Checkpoint

from ._effects import ANCHORS, EffectModel, keys_of
from ._perturb_data import (
    SOURCES,
    ReadScreen,
    Source,
    control_values,
    gene_sets_table,
    joined,
    network_table,
    read_screen,
    usual_features,
    values_of,
)
from ._perturb_files import read_perturber, write_perturber
from ._perturb_network import Controls, Draw, NetworkSettings, PerturbNetwork
from ._screen import Conditions, Screen
from ._selection import cosines, surely_positive

if TYPE_CHECKING:
    from anndata import AnnData

logger = get_logger(__name__)
_WEIGHTS = (0.25, 0.5, 1.0)
_FOLDS, _FEW = 4, 8
_DE = 100  # most changed genes of a perturbation that are always shown
_INPUTS = 8  # pools of controls that a prediction is averaged over
_LEGACY = {"lr": 1e-4, "gamma": 0.9, "batch_size": 64, "n_genes": 1536, "pool": 1, "legacy": True}


class SCGPTPerturber:
    """Predicts what perturbations do that were not made, from those that were :cite:p:`Cui2024`.

    Published tests have found no network that beats the sum of single effects, the mean effect or ridge regression on
    perturbations that it has not seen :cite:p:`AhlmannEltze2025`. So these are the start here (the *anchor*), and the
    network learns what they leave. Every choice (features of genes, how much to shrink, whether two genes interact,
    the weight of the network, which may be 0) is made on perturbations that are left out, and departs from the plain
    guess only where that is surely better.

    Parameters
    ----------
    adata
        Cells with controls; or a table of effects, one row per perturbation (and context), with negative values.
    perturbation_key
        Column of `.obs` with the perturbations, in any spelling of :func:`scanpy_scgpt.pp.parse_perturbations`.
    control
        Spelling of the control, where it has no usual name.
    context_key
        Column of `.obs` with what effects depend on, such as the cell type, the stimulation, or CRISPRi and CRISPRa.
    batch_key
        Column of `.obs`: cells are compared with controls of their own batch.
    layer, size_key, p_layer
        Layer of the counts; column with the counts of the whole transcriptome; of a table the layer of -log10 p.
    model
        Checkpoint of the network and of the gene vectors, as in :func:`scanpy_scgpt.tl.embed`.
    anchor
        `"ridge"`: mean effect, ridge regression on features of genes, sums, interactions, as far as they help.
        `"additive"`: sums of measured effects, the mean effect for others. `"mean"`: the mean effect. `None`: the
        network alone.
    features
        Sources of features: `"network"` (gene vectors of the checkpoint), `"knowledge"`
        (:func:`scanpy_scgpt.datasets.gene_features`), `"coexpression"` (in the control cells); components of the
        measured effects always take part. Or tables of your own by name, genes x features.
    gene_sets
        Sets of genes by name as one more source.
    legacy
        The original recipe: no anchor, single cells, expression in place of changes.
    rng
        Seed.

    Attributes
    ----------
    network_weight_
        Weight that the network was given.
    effects_
        The anchor, None without one.
    """

    def __init__(
        self,
        adata: AnnData,
        perturbation_key: str,
        *,
        control: str | Sequence[str] | None = None,
        context_key: str | None = None,
        batch_key: str | None = None,
        layer: str | None = None,
        size_key: str | None = None,
        p_layer: str | None = None,
        model: str | os.PathLike[str] | Checkpoint | None = None,
        anchor: str | None = "ridge",
        features: Sequence[str] | Mapping[str, pd.DataFrame] = SOURCES,
        gene_sets: Mapping[str, Sequence[str]] | None = None,
        legacy: bool = False,
        rng: int = 0,
    ) -> None:
        check_one_of(anchor, (*ANCHORS, None), name="anchor")
        self.source_ = Source(perturbation_key, control, context_key, batch_key, layer, size_key, p_layer)
        self.anchor_, self.legacy_, self.rng_ = (None if legacy else anchor), legacy, rng
        read = read_screen(adata, self.source_)
        self._adata, self._read = adata, read
        self._checkpoint = models.load(model)
        self.model_name_ = self._checkpoint.label
        if isinstance(features, Mapping):
            tables = {name: pd.DataFrame(table) for name, table in features.items()}
        else:
            for name in features:
                check_one_of(name, SOURCES, name="a source in features")
            tables = usual_features(adata, read, self.source_, self._checkpoint, features, rng=rng)
        if gene_sets is not None:
            tables["gene_sets"] = gene_sets_table(gene_sets)
        self._settle(read.screen, dict(read.names), tables, is_table=read.is_table)

    @classmethod
    def from_effects(
        cls,
        effects: Effects,
        targets: Mapping[str, Sequence[str]],
        *,
        model: str | os.PathLike[str] | Checkpoint | None = None,
        anchor: str = "ridge",
        features: Mapping[str, pd.DataFrame] | None = None,
        rng: int = 0,
    ) -> SCGPTPerturber:
        """From effects that are there already; without cells, so without a network.

        Parameters
        ----------
        effects
            Of :func:`scanpy_scgpt.baselines.pseudobulk_effects` or :func:`scanpy_scgpt.baselines.table_effects`.
        targets
            Genes of each condition; empty for a stimulus.
        model, anchor, rng
            As of the class.
        features
            Tables of features by name; those of the checkpoint and of gene knowledge by default.
        """
        check_one_of(anchor, ANCHORS, name="anchor")
        new = cls.__new__(cls)
        new.source_, new.anchor_, new.legacy_, new.rng_ = Source("perturbation"), anchor, False, rng
        new._adata, new._read, new._checkpoint = None, None, models.load(model)
        new.model_name_ = new._checkpoint.label
        parts = {str(name): tuple(sorted(targets[name])) or (str(name),) for name in effects.deltas.index}
        tables = features
        if tables is None:
            tables = {"network": network_table(new._checkpoint), "knowledge": gene_features()}
        without = effects.n_control == 0 or not effects.control.any()
        screen = joined([("", effects)], parts, tables=without)
        new._settle(screen, {x: name for name, x in parts.items()}, dict(tables), is_table=without)
        return new

    def _settle(
        self, screen: Screen, names: dict[tuple[str, ...], str], tables: dict[str, pd.DataFrame], *, is_table: bool
    ) -> None:
        self.screen_, self.names_, self.features_, self.is_table_ = screen, names, tables, is_table
        self.networks_: list[PerturbNetwork] = []
        self.network_weight_ = 0.0
        self.validation_: pd.DataFrame = pd.DataFrame()
        self.effects_ = EffectModel(screen, tables, anchor=self.anchor_) if self.anchor_ is not None else None

    @property
    def contexts_(self) -> list[str]:
        """Contexts of the screen, with those that have controls alone."""
        return sorted({*self.screen_.conditions.contexts, *self.screen_.controls})

    def train(
        self,
        max_epochs: int = 5,
        *,
        n_networks: int = 1,
        device: str = "cpu",
        weight: float | None = None,
        **settings: Any,
    ) -> None:
        """Train the network on what the anchor leaves, and find its weight on perturbations that are left out.

        Parameters
        ----------
        max_epochs
            Passes over the perturbations.
        n_networks
            Networks with other seeds; their mean is used, and their spread widens the intervals.
        device
            `"cpu"`, `"cuda"`, ...
        weight
            In place of the one that is found: saves training on parts of the perturbations.
        **settings
            `lr`, `gamma`, `batch_size`, `n_genes`, `pool`, `per_epoch`, as in the reference.

        Raises
        ------
        ValueError
            For a table of effects, which has no cells, or without a perturbation whose genes the network knows.
        """
        if self.is_table_ or self._adata is None:
            msg = "The network needs control cells, and a table of effects (or a loaded model) has none: max_epochs=0."
            raise ValueError(msg)
        usual = _LEGACY if self.legacy_ else {}
        given = NetworkSettings(**{**usual, **settings, "max_epochs": max_epochs, "device": device, "rng": self.rng_})
        probe = PerturbNetwork(self._checkpoint, self.screen_.genes, given)
        rows = np.array([i for i, x in enumerate(self.screen_.conditions.parts) if probe.shows(x)], dtype=int)
        if not len(rows):
            msg = (
                "None of the targets is a measured gene in the vocabulary, so the network cannot be told: max_epochs=0."
            )
            raise ValueError(msg)
        self.controls_ = self._controls()
        alone = self.anchor_ is None
        if weight is None and not alone:
            weight = self._validated(rows, given) if len(rows) >= _FEW else 0.0
        self.network_weight_ = 1.0 if alone else float(weight)
        self.networks_ = []
        if self.network_weight_:
            self.networks_ = [
                self._fitted(rows, self._residuals(), replace(given, rng=given.rng + i)) for i in range(n_networks)
            ]

    def _controls(self) -> Controls:
        values, rows = control_values(self._adata, self._read, self.source_)
        batches = np.full(len(rows), "", dtype=object)
        if self.source_.batch_key is not None:
            batches = self._adata.obs[self.source_.batch_key].astype(str).to_numpy(dtype=object)[rows]
        return Controls(values, self._read.contexts[rows], batches)

    def _residuals(self) -> np.ndarray:
        """What the anchor misses of each condition when it is left out, float32; the effects without an anchor."""
        if self.effects_ is None:
            return self.screen_.effects
        left, anchor = self.effects_.left_out_.copy(), self.effects_
        single = ~np.isin(np.arange(len(left)), anchor.pairs)
        left[single] = anchor.own.add(left, self.screen_, self.screen_.conditions)[single]
        return np.nan_to_num(self.screen_.effects - left).astype(np.float32)

    def _fitted(self, rows: np.ndarray, residuals: np.ndarray, settings: NetworkSettings) -> PerturbNetwork:
        network, conditions = PerturbNetwork(self._checkpoint, self.screen_.genes, settings), self.screen_.conditions
        always = []
        for row in rows:
            changed = np.argsort(-np.abs(self.screen_.effects[row]), kind="stable")[:_DE]
            always.append(np.union1d(changed, np.flatnonzero(network.flags(conditions.parts[row]))))
        some, cells = conditions.take(rows), None
        if self.legacy_:
            cells = [self._cells_of(i) for i in rows]
        draw = Draw(network, self.controls_, some.parts, some.contexts, residuals[rows], cells)
        network.fit(draw, len(rows), always)
        return network

    def _cells_of(self, row: int) -> tuple[Any, np.ndarray]:
        """Perturbed cells of a condition, log-normalised, and their batches."""
        found, conditions = self._read.perturbations, self.screen_.conditions
        name = self.names_[conditions.parts[row]]
        inside = (found.codes == found.conditions.index(name)) & (self._read.contexts == conditions.contexts[row])
        values, rows = values_of(self._adata, np.flatnonzero(inside), self.source_)
        batches = np.full(len(rows), "", dtype=object)
        if self.source_.batch_key is not None:
            batches = self._adata.obs[self.source_.batch_key].astype(str).to_numpy(dtype=object)[rows]
        return values, batches

    def _validated(self, rows: np.ndarray, settings: NetworkSettings) -> float:
        """Weight of the network, from networks that are trained without a part of the perturbations each."""
        residuals, conditions = self._residuals(), self.screen_.conditions
        parts = sorted({part for row in rows for part in conditions.parts[row]})
        group = dict(zip(parts, np.random.default_rng([self.rng_, 62]).permutation(len(parts)) % _FOLDS, strict=True))
        found = np.zeros((len(rows), residuals.shape[1]), dtype=np.float32)
        for fold in range(_FOLDS):
            out = np.array([any(group[part] == fold for part in conditions.parts[row]) for row in rows])
            if out.any() and not out.all():
                network = self._fitted(rows[~out], residuals, settings)
                found[out] = self._of_network([network], conditions.take(rows[out]))[0]
        truth = self.screen_.effects[rows]
        anchor = truth - residuals[rows]
        start = _correlations(anchor, truth)
        table, best = [], (0.0, 0.0)
        for weight in _WEIGHTS:
            gain = _correlations(anchor + weight * found, truth) - start
            table.append((weight, float(gain.mean()), float(gain.std(ddof=1) / np.sqrt(len(gain)))))
            if gain.mean() > best[0] and surely_positive(gain):
                best = (float(gain.mean()), weight)
        self.validation_ = pd.DataFrame(table, columns=["weight", "gain", "error"])
        return best[1]

    def _of_network(self, networks: Sequence[PerturbNetwork], conditions: Conditions) -> np.ndarray:
        """Changes by each network, float32, shape `(n_networks, n, n_genes)`; 0 where it cannot be told."""
        n, rng = len(conditions), np.random.default_rng([self.rng_, 63])
        out = np.zeros((len(networks), n, len(self.screen_.genes)), dtype=np.float32)
        shown = [i for i in range(n) if networks and (self.legacy_ or networks[0].shows(conditions.parts[i]))]
        for i in shown:
            size = networks[0].settings.pool if not self.legacy_ else 1
            pools = [
                self.controls_.draw(conditions.contexts[i], size, rng)
                for _ in range(_INPUTS * (5 if self.legacy_ else 1))
            ]
            inputs = np.stack(pools)
            for k, network in enumerate(networks):
                after = network.predict(inputs, [conditions.parts[i]] * len(inputs))
                out[k, i] = (after - inputs if self.legacy_ else after).mean(axis=0)
        return out

    def conditions(self, wanted: Sequence[str | Sequence[str]], contexts: Sequence[str] | None = None) -> Conditions:
        """Wanted perturbations in all contexts, or in those that are named; spellings are those of the screen.

        Parameters
        ----------
        wanted
            Names such as `"A"` or `"A+B"`, or tuples of genes.
        contexts
            Contexts; all of the screen by default.
        """
        named = {name: parts for parts, name in self.names_.items()}
        parts = []
        for one in wanted:
            if not isinstance(one, str):
                parts.append(tuple(sorted(one)))
            elif one in named:
                parts.append(named[one])
            else:
                found = parse_perturbations(pd.Series([one]), needs_control=False, genes=self.screen_.genes)
                parts.append(tuple(sorted(found.targets[0])) or (found.conditions[0],))
        self._note_unknown(parts)
        contexts = self.contexts_ if contexts is None else list(contexts)
        both = [(x, context) for context in contexts for x in parts]
        return Conditions(tuple(x for x, _ in both), tuple(context for _, context in both))

    def _note_unknown(self, parts: Sequence[tuple[str, ...]]) -> None:
        seen = set(self.screen_.conditions.universe)
        known = seen.union(self.screen_.genes, *(table.index for table in self.features_.values()))
        for part in sorted({part for x in parts for part in x} - known):
            near = difflib.get_close_matches(part, sorted(known), n=3)
            hint = f" Near: {', '.join(near)}." if near else ""
            logger.warning(
                "warning: nothing is known of %r (never perturbed, no features), so it gets the mean effect.%s",
                part,
                hint,
            )

    def predict(self, conditions: Conditions) -> tuple[np.ndarray, np.ndarray]:
        """Changes of expression and half the width of their 90 % intervals, float32, shape `(n, n_genes)` each."""
        shape = (len(conditions), len(self.screen_.genes))
        change = np.zeros(shape, np.float32) if self.effects_ is None else self.effects_.predict(conditions)
        width = np.full(shape, np.nan, np.float32) if self.effects_ is None else self.effects_.width(conditions)
        if self.networks_:
            new = np.array([key not in self._measured() or self.effects_ is None for key in keys_of(conditions)])
            rows = np.flatnonzero(new)
            found = self._of_network(self.networks_, conditions.take(rows))
            change[rows] += self.network_weight_ * found.mean(axis=0)
            if len(self.networks_) > 1:
                width[rows] = np.hypot(np.nan_to_num(width[rows]), self.network_weight_ * found.std(axis=0, ddof=1))
        return change, width

    def changes(self, conditions: Conditions) -> np.ndarray:
        """Changes of expression without intervals, float32, shape `(n, n_genes)`."""
        if self.networks_ or self.effects_ is None:
            return self.predict(conditions)[0]
        return self.effects_.predict(conditions)

    def control_pools(self, context: str, n: int, size: int, seed: int) -> np.ndarray | None:
        """Means of random control cells of a context, float32, shape `(n, n_genes)`; None without cells."""
        if self._adata is None or self.is_table_:
            return None
        controls, rng = self._controls(), np.random.default_rng([seed, 91])
        return np.stack([controls.draw(context, size, rng) for _ in range(n)])

    def _measured(self) -> set[tuple[tuple[str, ...], str]]:
        return set(keys_of(self.screen_.conditions))

    def kinds(self, conditions: Conditions) -> list[str]:
        """What is known of each condition: `measured`, `seen elsewhere`, `unseen`, `combination`, and so on."""
        anchor = self.effects_ or EffectModel(self.screen_, {}, anchor="mean")
        return anchor.kinds(conditions)

    def control_cells(self, adata: AnnData) -> tuple[sparse.csr_matrix, np.ndarray]:
        """Log-normalised values of the control cells, CSR, and their contexts."""
        values, rows = control_values(adata, self._read, self.source_)
        return values, self._read.contexts[rows]

    def record(self) -> dict[str, Any]:
        """What was chosen, and on what grounds; plain values."""
        out: dict[str, Any] = {
            "anchor": self.anchor_ or "none",
            "legacy": self.legacy_,
            "model": self.model_name_,
            "n_conditions": len(self.screen_),
            "contexts": self.contexts_,
            "network_weight": self.network_weight_,
            "n_networks": len(self.networks_),
        }
        if self.effects_ is not None:
            for name in ("unseen", "elsewhere", "joint"):
                choice = getattr(self.effects_, name)
                out[name] = {"gain": choice.gain, **{k: v for k, v in asdict(choice.setting).items() if v is not None}}
            out["interactions"] = self.effects_.interacts
        return out

    def save(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the model to a folder.

        Parameters
        ----------
        folder
            Where.
        overwrite
            Replace what is there.

        Raises
        ------
        FileExistsError
            When the folder exists and `overwrite` is not given.
        """
        write_perturber(self, folder, overwrite=overwrite)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> SCGPTPerturber:
        """Read a model that :meth:`save` wrote; it predicts, and has no cells to train on."""
        return read_perturber(cls, folder)


def _correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return cosines(a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True))


__all__ = ["ReadScreen", "SCGPTPerturber"]
