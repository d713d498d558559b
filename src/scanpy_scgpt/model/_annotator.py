"""`SCGPTAnnotator`: labels with probabilities that hold, sets that contain the truth, and a word about new cells."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scvi.train import merge_kwargs
from torch import Tensor

from scanpy_scgpt._counts import CountSource
from scanpy_scgpt._logging import get_logger
from scanpy_scgpt.tokenizer import match_genes

from ._anchor import Anchor, fit_anchor
from ._assessment import Assessment
from ._calibration import LEAST, Calibration, calibrate
from ._count_batches import tokens_of
from ._cross_fit import distances_to, folds_of, left_out, unit
from ._gene_anchor import GeneAnchor, fit_gene_anchor
from ._latent import positions_of
from ._registry import gene_names
from ._scgpt import SCGPT

if TYPE_CHECKING:
    from anndata import AnnData

    from scanpy_scgpt.data import LabelledCells
    from scanpy_scgpt.module.finetune import Objective

logger = get_logger(__name__)

_KEPT = 20_000  # cells that the linear classifiers see, whose vectors are kept, and that are left out once


class SCGPTAnnotator(SCGPT):
    """Names cells: a fine-tuned transformer and two linear classifiers, calibrated on held-out cells.

    The head of the labels starts from a logistic regression on the vectors of the pretrained network, so training
    starts from what the frozen network knows and keeps the best epoch, which may be none. Beside it stand two anchors:
    a logistic regression on 50 principal components of the bins, and a sparse one on log-normalised expression. The
    answer is a weighted mean of the probabilities of the three. The weights, and how sure the mean is (temperature
    scaling, :cite:p:`Guo2017`), are those that make the labels of left-out cells most probable: cells of whole batches,
    where batches were registered. Label sets are those of conformal prediction :cite:p:`Vovk2005` on the same cells.

    Parameters
    ----------
    adata
        Cells that :meth:`SCGPT.setup_anndata` registered with `labels_key`.
    registry
        In place of `adata`.
    anchor
        Whether to fit the linear classifiers.
    head_layers
        Affine maps of the head of the labels; with one it starts from the logistic regression.
    **settings
        As of :class:`SCGPT`.
    """

    _remembers_start = True
    _default_objectives: tuple[Objective, ...] | None = ("cls",)

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict[str, Any] | None = None,
        *,
        anchor: bool = True,
        head_layers: int = 1,
        **settings: Any,
    ) -> None:
        super().__init__(adata, registry, head_layers=head_layers, **settings)
        self.init_params_["non_kwargs"].update(anchor=anchor)
        self.uses_anchor_ = self._keeps_expression = anchor
        self._bins: Anchor | None = None
        self._genes: GeneAnchor | None = None
        self._shared: np.ndarray | None = None
        self._measured: np.ndarray | None = None
        self._calibration: Calibration | None = None
        self._reference: np.ndarray | None = None
        self.facts_: dict[str, Any] = {}
        self.shares_: list[float] = []

    @property
    def model_name(self) -> str:
        """Name of the checkpoint that it started from."""
        return self._checkpoint.label

    @property
    def genes_(self) -> list[str]:
        """Names of the genes of the cells that it was made for."""
        return gene_names(self.registry_)

    def shared_genes(self, var: pd.DataFrame) -> np.ndarray:
        """Vocabulary ids, int64, of the genes that cells annotated by `var` share with those it was made for."""
        if self._measured is None:
            self._measured = self._cells().measured
        columns = CountSource("X", None, var).gene_columns()
        found = match_genes(var.index.astype(str), self._checkpoint.vocab, columns=columns).ids
        return np.intersect1d(self._measured, found)

    def forget(self, adata: AnnData) -> None:
        """Let go of cells: scvi-tools keeps every object that was registered or predicted on."""
        key = adata.uns.get("_scvi_uuid")
        self._setup_adata_manager_store.pop(key, None)
        self._per_instance_manager_store.get(self.id, {}).pop(key, None)

    def only_shared(self, var: pd.DataFrame) -> None:
        """Let the linear classifiers use those genes alone that the cells annotated by `var` have too."""
        self._shared = self.shared_genes(var)

    def train(self, *args: Any, **kwargs: Any) -> None:
        """As :meth:`SCGPT.train`; then fits the linear classifiers and calibrates, see :meth:`calibrate`.

        A model without the objective `"cls"`, as of a query, keeps its weights and temperature, and says no longer how
        far a cell is from the training cells: these were embedded by other weights.

        Parameters
        ----------
        *args, **kwargs
            Of :meth:`SCGPT.train`. By default 5 epochs at a rate of 1e-4, cells shown by at most 400 of their genes. A
            model that was loaded is calibrated on the validation cells, which it may have seen in an earlier training.
        """
        kwargs = {"max_epochs": 5, **kwargs} if not args else kwargs
        usual = {} if kwargs.get("lora_rank") else {"lr": 1e-4}
        kwargs["plan_kwargs"] = {
            **usual,
            **merge_kwargs(kwargs.pop("plan_config", None), kwargs.get("plan_kwargs"), name="plan"),
        }
        if kwargs.get("datamodule") is None:
            kwargs["datasplitter_kwargs"] = {"train_length": 400, **(kwargs.get("datasplitter_kwargs") or {})}
        named = "cls" in self.module.objectives
        before, self._calibration = self._calibration, None  # of other weights
        super().train(*args, **kwargs)
        if not named:
            self._reference = None
            self._calibration = None if before is None else before._replace(distances=np.zeros(0))
        elif self.adata is None or self.validation_indices_ is None:
            return
        elif self._knows_start:
            self.calibrate()
        else:
            self._reference = None
            self.calibrate(self.validation_indices_)

    def calibrate(self, indices: Sequence[int] | None = None) -> None:
        """Fit the linear classifiers on the training cells; choose weights, temperature, thresholds on cells left out.

        Fold by fold, cells with labels are left out, and the classifiers are fitted on the others; in place of the
        fine-tuned network stands the logistic regression on the vectors that it started from. Where batches were
        registered, whole batches are left out.

        Parameters
        ----------
        indices
            Cells that the model was not trained on, to calibrate on instead; the linear classifiers stay as they are.

        Raises
        ------
        RuntimeError
            Before training; and without `indices` when the model was trained on a data module, or was loaded, since
            the network that it started from is not at hand then.
        """
        self._require_labels()
        cells = self._cells()
        labels = cells.codes["labels"]
        if indices is None and self.validation_indices_ is None:
            msg = "The model was trained on a data module: name held-out cells, model.calibrate(indices)."
            raise RuntimeError(msg)
        if indices is None and not self._knows_start:
            msg = "The network that this model started from is not at hand. Name held-out cells: calibrate(indices)."
            raise RuntimeError(msg)
        held = np.asarray(self.validation_indices_ if indices is None else positions_of(cells, indices))
        held = held[labels[held] >= 0]
        if indices is None or self._reference is None:
            trained = self._fit_rest(cells, held)
        if indices is None:
            positions, members = self._left_out(cells, self._some(np.union1d(trained, held)))
            distances = self._distances(self._vectors(cells, held))
        else:
            positions, (members, distances) = held, self._seen(cells, held)
        if len(positions) < LEAST:
            logger.warning(
                "annotate: %s labelled cells are too few to calibrate on; the confidence is taken as it is. Bring more "
                "labelled cells.",
                len(positions),
            )
        self._calibration = calibrate(list(members.values()), labels[positions], distances)

    def _fit_rest(self, cells: LabelledCells, held: np.ndarray) -> np.ndarray:
        """Fit what needs training cells; these, but those that are `held`."""
        labels = cells.codes["labels"]
        trained = np.arange(len(cells)) if self.train_indices_ is None else np.asarray(self.train_indices_)
        trained = np.setdiff1d(trained, held)
        trained = trained[labels[trained] >= 0]
        if self.uses_anchor_:
            self._fit_anchors(cells, self._some(trained))
        self.shares_ = (np.bincount(labels[trained], minlength=len(self.labels_)) / max(len(trained), 1)).tolist()
        self._reference = unit(self._vectors(cells, self._some(trained))).astype(np.float16)
        return trained

    def _some(self, positions: np.ndarray) -> np.ndarray:
        """At most so many cells as are kept and left out, drawn by the seed."""
        if len(positions) <= _KEPT:
            return positions
        return np.sort(np.random.default_rng([self.rng_, 8]).choice(positions, _KEPT, replace=False))

    def _vectors_of_start(self, cells: LabelledCells, positions: np.ndarray) -> np.ndarray:
        """Vectors of the network that has not seen the labels; those of the last training are at hand."""
        if self._started is None or not np.isin(positions, self._started[0]).all():
            return self._vectors(cells, positions, start=True)
        known, vectors = self._started
        place = np.empty(len(cells), dtype=np.int64)
        place[known] = np.arange(len(known))
        self._started = None
        return vectors[place[positions]]

    def _left_out(self, cells: LabelledCells, positions: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Positions of the cells that were left out, and the scores that each classifier gave them."""
        labels, batches = cells.codes["labels"][positions], cells.codes.get("batch")
        settings = {
            "n_bins": self._checkpoint.tokenizer.n_bins,
            "n_labels": len(self.labels_),
            "strength": self._strength,
            "anchors": self.uses_anchor_,
            "allowed": self._shared,
            "rng": self.rng_,
        }
        vectors, tokens = self._vectors_of_start(cells, positions), cells.tokens.take(positions)
        expression = None if cells.expression is None else cells.expression[positions]
        by_batch = folds_of(labels, None if batches is None else batches[positions], rng=self.rng_)
        left = left_out(vectors, tokens, expression, labels, folds=by_batch, **settings)
        if batches is not None and len(left.cells) < len(positions) / 2:
            logger.warning(
                "annotate: %s of %s cells have a label that no other batch has, so batches cannot be left out; random "
                "cells are. Confidence and label sets may not hold for a new batch. Leave batch_key out.",
                f"{len(positions) - len(left.cells):,}",
                f"{len(positions):,}",
            )
            folds = folds_of(labels, None, rng=self.rng_)
            left = left_out(vectors, tokens, expression, labels, folds=folds, **settings)
        return positions[left.cells], left.members

    def _fit_anchors(self, cells: LabelledCells, trained: np.ndarray) -> None:
        labels, settings = cells.codes["labels"][trained], {"n_labels": len(self.labels_), "rng": self.rng_}
        settings["allowed"] = self._shared
        n_bins = self._checkpoint.tokenizer.n_bins
        self._bins = fit_anchor(cells.tokens.take(trained), labels, n_bins=n_bins, **settings)
        if cells.expression is not None:
            self._genes = fit_gene_anchor(cells.expression[trained], labels, **settings)

    def _seen(
        self, cells: LabelledCells, positions: np.ndarray, *, batch_size: int | None = None
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Scores of each classifier by its name, and distances to the training cells."""
        vectors = self._vectors(cells, positions, batch_size=batch_size)
        members = {"network": self._scores_of(vectors)}
        if self._bins is not None:
            tokens, n_bins = cells.tokens.take(positions), self._checkpoint.tokenizer.n_bins
            members["bins"] = self._bins.scores(tokens, n_bins=n_bins, measured=cells.measured)
        if self._genes is not None and cells.expression is not None:
            members["genes"] = self._genes.log_probabilities(cells.expression[positions], cells.measured)
        return members, self._distances(vectors)

    def _distances(self, vectors: np.ndarray) -> np.ndarray:
        """Mean cosine distance to the nearest training cells, float64, shape `(n,)`."""
        if self._reference is None:
            return np.zeros(len(vectors))
        return distances_to(self._reference, unit(vectors))

    def _require_calibration(self) -> Calibration:
        self._require_labels()
        if self._calibration is None:
            msg = "The model is not calibrated: call model.calibrate(indices) with cells that it was not trained on."
            raise RuntimeError(msg)
        return self._calibration

    def _probabilities(
        self, cells: LabelledCells, positions: np.ndarray, *, batch_size: int | None = None
    ) -> np.ndarray:
        calibration = self._require_calibration()
        members, _ = self._seen(cells, positions, batch_size=batch_size)
        return calibration.probabilities(list(members.values()))

    def _probabilities_of_batches(self, batches: Iterable[Mapping[str, Tensor]]) -> np.ndarray:
        if self._calibration is None:  # trained on a data module, which may be larger than memory
            return super()._probabilities_of_batches(batches)
        prepare, n_bins, found = self._count_batches(), self._checkpoint.tokenizer.n_bins, []
        for given in batches:
            batch, counts = prepare(given), prepare.expression(given)
            members = [self._scores_of(self._vectors_of_batches([batch]))]
            if self._bins is not None:
                members.append(self._bins.scores(tokens_of(batch), n_bins=n_bins))
            if self._genes is not None and counts is not None:
                members.append(self._genes.log_probabilities(counts))
            found.append(self._calibration.probabilities(members))
        return np.concatenate(found)

    def assess(
        self, adata: AnnData | None = None, indices: Sequence[int] | None = None, *, target_error: float = 0.1
    ) -> Assessment:
        """Labels, label sets and novelty of cells in one pass.

        Parameters
        ----------
        adata, indices
            As in :meth:`SCGPT.get_latent_representation`.
        target_error
            Share of cells like the training cells whose set may lack their label.

        Returns
        -------
        Probabilities and sets (tables, cells x labels), and for each cell the share of held-out cells that are as far
        from the training cells as it is.
        """
        if not 0 < target_error < 1:
            msg = f"target_error={target_error!r}: a share between 0 and 1, such as 0.1."
            raise ValueError(msg)
        calibration = self._require_calibration()
        data = self.adata if adata is None else adata
        cells = self._cells(adata)
        positions = positions_of(cells, indices)
        members, distances = self._seen(cells, positions)
        probabilities = calibration.probabilities(list(members.values()))
        names, labels = data.obs_names[positions], pd.Index(self.labels_, name="label")
        sets = calibration.sets(probabilities, target_error=target_error)
        return Assessment(
            pd.DataFrame(probabilities, index=names, columns=labels),
            pd.DataFrame(sets, index=names, columns=labels),
            pd.Series(calibration.novelty(distances), index=names, name="novelty"),
            pd.Series(distances, index=names, name="distance"),
            pd.Series(calibration.support(probabilities), index=names, name="support"),
        )

    def _arrays(self) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = {}
        for name, anchor in (("bins", self._bins), ("genes", self._genes)):
            if anchor is not None:
                found.update({f"{name}.{part}": value for part, value in anchor._asdict().items()})
        if self._calibration is not None:
            weights, temperature, scores, distances = self._calibration
            found["calibration.weights"], found["calibration.temperature"] = weights, np.array([temperature])
            found["calibration.scores"], found["calibration.distances"] = scores, distances
        if self._reference is not None:
            found["reference"] = self._reference
        if self._shared is not None:
            found["shared"] = self._shared
        if self._measured is None and self.adata is not None:
            self._measured = self._cells().measured
        if self._measured is not None:
            found["measured"] = self._measured
        return found

    def _set_arrays(self, arrays: Mapping[str, np.ndarray]) -> None:
        if "bins.weight" in arrays:
            self._bins = Anchor(*(arrays[f"bins.{name}"] for name in Anchor._fields))
        if "genes.weight" in arrays:
            self._genes = GeneAnchor(*(arrays[f"genes.{name}"] for name in GeneAnchor._fields))
        if "calibration.temperature" in arrays:
            self._calibration = Calibration(
                arrays["calibration.weights"],
                float(arrays["calibration.temperature"][0]),
                arrays["calibration.scores"],
                arrays["calibration.distances"],
            )
        self._reference, self._shared = arrays.get("reference"), arrays.get("shared")
        self._measured = arrays.get("measured")
