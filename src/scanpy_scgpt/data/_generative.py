"""Batches for generative pretraining: genes of a cell split into known and unknown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from scanpy_scgpt._batch import CellBatch, GenerativeBatch
from scanpy_scgpt.tokenizer import Tokens, bin_rows


def split_generative(
    tokens: Tokens,
    *,
    ratio: float,
    max_length: int,
    pad_id: int,
    cls_id: int,
    cls_value: float,
    rng: np.random.Generator,
) -> GenerativeBatch:
    """Split the genes of each cell at random into known and unknown ones (Cui et al. 2024).

    With `L` the length of the batch (longest cell and `<cls>`, at most `max_length`), the unknown part holds at most
    `int((L - 1) * ratio)` genes and the known part the rest; of a cell with `n` genes, `int(n * ratio)` are unknown.
    A part with more genes than places is sampled.

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
        Source of the split.
    """
    lengths = tokens.lengths
    length = min(max_length, int(lengths.max(initial=1)) + 1)
    n_unknown = max(int((length - 1) * ratio), 1)
    n_known = max(length - 1 - n_unknown, 1)
    cell = np.repeat(np.arange(len(tokens)), lengths)
    order = np.argsort(cell + rng.random(cell.size))  # a permutation inside each cell
    position = np.arange(cell.size) - np.repeat(tokens.indptr[:-1], lengths)
    first_known = np.repeat((lengths * ratio).astype(np.int64), lengths)
    gene_ids, values = tokens.gene_ids[order], tokens.values[order]

    def place(row: np.ndarray, column: np.ndarray, chosen: np.ndarray, width: int) -> tuple[np.ndarray, ...]:
        ids = np.full((len(tokens), width), pad_id, dtype=np.int64)
        numbers = np.full((len(tokens), width), -2.0, dtype=np.float32)
        padding = np.ones((len(tokens), width), dtype=bool)
        where = row[chosen], column[chosen]
        ids[where], numbers[where], padding[where] = gene_ids[chosen], values[chosen], False
        return ids, numbers, padding

    unknown = place(cell, position, (position < first_known) & (position < n_unknown), n_unknown)
    column = position - first_known + 1
    known = place(cell, column, (position >= first_known) & (column <= n_known), n_known + 1)
    known[0][:, 0], known[1][:, 0], known[2][:, 0] = cls_id, cls_value, False
    ids, numbers, padding = map(torch.from_numpy, known)
    targets = torch.from_numpy(unknown[1])
    return GenerativeBatch(
        CellBatch(ids, numbers, padding), torch.from_numpy(unknown[0]), targets, torch.from_numpy(unknown[2])
    )


def as_panel(tokens: Tokens, *, n_tokens: int, n_bins: int, rng: np.random.Generator) -> Tokens:
    """The cells as a smaller gene panel would show them: a random share of the genes, digits taken anew among these.

    Parameters
    ----------
    tokens
        Cells with digits of any tie rule.
    n_tokens
        Size of the vocabulary.
    n_bins
        Number of bins with the one for zero.
    rng
        Source of the share (5 to 100 %, uniform in its logarithm) and of the genes.
    """
    share = np.exp(rng.uniform(np.log(0.05), 0.0))
    panel = tokens.masked((rng.random(n_tokens) < share)[tokens.gene_ids])
    keys = np.zeros(len(panel), dtype=np.uint64)
    digits = bin_rows(panel.indptr, panel.values.astype(np.float32), panel.gene_ids, keys, n_bins=n_bins, ties="mid")
    return Tokens(panel.indptr, panel.gene_ids, digits)


class GenerativeBatches(Dataset[GenerativeBatch]):
    """Batch number `step` of an endless shuffled run over cells; a batch depends on (seed, step) alone.

    Parameters
    ----------
    tokens
        All cells.
    cells
        Positions of the cells that take part.
    batch_size
        Cells per batch.
    max_length
        Longest sequence, `<cls>` included.
    ratios
        Shares of unknown genes, one drawn per batch.
    pad_id, cls_id, cls_value
        Special tokens.
    panel_share
        Share of batches that are shown as a smaller gene panel would show them (:func:`as_panel`).
    n_tokens, n_bins
        Size of the vocabulary and number of bins, for the panels.
    seed
        Seed of order and splits.
    """

    def __init__(
        self,
        tokens: Tokens,
        cells: np.ndarray,
        *,
        batch_size: int,
        max_length: int,
        ratios: Sequence[float],
        pad_id: int,
        cls_id: int,
        cls_value: float,
        seed: int,
        panel_share: float = 0.0,
        n_tokens: int = 0,
        n_bins: int = 51,
    ) -> None:
        self.tokens, self.cells = tokens, cells
        self.batch_size, self.max_length, self.ratios = batch_size, max_length, tuple(ratios)
        self.special = {"pad_id": pad_id, "cls_id": cls_id, "cls_value": cls_value}
        self.seed = seed
        self._order: tuple[int, np.ndarray] | None = None  # a pass and its order of the cells
        self.panel_share, self.panel = panel_share, {"n_tokens": n_tokens, "n_bins": n_bins}

    @property
    def steps_per_pass(self) -> int:
        """Batches that show every cell once (the last cells of a pass wait for the next shuffle)."""
        return max(len(self.cells) // self.batch_size, 1)

    def _order_of(self, passed: int) -> np.ndarray:
        if self._order is None or self._order[0] != passed:
            self._order = passed, np.random.default_rng([self.seed, 0, passed]).permutation(self.cells)
        return self._order[1]

    def __getitem__(self, step: int) -> GenerativeBatch:
        passed, i = divmod(step, self.steps_per_pass)
        order = self._order_of(passed)
        rng = np.random.default_rng([self.seed, 1, step])
        chosen = self.tokens.take(order[i * self.batch_size : (i + 1) * self.batch_size])
        if rng.random() < self.panel_share:
            chosen = as_panel(chosen, rng=rng, **self.panel)
        ratio = float(rng.choice(self.ratios))
        return split_generative(chosen, ratio=ratio, max_length=self.max_length, rng=rng, **self.special)


class StepSampler(Sampler[int]):
    """The next `n_steps` steps, counted from where training stands.

    Parameters
    ----------
    n_steps
        Steps of an epoch.
    done
        Gives the number of steps that were taken; asked at the start of each epoch, so a resumed run goes on with the
        batches that it has not seen.
    """

    def __init__(self, n_steps: int, *, done: Callable[[], int]) -> None:
        self.n_steps, self.done = n_steps, done

    def __len__(self) -> int:
        return self.n_steps

    def __iter__(self) -> Iterator[int]:
        first = self.done()
        yield from range(first, first + self.n_steps)
