"""The one forward-only loop: counts or tokens to numpy, cell by cell in the order of the input."""

from __future__ import annotations

import copy
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from scanpy_scgpt._logging import get_logger
from scanpy_scgpt._optional import is_installed
from scanpy_scgpt._progress import track
from scanpy_scgpt._types import Pooling
from scanpy_scgpt._validate import check_one_of
from scanpy_scgpt.io import Checkpoint, LoadReport, load_component
from scanpy_scgpt.module import CellEncoder
from scanpy_scgpt.tokenizer import Tokens

from ._devices import PRECISIONS, choose_devices, choose_precision
from ._engines import Engine, Marks, TorchEngine, is_packed
from ._openvino import OpenVinoEngine
from ._workers import Budget, ahead, run

logger = get_logger(__name__)

_TOKENS_ON_CPU, _TOKENS_ON_GPU = 4096, 2**18
_OPENVINO_PAYS = 2048  # cells per thread from which on its few seconds of compiling are won back
_BACKENDS = ("auto", "torch", "openvino")
_NOT_FOR_EMBEDDING = frozenset({"encoder.unknown"})  # absent from checkpoints without generative training


@dataclass
class Embedder:
    """A checkpoint ready to embed cells.

    A batch that does not fit into memory is halved and done again, and later batches are smaller; the result is the
    same to rounding.

    Parameters
    ----------
    checkpoint
        The pretrained model.
    device
        `"auto"`, `"cpu"`, `"cuda"` (every GPU), `"cuda:1"`, `"mps"`, ..., or a list of devices that share the cells.
    max_tokens
        Most tokens of a batch; by default what suits the device.
    pooling
        How token vectors become a cell vector.
    precision
        `"fp32"` (exact to rounding), `"bf16"` (faster, cosine above 0.999), or `"auto"`: `"bf16"` on GPUs that have it,
        else `"fp32"`. Norms, softmax and pooling accumulate in float32 in any case.
    backend
        `"torch"`, `"openvino"` (CPU only; package `openvino`), or `"auto"`: OpenVINO where it was measured to be faster
        (1.05 to 1.3 times) and to win back the seconds in which it compiles: when at least 2,048 cells per thread are
        to come (:meth:`expect`, :meth:`embed_blocks`), on an x86 CPU with the package installed; PyTorch else.

    Raises
    ------
    ValueError
        When there is no such device, precision or backend, or OpenVINO is asked for on another device than the CPU.
    ImportError
        When OpenVINO is asked for and not installed.
    CheckpointMismatchError
        When weights are missing.
    """

    checkpoint: Checkpoint
    device: str | Sequence[str] = "auto"
    max_tokens: int | None = None
    pooling: Pooling = "cls"
    precision: str = "auto"
    backend: str = "auto"
    report: LoadReport = field(init=False)

    def __post_init__(self) -> None:
        check_one_of(self.backend, _BACKENDS, name="backend")
        by_openvino = self.backend == "openvino"
        self.torch_devices = choose_devices("cpu" if by_openvino and self.device == "auto" else self.device)
        self.torch_device = self.torch_devices[0]
        self.on_cpu = all(device.type == "cpu" for device in self.torch_devices)
        if by_openvino and not self.on_cpu:
            msg = f"backend='openvino' needs the CPU, not device={self.device!r}: use device='cpu' or backend='torch'."
            raise ValueError(msg)
        self.precision = choose_precision(self.precision, self.torch_devices)
        if self.max_tokens is None:
            self.max_tokens = _TOKENS_ON_CPU if self.torch_device.type == "cpu" else _TOKENS_ON_GPU
        if not isinstance(self.max_tokens, int | np.integer) or self.max_tokens < 1:
            msg = f"max_tokens={self.max_tokens!r}: a whole number of at least 1; leave it out for the default."
            raise ValueError(msg)
        self._budget = Budget(self.max_tokens)
        tokenizer, vocab = self.checkpoint.tokenizer, self.checkpoint.vocab
        self._marks = Marks(vocab.pad_id, vocab.cls_id, tokenizer.n_bins)
        self.encoder = self._load()
        self.engines = [self._openvino()] if by_openvino else self._torch()

    def _load(self) -> CellEncoder:
        """The network with the weights of the checkpoint, float32 on CPU."""
        tokenizer = self.checkpoint.tokenizer
        with torch.random.fork_rng(devices=[]):  # initial weights draw; all of them are overwritten
            encoder = CellEncoder(
                self.checkpoint.transformer,
                n_bins=tokenizer.n_bins,
                cls_value=tokenizer.cls_value,
                pooling=self.pooling,
            )
        self.report = load_component(encoder.transformer, self.checkpoint, "transformer", optional=_NOT_FOR_EMBEDDING)
        return encoder.prepare()

    def _torch(self) -> list[Engine]:
        """An engine for each device, each with its own copy of the network."""
        dtype = PRECISIONS[self.precision]
        self.encoder.prepare(dtype)
        engines: list[Engine] = []
        for device in self.torch_devices:
            first = device == self.torch_device and not engines
            encoder = (self.encoder if first else copy.deepcopy(self.encoder)).to(device)
            threads = torch.get_num_threads() if device.type == "cpu" and len(self.torch_devices) == 1 else 1
            packed = is_packed(device, dtype, encoder)
            engines.append(TorchEngine(encoder, device, self._marks, packed=packed, n_threads=threads))
        return engines

    def _openvino(self) -> Engine:
        in_fp32 = self.encoder if self.backend == "openvino" else self._load()
        return OpenVinoEngine(in_fp32, self._marks, precision=self.precision, n_threads=torch.get_num_threads())

    def _openvino_pays(self, n_obs: int) -> bool:
        return (
            self.backend == "auto"
            and len(self.torch_devices) == 1
            and self.on_cpu
            and platform.machine().lower() in ("x86_64", "amd64")
            and n_obs >= _OPENVINO_PAYS * torch.get_num_threads()
            and is_installed("openvino")
        )

    def expect(self, n_obs: int) -> None:
        """Take OpenVINO from here on where that was left open and pays for so many cells; PyTorch when it fails."""
        if not self._openvino_pays(n_obs) or not isinstance(self.engines[0], TorchEngine):
            return
        try:
            self.engines = [self._openvino()]
        except RuntimeError as error:  # of its compiler, or of the comparison
            logger.warning("Going on with PyTorch: %s", str(error).splitlines()[0])
            self.backend = "torch"

    @property
    def takes_all(self) -> bool:
        """True when one call of :meth:`embed_tokens` keeps the devices busy: more at a time only take memory."""
        return not self.on_cpu or sum(engine.n_threads for engine in self.engines) > 1

    @property
    def n_latent(self) -> int:
        """Length of a cell vector."""
        return self.checkpoint.transformer.d_model

    def embed_tokens(self, tokens: Tokens) -> np.ndarray:
        """Vectors of the cells, shape `(n_cells, n_latent)`, float32, not scaled.

        Raises
        ------
        MemoryError
            When a single cell does not fit into memory.
        """
        out = np.empty((len(tokens), self.n_latent), dtype=np.float32)
        run(self.engines, tokens, self._budget, out)
        return out

    def embed_blocks(self, blocks: Iterable[Tokens], *, n_obs: int, normalize: bool = True) -> np.ndarray:
        """Vectors of blocks of cells, in order.

        Parameters
        ----------
        blocks
            Tokens of consecutive cells; made one block ahead in a thread when the cells are encoded on a GPU.
        n_obs
            Number of all cells.
        normalize
            Scale each vector to length 1.

        Returns
        -------
        Array of shape `(n_obs, n_latent)`, float32.

        Raises
        ------
        MemoryError
            When a single cell does not fit into memory.
        """
        self.expect(n_obs)
        out = np.empty((n_obs, self.n_latent), dtype=np.float32)
        start = 0
        with track("embed", total=n_obs) as advance:
            for tokens in blocks if self.on_cpu else ahead(blocks):
                out[start : start + len(tokens)] = self.embed_tokens(tokens)
                start += len(tokens)
                advance(len(tokens))
        if normalize:
            out /= np.maximum(np.linalg.norm(out, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        return out

    @torch.no_grad()
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
        known = torch.as_tensor(np.maximum(ids, 0), dtype=torch.int64)
        genes = self.encoder.transformer.encoder.genes  # in float32 whatever the precision of the layers
        vectors = genes(known.to(genes.embedding.weight.device)).cpu().numpy()
        vectors[np.asarray(ids) < 0] = np.nan
        return vectors

    def record(self) -> dict[str, Any]:
        """How vectors are made, as kept in `.uns`."""
        return {
            "pooling": self.pooling,
            "device": ",".join(map(str, self.torch_devices)),
            "precision": self.precision,
            "backend": "torch" if isinstance(self.engines[0], TorchEngine) else "openvino",
            "ignored_tensors": sorted(self.report.ignored),
        }
