"""Batches handed out to engines; a batch that does not fit into memory is halved and done again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from scanpy_scgpt._logging import get_logger
from scanpy_scgpt.data import batches_by_length
from scanpy_scgpt.tokenizer import Tokens

from ._engines import Engine

logger = get_logger(__name__)
_OF_NEW_THREADS = threading.Lock()  # PyTorch keeps one number of threads that every new thread takes over
_NO_MEMORY = "DefaultCPUAllocator: can't allocate memory", "CUDA error: out of memory"  # the second: pinned memory


@dataclass
class Budget:
    """Most tokens of a batch; smaller once a batch did not fit."""

    max_tokens: int
    warned: bool = False


class BatchQueue:
    """Batches of the cells of one block, for any number of threads.

    Parameters
    ----------
    lengths
        Number of genes of each cell, shape `(n_cells,)`.
    budget
        Most tokens of a batch; shared by all blocks of a run.
    max_padding
        Largest share of a batch that may be padding.
    """

    def __init__(self, lengths: np.ndarray, budget: Budget, *, max_padding: float) -> None:
        self.lengths, self.budget = lengths, budget
        self._rest = batches_by_length(lengths, max_tokens=budget.max_tokens, max_padding=max_padding)
        self._again: list[np.ndarray] = []
        self._lock = threading.Lock()
        self._closed = False

    def size(self, cells: np.ndarray) -> int:
        """Tokens of a batch with padding and `<cls>`."""
        return len(cells) * (int(self.lengths[cells].max()) + 1)

    def pop(self) -> np.ndarray | None:
        """Positions of the next batch within the budget, or None when nothing is left."""
        with self._lock:
            cells = None if self._closed else (self._again.pop() if self._again else next(self._rest, None))
            while cells is not None and len(cells) > 1 and self.size(cells) > self.budget.max_tokens:
                half = len(cells) // 2
                self._again.append(cells[half:])
                cells = cells[:half]
            return cells

    def too_large(self, cells: np.ndarray, error: Exception) -> None:
        """Take a batch back that did not fit, and halve the budget.

        Raises
        ------
        MemoryError
            When it is a single cell.
        """
        with self._lock:
            size = self.size(cells)
            if len(cells) == 1:
                msg = (
                    f"A single cell of {size:,} tokens does not fit into memory ({str(error).splitlines()[0]}). "
                    f"Shorten it: max_length={max(size // 2, 1)}, or use another device."
                )
                raise MemoryError(msg) from error
            self.budget.max_tokens = max(min(self.budget.max_tokens, size // 2), 1)
            half = len(cells) // 2
            self._again += [cells[half:], cells[:half]]
            if not self.budget.warned:
                self.budget.warned = True
                logger.warning(
                    "A batch of %s tokens does not fit into memory: going on with at most %s. "
                    "Start with that next time: max_tokens=%s",
                    f"{size:,}",
                    f"{self.budget.max_tokens:,}",
                    self.budget.max_tokens,
                )

    def close(self) -> None:
        """Hand out nothing more."""
        self._closed = True


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error of PyTorch or Python says that memory is short."""
    known = (torch.cuda.OutOfMemoryError, MemoryError)  # the name of torch.OutOfMemoryError in all releases
    return isinstance(error, known) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in _NO_MEMORY)
    )


def run(engines: Sequence[Engine], tokens: Tokens, budget: Budget, out: np.ndarray) -> None:
    """Vectors of all cells into `out` `(n_cells, d_model)`; a thread for each batch that is worked on."""
    queue = BatchQueue(tokens.lengths, budget, max_padding=min(engine.max_padding for engine in engines))
    threads = [engine for engine in engines for _ in range(engine.n_threads)]
    if len(threads) == 1:
        _drain(threads[0], tokens, queue, out)
        return
    with ThreadPoolExecutor(len(threads)) as pool:
        for done in each_alone(pool, [partial(_drain, engine, tokens, queue, out) for engine in threads]):
            done.result()


def each_alone(pool: ThreadPoolExecutor, tasks: Sequence[Callable[[], None]]) -> list[Future[None]]:
    """Start tasks in new threads in which PyTorch uses one thread: threads that share a batch wait for each other.

    The number is of the thread, but to set it changes what new threads take over too: it is put right again before
    the lock is given back, and calls that overlap leave it as it was.
    """
    begun = threading.Barrier(len(tasks) + 1)

    def alone(task: Callable[[], None]) -> None:
        torch.get_num_threads()  # PyTorch asks for the number to take over once; not after it was set
        torch.set_num_threads(1)
        begun.wait()
        task()

    with _OF_NEW_THREADS:
        n_threads = torch.get_num_threads()
        try:
            started = [pool.submit(alone, task) for task in tasks]
            begun.wait()
        except BaseException:
            begun.abort()
            raise
        finally:
            torch.set_num_threads(n_threads)
    return started


def _drain(engine: Engine, tokens: Tokens, queue: BatchQueue, out: np.ndarray) -> None:
    """Work on batches until none is left. One batch may be under way on the device while the next is started."""
    under_way = []
    try:
        for cells, batch in _collated(engine, tokens, queue):
            vectors = _attempt(engine, queue, cells, partial(engine.start, batch))
            if vectors is not None:
                under_way.append((cells, vectors))
            if len(under_way) > engine.collate_ahead:
                done, vectors = under_way.pop(0)
                out[done] = vectors()
        for done, vectors in under_way:
            out[done] = vectors()
    except BaseException:
        queue.close()
        raise


def _attempt(engine: Engine, queue: BatchQueue, cells: np.ndarray, step: Callable[[], Any]) -> Any:
    """Result of a step with a batch; None when the batch did not fit and lies in the queue again."""
    try:
        return step()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        queue.too_large(cells, error)
    engine.release()  # only now: the error held what the step had allocated
    return None


def _collated(engine: Engine, tokens: Tokens, queue: BatchQueue) -> Iterator[tuple[np.ndarray, object]]:
    """Batches put together, one ahead when the engine wants that."""

    def following() -> tuple[np.ndarray, object] | None:
        while (cells := queue.pop()) is not None:
            batch = _attempt(engine, queue, cells, partial(engine.collate, tokens, cells))
            if batch is not None:
                return cells, batch
        return None

    if not engine.collate_ahead:
        while (item := following()) is not None:
            yield item
        return
    with ThreadPoolExecutor(1) as ahead:
        waiting = ahead.submit(following)
        # A batch may have come back after the thread found nothing left, hence the second question.
        while (item := waiting.result() or following()) is not None:
            waiting = ahead.submit(following)
            yield item


def ahead(blocks: Iterable[Tokens]) -> Iterator[Tokens]:
    """The same blocks, each made in a thread while the one before is worked on."""
    rest = iter(blocks)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(next, rest, None)
        while (block := waiting.result()) is not None:
            waiting = pool.submit(next, rest, None)
            yield block
