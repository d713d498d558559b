"""Effects of perturbations from those that were measured: the anchor of `SCGPTPerturber`. Arrays in, arrays out.

What was measured stands. A part that was not is predicted by kernel ridge regression on the features of genes, around
the mean effect. A combination is the sum of its parts, plus what combinations that were measured show beyond it. How
much to believe of either is decided by leaving perturbations out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product

import numpy as np
import pandas as pd

from ._gram import COMPONENTS, Setting, Similarity, gram, unit_gram
from ._screen import ACROSS, Conditions, OwnEffect, Screen

EFFECTS = "effects"
_SIGNALS, _SHARES, _ACROSS, _WEIGHTS = (0.03, 0.1, 0.3, 1.0, 3.0), (0.4, 0.9), (0.0, 0.5, 1.0), (0.5, 1.0)
_PAIRS = (0.0, 1.0, 4.0)
_FEW = 4  # perturbations below which nothing is chosen
_N_DIMS = 128
_CAUTION = 1.0  # standard errors that a gain must have
_LEVEL = 0.9
KINDS = ("measured", "seen elsewhere", "unseen", "combination", "combination with unseen")


@dataclass(frozen=True)
class Choice:
    """A setting, and how well it did on perturbations that were left out.

    Attributes
    ----------
    setting
        The setting.
    gain
        Mean gain over the plain guess, 0 for that itself: half of what the correlation of changes gains, and half of
        the correlation of what differs from the plain guess.
    plain
        The best plain guess: no change, the mean effect, or that of each context.
    score
        Mean correlation of the changes that the plain guess has.
    table
        One row for the best setting of each source.
    """

    setting: Setting
    plain: Setting
    gain: float = 0.0
    score: float = float("nan")
    table: pd.DataFrame = field(default_factory=pd.DataFrame)


def correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson correlation of rows, 0 where one is constant; float64, shape `(n,)`."""
    a, b = (x - x.mean(axis=1, keepdims=True) for x in (a.astype(np.float64), b.astype(np.float64)))
    norm = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.divide((a * b).sum(axis=1), norm, out=np.zeros(len(a)), where=norm > 1e-12)  # noqa: PLR2004


def left_out(
    screen: Screen,
    values: np.ndarray,
    blocks: Sequence[np.ndarray],
    setting: Setting,
    similarity: Similarity,
    fresh: Sequence[Similarity] = (),
) -> np.ndarray:
    """Prediction for the rows of each block by all other rows, shape of `values`; NaN for rows in no block.

    Components of the effects must be found anew without a block (`fresh`), all else is had from one inversion.
    """
    out = np.full(values.shape, np.nan)
    if setting.signal and COMPONENTS in (setting.source or ""):
        for block, known in zip(blocks, fresh, strict=True):
            others = np.setdiff1d(np.arange(len(values)), block)
            out[block] = fitted_values(screen, values, others, screen.conditions.take(block), known, setting)
        return out
    inverse = np.linalg.inv(gram(screen.conditions, screen.conditions, similarity, setting) + _noise(screen, setting))
    alpha = inverse @ values
    for block in blocks:
        out[block] = values[block] - np.linalg.solve(inverse[np.ix_(block, block)], alpha[block])
    return out


def _noise(screen: Screen, setting: Setting) -> np.ndarray:
    return np.diag(screen.noise**setting.trust)


def fitted_values(
    screen: Screen,
    values: np.ndarray,
    rows: np.ndarray,
    conditions: Conditions,
    similarity: Similarity,
    setting: Setting,
) -> np.ndarray:
    """Prediction for conditions from these rows of a screen, shape `(n, n_genes)`."""
    known = screen.take(rows)
    inner = gram(known.conditions, known.conditions, similarity, setting) + _noise(known, setting)
    return gram(conditions, known.conditions, similarity, setting) @ np.linalg.solve(inner, values[rows])


