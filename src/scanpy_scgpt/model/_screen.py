"""What a screen measured: one row of changes for each perturbation and context. Arrays; no model, no AnnData."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

_MANY = 10.0  # by which the noise of a row may differ from that of a usual one
ACROSS, ALONE = 1.645, 3


@dataclass(frozen=True)
class Conditions:
    """Perturbations, and where they were made.

    Attributes
    ----------
    parts
        What each perturbation is made of: the genes, or the name of one that has no gene.
    contexts
        Context of each, such as a cell type or a kind of intervention; `""` where there is one only.
    """

    parts: tuple[tuple[str, ...], ...]
    contexts: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.parts)

    def take(self, rows: Sequence[int] | np.ndarray) -> Conditions:
        """The conditions in these rows."""
        return Conditions(tuple(self.parts[i] for i in rows), tuple(self.contexts[i] for i in rows))

    @property
    def universe(self) -> list[str]:
        """All parts, sorted."""
        return sorted({part for parts in self.parts for part in parts})

    def members(self, universe: Sequence[str]) -> np.ndarray:
        """How often each part is in each perturbation, float32, shape `(n, n_parts)`."""
        place = {part: i for i, part in enumerate(universe)}
        out = np.zeros((len(self), len(universe)), dtype=np.float32)
        for row, parts in enumerate(self.parts):
            for part in parts:
                if part in place:
                    out[row, place[part]] += 1
        return out


@dataclass(frozen=True)
class Screen:
    """Changes of expression that were measured.

    Attributes
    ----------
    conditions
        Perturbation and context of each row.
    effects
        Change of the mean of log-normalised expression against the controls of the context, or log fold changes;
        float32, shape `(n, n_genes)`.
    genes
        Names of the columns.
    n_cells
        Cells behind each row; 1 for all where that is not known. Float, shape `(n,)`.
    controls
        Mean of the controls of each context, float32, shape `(n_genes,)`; empty for a table of effects.
    errors
        Standard errors of `effects`, float32, shape `(n, n_genes)`; None where they are not known.
    """

    conditions: Conditions
    effects: np.ndarray
    genes: tuple[str, ...]
    n_cells: np.ndarray
    controls: Mapping[str, np.ndarray] = field(default_factory=dict)
    errors: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.effects)

    def take(self, rows: Sequence[int] | np.ndarray) -> Screen:
        """The screen of these rows alone."""
        errors = None if self.errors is None else self.errors[rows]
        return replace(
            self,
            conditions=self.conditions.take(rows),
            effects=self.effects[rows],
            n_cells=self.n_cells[rows],
            errors=errors,
        )

    @property
    def noise(self) -> np.ndarray:
        """Variance of the noise of each row in that of a usual one, float64, shape `(n,)`."""
        inverse = 1 / np.maximum(self.n_cells.astype(np.float64), 1e-9)
        return np.clip(inverse / inverse.mean(), 1 / _MANY, _MANY)

    def own(self, conditions: Conditions) -> list[tuple[int, int]]:
        """Row and column of the genes that conditions perturb, where they are measured."""
        place = {gene: i for i, gene in enumerate(self.genes)}
        return [(row, place[part]) for row, parts in enumerate(conditions.parts) for part in parts if part in place]


class OwnEffect:
    """What a perturbation does to its own target: a shift, or a share of the expression of the control.

    Learned in each context that has three measured targets, else over all; which of the two, and whether it is better
    than nothing, is decided by leaving targets out.

    Attributes
    ----------
    shift, share
        By context; `""` is all of them together.
    """

    def __init__(self, shift: Mapping[str, float], share: Mapping[str, float]) -> None:
        self.shift, self.share = dict(shift), dict(share)

    @classmethod
    def fitted(cls, screen: Screen) -> OwnEffect:
        """Learn it from a screen."""
        own = screen.own(screen.conditions)
        contexts = np.array([screen.conditions.contexts[row] for row, _ in own])
        levels = np.array([_level(screen, screen.conditions.contexts[row], gene) for row, gene in own])
        found = np.array([screen.effects[row, gene] for row, gene in own])
        shift, share = {}, {}
        for context in ("", *np.unique(contexts)):
            chosen = np.ones(len(own), dtype=bool) if context == "" else contexts == context
            if chosen.sum() >= ALONE:
                shift[str(context)], share[str(context)] = _own(found[chosen], levels[chosen])
        return cls(shift, share)

    def of(self, screen: Screen, conditions: Conditions) -> tuple[list[tuple[int, int]], np.ndarray]:
        """Row and column of targets that are measured, and the effect on each, float32."""
        own = screen.own(conditions)
        values = np.zeros(len(own), dtype=np.float32)
        for i, (row, gene) in enumerate(own):
            context = conditions.contexts[row]
            key = context if context in self.shift else ""
            level = _level(screen, context, gene)
            values[i] = self.shift.get(key, 0.0) + self.share.get(key, 0.0) * level
        return own, values

    def add(self, to: np.ndarray, screen: Screen, conditions: Conditions, sign: float = 1.0) -> np.ndarray:
        """`to`, shape `(n, n_genes)`, with the effect added in place."""
        own, values = self.of(screen, conditions)
        if own:
            rows, columns = zip(*own, strict=True)
            np.add.at(to, (list(rows), list(columns)), sign * values)
        return to


def level_of(screen: Screen, context: str) -> np.ndarray:
    """Expression in the controls of a context, or of all when that is a new one; 0 for a table. Shape `(n_genes,)`."""
    if not screen.controls:
        return np.zeros(len(screen.genes))
    found = screen.controls.get(context)
    return np.mean(list(screen.controls.values()), axis=0) if found is None else found


def _level(screen: Screen, context: str, gene: int) -> float:
    return float(level_of(screen, context)[gene])


def _own(found: np.ndarray, levels: np.ndarray) -> tuple[float, float]:
    """Shift and share; the way with the least error on targets that are left out."""
    n = len(found)
    nothing = float((found**2).mean())
    left = (found.sum() - found) / (n - 1)
    by_shift = float(((found - left) ** 2).mean())
    square = levels**2
    total = square.sum() - square
    left = np.divide((found * levels).sum() - found * levels, total, out=np.zeros(n), where=total > 0)
    by_share = float(((found - left * levels) ** 2).mean()) if levels.any() else np.inf
    best = min(nothing, by_shift, by_share)
    if best == nothing:
        return 0.0, 0.0
    if best == by_shift:
        return float(found.mean()), 0.0
    return 0.0, float((found * levels).sum() / square.sum())
