"""The steps of generative pretraining: which cells, dealt to processes, cut into micro-batches."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch.utils.data import Dataset, Sampler

from scanpy_scgpt._batch import GenerativeStep
from scanpy_scgpt.tokenizer import Tokens

from ._collate import batches_by_length
from ._generative import on_panel, panel_of_genes, split_generative, split_sizes
from ._order import PassOrder

if TYPE_CHECKING:
    from scanpy_scgpt.disk import TokenStore


class GenerativeBatches(Dataset[GenerativeStep]):
    """Step number `step` of an endless shuffled run over cells.

    The cells of a step, the share of their unknown genes, the panel and the split of each cell depend on (seed, step)
    alone: neither the number of processes nor `max_tokens` changes them. Process `rank` of `world` gets every
    `world`-th cell of the step (:meth:`of_process`).

    Parameters
    ----------
    tokens
        All cells, in memory or in a token store.
    cells
        Positions of the cells that take part.
    batch_size
        Cells of a step, over all processes.
    max_length
        Longest sequence, `<cls>` included.
    ratios
        Shares of unknown genes, one drawn per step.
    pad_id, cls_id, cls_value
        Special tokens.
    panel_share
        Share of steps that are shown as a smaller gene panel would show them (:func:`as_panel`).
    n_tokens, n_bins
        Size of the vocabulary and number of bins, for the panels.
    max_tokens
        Most tokens of a micro-batch, padding and `<cls>` included; cells of similar length go together, and a single
        longer cell is a micro-batch of its own. None: the cells of a process are one micro-batch.
    balance, balance_power, step_from
        Groups of the cells and what they change in the order (:class:`PassOrder`).
    seed
        Seed of order and splits.
    """

    def __init__(
        self,
        tokens: Tokens | TokenStore,
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
        max_tokens: int | None = None,
        balance: np.ndarray | None = None,
        balance_power: float = 0.0,
        step_from: np.ndarray | None = None,
    ) -> None:
        self.tokens, self.max_length, self.ratios = tokens, max_length, tuple(ratios)
        self.order = PassOrder(
            cells, batch_size=batch_size, seed=seed, balance=balance, power=balance_power, step_from=step_from
        )
        self.special = {"pad_id": pad_id, "cls_id": cls_id, "cls_value": cls_value}
        self.seed, self.max_tokens = seed, max_tokens
        self.rank, self.world = 0, 1
        self.panel_share, self.n_tokens, self.n_bins = panel_share, n_tokens, n_bins

    def of_process(self, rank: int, world: int) -> GenerativeBatches:
        """The part of process `rank` of `world`; the cells themselves are not copied."""
        mine = copy.copy(self)
        mine.rank, mine.world = rank, world
        return mine

    def asking(self, ratio: float) -> GenerativeBatches:
        """The same steps with one share of unknown genes."""
        other = copy.copy(self)
        other.ratios = (ratio,)
        return other

    def plainly(self, *, batch_size: int) -> GenerativeBatches:
        """The same cells whole and as often as they are, in steps of another size."""
        other = copy.copy(self)
        other.panel_share, other.max_tokens = 0.0, None
        other.order = PassOrder(self.order.cells, batch_size=batch_size, seed=self.seed)
        return other

    @property
    def steps_per_pass(self) -> int:
        """Steps that show every cell once (the last cells of a pass wait for the next shuffle)."""
        return self.order.steps

    def __getitem__(self, step: int) -> GenerativeStep:
        everyone = self.order.step(step)
        rng = np.random.default_rng([self.seed, 1, step])
        ratio, panelled = float(rng.choice(self.ratios)), rng.random() < self.panel_share
        keys = rng.integers(2**64, size=len(everyone), dtype=np.uint64)[self.rank :: self.world]
        cells = everyone[self.rank :: self.world]
        if panelled:  # how many targets the others have takes their genes too
            panel = panel_of_genes(self.n_tokens, rng=rng)
            whole = self.tokens.take(everyone)
            lengths = whole.masked(panel[whole.gene_ids]).lengths
            mine = on_panel(self.tokens.take(cells), panel, n_bins=self.n_bins)
        else:
            lengths = self.tokens.lengths_of(everyone)
            mine = self.tokens.take(cells)
        n_targets, _ = split_sizes(lengths, ratio=ratio, max_length=self.max_length)
        own, n_all = n_targets[self.rank :: self.world], max(int(n_targets.sum()), 1)
        parts = list(self._parts(mine.lengths))
        return GenerativeStep(
            tuple(
                split_generative(
                    mine.take(part), ratio=ratio, max_length=self.max_length, rng=keys[part], **self.special
                )
                for part in parts
            ),
            tuple({"targets": int(own[part].sum()) / n_all, "cells": len(part) / len(everyone)} for part in parts),
        )

    def _parts(self, lengths: np.ndarray) -> Iterator[np.ndarray]:
        if self.max_tokens is not None:
            yield from batches_by_length(np.minimum(lengths, self.max_length - 1), max_tokens=self.max_tokens)
        elif len(lengths):
            yield np.arange(len(lengths))


class StepSampler(Sampler[int]):
    """The next `n_steps` steps, counted from where training stands.

    Parameters
    ----------
    n_steps
        Steps of an epoch.
    done
        Gives the number of steps that were taken; asked at the start of each epoch, so a resumed run goes on with the
        steps that it has not seen.
    """

    def __init__(self, n_steps: int, *, done: Callable[[], int]) -> None:
        self.n_steps, self.done = n_steps, done

    def __len__(self) -> int:
        return self.n_steps

    def __iter__(self) -> Iterator[int]:
        first = self.done()
        yield from range(first, first + self.n_steps)
