"""Shuffled batches of tokens straight from matrices of counts, in memory or on disk."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch.distributed
from torch.utils.data import IterableDataset, get_worker_info

from scanpy_scgpt._counts import CountSource
from scanpy_scgpt._validate import seed_of
from scanpy_scgpt.disk import Pool, block_order, read_ahead, rows_of, shard_sizes
from scanpy_scgpt.tokenizer import Tokenizer, Tokens


@dataclass(frozen=True)
class TokenSource:
    """One matrix of counts, and what its genes and cells are called.

    Attributes
    ----------
    source
        The counts, shape `(n_obs, n_vars)`.
    gene_ids
        Vocabulary id of each column, -1 for none; shape `(n_vars,)`.
    names
        Name of each cell, the key of its random draws; shape `(n_obs,)`.
    """

    source: CountSource
    gene_ids: np.ndarray
    names: np.ndarray

    def __post_init__(self) -> None:
        if (len(self.names), len(self.gene_ids)) != tuple(self.source.matrix.shape):
            msg = (
                f"{self.source.where} has shape {tuple(self.source.matrix.shape)}, but there are {len(self.names):,} "
                f"names of cells and {len(self.gene_ids):,} gene_ids. Give one name per row and one id per column."
            )
            raise ValueError(msg)

    @property
    def n_obs(self) -> int:
        """Number of cells."""
        return self.source.n_obs


class TokenBatch(NamedTuple):
    """Cells of a batch: `tokens`, and `cells` (batch,) int64, their positions when all sources are counted through."""

    tokens: Tokens
    cells: np.ndarray


class CellLoader(IterableDataset[TokenBatch]):
    """Shuffled batches of tokens out of one or several matrices, for any number of cells.

    Blocks of rows are read in seeded order, the cells of `pool_blocks` blocks are mixed, and the next pool is read and
    tokenised while the batches of one are used. The tokens of a cell are those of :meth:`Tokenizer.encode` with the
    same seed, whatever the order. Ranks, and the workers of a `DataLoader(loader, batch_size=None)`, get disjoint
    cells.

    Parameters
    ----------
    sources
        One matrix or several, with gene sets of their own.
    tokenizer
        Vocabulary and rule of the bins.
    batch_size
        Cells of a batch; the last one may have fewer.
    block_size
        Rows that are read together.
    pool_blocks
        Blocks whose cells are mixed; two pools are in memory at a time.
    shuffle
        False keeps the order of the sources.
    rng
        Seed of the order and of the tokens.
    drop_last
        Leave out batches that are not full, and those that not every rank and worker has: all have equally many.
    rank, world_size
        Which of how many processes this is; by default as `torch.distributed` says, if it is in use.

    Raises
    ------
    ValueError
        When there is no source, or a number is out of its range.
    """

    def __init__(
        self,
        sources: TokenSource | Sequence[TokenSource],
        tokenizer: Tokenizer,
        *,
        batch_size: int = 64,
        block_size: int = 64,
        pool_blocks: int = 64,
        shuffle: bool = True,
        rng: int | np.random.Generator = 0,
        drop_last: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        super().__init__()
        self.sources = [sources] if isinstance(sources, TokenSource) else list(sources)
        if not self.sources:
            msg = "sources is empty: give at least one TokenSource."
            raise ValueError(msg)
        if batch_size < 1:
            msg = f"batch_size={batch_size}: use 1 or more."
            raise ValueError(msg)
        if (rank is None) != (world_size is None):
            msg = f"rank={rank} and world_size={world_size} belong together: give both or none."
            raise ValueError(msg)
        self.tokenizer, self.batch_size, self.seed = tokenizer, batch_size, seed_of(rng)
        self.block_size, self.pool_blocks, self.shuffle = block_size, pool_blocks, shuffle
        self.drop_last, self.rank, self.world_size, self.epoch = drop_last, rank, world_size, 0
        self._first = np.concatenate([[0], np.cumsum([source.n_obs for source in self.sources])])
        self._pools(0, 1)  # refuses numbers out of range

    def set_epoch(self, epoch: int) -> None:
        """Another epoch has another order; the tokens stay."""
        self.epoch = epoch

    def _place(self) -> tuple[int, int]:
        if self.rank is not None:
            return self.rank, self.world_size
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return 0, 1

    def _pools(self, worker: int, n_workers: int) -> Iterator[Pool]:
        rank, world_size = self._place()
        return block_order(
            np.diff(self._first).tolist(),
            block_size=self.block_size,
            pool_blocks=self.pool_blocks,
            seed=self.seed,
            epoch=self.epoch,
            rank=rank,
            world_size=world_size,
            worker=worker,
            n_workers=n_workers,
            shuffle=self.shuffle,
        )

    def n_batches(self, n_workers: int = 1) -> int:
        """Number of batches of this process in the epoch, with so many workers."""
        rank, world_size = self._place()
        sizes = shard_sizes(
            np.diff(self._first).tolist(),
            block_size=self.block_size,
            seed=self.seed,
            epoch=self.epoch,
            shuffle=self.shuffle,
            n_shards=world_size * n_workers,
        )
        if self.drop_last:
            return int(sizes.min()) // self.batch_size * n_workers
        return int((-(-sizes[rank::world_size] // self.batch_size)).sum())

    def _read(self, pool: Pool) -> TokenBatch:
        """Tokens of a pool, its cells mixed."""
        parts, cells = [], []
        of_source = np.searchsorted(self._first, pool.starts, side="right") - 1
        for i in np.unique(of_source):  # blocks ascend, so those of a source follow each other
            source, inside = self.sources[i], of_source == i
            starts, stops = pool.starts[inside], pool.stops[inside]
            rows = rows_of(starts, stops)
            counts = source.source.take_blocks(starts - self._first[i], stops - self._first[i])
            names = source.names[rows - self._first[i]]
            parts.append(self.tokenizer.encode(counts, source.gene_ids, names, seed=self.seed))
            cells.append(rows)
        tokens = parts[0] if len(parts) == 1 else Tokens.concatenate(parts)
        return TokenBatch(tokens.take(pool.order), np.concatenate(cells)[pool.order])

    def __iter__(self) -> Iterator[TokenBatch]:
        info = get_worker_info()
        worker, n_workers = (0, 1) if info is None else (info.id, info.num_workers)
        batches = _batches(read_ahead(self._read, self._pools(worker, n_workers)), self.batch_size)
        if not self.drop_last:
            yield from batches
            return
        for _ in range(self.n_batches(n_workers) // n_workers):
            yield next(batches)
        batches.close()


def _slice(batch: TokenBatch, start: int, stop: int) -> TokenBatch:
    """Cells at the positions `start:stop`, as views."""
    tokens, (first, last) = batch.tokens, batch.tokens.indptr[[start, stop]]
    indptr = tokens.indptr[start : stop + 1] - first
    return TokenBatch(Tokens(indptr, tokens.gene_ids[first:last], tokens.values[first:last]), batch.cells[start:stop])


def _batches(pools: Generator[TokenBatch], size: int) -> Generator[TokenBatch]:
    """Batches of `size` cells, the last one perhaps smaller; one may begin in a pool and end in the next."""
    rest: list[TokenBatch] = []
    for pool in pools:
        n, start = len(pool.cells), 0
        while n - start >= (missing := size - sum(len(part.cells) for part in rest)):
            yield _joined([*rest, _slice(pool, start, start + missing)])
            rest, start = [], start + missing
        if start < n:
            rest.append(_slice(pool, start, n))
    if rest:
        yield _joined(rest)


def _joined(parts: list[TokenBatch]) -> TokenBatch:
    if len(parts) == 1:
        return parts[0]
    return TokenBatch(
        Tokens.concatenate([part.tokens for part in parts]), np.concatenate([part.cells for part in parts])
    )
