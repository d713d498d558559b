"""`SCGPTAnnotator`: labels with probabilities that hold, sets that contain the truth, and a word about new cells."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from scvi.train import merge_kwargs
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from scanpy_scgpt._logging import get_logger

from ._anchor import Anchor, fit_anchor
from ._calibration import Calibration, calibrate
from ._count_batches import tokens_of
from ._latent import positions_of
from ._scgpt import SCGPT

if TYPE_CHECKING:
    from anndata import AnnData

    from scanpy_scgpt.data import LabelledCells
    from scanpy_scgpt.module.finetune import Objective

logger = get_logger(__name__)

_NEIGHBOURS = 10  # training cells that a distance is a mean over
_KEPT = 20_000  # training cells whose vectors are kept
_LEAST_HELD = 20  # labelled validation cells below which nothing is calibrated


class Assessment(NamedTuple):
    """What :meth:`SCGPTAnnotator.assess` gives.

    Attributes
    ----------
    probabilities
        Table of float32, cells x labels.
    sets
        Table of bool, cells x labels: what cannot be ruled out.
    novelty
        Share of held-out cells that are as far from the training cells; low for a cell that is new.
    distance
        Mean cosine distance to the nearest training cells.
    """

    probabilities: pd.DataFrame
    sets: pd.DataFrame
    novelty: pd.Series
    distance: pd.Series


class SCGPTAnnotator(SCGPT):
    """Names cells: a fine-tuned transformer beside a linear classifier of the same bins, calibrated on held-out cells.

    The head of the labels starts from a logistic regression on the vectors of the pretrained network, so training
    starts from what the frozen network knows and keeps the best epoch, which may be none. Beside it stands a logistic
    regression on 50 principal components of the bins (`anchor`). How much each counts, and how sure the sum is, follows
    from the validation cells: two factors that make their labels most probable (temperature scaling of an ensemble,
    :cite:p:`Guo2017`). Label sets are those of split conformal prediction :cite:p:`Vovk2005`.

    Parameters
    ----------
    adata
        Cells that :meth:`setup_anndata` registered with `labels_key`.
    registry
        In place of `adata`.
    anchor
        Whether to fit the linear classifier.
    head_layers
        Affine maps of the head of the labels; with one it starts from the logistic regression.
    **settings
        As of :class:`SCGPT`.
    """

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
        self.uses_anchor_ = anchor
        self._anchor: Anchor | None = None
        self._calibration: Calibration | None = None
        self._reference: np.ndarray | None = None

    def train(self, *args: Any, **kwargs: Any) -> None:
        """As :meth:`SCGPT.train`; then fits the anchor and calibrates on the validation cells.

        Parameters
        ----------
        *args, **kwargs
            Of :meth:`SCGPT.train`. By default 5 epochs at a rate of 1e-4, cells shown by at most 400 of their genes.
        """
        kwargs = {"max_epochs": 5, **kwargs} if not args else kwargs
        kwargs["plan_kwargs"] = {
            "lr": 1e-4,
            **merge_kwargs(kwargs.pop("plan_config", None), kwargs.get("plan_kwargs"), name="plan"),
        }
        if kwargs.get("datamodule") is None:
            kwargs["datasplitter_kwargs"] = {"train_length": 400, **(kwargs.get("datasplitter_kwargs") or {})}
        named = "cls" in self.module.objectives
        if named:
            self._calibration = None  # of the weights before
        super().train(*args, **kwargs)
        if named and self.adata is not None and self.validation_indices_ is not None:
            self.calibrate()

    def calibrate(self, indices: Sequence[int] | None = None) -> None:
        """Fit the anchor on the training cells, and choose factors and thresholds on held-out ones.

        Parameters
        ----------
        indices
            Held-out cells; those of the validation set by default. Cells that the model was trained on make it far
            too sure of itself.

        Raises
        ------
        RuntimeError
            Before training, or without `indices` when the model was trained on a data module.
        """
        self._require_labels()
        cells = self._cells()
        labels = cells.codes["labels"]
        if indices is None and self.validation_indices_ is None:
            msg = "The model was trained on a data module: name held-out cells, model.calibrate(indices)."
            raise RuntimeError(msg)
        held = np.asarray(self.validation_indices_ if indices is None else positions_of(cells, indices))
        trained = np.arange(len(cells)) if self.train_indices_ is None else np.asarray(self.train_indices_)
        trained = np.setdiff1d(trained, held)
        trained, held = trained[labels[trained] >= 0], held[labels[held] >= 0]
        n_bins, n_labels = self._checkpoint.tokenizer.n_bins, len(self.labels_)
        if self.uses_anchor_:
            tokens = cells.tokens.take(trained)
            self._anchor = fit_anchor(tokens, labels[trained], n_bins=n_bins, n_labels=n_labels, rng=self.rng_)
        kept = trained
        if len(kept) > _KEPT:
            kept = np.sort(np.random.default_rng([self.rng_, 8]).choice(kept, _KEPT, replace=False))
        self._reference = _unit(self._vectors(cells, kept)).astype(np.float16)
        network, anchor, distances = self._seen(cells, held)
        if len(held) < _LEAST_HELD:
            logger.warning(
                "annotate: %s labelled validation cells are too few to calibrate on; confidence is that of equal "
                "parts. Raise validation_size, or bring more labelled cells.",
                len(held),
            )
        self._calibration = calibrate(network, anchor, labels[held], distances)

    def _seen(
        self, cells: LabelledCells, positions: np.ndarray, *, batch_size: int | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Scores of network and anchor, and distances to the training cells."""
        vectors = self._vectors(cells, positions, batch_size=batch_size)
        network = self._scores_of(vectors)
        anchor = np.zeros_like(network)
        if self._anchor is not None:
            tokens, n_bins = cells.tokens.take(positions), self._checkpoint.tokenizer.n_bins
            anchor = self._anchor.scores(tokens, n_bins=n_bins, measured=cells.measured)
        return network, anchor, self._distances(vectors)

    def _distances(self, vectors: np.ndarray) -> np.ndarray:
        """Mean cosine distance to the nearest training cells, float64, shape `(n,)`."""
        if not len(vectors):
            return np.zeros(0)
        near = NearestNeighbors(n_neighbors=min(_NEIGHBOURS, len(self._reference)), algorithm="brute")
        found = near.fit(self._reference.astype(np.float32)).kneighbors(_unit(vectors))[0]
        return (found.astype(np.float64) ** 2 / 2).mean(axis=1)  # of unit vectors

    def _require_calibration(self) -> Calibration:
        self._require_labels()
        if self._calibration is None:
            msg = "The model is not calibrated: call model.calibrate(indices) with cells that it was not trained on."
            raise RuntimeError(msg)
        return self._calibration

    def _probabilities(
        self, cells: LabelledCells, positions: np.ndarray, *, batch_size: int | None = None
    ) -> np.ndarray:
        network, anchor, _ = self._seen(cells, positions, batch_size=batch_size)
        return self._require_calibration().probabilities(network, anchor)

    def _probabilities_of_batches(self, batches: Iterable[Mapping[str, Tensor]]) -> np.ndarray:
        if self._calibration is None:  # trained on a data module, which may be larger than memory
            return super()._probabilities_of_batches(batches)
        prepare, found = self._count_batches(), []
        for batch in map(prepare, batches):
            network = self._scores_of(self._vectors_of_batches([batch]))
            anchor = np.zeros_like(network)
            if self._anchor is not None:
                anchor = self._anchor.scores(tokens_of(batch), n_bins=self._checkpoint.tokenizer.n_bins)
            found.append(self._calibration.probabilities(network, anchor))
        return np.concatenate(found)

    def assess(
        self, adata: AnnData | None = None, indices: Sequence[int] | None = None, *, target_error: float = 0.1
    ) -> Assessment:
        """Labels, label sets and novelty of cells in one pass.

        Parameters
        ----------
        adata, indices
            As in :meth:`get_latent_representation`.
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
        network, anchor, distances = self._seen(cells, positions)
        probabilities = calibration.probabilities(network, anchor)
        names, labels = data.obs_names[positions], pd.Index(self.labels_, name="label")
        sets = calibration.sets(probabilities, target_error=target_error)
        return Assessment(
            pd.DataFrame(probabilities, index=names, columns=labels),
            pd.DataFrame(sets, index=names, columns=labels),
            pd.Series(calibration.novelty(distances), index=names, name="novelty"),
            pd.Series(distances, index=names, name="distance"),
        )

    def _arrays(self) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = {}
        if self._anchor is not None:
            found.update({f"anchor.{name}": value for name, value in self._anchor._asdict().items()})
        if self._calibration is not None:
            factors = np.array([self._calibration.network, self._calibration.anchor])
            found["calibration.factors"] = factors
            found["calibration.scores"] = self._calibration.scores
            found["calibration.distances"] = self._calibration.distances
        if self._reference is not None:
            found["reference"] = self._reference
        return found

    def _set_arrays(self, arrays: Mapping[str, np.ndarray]) -> None:
        if "anchor.weight" in arrays:
            self._anchor = Anchor(*(arrays[f"anchor.{name}"] for name in Anchor._fields))
        if "calibration.factors" in arrays:
            network, anchor = arrays["calibration.factors"].tolist()
            self._calibration = Calibration(
                network, anchor, arrays["calibration.scores"], arrays["calibration.distances"]
            )
        self._reference = arrays.get("reference")


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)
