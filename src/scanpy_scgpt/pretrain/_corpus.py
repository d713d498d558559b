"""The cells of a token store as a corpus: their groups, and the split into training and validation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pandas as pd
from pandas.api.types import union_categoricals

from scanpy_scgpt._validate import check_one_of
from scanpy_scgpt.disk import TokenStore
from scanpy_scgpt.tokenizer import cell_keys

from ._sources import UNKNOWN

SplitBy = Literal["cell", "study"]
_SHOWN = 10  # studies that an error names
_POINTERS = 2**16  # cells whose lengths are looked at together


@dataclass(frozen=True)
class Corpus:
    """Tokens of all cells of a corpus.

    Attributes
    ----------
    tokens
        Uncut tokens.
    names
        Gives the names of the cells, file included, in arrays one after the other, each time it is iterated.
    study, tissue
        Study and tissue of each cell, shape `(n_cells,)`.
    """

    tokens: TokenStore
    names: Iterable[np.ndarray]
    study: pd.Categorical
    tissue: pd.Categorical

    def split(
        self,
        *,
        share: float,
        rng: int,
        by: SplitBy = "cell",
        studies: Sequence[str] = (),
    ) -> tuple[np.ndarray, np.ndarray]:
        """Positions of training and validation cells; cells of fewer than two genes are in neither.

        Parameters
        ----------
        share
            Share of the cells to hold out.
        rng
            Seed of the choice.
        by
            `"cell"`: the side of a cell depends on its name and the seed alone. `"study"`: whole studies are held out,
            in an order that depends on their names and the seed, until the share is reached; studies that would make
            it more than twice the share, or leave less than half of the cells for training, stay. Where that holds out
            less than half of the share, the smallest of the studies that are left is held out too.
        studies
            Studies to hold out, whatever `share` and `by` say.

        Returns
        -------
        Positions of the cells of both sides, int64, ascending.

        Raises
        ------
        ValueError
            When there is only one study to split by, a study is unknown, or none is left for training.
        """
        check_one_of(by, get_args(SplitBy), name="by")
        if by == "study" or len(studies):
            chosen = self._known(studies) if len(studies) else self._drawn(share, rng)
            held = np.isin(self.study.codes, chosen)
        else:
            bound = np.uint64(int(share * 2**64))
            held = np.concatenate([cell_keys(names, seed=rng, purpose="validation") < bound for names in self.names])
        return np.flatnonzero(~held & self._enough), np.flatnonzero(held & self._enough)

    @property
    def n_unused(self) -> int:
        """Number of cells of fewer than two genes, of which none can be asked for."""
        return int((~self._enough).sum())

    @cached_property
    def _enough(self) -> np.ndarray:
        """Cells with two or more genes, bool, shape `(n_cells,)`."""
        enough = np.empty(len(self.tokens), dtype=bool)
        for start in range(0, len(enough), _POINTERS):
            stop = min(start + _POINTERS, len(enough))
            enough[start:stop] = self.tokens.lengths_of(np.arange(start, stop)) > 1
        return enough

    def _known(self, studies: Sequence[str]) -> np.ndarray:
        """Codes of studies that were named."""
        there = self.study.categories
        unknown = [study for study in studies if study not in there]
        if unknown:
            msg = f"There is no study {unknown[0]!r}. Studies: {_listed(there)}."
            raise ValueError(msg)
        if set(studies) >= set(there):
            msg = f"All studies ({_listed(there)}) are held out: none is left for training. Name fewer."
            raise ValueError(msg)
        return there.get_indexer(list(studies))

    def _drawn(self, share: float, rng: int) -> list[int]:
        """Codes of studies that hold about the share of the cells."""
        there = self.study.categories
        if len(there) < 2:  # noqa: PLR2004
            msg = (
                f"All cells are of one study ({_listed(there)}), and none can be held out. Use by='cell', or give "
                "each file a study: adata.obs['study'] = '...'."
            )
            raise ValueError(msg)
        sizes = np.bincount(self.study.codes, minlength=len(there))
        wanted, half, n, chosen = share * sizes.sum(), sizes.sum() / 2, 0, []
        for study in np.argsort(cell_keys(there, seed=rng, purpose="validation")).tolist():
            if n < wanted and n + sizes[study] <= min(2 * wanted, half):
                chosen.append(study)
                n += sizes[study]
        left = np.setdiff1d(np.arange(len(there)), chosen)
        smallest = int(left[sizes[left].argmin()])  # there is one: half of the cells are left
        return [*chosen, smallest] if n < wanted / 2 and n + sizes[smallest] <= half else chosen


@dataclass(frozen=True)
class StoreNames:
    """Names of the cells of a token store, file included; iterating gives those of one shard after the other.

    Nothing stays in memory afterwards.
    """

    store: TokenStore

    def __iter__(self) -> Iterator[np.ndarray]:
        for names, files in zip(self.store.shard_names(), self.store.shard_columns("file"), strict=True):
            file = pd.Categorical(files)
            stems = np.array([f"{Path(name).with_suffix('')}/" for name in file.categories], dtype=object)
            yield stems[file.codes] + names if len(names) else names


def store_corpus(store: TokenStore) -> Corpus:
    """The cells of a token store; what stays in memory of each are the numbers of its study and its tissue."""
    return Corpus(store, StoreNames(store), _groups(store, "study"), _groups(store, "tissue"))


def _groups(store: TokenStore, column: str) -> pd.Categorical:
    if column not in store.columns:
        return pd.Categorical.from_codes(np.zeros(len(store), np.int8), [UNKNOWN])
    parts = [pd.Categorical(values) for values in store.shard_columns(column)] or [pd.Categorical([])]
    return union_categoricals([part for part in parts if len(part)] or parts, sort_categories=True)


def _listed(studies: pd.Index) -> str:
    more = f" and {len(studies) - _SHOWN} more" if len(studies) > _SHOWN else ""
    return ", ".join(map(repr, studies[:_SHOWN])) + more
