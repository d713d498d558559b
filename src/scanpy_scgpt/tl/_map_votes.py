"""Neighbours of query cells to columns of labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from scanpy_scgpt._keys import MapKeys
from scanpy_scgpt._logging import get_logger
from scanpy_scgpt._types import VoteWeights
from scanpy_scgpt.neighbours import NeighbourIndex, Neighbours, vote

logger = get_logger(__name__)
_SAME = 1e-4  # distance below which a cell of the same name is the same cell
_CELLS = 8192  # queries at a time


class Mapping:
    """Votes for some number of query cells, taken block after block.

    Parameters
    ----------
    index
        The reference.
    labels_keys
        Whose labels are voted for.
    n_obs
        Number of query cells.
    keys
        Names of the columns.
    n_neighbors, weights, correct_shares, exclude_self
        As in :func:`scanpy_scgpt.tl.map_reference`.
    search
        `shortlist` and `n_probe`.
    """

    def __init__(
        self,
        index: NeighbourIndex,
        labels_keys: Sequence[str],
        n_obs: int,
        *,
        keys: MapKeys,
        n_neighbors: int,
        weights: VoteWeights,
        correct_shares: bool,
        exclude_self: bool,
        search: dict[str, Any],
    ) -> None:
        self.index, self.labels_keys, self.keys, self.exclude_self = index, list(labels_keys), keys, exclude_self
        self.n_neighbors, self.weights, self.correct_shares, self.search = n_neighbors, weights, correct_shares, search
        self.names = {key: sorted(index.categories(key)) for key in self.labels_keys}
        self._place = {key: self._places(key) for key in self.labels_keys}  # of a code among the sorted names
        self.n_of = {
            key: np.bincount(self._place[key][:-1], index.label_counts(key), len(self.names[key])).astype(np.int64)
            for key in self.labels_keys
        }
        self.codes = {key: np.full(n_obs, -1, np.int32) for key in self.labels_keys}
        self.shares = {key: np.full(n_obs, np.nan, np.float32) for key in self.labels_keys}
        self.distance, self.nearest = (np.full(n_obs, np.nan, np.float32) for _ in range(2))
        self.n_same = self.n_empty = 0

    def _places(self, key: str) -> np.ndarray:
        """Code of an index to place of its label in the alphabet, the last entry for no label."""
        at = {name: i for i, name in enumerate(self.names[key])}
        return np.array([*(at[name] for name in self.index.categories(key)), -1])

    def add(self, start: int, vectors: np.ndarray, names: np.ndarray, empty: np.ndarray) -> None:
        """Take the votes for the query cells from `start` on.

        Parameters
        ----------
        start
            Number of the first of them.
        vectors
            Shape `(n, n_dims)`.
        names
            Of the cells, shape `(n,)`.
        empty
            Which have no gene of the vocabulary, shape `(n,)`; they get no label.
        """
        self.n_empty += int(empty.sum())
        for first in range(0, len(vectors), _CELLS):
            part = slice(first, first + _CELLS)
            some = np.flatnonzero(~empty[part]) + first
            if some.size:
                self._vote(start + some, vectors[some], names[some])

    def _vote(self, at: np.ndarray, vectors: np.ndarray, names: np.ndarray) -> None:
        found = self._neighbours(vectors, names)
        there = found.rows >= 0
        n = there.sum(axis=1)
        total = np.where(there, found.distances, 0).sum(axis=1)
        self.distance[at] = np.where(n > 0, total / np.maximum(n, 1), np.nan)
        self.nearest[at] = np.where(n > 0, found.distances[:, 0], np.nan)
        for key, numbers in self.n_of.items():
            codes = np.where(there, self.index.codes(key)[np.maximum(found.rows, 0)], -1)
            labels = self._place[key][codes]
            shares = numbers / max(numbers.sum(), 1) if self.correct_shares else None
            given = {"n_labels": len(numbers), "weights": self.weights, "frequencies": shares}
            self.codes[key][at], share = vote(labels, found.distances, **given)
            self.shares[key][at] = np.where(self.codes[key][at] >= 0, share, np.nan)

    def _neighbours(self, vectors: np.ndarray, names: np.ndarray) -> Neighbours:
        k = self.n_neighbors
        found = self.index.search(vectors, k + self.exclude_self, **self.search)
        if not self.exclude_self:
            near = found.distances[:, 0] < _SAME
            self.n_same += int((self.index.names(found.rows[near, 0]) == names[near]).sum())
            return found
        own = self.index.names(found.rows) == names[:, None]
        order = np.argsort(own, axis=1, kind="stable")  # others first, in their order
        rows = np.where(own, -1, found.rows)
        gaps = np.where(own, np.float32(np.inf), found.distances)
        return Neighbours(*(np.take_along_axis(values, order, axis=1)[:, :k] for values in (rows, gaps)))

    def columns(self) -> dict[str, Any]:
        """Columns of `.obs` by name; labels in the order of the alphabet."""
        out: dict[str, Any] = {}
        for key in self.labels_keys:
            out[self.keys.label(key)] = pd.Categorical.from_codes(self.codes[key], self.names[key])
            out[self.keys.share(key)] = self.shares[key]
        return {**out, self.keys.distance: self.distance, self.keys.nearest: self.nearest}

    def record(self) -> dict[str, Any]:
        """What is kept in `.uns`."""
        index = self.index
        names = ("model", "model_hash", "pooling", "use_rep")
        return {
            "n_reference": len(index),
            "method": index.method,
            "metric": index.metric,
            "n_neighbors": self.n_neighbors,
            "weights": self.weights,
            "correct_shares": self.correct_shares,
            "exclude_self": self.exclude_self,
            "labels_keys": np.array(self.labels_keys, dtype=object),
            "n_labels": np.array([len(self.n_of[key]) for key in self.labels_keys]),
            "n_reference_unlabelled": np.array([len(index) - int(self.n_of[k].sum()) for k in self.labels_keys]),
            "n_unmapped": np.array([int((self.codes[key] < 0).sum()) for key in self.labels_keys]),
            "n_empty_cells": self.n_empty,
            **{f"reference_{name}": str(index.origin.get(name, "")) for name in names},
        }

    def said(self) -> list[str]:
        """Phrases of the receipt about the labels."""
        return [
            f"{len(self.n_of[key])} labels of {key!r}, mean share {_mean(self.shares[key]):.2f}"
            for key in self.labels_keys
        ]

    def warn(self) -> None:
        """Say what a reader of the columns should know."""
        if self.n_same:
            logger.warning(
                "map_reference: %s cells have a reference cell of their own name in their own place, and count it as a "
                "neighbour. To leave it out: exclude_self=True.",
                f"{self.n_same:,}",
            )
        if self.n_empty:
            logger.warning(
                "map_reference: %s cells have no gene of the vocabulary; they get no label.", f"{self.n_empty:,}"
            )
        if self.n_neighbors + self.exclude_self > len(self.index):
            logger.warning("map_reference: the reference has only %s cells, all of which vote.", f"{len(self.index):,}")


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else float("nan")
