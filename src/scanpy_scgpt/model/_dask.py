"""Embedding on the workers of a dask cluster: a block of rows a task, vectors back in order."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from scanpy_scgpt._counts import CountSource
from scanpy_scgpt._progress import track
from scanpy_scgpt.io import Checkpoint
from scanpy_scgpt.tokenizer import Tokenizer, TokenizerConfig

from ._cells import CellTokens
from ._inference import Embedder

_READY: dict[str, Embedder] = {}  # of a worker process: the model of the last job
_READY_LOCK = threading.Lock()
_EMBEDDING = threading.Lock()  # held by the thread of a worker whose batches take all cores, or the GPU
_SENT = 512  # rows of a matrix in memory that go to a worker at a time
_AHEAD = 4  # tasks per thread of the cluster that wait or run at a time


def active_client() -> Any:
    """The client that the session works with, None without one; dask is not imported for the question."""
    if "distributed" not in sys.modules:
        return None
    from distributed import default_client

    try:
        return default_client()
    except ValueError:
        return None


@dataclass(frozen=True)
class EmbedJob:
    """What a worker needs to turn counts into vectors.

    Attributes
    ----------
    checkpoint, config, seed
        Model, and how counts become tokens.
    gene_ids
        Vocabulary id of each column, -1 for none; shape `(n_vars,)`.
    where
        Place of the matrix, for messages.
    embedder
        Arguments of :class:`Embedder`.
    """

    checkpoint: Checkpoint
    config: TokenizerConfig
    seed: int
    gene_ids: np.ndarray
    where: str
    embedder: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The same for the same model and arguments; a worker keeps the last one ready."""
        return f"{self.checkpoint.digest} {sorted(self.embedder.items())}"

    def _ready(self) -> Embedder:
        with _READY_LOCK:
            if self.key not in _READY:
                _READY.clear()
                _READY[self.key] = Embedder(self.checkpoint, **self.embedder)
            return _READY[self.key]

    def __call__(self, counts: Any, names: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        """Vectors `(n, d_model)` float32, which cells are empty `(n,)` bool, and how many were cut."""
        source = CountSource(self.where, counts, pd.DataFrame(index=range(counts.shape[1])))
        source.check()
        tokens, whole = Tokenizer(self.checkpoint.vocab, self.config).encode_counted(
            source.rows(0, len(names)), self.gene_ids, names, seed=self.seed
        )
        embedder = self._ready()
        with _EMBEDDING if embedder.takes_all else nullcontext():  # the other threads make tokens meanwhile
            vectors = embedder.embed_tokens(tokens)
        return vectors, tokens.lengths == 0, int((tokens.lengths < whole).sum())


def _run(job: EmbedJob, counts: Any, names: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    return job(counts, names)


def embed_on_workers(
    client: Any,
    cells: CellTokens,
    arguments: Mapping[str, Any],
    *,
    normalize: bool,
) -> np.ndarray:
    """Embed all cells on the workers of a cluster.

    Parameters
    ----------
    client
        Of the cluster; its workers must have this package.
    cells
        What to embed; its `empty` and `n_cut` are filled.
    arguments
        Arguments of :class:`Embedder` on each worker; `device="auto"` is chosen there.
    normalize
        Scale each vector to length 1.

    Returns
    -------
    Array of shape `(n_obs, d_model)`, float32, in the order of the cells.
    """
    job = EmbedJob(cells.checkpoint, cells.config, cells.seed, cells.match.ids, cells.source.where, arguments)
    shared = client.scatter(job, broadcast=True, hash=False)
    out = np.empty((cells.source.n_obs, cells.checkpoint.transformer.d_model), dtype=np.float32)
    n_ahead = _AHEAD * max(sum(client.nthreads().values()), 1)
    with track("embed", total=len(out)) as advance:
        for start, stop, (vectors, empty, n_cut) in _results(client, shared, cells, n_ahead):
            out[start:stop], cells.empty[start:stop] = vectors, empty
            cells.n_cut += n_cut
            advance(stop - start)
    if normalize:
        out /= np.maximum(np.linalg.norm(out, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return out


def _results(client: Any, job: Any, cells: CellTokens, n_ahead: int) -> Iterator[tuple[int, int, tuple]]:
    """Bounds and results of the blocks as they come; at most `n_ahead` blocks are under way."""
    from distributed import as_completed

    blocks = cells.row_blocks(_SENT)
    place: dict[Any, tuple[int, int]] = {}
    pending = as_completed(with_results=True)

    def submit() -> None:
        for start, stop in blocks:
            part = cells.source.matrix[start:stop]  # inside the task: another worker can do it when one dies
            counts = client.compute(part) if hasattr(part, "dask") else _light(part)
            future = client.submit(_run, job, counts, cells.names[start:stop], pure=False)
            place[future] = start, stop
            pending.add(future)
            return

    for _ in range(n_ahead):
        submit()
    for future, result in pending:
        yield (*place.pop(future), result)
        submit()


def _light(part: Any) -> Any:
    """Rows of a dense matrix as CSR: fewer bytes to send."""
    return sparse.csr_matrix(part) if isinstance(part, np.ndarray) else part
