"""Tokens to packed batches: cells one after another, nothing padded; no randomness."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from scanpy_scgpt.tokenizer import Tokens


class PackedBatch(NamedTuple):
    """Cells one after another for the forward-only encoder, `<cls>` first in each.

    `gene_ids`, `digits` (n_tokens,) int32; cell `i` has the tokens `starts[i]:starts[i + 1]`, `starts` (n_cells + 1,)
    int32; `longest` is the largest length.
    """

    gene_ids: Tensor
    digits: Tensor
    starts: Tensor
    longest: int


def pack_digits(tokens: Tokens, cells: np.ndarray, *, cls_id: int, cls_digit: int) -> PackedBatch:
    """Put cells one after another, each behind its `<cls>`.

    Parameters
    ----------
    tokens
        Tokens of any cells.
    cells
        Positions of the cells of the batch, shape `(n,)`.
    cls_id
        Id of `<cls>`.
    cls_digit
        Digit that stands for the value of `<cls>`.
    """
    taken = tokens.take(cells)
    starts = taken.indptr + np.arange(len(cells) + 1)
    is_gene = np.ones(starts[-1], dtype=bool)
    is_gene[starts[:-1]] = False
    gene_ids = np.full(starts[-1], cls_id, dtype=np.int32)
    digits = np.full(starts[-1], cls_digit, dtype=np.int32)
    gene_ids[is_gene], digits[is_gene] = taken.gene_ids, taken.values
    longest = int(taken.lengths.max(initial=0)) + 1
    return PackedBatch(*map(torch.from_numpy, (gene_ids, digits, starts.astype(np.int32))), longest)
