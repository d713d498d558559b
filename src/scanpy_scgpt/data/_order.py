"""Which cells a pass over a corpus shows, and in which order."""

from __future__ import annotations

import numpy as np

_GOLDEN = (5**0.5 - 1) / 2  # its multiples fill 0 to 1 evenly


class PassOrder:
    """The cells of each pass: shuffled, balanced between groups, cut into steps of one group each, or both.

    A pass has as many places as there are cells. A group of `n` cells gets a share of them that grows with
    `n ** (1 - power)`. Its cells stand in one fixed shuffled row; each pass takes the next ones of the row and starts
    again at its end, so the cells of a group are shown equally often, whatever the share. Everything follows from the
    seed and the number of the pass.

    Parameters
    ----------
    cells
        Positions of the cells, int, shape `(n_cells,)`.
    batch_size
        Cells of a step.
    seed
        Seed of the order.
    balance
        Group of each cell between which passes are balanced, integers, shape `(n_cells,)`, or None.
    power
        0 shows groups as large as they are, 1 all groups equally.
    step_from
        Group of each cell, integers, shape `(n_cells,)`: all cells of a step are of one group. Groups of fewer cells
        than a step go together. None: cells of all groups.
    """

    def __init__(
        self,
        cells: np.ndarray,
        *,
        batch_size: int,
        seed: int,
        balance: np.ndarray | None = None,
        power: float = 0.0,
        step_from: np.ndarray | None = None,
    ) -> None:
        self.cells, self.batch_size, self.seed = cells, batch_size, seed
        self.plain = balance is None and step_from is None
        self._pass: tuple[int, np.ndarray] | None = None  # a pass and its cells
        if not self.plain:
            one = np.zeros(len(cells), dtype=np.int64)
            self._unit = 1 if step_from is None else batch_size  # cells that go together
            self._group(one if balance is None else balance, one if step_from is None else step_from, power)

    def _group(self, balance: np.ndarray, step_from: np.ndarray, power: float) -> None:
        """Rows of the groups, one after the other, and what share of a pass each has."""
        wanted = np.bincount(balance).astype(float)[balance] ** -power
        group = _joined(balance, step_from, least=self._unit)
        rows = np.random.default_rng([self.seed, 2]).permutation(len(group))
        self._row = self.cells[rows[np.argsort(group[rows], kind="stable")]]
        self._sizes = np.bincount(group)
        self._starts = np.cumsum(self._sizes) - self._sizes
        edges = np.cumsum(np.bincount(group, wanted))
        self._n_units = max(len(group) // self._unit, 1)
        self._edges = np.concatenate([[0.0], edges[:-1] / edges[-1] * self._n_units, [self._n_units]])
        self._counted = 0, np.zeros(len(self._sizes), dtype=np.int64)  # passes, and places of each group in them

    @property
    def steps(self) -> int:
        """Steps of a pass (the last cells wait for the next one)."""
        return max(len(self.cells) // self.batch_size, 1)

    def step(self, number: int) -> np.ndarray:
        """Cells of step `number`, counted from the first of the first pass."""
        passed, i = divmod(number, self.steps)
        if self._pass is None or self._pass[0] != passed:
            self._pass = passed, self._shuffled(passed) if self.plain else self._drawn(passed)
        return self._pass[1][i * self.batch_size : (i + 1) * self.batch_size]

    def _shuffled(self, passed: int) -> np.ndarray:
        return np.random.default_rng([self.seed, 0, passed]).permutation(self.cells)

    def _places(self, passed: int) -> np.ndarray:
        """Places of each group in a pass. Systematic sampling: they are whole, add up, and are right on average."""
        return np.diff(np.floor(self._edges + passed * _GOLDEN % 1).astype(np.int64)) * self._unit

    def _drawn(self, passed: int) -> np.ndarray:
        first, before = self._counted if self._counted[0] <= passed else (0, np.zeros_like(self._sizes))
        for earlier in range(first, passed):
            before = before + self._places(earlier)
        self._counted = passed, before
        places = self._places(passed)
        group = np.repeat(np.arange(len(places)), places)
        in_pass = np.arange(len(group)) - np.repeat(np.cumsum(places) - places, places)
        turn, at = np.divmod(in_pass + before[group], self._sizes[group])
        drawn = self._row[self._starts[group] + at]
        rng = np.random.default_rng([self.seed, 0, passed])
        order = rng.permutation(len(drawn))
        if self._unit == 1:
            return drawn[order]
        order = order[np.lexsort([turn[order], group[order]])]  # shuffled within a turn: few cells are twice in a step
        return drawn[order].reshape(-1, self._unit)[rng.permutation(self._n_units)].ravel()


def _joined(balance: np.ndarray, step_from: np.ndarray, *, least: int) -> np.ndarray:
    """Group of each cell: the cells of both groups, joined as far as a group of fewer than `least` cells needs it.

    First those of one `step_from`, so that a step is of one as long as it has enough cells.
    """
    codes, group = np.unique(step_from.astype(np.int64) * (int(balance.max()) + 1) + balance, return_inverse=True)
    sizes, of_step = np.bincount(group), codes // (int(balance.max()) + 1)
    merged = np.empty(len(sizes), dtype=np.int64)
    for start in np.unique(of_step):
        inside = np.flatnonzero(of_step == start)
        merged[inside] = inside[0] + _pooled(sizes[inside], least=least)
    group = np.unique(merged, return_inverse=True)[1][group]
    return _pooled(np.bincount(group), least=least)[group]


def _pooled(sizes: np.ndarray, *, least: int) -> np.ndarray:
    """New number of each group: those of fewer than `least` cells, and others until they have as many, become one."""
    ascending = np.argsort(sizes, kind="stable")
    n_small = int((sizes < least).sum())
    if n_small:
        n_small = min(max(n_small, int(np.searchsorted(np.cumsum(sizes[ascending]), least)) + 1), len(sizes))
    merged = np.empty(len(sizes), dtype=np.int64)
    merged[ascending] = np.maximum(np.arange(len(sizes)) - max(n_small - 1, 0), 0)
    return merged
