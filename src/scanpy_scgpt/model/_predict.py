"""Labels of cells from the head of a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from scipy.special import softmax
from torch import Tensor

from ._latent import check_alone, positions_of

if TYPE_CHECKING:
    from anndata import AnnData

    from scanpy_scgpt.data import LabelledCells


class PredictMixin:
    """`predict`."""

    def predict(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        soft: bool = False,  # noqa: FBT001, FBT002 - the signature of scvi-tools
        batch_size: int | None = None,
        *,
        dataloader: Iterable[Mapping[str, Tensor]] | None = None,
    ) -> np.ndarray | pd.DataFrame:
        """Labels of cells.

        Parameters
        ----------
        adata, indices, batch_size, dataloader
            As in :meth:`get_latent_representation`.
        soft
            Give probabilities.

        Returns
        -------
        Array of the most likely labels, shape `(n_cells,)`; with `soft=True` a table of float32, cells x labels, whose
        rows sum to 1.

        Raises
        ------
        RuntimeError
            When the model was not trained on labels.
        """
        self._require_labels()
        if dataloader is not None:
            check_alone(adata, indices)
            probabilities, names = self._probabilities_of_batches(dataloader), None
        else:
            data = self.adata if adata is None else adata
            cells = self._cells(adata)
            positions = positions_of(cells, indices)
            probabilities = self._probabilities(cells, positions, batch_size=batch_size)
            names = data.obs_names[positions]
        if not soft:
            return np.asarray(self.labels_, dtype=object)[probabilities.argmax(axis=1)]
        return pd.DataFrame(probabilities, index=names, columns=pd.Index(self.labels_, name="label"))

    def _require_labels(self) -> None:
        if self.module.class_head is None:
            msg = (
                f"This {type(self).__name__} knows no labels. Name their column when the cells are set up: "
                f"{type(self).__name__}.setup_anndata(adata, labels_key='cell_type')."
            )
            raise RuntimeError(msg)
        if not (self.is_trained_ and self.names_labels_):
            msg = (
                "The head of the labels has random weights: call model.train() first, with 'cls' among the objectives, "
                "or load a trained model."
            )
            raise RuntimeError(msg)

    def _probabilities(
        self, cells: LabelledCells, positions: np.ndarray, *, batch_size: int | None = None
    ) -> np.ndarray:
        """Probabilities, float32, shape `(n, n_labels)`."""
        return softmax(self._scores_of(self._vectors(cells, positions, batch_size=batch_size)), axis=1)

    def _probabilities_of_batches(self, batches: Iterable[Mapping[str, Tensor]]) -> np.ndarray:
        """Of batches of tokens or of counts."""
        return softmax(self._scores_of(self._vectors_of_batches(batches)), axis=1)

    @torch.inference_mode()
    def _scores_of(self, vectors: np.ndarray) -> np.ndarray:
        """Scores from cell vectors that are not scaled, float32, shape `(n, n_labels)`."""
        self.module.eval()
        head = self.module.class_head
        device = head.out.weight.device
        return head(torch.from_numpy(np.ascontiguousarray(vectors)).to(device)).float().cpu().numpy()
