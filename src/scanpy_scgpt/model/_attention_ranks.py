"""Attention between genes as mean ranks over cells: one pass, a matrix per block of cells in memory, never per cell."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from scanpy_scgpt._validate import check_one_of
from scanpy_scgpt.io import Checkpoint
from scanpy_scgpt.nn import scores

from ._inference import Embedder
from ._rank_kernels import rank_columns, rank_rows
from ._workers import each_alone

RankTies = Literal["average", "sorted"]
_TOKENS = {"cpu": 8192}  # of cells whose queries and keys are made at once
_TOKENS_ELSEWHERE = 2**17
_ROWS = 128  # queries whose scores are made at once: they stay in the cache


class AttentionRanks:
    """Ranks of attention scores between genes, after :cite:t:`Cui2024`.

    Every cell is shown the same genes, those that it does not express too, behind `<cls>`. In each head the products of
    queries and keys are ranked row by row (which genes a query looks at), then these ranks column by column (which
    queries look at a gene), each divided by the number of tokens. A softmax or a scale would change no rank.

    Parameters
    ----------
    checkpoint
        The network.
    gene_ids
        Vocabulary ids of the genes, each once, int, shape `(n_genes,)`.
    layer
        Number of the layer whose queries and keys are taken; negative from the last.
    heads
        `"mean"` or `"max"` over the heads of a cell, or the number of one head.
    ties
        Rank of equal values, of which the second ranking has many: `"average"`, or `"sorted"`, whatever order the sort
        of PyTorch leaves them in, as the original does (much slower, and other processors sort in another order).
    legacy
        As the original does: `ties="sorted"`, and the first cell of each block is left out and still counted.
    device, max_tokens
        As in :func:`scanpy_scgpt.tl.embed`.

    Raises
    ------
    ValueError
        For a layer, head or rule of ties that is not there, or genes that are no ids or there twice.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        gene_ids: np.ndarray,
        *,
        layer: int = -1,
        heads: Literal["mean", "max"] | int = "mean",
        ties: RankTies = "average",
        legacy: bool = False,
        device: str = "auto",
        max_tokens: int | None = None,
    ) -> None:
        config = checkpoint.transformer
        check_one_of(layer, range(-config.n_layers, config.n_layers), name="layer")
        check_one_of(heads, ("mean", "max", *range(config.n_heads)), name="heads")
        check_one_of(ties, ("average", "sorted"), name="ties")
        self.gene_ids = np.asarray(gene_ids, dtype=np.int64)
        if len(np.unique(self.gene_ids)) < len(self.gene_ids) or (self.gene_ids < 0).any():
            msg = "gene_ids must be ids of the vocabulary, each once: np.unique(gene_ids[gene_ids >= 0])."
            raise ValueError(msg)
        self.embedder = Embedder(checkpoint, device=device, precision="fp32", backend="torch")
        self.device = self.embedder.torch_device
        self.layer, self.heads, self.ties = range(config.n_layers)[layer], heads, "sorted" if legacy else ties
        self.legacy = legacy
        self.max_tokens = max_tokens or _TOKENS.get(self.device.type, _TOKENS_ELSEWHERE)
        ids = np.concatenate([[checkpoint.vocab.cls_id], self.gene_ids])
        self._ids = torch.as_tensor(ids, device=self.device)
        self._cls_digit = checkpoint.tokenizer.n_bins

    @property
    def n_tokens(self) -> int:
        """Genes and `<cls>`."""
        return len(self.gene_ids) + 1

    def mean_ranks(
        self, digits: sparse.csr_matrix, blocks: list[np.ndarray], *, advance: Callable[[int], None] | None = None
    ) -> np.ndarray:
        """Mean ranks over the cells of each block.

        Parameters
        ----------
        digits
            Binned values, CSR, shape `(n_cells, n_genes)`, columns in the order of the genes.
        blocks
            Positions of cells, int; a cell may be in several blocks.
        advance
            Is told how many cells are done.

        Returns
        -------
        Array of float32, shape `(n_blocks, n_tokens, n_tokens)`: `[block, key, query]`, from 0 to below 1: how much the
        query looks at the key, or, as a network of genes, how much the key influences the query. `<cls>` is first.
        """
        out = np.empty((len(blocks), self.n_tokens, self.n_tokens), dtype=np.float32)
        order = sorted(range(len(blocks)), key=lambda i: -len(blocks[i]))
        rest = iter(order)  # shared: a thread takes the next block when it has done one

        def work() -> None:
            for i in rest:
                out[i] = self._block(digits, blocks[i], advance or (lambda _: None))

        n_threads = min(torch.get_num_threads(), len(blocks)) if self.device.type == "cpu" else 1
        if n_threads == 1:
            work()
            return out
        with ThreadPoolExecutor(n_threads) as pool:
            for done in each_alone(pool, [work] * n_threads):
                done.result()
        return out

    def _block(self, digits: sparse.csr_matrix, cells: np.ndarray, advance: Callable[[int], None]) -> np.ndarray:
        n_heads = self.embedder.checkpoint.transformer.n_heads if self.heads == "mean" else 1
        on_cpu = self.device.type == "cpu" and self.ties == "average"
        add = self._add_counted if on_cpu else self._add_sorted
        total = np.zeros((self.n_tokens,) * 2, dtype=np.int64)
        size = max(1, self.max_tokens // self.n_tokens)
        for start in range(int(self.legacy), len(cells), size):
            part = cells[start : start + size]
            add(total, *self.queries_and_keys(digits[part]))
            advance(len(part))
        return total / (2.0 * n_heads * self.n_tokens * max(len(cells), 1))

    def queries_and_keys(self, digits: sparse.csr_matrix) -> tuple[Tensor, Tensor]:
        """Of some cells: `digits` (n_cells, n_genes) -> twice (n_cells, heads, n_tokens, d_head), `<cls>` first."""
        shown = np.full((digits.shape[0], self.n_tokens), self._cls_digit, dtype=np.int64)
        shown[:, 1:] = digits.toarray()
        shown = torch.as_tensor(shown, device=self.device)
        q, k = self.embedder.encoder.queries_and_keys(self._ids.expand_as(shown), shown, layer=self.layer)
        if isinstance(self.heads, str):
            return q, k
        return q[:, self.heads : self.heads + 1], k[:, self.heads : self.heads + 1]

    def _add_counted(self, total: np.ndarray, queries: Tensor, keys: Tensor) -> None:
        """Add the ranks of some cells to `total`, head by head, through sorting and counting on the CPU."""
        ranks_t = np.empty((self.n_tokens,) * 2, dtype=np.uint16)
        largest = self.heads == "max"
        best = np.zeros_like(total) if largest else total
        with torch.inference_mode():
            for cell in range(len(queries)):
                for q, k in zip(queries[cell].contiguous(), keys[cell].contiguous(), strict=True):
                    for start in range(0, self.n_tokens, _ROWS):
                        rank_rows(scores(q[start : start + _ROWS], k).numpy(), start, ranks_t)
                    rank_columns(ranks_t, best, largest)
                if largest:
                    total += best
                    best[:] = 0

    @torch.inference_mode()
    def _add_sorted(self, total: np.ndarray, queries: Tensor, keys: Tensor) -> None:
        """The same through sorts of PyTorch, on any device and with either rule of ties."""
        rank = _average_ranks if self.ties == "average" else _sorted_ranks
        for q, k in zip(queries, keys, strict=True):
            ranks = rank(rank(q @ k.transpose(-1, -2)).transpose(-1, -2))
            ranks = ranks.amax(dim=0) if self.heads == "max" else ranks.sum(dim=0)
            total += ranks.cpu().numpy()


def _average_ranks(x: Tensor) -> Tensor:
    """Doubled ranks along the last axis, equal values at their mean; int64."""
    x = x.contiguous()
    ordered = x.sort(dim=-1).values
    return torch.searchsorted(ordered, x) + torch.searchsorted(ordered, x, right=True) - 1


def _sorted_ranks(x: Tensor) -> Tensor:
    """Doubled ranks along the last axis, equal values in the order in which a sort leaves them; int64."""
    return 2 * x.argsort(dim=-1).argsort(dim=-1)


def dealt(n_cells: int, n_blocks: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Deal cells at random into blocks whose sizes differ by one at most.

    Parameters
    ----------
    n_cells, n_blocks
        Numbers of cells, and of blocks at most.
    rng
        Draws.

    Returns
    -------
    Positions of the cells of each block, int64.
    """
    return [np.sort(part) for part in np.array_split(rng.permutation(n_cells), min(n_blocks, n_cells))]
