"""`SCGPTPerturber`: effects of perturbations that were not made; an anchor, and what the network adds to it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from scanpy_scgpt import models
from scanpy_scgpt._effects import Effects
from scanpy_scgpt._logging import get_logger
from scanpy_scgpt._perturbations import parse_perturbations
from scanpy_scgpt._validate import check_one_of, near_names
from scanpy_scgpt.datasets import gene_features
from scanpy_scgpt.io import Checkpoint

from ._effects import ANCHORS, EffectModel, keys_of
from ._perturb_data import (
    SOURCES,
    Source,
    control_values,
    gene_sets_table,
    joined,
    network_table,
    read_screen,
    usual_features,
)
from ._perturb_files import read_perturber, write_perturber
from ._perturb_network import PerturbNetwork
from ._perturb_training import PerturbTraining
from ._screen import Conditions, Screen

if TYPE_CHECKING:
    from anndata import AnnData

logger = get_logger(__name__)


class SCGPTPerturber(PerturbTraining):
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
    targets
        Genes of spellings that the rules read otherwise, such as `{"IFNG": ()}` for a stimulus, as in
        :func:`scanpy_scgpt.pp.parse_perturbations`.
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
        targets: Mapping[str, Sequence[str]] | None = None,
        model: str | os.PathLike[str] | Checkpoint | None = None,
        anchor: str | None = "ridge",
        features: Sequence[str] | Mapping[str, pd.DataFrame] = SOURCES,
        gene_sets: Mapping[str, Sequence[str]] | None = None,
        legacy: bool = False,
        rng: int = 0,
    ) -> None:
        check_one_of(anchor, (*ANCHORS, None), name="anchor")
        self.source_ = Source(perturbation_key, control, context_key, batch_key, layer, size_key, p_layer, targets)
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
        genes = {name: (own,) if isinstance(own, str) else tuple(sorted(own)) for name, own in targets.items()}
        lacking = [name for name in effects.deltas.index if name not in genes]
        if lacking:
            msg = f"targets says no genes of {lacking[0]!r}. Give those of every condition; empty ones for a stimulus."
            raise ValueError(msg)
        parts = {str(name): genes[name] or (str(name),) for name in effects.deltas.index}
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

    def conditions(self, wanted: Sequence[str | Sequence[str]], contexts: Sequence[str] | None = None) -> Conditions:
        """Wanted perturbations in all contexts, or in those that are named; spellings are those of the screen.

        Parameters
        ----------
        wanted
            Names such as `"A"` or `"A+B"`, or tuples of genes.
        contexts
            Contexts; all of the screen by default.
        """
        wanted = [wanted] if isinstance(wanted, str) else list(wanted)
        for context in contexts or ():
            check_one_of(context, self.contexts_, name="a context")
        named = {name: parts for parts, name in self.names_.items()}
        known = sorted({*self.screen_.genes, *self.screen_.conditions.universe}.union(
            *(map(str, table.index) for table in self.features_.values())
        ))  # fmt: skip
        parts = []
        for one in wanted:
            if not isinstance(one, (str, Sequence)) or not len(one):
                msg = f"{one!r} is no perturbation: give names such as 'A' or 'A+B', or tuples of genes, ('A', 'B')."
                raise ValueError(msg)
            if not isinstance(one, str):
                parts.append(tuple(sorted(one)))
            elif one in named:
                parts.append(named[one])
            else:
                found = parse_perturbations(pd.Series([one]), needs_control=False, genes=known)
                parts.append(tuple(sorted(found.targets[0])) or (found.conditions[0],))
        self._note_unknown(parts)
        contexts = self.contexts_ if contexts is None else list(contexts)
        both = [(x, context) for context in contexts for x in parts]
        return Conditions(tuple(x for x, _ in both), tuple(context for _, context in both))

    def _note_unknown(self, parts: Sequence[tuple[str, ...]]) -> None:
        seen = set(self.screen_.conditions.universe)
        known = seen.union(self.screen_.genes, *(table.index for table in self.features_.values()))
        for part in sorted({part for x in parts for part in x} - known):
            near = near_names(part, sorted(known))
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

    def control_cells(self) -> tuple[sparse.csr_matrix, np.ndarray]:
        """Log-normalised values of the control cells that it was made from, CSR, and their contexts."""
        values, rows = control_values(self._adata, self._read, self.source_)
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
