"""Training, validation and test cells as a Lightning data module. Loads Lightning."""

from __future__ import annotations

from collections.abc import Sequence

import lightning.pytorch as lp
import numpy as np
import torch.distributed
from torch.utils.data import DataLoader

from ._labelled import InOrder, LabelledCells, ShuffledBatches, batch_loader


class TokenDataSplitter(lp.LightningDataModule):
    """Splits cells at random, label by label, and gives batches of their tokens.

    Parameters
    ----------
    cells
        Tokens and codes of the cells.
    train_size
        Share of the cells to train on; 0.9 by default.
    validation_size
        Share for validation; the rest by default. What then remains is the test set.
    shuffle_set_split
        False takes validation cells, then training cells in the order of the data, whatever their labels.
    external_indexing
        Positions of the training, validation and test cells, in place of a split; the last two may be missing.
    batch_size
        Cells of a batch, in one process.
    balance_key
        Name of the codes between whose groups training batches are balanced, or None.
    balance_power
        0 shows groups as large as they are, 1 all groups equally.
    drop_last
        Leave out the training batch that is not full.
    train_length
        Longest training sequence with `<cls>`: a longer cell is shown by genes that are drawn anew at each step, which
        is faster and keeps the network from leaning on single genes. None shows all.
    rng
        Seed of the split and of the order.
    **loader_kwargs
        Of :class:`torch.utils.data.DataLoader`, such as `num_workers` and `pin_memory`.

    Raises
    ------
    ValueError
        When a share is out of range, no cell is left to train on, or positions are out of range or given twice.
    KeyError
        When there are no codes to balance.
    """

    def __init__(
        self,
        cells: LabelledCells,
        *,
        train_size: float | None = None,
        validation_size: float | None = None,
        shuffle_set_split: bool = True,
        external_indexing: Sequence[np.ndarray] | None = None,
        batch_size: int = 32,
        balance_key: str | None = None,
        balance_power: float = 0.5,
        drop_last: bool = False,
        train_length: int | None = None,
        rng: int = 0,
        **loader_kwargs: object,
    ) -> None:
        super().__init__()
        self.cells, self.batch_size, self.rng, self.drop_last = cells, batch_size, rng, drop_last
        self.train_length = train_length
        self.balance_key, self.balance_power, self.loader_kwargs = balance_key, balance_power, loader_kwargs
        if external_indexing is None:
            shares = shares_of(train_size, validation_size)
            strata = cells.codes.get("labels", np.zeros(len(cells), dtype=np.int64))
            parts = split_cells(strata, *shares, rng=rng, shuffle=shuffle_set_split)
        else:
            parts = _given(external_indexing, len(cells))
        self.train_idx, self.val_idx, self.test_idx = parts
        if balance_key is not None and balance_key not in cells.codes:
            known = ", ".join(map(repr, cells.codes)) or "none"
            msg = f"balance_key={balance_key!r}: the cells have no such codes. Codes: {known}."
            raise KeyError(msg)
        self.n_train, self.n_val = len(self.train_idx), len(self.val_idx)
        if not self.n_train:
            msg = f"No cell of {len(cells):,} is left to train on (train_size={train_size!r}). Raise train_size."
            raise ValueError(msg)

    def train_dataloader(self) -> DataLoader:
        """Shuffled batches of the training cells."""
        balance = None if self.balance_key is None else _groups(self.cells.codes[self.balance_key][self.train_idx])
        together = torch.distributed.is_available() and torch.distributed.is_initialized()
        sampler = ShuffledBatches(
            self.cells,
            self.train_idx,
            batch_size=self.batch_size,
            seed=self.rng,
            balance=balance,
            power=self.balance_power,
            drop_last=self.drop_last,
            rank=torch.distributed.get_rank() if together else 0,
            world_size=torch.distributed.get_world_size() if together else 1,
        )
        return batch_loader(self.cells, sampler, most=self.train_length, **self.loader_kwargs)

    def _in_order(self, positions: np.ndarray) -> DataLoader | list:
        if not len(positions):
            return []
        by_length = positions[np.argsort(self.cells.tokens.lengths_of(positions), kind="stable")]
        return batch_loader(self.cells, InOrder(by_length, batch_size=self.batch_size), **self.loader_kwargs)

    def val_dataloader(self) -> DataLoader | list:
        """Batches of the validation cells."""
        return self._in_order(self.val_idx)

    def test_dataloader(self) -> DataLoader | list:
        """Batches of the test cells."""
        return self._in_order(self.test_idx)


