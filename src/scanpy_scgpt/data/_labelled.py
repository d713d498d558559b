"""Tokens of cells with their labels and batches, as dictionaries of tensors: what scvi-tools' loaders give."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from scanpy_scgpt.tokenizer import Tokens

from ._order import PassOrder

_WINDOW = 8  # batches whose cells are sorted by length together


@dataclass(frozen=True)
class Part:
    """Counts of one modality of cells.

    Attributes
    ----------
    counts
        By feature of the model: CSR float32, shape `(n_cells, n_features)`; no value in the row of a cell without it.
    there
        Cells that have the modality, bool, shape `(n_cells,)`.
    measured
        Columns that could be more than zero, int.
    """

    counts: sparse.csr_matrix
    there: np.ndarray
    measured: np.ndarray


@dataclass(frozen=True)
class LabelledCells:
    """Tokens of cells in memory (5 bytes a token), and one integer per cell under each name.

    Attributes
    ----------
    tokens
        Tokens of the cells.
    codes
        Integers of shape `(n_cells,)` by name, such as `labels` and `batch`; below 0 where there is none.
    pad_id, cls_id
        Ids of the special tokens.
    cls_value, pad_value
        Values of the special tokens.
    measured
        Vocabulary ids of the genes that the cells could express (with `expression` also the columns of the others),
        int, or None where that is not known.
    expression
        Counts, or a multiple of them, by vocabulary id, then of the other genes: CSR float32, shape `(n_cells,
        n_ids + n_others)`; None where nobody asked.
    others
        Names of the genes outside the vocabulary that `expression` has.
    parts
        Counts by modality (`"rna"`, `"protein"`, `"atac"`) of cells of a MuData; empty for others.
    """

    tokens: Tokens
    codes: Mapping[str, np.ndarray]
    pad_id: int
    cls_id: int
    cls_value: float
    pad_value: float = -2.0
    measured: np.ndarray | None = None
    expression: sparse.csr_matrix | None = None
    others: tuple[str, ...] = ()
    parts: Mapping[str, Part] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(
        self, cells: np.ndarray, *, most: int | None = None, rng: np.random.Generator | None = None
    ) -> dict[str, Tensor]:
        """Padded cells, `<cls>` first.

        Parameters
        ----------
        cells
            Positions, int, shape `(n,)`.
        most
            Longest sequence with `<cls>`; a longer cell is shown by that many of its genes, drawn by `rng`.
        rng
            Draws the genes.

        Returns
        -------
        `gene_ids` (n, length) int64, `values` (n, length) float32, `padding` (n, length) bool, `ind_x` (n, 1) int64,
        and (n, 1) int64 of each of the `codes`.
        """
        tokens, rows = self.tokens, cells
        if most is not None and tokens.lengths_of(cells).max(initial=0) >= most:
            tokens, rows = _sampled(tokens.take(cells), most - 1, rng), np.arange(len(cells))
        lengths = tokens.lengths_of(rows)
        width = int(lengths.max(initial=0)) + 1
        gene_ids = np.full((len(cells), width), self.pad_id, dtype=np.int32)
        digits = np.zeros((len(cells), width), dtype=np.int32)
        tokens.fill(rows, gene_ids, digits)
        gene_ids[:, 0] = self.cls_id
        padding = np.arange(width) > lengths[:, None]
        values = np.where(padding, np.float32(self.pad_value), digits.astype(np.float32))
        values[:, 0] = self.cls_value
        out = {"gene_ids": torch.from_numpy(gene_ids.astype(np.int64)), "values": torch.from_numpy(values)}
        out["padding"] = torch.from_numpy(padding)
        for name, codes in {"ind_x": cells, **{name: codes[cells] for name, codes in self.codes.items()}}.items():
            out[name] = torch.from_numpy(np.ascontiguousarray(codes, dtype=np.int64))[:, None]
        return out


def _sampled(tokens: Tokens, most: int, rng: np.random.Generator) -> Tokens:
    """Cells of at most `most` genes, each set of them equally likely; the order of the genes stays."""
    cell = np.repeat(np.arange(len(tokens)), tokens.lengths)
    order = np.lexsort([rng.random(len(cell)), cell])
    rank = np.empty(len(cell), dtype=np.int64)
    rank[order] = np.arange(len(cell)) - tokens.indptr[:-1][cell]
    return tokens.masked(rank < most)


class Draw(NamedTuple):
    """The cells of a batch: their positions, and the key of its random draws."""

    cells: np.ndarray
    key: tuple[int, ...] = ()


class _Batches(Dataset):
    """Batches of cells by arrays of positions."""

    def __init__(self, cells: LabelledCells, most: int | None) -> None:
        self.cells, self.most = cells, most

    def __len__(self) -> int:
        return len(self.cells)

    def __getitem__(self, draw: Draw) -> dict[str, Tensor]:
        if not draw.key:
            return self.cells.batch(draw.cells)
        batch = self.cells.batch(draw.cells, most=self.most, rng=np.random.default_rng([6, *draw.key]))
        if not batch["padding"].any():  # attention without a mask is up to twice as fast on a GPU
            del batch["padding"]
        return batch


class ShuffledBatches(Sampler[Draw]):
    """Positions of the cells of each batch of a pass: shuffled, balanced between groups, of similar length.

    Parameters
    ----------
    cells
        What the batches are of.
    positions
        Cells that take part, int, shape `(n,)`.
    batch_size
        Cells of a batch, in one process.
    seed
        The order of a pass follows from it and from the number of the pass.
    balance
        Group of each of the `positions`, int, shape `(n,)`, or None.
    power
        0 shows groups as large as they are, 1 all groups equally.
    drop_last
        Leave out the batch that is not full.
    rank, world_size
        Which of how many processes this is; each gets the same number of batches.
    """

    def __init__(
        self,
        cells: LabelledCells,
        positions: np.ndarray,
        *,
        batch_size: int,
        seed: int = 0,
        balance: np.ndarray | None = None,
        power: float = 0.0,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.cells, self.batch_size, self.seed, self.drop_last = cells, batch_size, seed, drop_last
        self.rank, self.world_size, self.epoch = rank, world_size, 0
        self._n = len(positions)
        self._order = PassOrder(positions, batch_size=len(positions), seed=seed, balance=balance, power=power)

    def set_epoch(self, epoch: int) -> None:
        """Another pass has another order."""
        self.epoch = epoch

    def __len__(self) -> int:
        whole = self._n // self.batch_size if self.drop_last else -(-self._n // self.batch_size)
        return max(-(-whole // self.world_size), 1)

    def __iter__(self) -> Iterator[Draw]:
        order = self._order.step(self.epoch)
        rng = np.random.default_rng([self.seed, 1, self.epoch])
        size, batches = self.batch_size, []
        for start in range(0, len(order), _WINDOW * size):
            window = order[start : start + _WINDOW * size]
            window = window[np.argsort(self.cells.tokens.lengths_of(window), kind="stable")]
            batches += [window[i : i + size] for i in range(0, len(window), size)]
        if self.drop_last and len(batches) > 1:
            batches = [batch for batch in batches if len(batch) == size]
        batches = [batches[i] for i in rng.permutation(len(batches))]
        batches = list(islice(cycle(batches), len(self) * self.world_size))  # as many for each process
        epoch, self.epoch = self.epoch, self.epoch + 1  # for loops that do not say which pass it is
        for number in range(self.rank, len(batches), self.world_size):
            yield Draw(batches[number], (self.seed, epoch, number))


class InOrder(Sampler[Draw]):
    """Positions of cells in their order, `batch_size` at a time."""

    def __init__(self, positions: np.ndarray, *, batch_size: int) -> None:
        self.positions, self.batch_size = positions, batch_size

    def __len__(self) -> int:
        return int(np.ceil(len(self.positions) / self.batch_size))

    def __iter__(self) -> Iterator[Draw]:
        for start in range(0, len(self.positions), self.batch_size):
            yield Draw(self.positions[start : start + self.batch_size])


def batch_loader(
    cells: LabelledCells, sampler: Sampler[Draw], *, most: int | None = None, **settings: object
) -> DataLoader:
    """Batches of cells.

    Parameters
    ----------
    cells
        What to take them from.
    sampler
        Says which cells a batch has.
    most
        Longest sequence with `<cls>` of a batch with a key; a longer cell is shown by genes that are drawn anew.
    **settings
        Of :class:`torch.utils.data.DataLoader`.
    """
    return DataLoader(_Batches(cells, most), sampler=sampler, batch_size=None, **settings)
