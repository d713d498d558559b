"""Shuffled batches of rows of a matrix on disk."""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
from scipy import sparse

from scanpy_scgpt._counts import CountSource

from ._blocks import Pool, block_order
from ._kernels import place_rows
from ._matrix import DiskMatrix, largest, rows_of

T = TypeVar("T")
_SLACK = 9 / 8  # pools differ in size; a little more room than the first one needs saves a second allocation


class RowBatch(NamedTuple):
    """Rows of a batch: CSR `rows` of shape `(batch, n_vars)`, and `cells` (batch,) int64, their numbers."""

    rows: sparse.csr_matrix
    cells: np.ndarray


def row_batches(
    matrix: DiskMatrix | CountSource,
    *,
    batch_size: int = 64,
    block_size: int = 64,
    pool_blocks: int = 64,
    seed: int = 0,
    epoch: int = 0,
    rank: int = 0,
    world_size: int = 1,
    worker: int = 0,
    n_workers: int = 1,
    shuffle: bool = True,
    ahead: bool = True,
) -> Iterator[RowBatch]:
    """Give the rows of a matrix as shuffled batches.

    Parameters
    ----------
    matrix
        The matrix, such as `open_cells(path).X`. The values of a `CountSource` are looked at: negative ones and
        NaN are refused.
    batch_size
        Rows of a batch; the last one may have fewer.
    block_size, pool_blocks, seed, epoch, rank, world_size, worker, n_workers, shuffle
        Which rows come when: see :func:`block_order`.
    ahead
        Read the next pool by a thread while the batches of one are used; two pools are then in memory.

    Yields
    ------
    Batches; the columns of each row are sorted, none comes twice.

    Raises
    ------
    ValueError
        When a number is out of its range, or the matrix lies by columns or is damaged.
    """
    if batch_size < 1:
        msg = f"batch_size={batch_size}: use 1 or more."
        raise ValueError(msg)
    pools = block_order(
        matrix.shape[0] if isinstance(matrix, DiskMatrix) else matrix.n_obs,
        block_size=block_size,
        pool_blocks=pool_blocks,
        seed=seed,
        epoch=epoch,
        rank=rank,
        world_size=world_size,
        worker=worker,
        n_workers=n_workers,
        shuffle=shuffle,
    )
    source = matrix if isinstance(matrix, CountSource) else None
    reader = _Reader(matrix if source is None else source.matrix, source, n_spaces=1 + ahead)
    return _batches(read_ahead(reader.read, pools) if ahead else map(reader.read, pools), batch_size)


def read_ahead(read: Callable[[Pool], T], pools: Iterator[Pool]) -> Generator[T]:
    """What is read of the pools, one read in advance by a thread."""
    with ThreadPoolExecutor(1, thread_name_prefix="cells") as thread:
        waiting = None
        for pool in pools:
            started = thread.submit(read, pool)
            if waiting is not None:
                yield waiting.result()
            waiting = started
        if waiting is not None:
            yield waiting.result()


class _Reader:
    """Reads pools into one or two spaces in turn: fresh memory for each would cost more than the reading."""

    def __init__(self, matrix: DiskMatrix, source: CountSource | None, *, n_spaces: int) -> None:
        self.matrix, self.source, self._turn = matrix, source, 0
        self._spaces: list[dict[str, np.ndarray]] = [{} for _ in range(n_spaces)]

    def _space(self, name: str, n: int, dtype: np.dtype) -> np.ndarray:
        held = self._spaces[self._turn]
        if name not in held or held[name].size < n:
            held[name] = np.empty(int(n * _SLACK), dtype)
        return held[name][:n]

    def read(self, pool: Pool) -> _Rows:
        """Rows of a pool; those of a pool read before into the same space are gone."""
        self._turn = (self._turn + 1) % len(self._spaces)
        found = None
        if isinstance(self.matrix, DiskMatrix):
            found = self.matrix.read_rows(pool.starts, pool.stops, self._space)
        if found is None:
            rows = (self.source or self.matrix).take_blocks(pool.starts, pool.stops)
            rows.sum_duplicates()
            ends = rows.indptr.astype(np.int64)
            found = ends[:-1], ends[1:], rows.indices, rows.data
        return _Rows(found, pool, self.matrix, self.source)


class _Rows:
    """Rows of a pool in their order, as they were read; copied and looked at when a batch needs them."""

    def __init__(
        self, found: tuple[np.ndarray, ...], pool: Pool, matrix: DiskMatrix, source: CountSource | None
    ) -> None:
        firsts, lasts, self._indices, self._data = found
        self._firsts, self._lasts = firsts[pool.order], lasts[pool.order]
        self._ends = np.concatenate([[0], np.cumsum(self._lasts - self._firsts)])
        self._cells = rows_of(pool.starts, pool.stops)[pool.order]
        self._matrix, self._source, self._top = matrix, source, largest(self._data.dtype)
        self._forms: dict[int, sparse.csr_matrix] = {}

    def __len__(self) -> int:
        return len(self._cells)

    def take(self, start: int, stop: int) -> RowBatch:
        """The rows `start:stop` of the order, as a copy."""
        indptr = self._ends[start : stop + 1] - self._ends[start]
        n, n_cols = int(indptr[-1]), self._matrix.shape[1]
        is_small = max(n, n_cols) < 2**31
        indices, data = np.empty(n, np.int32 if is_small else np.int64), np.empty(n, self._data.dtype)
        places = self._firsts[start:stop], self._lasts[start:stop]
        low, high, is_sorted, is_fine = place_rows(
            *places, self._indices, self._data, indptr[:-1], self._top, indices, data
        )
        if low < 0 or high >= n_cols:
            raise self._matrix.damaged(low, high)
        if self._source is not None and not is_fine:
            self._source.check_values(data)
        rows = self._form(stop - start)
        rows.data, rows.indices, rows.indptr = data, indices, indptr.astype(indices.dtype)
        if not is_sorted:
            rows.has_canonical_format = rows.has_sorted_indices = False
            rows.sum_duplicates()
        return RowBatch(rows, self._cells[start:stop])

    def _form(self, n_rows: int) -> sparse.csr_matrix:
        """A matrix without entries; to build it anew for each batch takes longer than to fill it."""
        if n_rows not in self._forms:
            self._forms[n_rows] = sparse.csr_matrix((n_rows, self._matrix.shape[1]), dtype=self._data.dtype)
            self._forms[n_rows].has_canonical_format = True
        return copy.copy(self._forms[n_rows])


def _batches(pools: Iterator[_Rows], size: int) -> Generator[RowBatch]:
    """Batches of `size` rows; one may begin in a pool and end in the next."""
    rest: list[RowBatch] = []
    for pool in pools:
        start = 0
        while len(pool) - start >= (missing := size - sum(len(part.cells) for part in rest)):
            yield _joined([*rest, pool.take(start, start + missing)])
            rest, start = [], start + missing
        if start < len(pool):
            rest.append(pool.take(start, len(pool)))
    if rest:
        yield _joined(rest)


def _joined(parts: list[RowBatch]) -> RowBatch:
    if len(parts) == 1:
        return parts[0]
    rows = sparse.vstack([part.rows for part in parts], format="csr")
    return RowBatch(rows, np.concatenate([part.cells for part in parts]))
