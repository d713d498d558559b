"""The order of blocks: every row once, dealt evenly, the same again with the same seed."""

from __future__ import annotations

import re

import numpy as np
import pytest

from scanpy_scgpt.disk import block_order, shard_sizes


def rows_of(pools) -> np.ndarray:
    found = [np.zeros(0, np.int64)]
    for pool in pools:
        rows = np.concatenate([np.arange(a, b) for a, b in zip(pool.starts, pool.stops, strict=True)])
        found.append(rows[pool.order])
    return np.concatenate(found)


@pytest.mark.parametrize("seed", range(25))
def test_each_row_comes_once_over_all_ranks_and_workers(seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(0, 400, size=rng.integers(1, 5)).tolist()
    block_size, pool_blocks = int(rng.integers(1, 70)), int(rng.integers(1, 9))
    world_size, n_workers = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    options = {"block_size": block_size, "seed": seed, "epoch": 1, "shuffle": bool(seed % 4)}
    shares = [
        rows_of(
            block_order(
                sizes, rank=r, world_size=world_size, worker=w, n_workers=n_workers, pool_blocks=pool_blocks, **options
            )
        )
        for w in range(n_workers)
        for r in range(world_size)
    ]
    np.testing.assert_array_equal(np.sort(np.concatenate(shares)), np.arange(sum(sizes)))
    np.testing.assert_array_equal(shard_sizes(sizes, n_shards=len(shares), **options), [len(x) for x in shares])
    ends = np.cumsum(sizes)
    for pool in block_order(sizes, pool_blocks=pool_blocks, **options):
        assert len(pool.starts) <= pool_blocks
        assert (pool.stops - pool.starts <= block_size).all()
        files = np.searchsorted(ends, pool.starts, side="right")
        np.testing.assert_array_equal(files, np.searchsorted(ends, pool.stops - 1, side="right"))


def test_shares_differ_by_one_block_at_most():
    shares = [len(rows_of(block_order(1000, block_size=10, rank=r, world_size=7))) for r in range(7)]
    assert max(shares) - min(shares) <= 10


def test_the_ranks_share_does_not_depend_on_its_workers():
    alone = rows_of(block_order(777, rank=1, world_size=2))
    parts = [rows_of(block_order(777, rank=1, world_size=2, worker=w, n_workers=3)) for w in range(3)]
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.sort(alone))


def test_same_seed_same_order():
    first, again = rows_of(block_order(5000, seed=3)), rows_of(block_order(5000, seed=3))
    np.testing.assert_array_equal(first, again)
    for other in (block_order(5000, seed=4), block_order(5000, seed=3, epoch=1)):
        assert (rows_of(other) != first).mean() > 0.9
    np.testing.assert_array_equal(rows_of(block_order(5000, shuffle=False)), np.arange(5000))


def test_the_cells_of_a_batch_come_from_many_blocks():
    first = next(block_order(100_000, block_size=64, pool_blocks=64))
    rows = np.concatenate([np.arange(a, b) for a, b in zip(first.starts, first.stops, strict=True)])
    batch = rows[first.order[:64]]
    assert len(np.unique(batch // 64)) > 30


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"block_size": 0}, "block_size=0: use 1 or more (64 is a good start)."),
        ({"pool_blocks": 0}, "pool_blocks=0: use 1 or more (64 is a good start)."),
        ({"rank": 2, "world_size": 2}, "rank=2 of world_size=2: rank counts from 0 to world_size - 1."),
        ({"worker": -1}, "worker=-1 of n_workers=1: worker counts from 0 to n_workers - 1."),
    ],
)
def test_numbers_out_of_range(options, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        block_order(10, **options)
