"""Engines of PyTorch: batches of cells to vectors on one device."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from scanpy_scgpt.data import collate_digits, pack_digits
from scanpy_scgpt.module import CellEncoder
from scanpy_scgpt.nn import has_packed_kernel
from scanpy_scgpt.tokenizer import Tokens


class Marks(NamedTuple):
    """Ids of the special tokens and the digit of `<cls>`."""

    pad_id: int
    cls_id: int
    cls_digit: int


class Engine(Protocol):
    """What turns a batch of cells into vectors."""

    collate_ahead: bool
    """Whether batches should be put together in a thread of their own while the device works."""
    n_threads: int
    """Number of batches that it works on at the same time."""
    max_padding: float
    """Largest share of a batch that may be padding."""

    def collate(self, tokens: Tokens, cells: np.ndarray) -> Any:
        """Put a batch together."""

    def start(self, batch: Any) -> Callable[[], np.ndarray]:
        """Begin with a batch; the call that is returned waits for its vectors, `(n_cells, d_model)` float32."""

    def release(self) -> None:
        """Give memory back after a batch that did not fit."""


def is_packed(device: torch.device, dtype: torch.dtype, encoder: CellEncoder) -> bool:
    """Whether batches on this device are packed: always on CPU, elsewhere where there is a kernel for it."""
    config = encoder.transformer.config
    return device.type == "cpu" or has_packed_kernel(device, dtype, config.d_model // config.n_heads)


class TorchEngine:
    """The network on one device.

    Parameters
    ----------
    encoder
        Prepared, on the device.
    device
        Where it is.
    marks
        Special tokens.
    packed
        Cells one after another without padding, or padded to a rectangle.
    n_threads
        Number of batches at the same time.
    """

    def __init__(
        self, encoder: CellEncoder, device: torch.device, marks: Marks, *, packed: bool, n_threads: int = 1
    ) -> None:
        self.encoder, self.device, self.marks = encoder, device, marks
        self.packed, self.n_threads = packed, n_threads
        self.collate_ahead = device.type == "cuda"
        self.max_padding = 1.0 if packed else 0.1

    def _current(self) -> AbstractContextManager[Any]:
        """Makes a GPU the current one of the thread: what is pinned or recorded there belongs to it, not to GPU 0."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()

    def collate(self, tokens: Tokens, cells: np.ndarray) -> tuple[Any, ...]:
        """Batch on the host, in pinned memory where a GPU takes it from there."""
        marks = self.marks
        if self.packed:
            batch = pack_digits(tokens, cells, cls_id=marks.cls_id, cls_digit=marks.cls_digit)
        else:
            batch = collate_digits(tokens, cells, **marks._asdict())
        with self._current():
            return tuple(self._pinned(x) if isinstance(x, Tensor) else x for x in batch)

    def _pinned(self, x: Tensor) -> Tensor:
        return x.pin_memory() if self.device.type == "cuda" else x

    def start(self, batch: tuple[Any, ...]) -> Callable[[], np.ndarray]:
        """Begin with a batch; see :class:`Engine`."""
        with self._current():
            return self._start(batch)

    def _start(self, batch: tuple[Any, ...]) -> Callable[[], np.ndarray]:
        moved = (x.to(self.device, non_blocking=True) if isinstance(x, Tensor) else x for x in batch)
        vectors = self.encoder.packed(*moved) if self.packed else self.encoder(*moved)
        if self.device.type != "cuda":
            return lambda: vectors.cpu().numpy()
        host = torch.empty(vectors.shape, dtype=vectors.dtype, pin_memory=True)
        host.copy_(vectors, non_blocking=True)
        done = torch.cuda.Event()
        done.record(torch.cuda.current_stream(self.device))

        def wait() -> np.ndarray:
            done.synchronize()
            return host.numpy()

        return wait

    def release(self) -> None:
        """Give cached memory of the device back."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