class Selection:
    """Settings on trial: each predicts perturbations that are left out.

    Parameters
    ----------
    screen
        The rows.
    values
        What is predicted of them; what is the same by construction, such as the effect on the target, is left out.
    blocks
        Rows that are left out together.
    similarity
        How alike parts are.
    fresh
        The same for each block, with components that are found without it.
    """

    def __init__(
        self,
        screen: Screen,
        values: np.ndarray,
        blocks: Sequence[np.ndarray],
        similarity: Similarity,
        fresh: Sequence[Similarity] = (),
    ) -> None:
        self.screen, self.values, self.blocks = screen, values, blocks
        self.similarity, self.fresh = similarity, fresh
        self.rows = np.unique(np.concatenate(blocks))
        centred = values - values.mean(axis=1, keepdims=True)
        _, vectors = np.linalg.eigh(centred @ centred.T)  # rows are combined, so their space is all that is needed
        self.space = centred @ (centred.T @ vectors[:, -_N_DIMS:])
        scale = np.sqrt(np.maximum(((centred.T @ vectors[:, -_N_DIMS:]) ** 2).sum(axis=0), 1e-12))
        self.space /= scale

    def predictions(self, setting: Setting, *, whole: bool = False) -> np.ndarray:
        """Of the rows that are left out, in the space of the rows or (`whole`) of all rows and genes."""
        values = self.values if whole else self.space
        found = left_out(self.screen, values, self.blocks, setting, self.similarity, self.fresh)
        return found if whole else found[self.rows]

    def best(self, plain: Sequence[Setting], others: Sequence[Setting]) -> tuple[Choice, np.ndarray]:
        """The best setting, and its predictions of left-out rows; NaN for rows that never were."""
        truth = self.space[self.rows]
        scores = [cosines(self.predictions(setting), truth) for setting in plain]
        base = plain[int(np.argmax([score.mean() for score in scores]))]
        centre, start = self.predictions(base), max(score.mean() for score in scores)
        best, table = (0.0, base), []
        for like in others:
            setting = replace(like, flat=base.flat, flat_across=base.flat_across, trust=base.trust)
            found = self.predictions(setting)
            beyond = cosines(found - centre, truth - centre)
            for weight in _WEIGHTS:
                score = cosines(centre + weight * (found - centre), truth)
                gain = (score - start + beyond) / 2
                table.append((setting.source, float(gain.mean()), float(score.mean()), float(beyond.mean())))
                if gain.mean() > max(best[0], _CAUTION * gain.std(ddof=1) / np.sqrt(len(gain))):
                    best = (float(gain.mean()), replace(setting, weight=weight))
        out = self.predictions(base, whole=True)
        if best[1] is not base:
            out += best[1].weight * (self.predictions(best[1], whole=True) - out)
        shown = pd.DataFrame(table, columns=["source", "gain", "correlation", "beyond"])
        shown = shown.sort_values("gain", ascending=False).groupby("source", dropna=False, sort=False).head(1)
        return Choice(best[1], base, best[0], float(start), shown.reset_index(drop=True)), out


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine of rows, 0 where one has no length; float64, shape `(n,)`."""
    norm = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.divide((a * b).sum(axis=1), norm, out=np.zeros(len(a)), where=norm > 1e-12)  # noqa: PLR2004


def _keys(conditions: Conditions) -> list[tuple[tuple[str, ...], str]]:
    return [(tuple(sorted(x)), context) for x, context in zip(conditions.parts, conditions.contexts, strict=True)]


class EffectModel:
    """Effects of any perturbation, from those of a screen.

    Parameters
    ----------
    screen
        What was measured.
    features
        Tables of features of genes by name: index gene, any columns.
    anchor
        `"ridge"`, `"additive"` (parts that were not measured have the mean effect) or `"mean"` (so have combinations).
    own_effect
        Learn what a perturbation does to its target.
    """

    def __init__(
        self,
        screen: Screen,
        features: Mapping[str, pd.DataFrame] | None = None,
        *,
        anchor: str = "ridge",
        own_effect: bool = True,
    ) -> None:
        self.screen, self.features, self.anchor = screen, dict(features or {}), anchor
        self.own = OwnEffect.fitted(screen) if own_effect and anchor != "mean" else OwnEffect({}, {})
        self.values = self.own.add(screen.effects.astype(np.float64), screen, screen.conditions, -1.0)
        self.similarity = self._similarity(screen.conditions.universe)
        self.unseen, self.elsewhere = Choice(Setting(), Setting()), Choice(Setting(), Setting())
        self.left_out_ = np.full(screen.effects.shape, np.nan)
        self.beyond: Choice | None = None
        self._choose_unseen()
        self._find_pairs()
        self.spread_ = self._spread()

    def _similarity(self, universe: Sequence[str]) -> Similarity:
        return Similarity(self.features, universe).with_components(self.screen)

    def _sources(self) -> list[str]:
        names = [name for name, table in self.similarity.grams.items() if (table != 0).any()]
        return [*names, *(["+".join(names)] if len(names) > 1 else [])]

    def _choose_unseen(self) -> None:
        conditions = self.screen.conditions
        contexts = sorted(set(conditions.contexts))
        across = _ACROSS if len(contexts) > 1 else (1.0,)
        blocks = [
            np.array([i for i, parts in enumerate(conditions.parts) if part in parts]) for part in conditions.universe
        ]
        blocks = [block for block in blocks if 0 < len(block) < len(conditions)]
        if not blocks:
            return
        plain, others = [Setting()], []
        if self.anchor == "ridge" and len(blocks) >= _FEW:
            plain = [
                *(Setting(flat_across=rho, trust=x) for rho in _ACROSS[-1 if len(contexts) == 1 else 0 :] for x in (0, 1)),
                Setting(flat=0.0),
            ]
            others = [
                Setting(signal=signal, source=source, share=share, across=rho)
                for source, signal, share, rho in product(self._sources(), _SIGNALS, _SHARES, across)
            ]
        fresh = self._without(blocks) if others else []
        trial = Selection(self.screen, self.values, blocks, self.similarity, fresh)
        self.unseen, self.left_out_ = trial.best(plain, others)
        if len(contexts) > 1 and others:
            others = [Setting(signal=s, across=rho) for s, rho in product((*_SIGNALS, 10.0), (0.3, 0.6, 0.9, 1.0))]
            rows = [np.array([i]) for i in range(len(conditions))]
            self.elsewhere, _ = Selection(self.screen, self.values, rows, self.similarity).best(plain, others)

    def _without(self, blocks: Sequence[np.ndarray]) -> list[Similarity]:
        """How alike parts are, without what each block shows."""
        every = np.arange(len(self.screen))
        return [self.similarity.with_components(self.screen.take(np.setdiff1d(every, block))) for block in blocks]

    def _find_pairs(self) -> None:
        """What combinations show beyond the sum of their parts."""
        conditions = self.screen.conditions
        self.singles = {
            (parts[0], context): row
            for row, (parts, context) in enumerate(zip(conditions.parts, conditions.contexts, strict=True))
            if len(parts) == 1
        }
        self.pair_rows = np.array(
            [
                row
                for row, (parts, context) in enumerate(zip(conditions.parts, conditions.contexts, strict=True))
                if len(parts) > 1 and all((part, context) in self.singles for part in parts)
            ],
            dtype=int,
        )
        if self.anchor != "ridge" or len(self.pair_rows) < 2 * _FEW:
            return
        pairs = self.screen.take(self.pair_rows)
        residual = self.screen.effects[self.pair_rows] - self._sums(pairs.conditions)
        self.residual_screen, self.residual = replace(pairs, effects=residual), residual.astype(np.float64)
        self.residual_similarity = self._with_effects(conditions.universe)
        sources = [name for name, x in self.residual_similarity.grams.items() if (x != 0).any() and name != COMPONENTS]
        plain = Setting(flat=0.0)
        candidates = [
            Setting(signal=signal, source=source, share=share, pairs=pair, flat=flat)
            for source, signal, share, pair, flat in product(sources, _SIGNALS, (0.5, 0.9), _PAIRS, (0.0, 1.0))
        ]
        blocks = [np.array([i]) for i in range(len(pairs))]
        trial = Selection(self.residual_screen, self.residual, blocks, self.residual_similarity)
        self.beyond, found = trial.best([plain], candidates)
        self.left_out_[self.pair_rows] = self._sums(pairs.conditions) + found

    def _with_effects(self, universe: Sequence[str]) -> Similarity:
        out = Similarity(self.features, universe)
        names = sorted({part for part, _ in self.singles})
        rows = [next(row for (p, _), row in self.singles.items() if p == part) for part in names]
        table = pd.DataFrame(self.screen.effects[rows], index=names)
        out.grams[EFFECTS] = unit_gram(table, universe)
        return out

    def _sums(self, conditions: Conditions) -> np.ndarray:
        """Sum of the measured effects of the parts, float64."""
        out = np.zeros((len(conditions), len(self.screen.genes)))
        for row, (parts, context) in enumerate(zip(conditions.parts, conditions.contexts, strict=True)):
            for part in parts:
                out[row] += self.screen.effects[self.singles[part, context]]
        return out

    def _spread(self) -> dict[str, np.ndarray]:
        """Half the width of the interval of each gene, by kind of condition; from rows that were left out."""
        error = np.abs(self.left_out_ - self.values)
        pairs = np.isin(np.arange(len(error)), self.pair_rows)
        error[pairs] = np.abs(self.left_out_[pairs] - self.screen.effects[pairs])
        known = np.isfinite(error).all(axis=1)
        widths = {}
        for name, rows in (("unseen", known & ~pairs), ("combination", known & pairs)):
            scale = np.sqrt((error[rows] ** 2).mean(axis=0)) if rows.any() else np.full(error.shape[1], np.nan)
            ratio = error[rows] / np.maximum(scale, 1e-12)
            widths[name] = scale * (np.quantile(ratio, _LEVEL) if rows.any() else np.nan)
        if not np.isfinite(widths["combination"]).all():
            widths["combination"] = widths["unseen"] * np.sqrt(2.0)
        widths["combination with unseen"] = np.hypot(widths["unseen"], widths["combination"])
        return {**widths, "seen elsewhere": widths["unseen"]}

    def width(self, conditions: Conditions) -> np.ndarray:
        """Half the width of 90 % intervals, float32, shape `(n, n_genes)`; NaN where nothing is known of it."""
        out = np.full((len(conditions), len(self.screen.genes)), np.nan, dtype=np.float32)
        rows = self._measured_rows()
        for i, (kind, key) in enumerate(zip(self.kinds(conditions), _keys(conditions), strict=True)):
            if kind != KINDS[0]:
                out[i] = self.spread_[kind]
            elif self.screen.errors is not None:
                out[i] = ACROSS * self.screen.errors[rows[key]]
        return out

    def _measured_rows(self) -> dict[tuple[tuple[str, ...], str], int]:
        return {key: row for row, key in enumerate(_keys(self.screen.conditions))}

    def predict(self, conditions: Conditions, *, block: int = 512) -> np.ndarray:
        """Changes of expression, float32, shape `(n, n_genes)`; what was measured is given as it was."""
        parts = list(dict.fromkeys((p, c) for x, c in zip(conditions.parts, conditions.contexts, strict=True) for p in x))
        table, place = self._of_parts(parts), {key: i for i, key in enumerate(parts)}
        rows = self._measured_rows()
        out = np.empty((len(conditions), len(self.screen.genes)), dtype=np.float32)
        for start in range(0, len(conditions), block):
            some = conditions.take(range(start, min(start + block, len(conditions))))
            for i, (x, context) in enumerate(zip(some.parts, some.contexts, strict=True)):
                out[start + i] = table[[place[part, context] for part in x]].sum(axis=0)
            self._add_beyond(out[start : start + block], some)
            for i, key in enumerate(_keys(some)):
                if key in rows:
                    out[start + i] = self.screen.effects[rows[key]]
        return out

    def _of_parts(self, parts: Sequence[tuple[str, str]]) -> np.ndarray:
        """Effects of single parts, measured or predicted, float32, shape `(n_parts, n_genes)`."""
        out = np.empty((len(parts), len(self.screen.genes)), dtype=np.float32)
        new = [i for i, key in enumerate(parts) if key not in self.singles]
        for i, key in enumerate(parts):
            if key in self.singles:
                out[i] = self.screen.effects[self.singles[key]]
        if new:
            asked = Conditions(tuple((parts[i][0],) for i in new), tuple(parts[i][1] for i in new))
            kinds = np.array(self.kinds(asked))
            for kind, choice in (("seen elsewhere", self.elsewhere), ("unseen", self.unseen)):
                chosen = np.flatnonzero(kinds == kind)
                if len(chosen):
                    out[np.array(new)[chosen]] = self._from(asked.take(chosen), choice)
        return out

    def _from(self, conditions: Conditions, choice: Choice) -> np.ndarray:
        """Kernel ridge regression, around the mean effect, and the effect on the target."""
        universe = sorted({*self.screen.conditions.universe, *conditions.universe})
        similarity = self._similarity(universe)
        rows, setting = np.arange(len(self.screen)), choice.setting
        out = fitted_values(self.screen, self.values, rows, conditions, similarity, choice.plain)
        if setting != choice.plain:
            found = fitted_values(self.screen, self.values, rows, conditions, similarity, setting)
            out += setting.weight * (found - out)
        return self.own.add(out, self.screen, conditions)

    def _add_beyond(self, to: np.ndarray, conditions: Conditions) -> None:
        """What combinations do beyond the sum, or the mean effect in place of the sum, into `to`."""
        several = np.flatnonzero([len(x) > 1 for x in conditions.parts])
        if not len(several):
            return
        if self.anchor == "mean":
            sizes = np.array([len(x) for x in self.screen.conditions.parts])
            to[several] = self.screen.effects[sizes > 1 if (sizes > 1).any() else sizes > 0].mean(axis=0)
        elif self.beyond is not None and self.beyond.gain > 0:
            some = conditions.take(several)
            universe = sorted({*self.screen.conditions.universe, *some.universe})
            setting, rows = self.beyond.setting, np.arange(len(self.residual_screen))
            found = fitted_values(
                self.residual_screen, self.residual, rows, some, self._with_effects(universe), setting
            )
            to[several] += setting.weight * found

    def kinds(self, conditions: Conditions) -> list[str]:
        """What is known of each condition, out of :data:`KINDS`."""
        known = self.screen.conditions
        rows = set(_keys(known))
        seen = {part for parts in known.parts for part in parts}
        out = []
        for parts, context in zip(conditions.parts, conditions.contexts, strict=True):
            if (tuple(sorted(parts)), context) in rows:
                out.append(KINDS[0])
            elif len(parts) == 1:
                out.append(KINDS[1] if parts[0] in seen else KINDS[2])
            else:
                out.append(KINDS[3] if all((part, context) in self.singles for part in parts) else KINDS[4])
        return out
