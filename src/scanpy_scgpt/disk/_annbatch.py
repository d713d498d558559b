"""Shuffled batches of tokens out of an annbatch collection (optional package, Python 3.12 or later)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse

from scanpy_scgpt._counts import CountSource
from scanpy_scgpt._optional import require
from scanpy_scgpt._validate import seed_of
from scanpy_scgpt.tokenizer import GeneMatch, Tokenizer, Tokens, match_genes, require_enough


class AnnotatedTokens(NamedTuple):
    """A batch: `tokens` of its cells, and their `obs`."""

    tokens: Tokens
    obs: pd.DataFrame


class AnnbatchCells:
    """Batches of tokens that `annbatch.Loader` reads; iterate as often as you like.

    The tokens of a cell are those of :meth:`~scanpy_scgpt.tokenizer.Tokenizer.encode` with the same seed, whatever the
    order. The order is annbatch's own: blocks of `block_size` cells in random order, `pool_blocks` of them mixed.

    Parameters
    ----------
    collection
        Folder of an `annbatch.DatasetCollection`, or the collection.
    tokenizer
        Vocabulary and rule of the bins.
    batch_size
        Cells of a batch; the last one may have fewer.
    block_size, pool_blocks
        Rows that are read together, and blocks that are mixed.
    shuffle
        False keeps the order of the collection.
    min_genes
        Fewest genes that must be found in the vocabulary.
    rng
        Seed of the order and of the tokens.

    Attributes
    ----------
    match
        What the genes of the collection became.

    Raises
    ------
    ImportError
        When annbatch is not installed.
    GeneMatchError
        When fewer than `min_genes` genes are in the vocabulary.
    """

    def __init__(
        self,
        collection: str | os.PathLike[str] | Any,  # annbatch.DatasetCollection
        tokenizer: Tokenizer,
        *,
        batch_size: int = 64,
        block_size: int = 64,
        pool_blocks: int = 64,
        shuffle: bool = True,
        min_genes: int = 200,
        rng: int | np.random.Generator | None = 0,
    ) -> None:
        self._annbatch = require("annbatch", extra="annbatch", needed_for="Reading an annbatch collection")
        if isinstance(collection, str | os.PathLike):
            collection = self._annbatch.DatasetCollection(collection, mode="r")
        self.collection, self.tokenizer, self.seed = collection, tokenizer, seed_of(rng)
        self._reading = {
            "batch_size": batch_size,
            "chunk_size": block_size,
            "preload_nchunks": pool_blocks,
            "shuffle": shuffle,
        }
        self._epoch = 0
        loader = self._loader()
        self.n_obs = int(loader.n_obs)
        self.match: GeneMatch = match_genes(loader.var.index, tokenizer.vocab)
        require_enough(self.match, tokenizer.vocab, min_genes=min_genes)

    def __len__(self) -> int:
        return (self.n_obs + self._reading["batch_size"] - 1) // self._reading["batch_size"]

    def set_epoch(self, epoch: int) -> None:
        """Another epoch has another order; the tokens stay."""
        self._epoch = epoch

    def _loader(self) -> Any:
        rng = np.random.default_rng([self.seed, self._epoch])
        return self._annbatch.Loader(**self._reading, rng=rng).use_collection(self.collection)

    def __iter__(self) -> Iterator[AnnotatedTokens]:
        for batch in self._loader():
            names = batch["obs"].index.to_numpy().astype(str)
            source = CountSource("X", sparse.csr_matrix(batch["X"]), batch["var"])
            source.check()
            counts = source.rows(0, len(names))
            yield AnnotatedTokens(self.tokenizer.encode(counts, self.match.ids, names, seed=self.seed), batch["obs"])
