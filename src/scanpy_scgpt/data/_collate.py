"""Tokens to padded batches; no randomness."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from scanpy_scgpt.tokenizer import Tokens


class DigitBatch(NamedTuple):
    """Padded cells for the forward-only encoder, `<cls>` first.

    `gene_ids`, `digits` (batch, length) int32; `padding` (batch, length) bool or None when no cell is padded.
    """

    gene_ids: Tensor
    digits: Tensor
    padding: Tensor | None


def collate_digits(tokens: Tokens, cells: np.ndarray, *, pad_id: int, cls_id: int, cls_digit: int) -> DigitBatch:
    """Pad cells to the longest of them and put `<cls>` first.

    Parameters
    ----------
    tokens
        Tokens of any cells.
    cells
        Positions of the cells of the batch, shape `(n,)`.
    pad_id, cls_id
        Ids of the special tokens.
    cls_digit
        Digit that stands for the value of `<cls>`; padding has digit 0.
    """
    lengths = tokens.indptr[cells + 1] - tokens.indptr[cells]
    shape = (len(cells), int(lengths.max(initial=0)) + 1)
    gene_ids = np.full(shape, pad_id, dtype=np.int32)
    digits = np.zeros(shape, dtype=np.int32)
    gene_ids[:, 0], digits[:, 0] = cls_id, cls_digit
    tokens.fill(cells, gene_ids, digits)
    padding = None
    if (lengths + 1 < shape[1]).any():
        padding = torch.from_numpy(np.arange(shape[1]) > lengths[:, None])
    return DigitBatch(torch.from_numpy(gene_ids), torch.from_numpy(digits), padding)


def batches_by_length(lengths: np.ndarray, *, max_tokens: int, max_padding: float = 0.1) -> Iterator[np.ndarray]:
    """Positions of cells in batches of similar length.

    Parameters
    ----------
    lengths
        Number of genes of each cell, shape `(n_cells,)`.
    max_tokens
        Most tokens of a batch with padding and `<cls>`; a single longer cell is a batch of its own.
    max_padding
        Largest share of a batch that may be padding.

    Yields
    ------
    Integer positions, longest cells first, each cell once.
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < order.size:
        longest = int(lengths[order[start]]) + 1
        fits = order[start : start + max(max_tokens // longest, 1)]
        similar = int(np.searchsorted(-(lengths[fits] + 1), -longest * (1 - max_padding), side="right"))
        yield fits[: max(similar, 1)]
        start += max(similar, 1)
