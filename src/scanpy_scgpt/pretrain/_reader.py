"""Blocks of the cells of one source: tokens of the cells that the filters keep, and what was removed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from scanpy_scgpt._logging import get_logger
from scanpy_scgpt.tokenizer import GeneMatch, Tokenizer, Tokens

from ._filters import QualityFilters, mitochondrial
from ._repeats import Seen, count_keys
from ._sources import UNKNOWN, Place, Source

logger = get_logger(__name__)
COUNT_KEY = "count_key"  # column of the store: equal for equal counts


class Block(NamedTuple):
    """Cells on their way into a shard: see :meth:`scanpy_scgpt.disk.TokenStoreWriter.write`."""

    tokens: Tokens
    names: np.ndarray
    columns: dict[str, np.ndarray]
    notes: dict[str, Any]


def nothing(notes: dict[str, Any]) -> Block:
    """A block without cells."""
    empty = np.zeros(0, dtype=object)
    columns = {"file": empty, "study": empty, "tissue": empty, COUNT_KEY: np.zeros(0, np.uint64)}
    return Block(Tokens(np.zeros(1, np.int64), np.zeros(0, np.int32), np.zeros(0, np.uint8)), empty, columns, notes)


@dataclass(frozen=True)
class Reader:
    """Reads one source block by block.

    Attributes
    ----------
    place, source
        The cells, and the same opened.
    match
        What their genes became.
    tokenizer, filters, seed
        How cells become tokens, which of them stay, seed of random ties.
    keys
        Columns of `obs` with study and tissue.
    """

    place: Place
    source: Source
    match: GeneMatch
    tokenizer: Tokenizer
    filters: QualityFilters
    keys: tuple[str, str]
    seed: int

    @cached_property
    def mito(self) -> np.ndarray:
        """Columns that are mitochondrial genes, bool, shape `(n_columns,)`."""
        tokens = np.array([*self.tokenizer.vocab.tokens, ""], dtype=object)[self.match.ids]  # -1 is the last
        found = mitochondrial([self.match.names, tokens, *self.source.counts.gene_columns().values()])
        if self.filters.max_mito is not None and not found.any():
            text = "corpus: %s has no gene named MT-... or mt-...: max_mito removes none of its cells."
            logger.warning(text, self.place.label)
        return found

    def empty(self) -> Block:
        """The block of a source without cells, which is to be known of all the same."""
        return nothing({**self._origin(0), "removed": {}, "duplicates": {}})

    def _origin(self, n_cells: int) -> dict[str, Any]:
        return {"file": self.place.label, "cells": n_cells, "state": self.source.state}

    def block(self, start: int, stop: int, seen: Seen, number: int, *, drop: bool) -> Block:
        """Tokens, names, columns and notes of the cells `start:stop` that stay.

        Parameters
        ----------
        start, stop
            Rows of the source.
        seen, number
            Counts of the cells so far, and the number of this source there.
        drop
            Leave out cells whose counts were seen.
        """
        counts, names = self.source.rows(start, stop), self.source.cells.names(start, stop)
        study, tissue = (
            self.source.group(key, start, stop, otherwise=otherwise)
            for key, otherwise in zip(self.keys, (self.place.study, UNKNOWN), strict=True)
        )
        tokens = self.tokenizer.bins(counts, self.match.ids, names, seed=self.seed)
        broken = self.filters.broken(counts, tokens.lengths, self.mito)
        keep = np.flatnonzero(~np.logical_or.reduce([np.zeros(len(tokens), bool), *broken.values()]))
        keys = count_keys(counts, self.match.ids, n_tokens=len(self.tokenizer.vocab))[keep]
        first = seen.first(keys, number)
        removed = {reason: int(cells.sum()) for reason, cells in broken.items() if cells.any()}
        if drop and (first >= 0).any():
            removed["duplicates"] = int((first >= 0).sum())
            keep, keys = keep[first < 0], keys[first < 0]
        files, times = np.unique(first[first >= 0], return_counts=True)
        notes = {
            **self._origin(stop - start),
            "removed": removed,
            "duplicates": dict(zip(files.astype(str).tolist(), times.tolist(), strict=True)),
        }
        columns = {
            "file": np.full(len(keep), self.place.label, dtype=object),
            "study": study[keep],
            "tissue": tissue[keep],
            COUNT_KEY: keys,
        }
        return Block(tokens.take(keep), names[keep], columns, notes)