def shares_of(train_size: float | None, validation_size: float | None) -> tuple[float, float]:
    """Shares of training and validation cells, 0.9 and 0.1 where nothing is said."""
    train = 1 - (0.1 if validation_size is None else validation_size) if train_size is None else float(train_size)
    validation = 1 - train if validation_size is None else float(validation_size)
    if not 0 < train <= 1 or not 0 <= validation < 1 or train + validation > 1 + 1e-9:
        msg = (
            f"train_size={train_size!r}, validation_size={validation_size!r}: shares above 0 that add up to 1 at most, "
            "such as 0.9 and 0.1."
        )
        raise ValueError(msg)
    return train, validation


def _given(parts: Sequence[np.ndarray], n: int) -> list[np.ndarray]:
    """Three arrays of positions out of one to three arrays of positions or masks."""
    given = [np.asarray(part) for part in parts]
    given += [np.zeros(0, dtype=np.int64)] * (3 - len(given))
    positions = [np.flatnonzero(part) if part.dtype == bool else part.astype(np.int64) for part in given]
    every = np.concatenate(positions)
    whole = all(len(part) == n for part in given if part.dtype == bool)
    if len(given) > 3 or not whole or ((every < 0) | (every >= n)).any():  # noqa: PLR2004
        msg = f"external_indexing: training, validation and test cells as positions from 0 to {n - 1:,}."
        raise ValueError(msg)
    if len(np.unique(every)) < len(every):
        msg = "external_indexing names a cell more than once: a model is not judged on what it learned from."
        raise ValueError(msg)
    return positions


def _groups(codes: np.ndarray) -> np.ndarray:
    """Codes from 0 without a gap; cells without one are a group of their own."""
    return np.unique(codes, return_inverse=True)[1]


def split_cells(
    strata: np.ndarray, train_size: float, validation_size: float, *, rng: int = 0, shuffle: bool = True
) -> list[np.ndarray]:
    """Positions of training, validation and test cells.

    Every stratum is split alike, to a cell; one of so few cells that none would be left to train on is trained on.

    Parameters
    ----------
    strata
        Group of each cell, int, shape `(n_cells,)`.
    train_size, validation_size
        Shares; what remains is the test set.
    rng
        Seed.
    shuffle
        False splits in the order of the cells: validation, training, test.

    Returns
    -------
    Three arrays of int64, sorted.
    """
    n = len(strata)
    if not shuffle:
        n_val = int(np.floor(validation_size * n + 1e-9))  # 1 - 0.9 is below 0.1
        n_train = min(int(np.ceil(train_size * n - 1e-9)), n - n_val)
        cells = np.arange(n)
        return [cells[n_val : n_val + n_train], cells[:n_val], cells[n_val + n_train :]]
    order = np.lexsort([np.random.default_rng([rng, 5]).random(n), strata])  # a stratum together, in random order
    group = np.unique(strata[order], return_inverse=True)[1]
    validation = _every(np.ones(n, dtype=bool), validation_size)
    left = ~validation
    test = _every(left, min(max(1 - train_size - validation_size, 0.0) / max(1 - validation_size, 1e-9), 1.0))
    train = ~validation & ~test
    without = (np.bincount(group, train, minlength=int(group.max(initial=-1)) + 1) == 0)[group]
    chosen = (train | without, validation & ~without, test & ~without)  # a stratum none of whose cells would be left
    return [np.sort(order[cells]) for cells in chosen]


def _every(places: np.ndarray, share: float) -> np.ndarray:
    """Systematic sampling: a share of the True places, evenly along the row."""
    counted = np.floor(np.cumsum(places) * share + 0.5)
    return places & (np.diff(counted, prepend=np.floor(0.5)) > 0)
