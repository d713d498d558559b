"""Blocks of rows in shuffled order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np


class Pool(NamedTuple):
    """Blocks of rows that are read together, and the order of their rows.

    `starts`, `stops` (n_blocks,) int64, in ascending order; `order` (n_rows,) int64: positions among the rows of the
    pool, block after block.
    """

    starts: np.ndarray
    stops: np.ndarray
    order: np.ndarray


def _blocks_of(sizes: Sequence[int], block_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Starts and stops of the blocks of several files, counted through; no block lies in two of them."""
    ends = np.cumsum(np.asarray(sizes, dtype=np.int64))
    pairs = zip(ends - np.asarray(sizes), ends, strict=True)
    starts = [np.arange(first, end, block_size, dtype=np.int64) for first, end in pairs]
    stops = [np.minimum(start + block_size, end) for start, end in zip(starts, ends, strict=True)]
    return np.concatenate([np.zeros(0, np.int64), *starts]), np.concatenate([np.zeros(0, np.int64), *stops])


def _check_order(block_size: int, pool_blocks: int, parts: Sequence[tuple[str, int, str, int]]) -> None:
    for name, value in (("block_size", block_size), ("pool_blocks", pool_blocks)):
        if value < 1:
            msg = f"{name}={value}: use 1 or more (64 is a good start)."
            raise ValueError(msg)
    for name, value, of_name, of in parts:
        if not 0 <= value < of:
            msg = f"{name}={value} of {of_name}={of}: {name} counts from 0 to {of_name} - 1."
            raise ValueError(msg)


def shard_sizes(
    sizes: Sequence[int], *, block_size: int, seed: int, epoch: int, n_shards: int, shuffle: bool = True
) -> np.ndarray:
    """Number of rows of each shard (`rank + world_size * worker`) of :func:`block_order`, int64."""
    starts, stops = _blocks_of(sizes, block_size)
    lengths = np.random.default_rng([seed % 2**64, epoch]).permutation(stops - starts) if shuffle else stops - starts
    return np.bincount(np.arange(lengths.size) % n_shards, lengths, minlength=n_shards).astype(np.int64)


def block_order(
    n: int | Sequence[int],
    *,
    block_size: int = 64,
    pool_blocks: int = 64,
    seed: int = 0,
    epoch: int = 0,
    rank: int = 0,
    world_size: int = 1,
    worker: int = 0,
    n_workers: int = 1,
    shuffle: bool = True,
) -> Iterator[Pool]:
    """Deal blocks of contiguous rows in seeded order, rows shuffled inside pools of blocks, each row to one reader.

    The shares of the ranks and their workers differ by at most one block.

    Parameters
    ----------
    n
        Number of rows, or numbers of rows of several files whose rows are counted through.
    block_size, pool_blocks
        Rows that are read together; blocks whose rows are mixed with each other.
    seed, epoch
        The same pair gives the same order.
    rank, world_size
        Which of how many processes this is.
    worker, n_workers
        Which of how many readers of the process this is.
    shuffle
        False keeps blocks and rows in the order of the file.

    Yields
    ------
    Pools; memory grows with `n / block_size`.

    Raises
    ------
    ValueError
        When a number is out of its range.
    """
    sizes = [n] if isinstance(n, int | np.integer) else list(n)
    places = (("rank", rank, "world_size", world_size), ("worker", worker, "n_workers", n_workers))
    _check_order(block_size, pool_blocks, places)
    starts, stops = _blocks_of(sizes, block_size)
    shard, n_shards = rank + world_size * worker, world_size * n_workers
    blocks = (
        np.random.default_rng([seed % 2**64, epoch]).permutation(starts.size) if shuffle else np.arange(starts.size)
    )
    blocks = blocks[shard::n_shards]
    inner = np.random.default_rng([seed % 2**64, epoch, shard, n_shards])
    return _pools(starts, stops, blocks, pool_blocks, inner if shuffle else None)


def _pools(
    starts: np.ndarray, stops: np.ndarray, blocks: np.ndarray, pool_blocks: int, rng: np.random.Generator | None
) -> Iterator[Pool]:
    for first in range(0, blocks.size, pool_blocks):
        pool = np.sort(blocks[first : first + pool_blocks])
        n_rows = int((stops[pool] - starts[pool]).sum())
        yield Pool(starts[pool], stops[pool], np.arange(n_rows) if rng is None else rng.permutation(n_rows))
