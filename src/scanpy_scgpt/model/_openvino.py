"""Engine of OpenVINO: the same weights as one graph for cells of any length, on CPU."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from scanpy_scgpt._optional import require
from scanpy_scgpt.data import DigitBatch, collate_digits
from scanpy_scgpt.module import CellEncoder
from scanpy_scgpt.tokenizer import Tokens

from ._engines import Marks

_CHECKED = (1, 40), (2, 3), (1, 100)  # cells and tokens of the comparison with PyTorch


class _Unpadded(nn.Module):
    """The encoder as a function of two arrays (batch, length), for tracing."""

    def __init__(self, encoder: CellEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, gene_ids: Tensor, digits: Tensor) -> Tensor:
        return self.encoder.trace(gene_ids, digits)


class OpenVinoEngine:
    """The network compiled by OpenVINO; cells of the same length share a call, so nothing is padded.

    Parameters
    ----------
    encoder
        Prepared in float32, on CPU; it also does empty cells.
    marks
        Special tokens.
    precision
        `"fp32"` or `"bf16"`.
    n_threads
        Number of batches at the same time, a thread each.

    Raises
    ------
    ImportError
        When `openvino` is not installed.
    RuntimeError
        When its vectors are not those of PyTorch.
    """

    collate_ahead = False
    max_padding = 1.0

    def __init__(self, encoder: CellEncoder, marks: Marks, *, precision: str, n_threads: int = 1) -> None:
        openvino = require("openvino", extra="openvino", needed_for="backend='openvino'")
        self.encoder, self.marks, self.n_threads = encoder, marks, n_threads
        any_shape = openvino.PartialShape([-1, -1])
        example = torch.full((2, 3), marks.cls_id, dtype=torch.int32), torch.zeros(2, 3, dtype=torch.int32)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # about the tracer
            graph = openvino.convert_model(_Unpadded(encoder), example_input=example, input=[any_shape, any_shape])
        settings = {
            "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
            "INFERENCE_NUM_THREADS": n_threads,
            "NUM_STREAMS": n_threads,
        }
        self._compiled = openvino.Core().compile_model(graph, "CPU", settings)
        self._of_thread = threading.local()  # a request serves one thread
        self._check(near=1e-4 if precision == "fp32" else 0.1)

    def _check(self, *, near: float) -> None:
        """Compare a few made-up cells with PyTorch: a fault of a release of OpenVINO must not reach the result."""
        rng = np.random.default_rng(0)
        n_tokens = self.encoder.gene_table.shape[0]
        for shape in _CHECKED:
            gene_ids = rng.integers(0, n_tokens, size=shape, dtype=np.int32)
            digits = rng.integers(0, self.marks.cls_digit, size=shape, dtype=np.int32)
            expected = self.encoder(torch.from_numpy(gene_ids), torch.from_numpy(digits), None).numpy()
            off = np.abs(self._infer(gene_ids, digits) - expected).max() / np.abs(expected).max()
            if not off <= near:
                msg = (
                    f"OpenVINO gives other vectors than PyTorch: off by {off:.1e} of the largest number for {shape[0]} "
                    f"cells of {shape[1]} tokens. Use backend='torch', or another release of openvino."
                )
                raise RuntimeError(msg)

    def _infer(self, gene_ids: np.ndarray, digits: np.ndarray) -> np.ndarray:
        """Vectors of cells of the same length, at least 2."""
        if not hasattr(self._of_thread, "request"):
            self._of_thread.request = self._compiled.create_infer_request()
        return self._of_thread.request.infer([gene_ids, digits])[0].copy()

    def collate(self, tokens: Tokens, cells: np.ndarray) -> list[tuple[np.ndarray, DigitBatch]]:
        """Cells of the same length together: positions in the batch, and their arrays."""
        lengths = tokens.lengths[cells]
        groups = [np.flatnonzero(lengths == length) for length in np.unique(lengths)]
        return [(group, collate_digits(tokens, cells[group], **self.marks._asdict())) for group in groups]

    def start(self, batch: list[tuple[np.ndarray, DigitBatch]]) -> Callable[[], np.ndarray]:
        """Vectors of a batch, computed at once; see :class:`Engine`."""
        parts = [self._of_group(x) for _, x in batch]
        vectors = np.empty((sum(map(len, parts)), parts[0].shape[1]), dtype=np.float32)
        for (group, _), part in zip(batch, parts, strict=True):
            vectors[group] = part
        return lambda: vectors

    def _of_group(self, batch: DigitBatch) -> np.ndarray:
        """Vectors of cells of the same length. A first call with length 1 would spoil all later ones in OpenVINO."""
        if batch.gene_ids.shape[1] == 1:
            return self.encoder(*batch).numpy()
        return self._infer(batch.gene_ids.numpy(), batch.digits.numpy())

    def release(self) -> None:
        """Nothing is kept."""
