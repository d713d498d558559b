"""Cells split into known and unknown genes; cells as a smaller gene panel shows them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from scanpy_scgpt._batch import CellBatch, GenerativeBatch
from scanpy_scgpt.tokenizer import Tokens, bin_rows, gene_draws


def split_sizes(lengths: np.ndarray, *, ratio: float, max_length: int) -> tuple[np.ndarray, np.ndarray]:
    """How many genes of a cell become unknown and how many stay known; other cells do not matter.

    Parameters
    ----------
    lengths
        Number of genes of each cell, shape `(n_cells,)`.
    ratio
        Share of unknown genes.
    max_length
        Longest sequence of both parts together, `<cls>` included.

    Returns
    -------
    Unknown and known genes of each cell, int64, shape `(n_cells,)` each: `int(n * ratio)` and the rest, but at most
    `int((max_length - 1) * ratio)` and the rest of `max_length - 1`.
    """
    most_unknown = max(int((max_length - 1) * ratio), 1)
    most_known = max(max_length - 1 - most_unknown, 1)
    unknown = (lengths * ratio).astype(np.int64)
    return np.minimum(unknown, most_unknown), np.minimum(lengths - unknown, most_known)


def split_generative(
    tokens: Tokens,
    *,
    ratio: float,
    max_length: int,
    pad_id: int,
    cls_id: int,
    cls_value: float,
    rng: np.random.Generator | np.ndarray,
) -> GenerativeBatch:
    """Split the genes of each cell at random into known and unknown ones (Cui et al. 2024).

    Sizes are those of :func:`split_sizes`; a part with more genes than places is sampled. Which genes these are depends
    on the key of the cell and its genes alone, so a cell is split in the same way in any batch.

    Parameters
    ----------
    tokens
        Cells of the batch.
    ratio
        Share of unknown genes.
    max_length
        Longest sequence of both parts together, `<cls>` included.
    pad_id, cls_id, cls_value
        Special tokens; padded values are -2.
    rng
        Key of each cell, uint64, shape `(n_cells,)`, or a generator that draws the keys.

    Returns
    -------
    The batch, each part as wide as its fullest cell; `known.padding` is None when no cell is padded there.
    """
    keys = rng if isinstance(rng, np.ndarray) else rng.integers(2**64, size=len(tokens), dtype=np.uint64)
    lengths = tokens.lengths
    n_unknown, n_known = split_sizes(lengths, ratio=ratio, max_length=max_length)
    cell = np.repeat(np.arange(len(tokens)), lengths)
    draws = gene_draws(tokens.indptr, tokens.gene_ids, keys).astype(np.uint64)
    order = np.argsort(cell.astype(np.uint64) << np.uint64(32) | draws, kind="stable")  # inside each cell
    position = np.arange(cell.size) - np.repeat(tokens.indptr[:-1], lengths)
    first_known = (lengths * ratio).astype(np.int64)[cell]
    gene_ids, values = tokens.gene_ids[order], tokens.values[order]

    def place(column: np.ndarray, chosen: np.ndarray, width: int) -> tuple[Tensor, Tensor, Tensor]:
        ids = np.full((len(tokens), width), pad_id, dtype=np.int64)
        numbers = np.full((len(tokens), width), -2.0, dtype=np.float32)
        padding = np.ones((len(tokens), width), dtype=bool)
        where = cell[chosen], column[chosen]
        ids[where], numbers[where], padding[where] = gene_ids[chosen], values[chosen], False
        return torch.from_numpy(ids), torch.from_numpy(numbers), torch.from_numpy(padding)

    hidden = place(position, position < n_unknown[cell], max(int(n_unknown.max(initial=0)), 1))
    column = position - first_known + 1
    shown = (column > 0) & (column <= n_known[cell])
    ids, numbers, padding = place(column, shown, int(n_known.max(initial=0)) + 1)
    ids[:, 0], numbers[:, 0], padding[:, 0] = cls_id, cls_value, False
    return GenerativeBatch(CellBatch(ids, numbers, padding if padding.any() else None), *hidden)


def panel_of_genes(n_tokens: int, *, rng: np.random.Generator) -> np.ndarray:
    """A random gene panel: bool, shape `(n_tokens,)`; its share is 5 to 100 %, uniform in the logarithm."""
    share = np.exp(rng.uniform(np.log(0.05), 0.0))
    return rng.random(n_tokens) < share


def on_panel(tokens: Tokens, genes: np.ndarray, *, n_bins: int) -> Tokens:
    """The cells as a gene panel would show them: these genes alone, digits taken anew among them.

    Parameters
    ----------
    tokens
        Cells with digits of any tie rule.
    genes
        The panel, bool by gene id.
    n_bins
        Number of bins with the one for zero.
    """
    panel = tokens.masked(genes[tokens.gene_ids])
    keys = np.zeros(len(panel), dtype=np.uint64)
    digits = bin_rows(panel.indptr, panel.values.astype(np.float32), panel.gene_ids, keys, n_bins=n_bins, ties="mid")
    return Tokens(panel.indptr, panel.gene_ids, digits)


def as_panel(tokens: Tokens, *, n_tokens: int, n_bins: int, rng: np.random.Generator) -> Tokens:
    """The cells as a random smaller gene panel would show them (:func:`panel_of_genes`, :func:`on_panel`).

    Parameters
    ----------
    tokens
        Cells with digits of any tie rule.
    n_tokens
        Size of the vocabulary.
    n_bins
        Number of bins with the one for zero.
    rng
        Source of the panel.
    """
    return on_panel(tokens, panel_of_genes(n_tokens, rng=rng), n_bins=n_bins)
