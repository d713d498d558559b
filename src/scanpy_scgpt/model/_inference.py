"""The one forward-only loop: counts or tokens to numpy, cell by cell in the order of the input."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from scanpy_scgpt._progress import track
from scanpy_scgpt._types import Pooling
from scanpy_scgpt.data import batches_by_length, collate_digits
from scanpy_scgpt.io import Checkpoint, LoadReport, load_component
from scanpy_scgpt.module import CellEncoder
from scanpy_scgpt.tokenizer import Tokens

_TOKENS_ON_CPU, _TOKENS_ON_GPU = 4096, 2**18
_NOT_FOR_EMBEDDING = frozenset({"encoder.unknown"})  # absent from checkpoints without generative training


def choose_device(device: str = "auto") -> torch.device:
    """Device by name; `"auto"` takes CUDA, then MPS, then CPU.

    Parameters
    ----------
    device
        `"auto"`, or the name of a torch device.

    Returns
    -------
    The device.

    Raises
    ------
    ValueError
        When the device is not there.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        msg = f"device={device!r} is not available ({str(error).splitlines()[0]}). Use device='auto' or device='cpu'."
        raise ValueError(msg) from error
    return torch.device(device)


def _side_by_side(encode: Callable[[np.ndarray], None], batches: Iterable[np.ndarray]) -> None:
    """Encode batches on all threads of torch, a batch a thread: they never wait for each other inside a batch.

    (Threads that share one batch meet at every operation; on a machine with other work that costs up to ten times.)
    """
    n_threads = torch.get_num_threads()
    if n_threads == 1:
        for cells in batches:
            encode(cells)
        return
    torch.set_num_threads(1)  # what the new threads take over
    try:
        with ThreadPoolExecutor(n_threads) as pool:
            for _ in pool.map(encode, batches):
                pass
    finally:
        torch.set_num_threads(n_threads)


@dataclass
class Embedder:
    """A checkpoint ready to embed cells.

    Parameters
    ----------
    checkpoint
        The pretrained model.
    device
        `"auto"`, `"cpu"`, `"cuda"`, `"mps"`, ...
    max_tokens
        Most tokens of a batch; by default what suits the device.
    pooling
        How token vectors become a cell vector.
    """

    checkpoint: Checkpoint
    device: str = "auto"
    max_tokens: int | None = None
    pooling: Pooling = "cls"
    report: LoadReport = field(init=False)

    def __post_init__(self) -> None:
        self.torch_device = choose_device(self.device)
        on_cpu = self.torch_device.type == "cpu"
        if self.max_tokens is None:
            self.max_tokens = _TOKENS_ON_CPU if on_cpu else _TOKENS_ON_GPU
        if self.max_tokens < 1:
            msg = f"max_tokens={self.max_tokens}: at least 1; leave it out for what suits the device."
            raise ValueError(msg)
        tokenizer = self.checkpoint.tokenizer
        with torch.random.fork_rng(devices=[]):  # initial weights draw; all of them are overwritten
            self.encoder = CellEncoder(
                self.checkpoint.transformer,
                n_bins=tokenizer.n_bins,
                cls_value=tokenizer.cls_value,
                pooling=self.pooling,
            )
        self.report = load_component(
            self.encoder.transformer, self.checkpoint, "transformer", optional=_NOT_FOR_EMBEDDING
        )
        self.encoder = self.encoder.prepare().to(self.torch_device)

    @property
    def n_latent(self) -> int:
        """Length of a cell vector."""
        return self.checkpoint.transformer.d_model

    def embed_tokens(self, tokens: Tokens) -> np.ndarray:
        """Vectors of the cells, shape `(n_cells, n_latent)`, float32, not scaled."""
        out = np.empty((len(tokens), self.n_latent), dtype=np.float32)

        def encode(cells: np.ndarray) -> None:
            out[cells] = self._encode(tokens, cells)

        batches = batches_by_length(tokens.lengths, max_tokens=self.max_tokens)
        if self.torch_device.type == "cpu":
            _side_by_side(encode, batches)
        else:
            for cells in batches:
                encode(cells)
        return out

    def _encode(self, tokens: Tokens, cells: np.ndarray) -> np.ndarray:
        """Vectors of one batch, shape `(len(cells), n_latent)`."""
        batch = collate_digits(
            tokens,
            cells,
            pad_id=self.checkpoint.vocab.pad_id,
            cls_id=self.checkpoint.vocab.cls_id,
            cls_digit=self.checkpoint.tokenizer.n_bins,
        )
        moved = (None if x is None else x.to(self.torch_device) for x in batch)
        return self.encoder(*moved).float().cpu().numpy()

    def embed_blocks(self, blocks: Iterable[Tokens], *, n_obs: int, normalize: bool = True) -> np.ndarray:
        """Vectors of blocks of cells, in order.

        Parameters
        ----------
        blocks
            Tokens of consecutive cells.
        n_obs
            Number of all cells.
        normalize
            Scale each vector to length 1.

        Returns
        -------
        Array of shape `(n_obs, n_latent)`, float32.
        """
        out = np.empty((n_obs, self.n_latent), dtype=np.float32)
        start = 0
        with track("embed", total=n_obs) as advance:
            for tokens in blocks:
                out[start : start + len(tokens)] = self.embed_tokens(tokens)
                start += len(tokens)
                advance(len(tokens))
        if normalize:
            out /= np.maximum(np.linalg.norm(out, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        return out

    def gene_vectors(self, ids: np.ndarray) -> np.ndarray:
        """Vectors of tokens (after the layer norm of the gene table).

        Parameters
        ----------
        ids
            Vocabulary ids, shape `(n,)`; -1 for a gene without one.

        Returns
        -------
        Array of shape `(n, n_latent)`, float32; NaN where there is no id.
        """
        vectors = self.encoder.gene_table.float().cpu().numpy()[ids]
        vectors[np.asarray(ids) < 0] = np.nan
        return vectors

    def record(self) -> dict[str, Any]:
        """How vectors are made, as kept in `.uns`."""
        return {
            "pooling": self.pooling,
            "device": str(self.torch_device),
            "precision": "fp32",
            "ignored_tensors": sorted(self.report.ignored),
        }
