"""Batches that an integrator knows, and those that cells to come bring along."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scanpy_scgpt._logging import get_logger

if TYPE_CHECKING:
    from scanpy_scgpt.data import LabelledCells

    from ._joint import Joint

logger = get_logger(__name__)
NETWORK, EXPRESSION = "network", "expression"


class KnownBatches:
    """What new batches need: shifts that come from all cells of a query, and words where there are none."""

    joint: Joint | None
    _pending = False  # whether cells of a query were not looked at yet

    def shared_features(self) -> dict[str, tuple[int, int]]:
        """By part of the vectors: how many of the features that it goes by the cells of the model have, of how many."""
        cells, out = self._cells(), {}
        for name, block in self.joint.blocks.items():
            part = cells.parts.get(name)
            measured = cells.measured if name == EXPRESSION else None if part is None else part.measured
            if measured is not None:
                out[name] = int(np.isin(block.ids, measured).sum()), len(block.ids)
        return out

    def batches_of_cells(self) -> list[str]:
        """Names of the batches that the cells of the model are of."""
        codes = self._cells().codes.get("batch", np.zeros(0, dtype=np.int64))
        return [self.batches_[i] for i in np.unique(codes[codes >= 0])]

    def _learn(self) -> dict[str, np.ndarray]:
        """Shifts of new batches, from all cells of the model: what is asked for first changes nothing.

        Returns the coordinates of all these cells where they were needed.
        """
        if not self._pending or self.adata is None or self.joint is None:
            return {}
        self._pending, cells = False, self._cells()
        codes = self._batches_of(cells)
        if not self._has_new(cells, codes):
            return {}
        coordinates = self._coordinates(cells, np.arange(len(cells)))
        self.joint.learn(coordinates, codes)
        return coordinates

    def _has_new(self, cells: LabelledCells, codes: np.ndarray) -> bool:
        """Whether a batch has no shifts yet."""
        if not self.joint.corrected:
            return False
        for name, alignment in self.joint.alignments.items():
            if alignment is None:
                continue
            known = alignment.shifts.any(axis=(1, 2))
            present = np.unique(codes[(codes >= 0) & self._has(cells, name)])
            if int(present.max(initial=-1)) >= len(known) or not known[present].all():
                return True
        return False

    def _has(self, cells: LabelledCells, name: str) -> np.ndarray:
        """Cells that have a block, bool, shape `(n_cells,)`."""
        return np.ones(len(cells), dtype=bool)

    def _note_unknown(self, codes: np.ndarray, *, own: bool) -> None:
        """Cells of batches that the model does not know are not laid over the others."""
        known = max((len(x.shifts) for x in self.joint.alignments.values() if x is not None), default=0)
        n = int(((codes < 0) | (codes >= known)).sum())
        if not n or not known or not self.joint.corrected or (own and self.known_shifts_ is not None):
            return  # of a query it was said
        named = self.registry_["setup_args"].get("batch_key")
        logger.warning(
            "%s of %s cells are of no batch that the model knows%s, so they are not laid over the others. Put them "
            "into its space first: %s.load_query_data(adata, model, batch_key='...').",
            f"{n:,}",
            f"{len(codes):,}",
            "" if named is None else f" (it looks for obs[{named!r}])",
            type(self).__name__,
        )

    def _as_query(self) -> None:
        self.known_shifts_, self._pending = {} if self.joint is None else self.joint.known(), True
        field = next((x for x in self.adata_manager.fields if x.registry_key == "batch" and not x.is_empty), None)
        if field is None or self.joint is None or not self.joint.corrected or not self.batches_:
            return
        codes = self.adata.obs.get(field.attr_key)  # of a MuData's RNA it is in the modality
        if codes is not None and (np.asarray(codes) < 0).all():
            name = self.adata_manager.registry["setup_args"]["batch_key"]
            logger.warning(
                "query: the cells have no batches (the model looked for obs[%r]), so they are not laid over those of "
                "the model. Name the column, also for one new batch: batch_key='...'.",
                name,
            )
