"""Effects of perturbations from those that were measured: the anchor of `SCGPTPerturber`. Arrays in, arrays out.

What was measured is shrunk to what others say of it, as far as its noise asks for. A part that was not measured is
predicted by kernel ridge regression on the features of genes, around the mean effect. A combination is the sum of its
parts, or what a joint regression on parts and pairs says. What to believe is decided by leaving perturbations out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
import pandas as pd

from ._gram import COMPONENTS, Setting, Similarity, unit_gram
from ._screen import ACROSS, Conditions, OwnEffect, Screen
from ._selection import Choice, Selection, denoised, fitted_values
from ._together import Together

EFFECTS = "effects"
ANCHORS = ("ridge", "additive", "mean")
KINDS = ("measured", "seen elsewhere", "unseen", "combination", "combination with unseen")
_SIGNALS, _SHARES, _ACROSS = (0.03, 0.1, 0.3, 1.0, 3.0), (0.4, 0.9), (0.0, 0.5, 1.0)
_FEW = 4  # perturbations below which nothing is chosen
_MOST_BLOCKS = 40  # that are left out in turn
_LEVEL = 0.9

Key = tuple[tuple[str, ...], str]


class EffectModel:
    """Effects of any perturbation, from those of a screen.

    Parameters
    ----------
    screen
        What was measured.
    features
        Tables of features of genes by name: index gene, any columns.
    anchor
        `"ridge"`; `"additive"`: parts that were not measured have the mean effect, combinations the sum; `"mean"`: all
        that was not measured has the mean effect.
    own_effect
        Learn what a perturbation does to its target.
    shrink
        Shrink what was measured, where standard errors are known.
    """

    def __init__(
        self,
        screen: Screen,
        features: Mapping[str, pd.DataFrame] | None = None,
        *,
        anchor: str = "ridge",
        own_effect: bool = True,
        shrink: bool = True,
    ) -> None:
        self.screen, self.features, self.anchor = screen, dict(features or {}), anchor
        self.own = OwnEffect.fitted(screen) if own_effect and anchor == "ridge" else OwnEffect({}, {})
        self.values = self.own.add(screen.effects.astype(np.float64), screen, screen.conditions, -1.0)
        self.keys = keys_of(screen.conditions)
        self.rows = {key: row for row, key in enumerate(self.keys)}
        self.singles = {(x[0], context): row for row, (x, context) in enumerate(self.keys) if len(x) == 1}
        self._last: Similarity | None = None
        self.similarity = self._similarity(screen.conditions.universe)
        plain = Choice(Setting(), Setting())
        self.unseen = self.elsewhere = plain
        self.joint, self.interacts = plain, False
        self.left_out_ = np.full(screen.effects.shape, np.nan)
        self._choose_unseen()
        self._choose_joint()
        self.shrunk = self._shrunk() if shrink and anchor == "ridge" else screen.effects
        self.spread_ = self._spread()

    def _similarity(self, universe: Sequence[str]) -> Similarity:
        """How alike parts are; that of the last universe is kept."""
        if self._last is not None and self._last.universe == list(universe):
            return self._last
        similarity = Similarity(self.features, universe).with_components(self.screen)
        names = sorted({part for part, _ in self.singles})
        place = {part: row for (part, _), row in reversed(self.singles.items())}
        table = pd.DataFrame(self.screen.effects[[place[part] for part in names]], index=names)
        similarity.grams[EFFECTS] = unit_gram(table, universe)
        self._last = similarity
        return similarity

    def _sources(self, without: str) -> list[str]:
        names = [name for name, x in self.similarity.grams.items() if (x != 0).any() and name != without]
        return [*names, *(["+".join(names)] if len(names) > 1 else [])]

    def _choose_unseen(self) -> None:
        conditions = self.screen.conditions
        n_contexts = len(set(conditions.contexts))
        across = _ACROSS if n_contexts > 1 else (1.0,)
        blocks = self._blocks()
        if not blocks:
            return
        plain, others = [Setting()], []
        if self.anchor == "ridge" and len(blocks) >= _FEW:
            plain += [Setting(flat_across=rho, trust=x) for rho in across for x in (0, 1)] + [Setting(flat=0.0)]
            others = [
                Setting(signal=signal, source=source, share=share, across=rho)
                for source, signal, share, rho in product(self._sources(EFFECTS), _SIGNALS, _SHARES, across)
            ]
        fresh = self._without(blocks) if others else []

        trial = Selection(self.screen, self.values, blocks, self.similarity, fresh)
        self.unseen = trial.best(plain, others)
        self.left_out_ = trial.whole(self.unseen)
        if n_contexts > 1 and others:
            others = [Setting(signal=s, across=rho) for s, rho in product((*_SIGNALS, 10.0), (0.3, 0.6, 0.9, 1.0))]
            rows = [np.array([i]) for i in range(len(conditions))]
            self.elsewhere = Selection(self.screen, self.values, rows, self.similarity).best(plain, others)

    def _blocks(self) -> list[np.ndarray]:
        """Rows with a part, for each part; with many parts, rows with one of several."""
        conditions = self.screen.conditions
        universe = conditions.universe
        fold = np.random.default_rng(0).permutation(len(universe)) % _MOST_BLOCKS
        member = conditions.members(universe) > 0
        groups = [np.array([i]) for i in range(len(universe))]
        if len(universe) > _MOST_BLOCKS:
            groups = [np.flatnonzero(fold == one) for one in range(_MOST_BLOCKS)]
        blocks = [np.flatnonzero(member[:, group].any(axis=1)) for group in groups]
        return [block for block in blocks if len(block) < len(conditions)]

    def _without(self, blocks: Sequence[np.ndarray]) -> list[Similarity]:
        """How alike parts are, without what each block shows."""
        every = np.arange(len(self.screen))
        return [self.similarity.with_components(self.screen.take(np.setdiff1d(every, block))) for block in blocks]

    def _choose_joint(self) -> None:
        """Whether combinations are more than the sums of their parts."""
        self.pairs = np.array(
            [
                row
                for row, (parts, context) in enumerate(self.keys)
                if len(parts) > 1 and all((part, context) in self.singles for part in parts)
            ],
            dtype=int,
        )
        if not len(self.pairs):
            return
        sources = self._sources(COMPONENTS) if self.anchor == "ridge" else []
        self.together = Together(self.screen, self.singles, self.pairs, self.similarity, sources=sources, few=2 * _FEW)
        self.joint, self.interacts = self.together.choice, self.together.interacts
        self.left_out_[self.pairs] = self.together.left_out

    def _shrunk(self) -> np.ndarray:
        """What was measured, its difference to what other rows say of it freed of noise."""
        if self.screen.errors is None:
            return self.screen.effects
        prior = self.left_out_.copy()
        single = ~np.isin(np.arange(len(prior)), self.pairs)
        prior[single] = self.own.add(prior, self.screen, self.screen.conditions)[single]
        difference = self.screen.effects - prior
        known = np.isfinite(difference).all(axis=1)
        errors = np.nan_to_num(self.screen.errors.astype(np.float64) ** 2)
        noise = np.maximum(errors - errors.min(axis=0), 0)  # the error of the controls is the same for all
        if known.sum() > 1 and noise[known].any():
            difference[known] = denoised(difference[known], noise[known])
        out = self.screen.effects.astype(np.float32).copy()
        out[known] = (prior + difference)[known]
        return out

    def _spread(self) -> dict[str, np.ndarray]:
        """Half the width of the interval of each gene, by kind of condition; from rows that were left out."""
        pairs = np.isin(np.arange(len(self.keys)), self.pairs)
        error = np.abs(self.left_out_ - np.where(pairs[:, None], self.screen.effects, self.values))
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

    def kinds(self, conditions: Conditions) -> list[str]:
        """What is known of each condition, out of :data:`KINDS`."""
        seen = {part for parts, _ in self.keys for part in parts}
        out = []
        for parts, context in keys_of(conditions):
            if (parts, context) in self.rows:
                out.append(KINDS[0])
            elif len(parts) == 1:
                out.append(KINDS[1] if parts[0] in seen else KINDS[2])
            else:
                out.append(KINDS[3] if all((part, context) in self.singles for part in parts) else KINDS[4])
        return out

    def width(self, conditions: Conditions) -> np.ndarray:
        """Half the width of 90 % intervals, float32, shape `(n, n_genes)`; NaN where nothing is known of it."""
        out = np.full((len(conditions), len(self.screen.genes)), np.nan, dtype=np.float32)
        for i, (kind, key) in enumerate(zip(self.kinds(conditions), keys_of(conditions), strict=True)):
            if kind != KINDS[0]:
                out[i] = self.spread_[kind]
            elif self.screen.errors is not None:
                out[i] = ACROSS * self.screen.errors[self.rows[key]]
        return out

    def predict(self, conditions: Conditions, *, block: int = 512) -> np.ndarray:
        """Changes of expression, float32, shape `(n, n_genes)`."""
        pairs = zip(conditions.parts, conditions.contexts, strict=True)
        parts = list(dict.fromkeys((part, context) for x, context in pairs for part in x))
        table, place = self._of_parts(parts), {key: i for i, key in enumerate(parts)}
        out = np.empty((len(conditions), len(self.screen.genes)), dtype=np.float32)
        for start in range(0, len(conditions), block):
            some = conditions.take(range(start, min(start + block, len(conditions))))
            for i, (x, context) in enumerate(zip(some.parts, some.contexts, strict=True)):
                out[start + i] = table[[place[part, context] for part in x]].sum(axis=0)
            self._combine(out[start : start + block], some)
            for i, key in enumerate(keys_of(some)):
                if key in self.rows:
                    out[start + i] = self.shrunk[self.rows[key]]
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
        """Kernel ridge regression, around the plain guess, and the effect on the target."""
        similarity = self._similarity(sorted({*self.screen.conditions.universe, *conditions.universe}))
        rows = np.arange(len(self.screen))
        out = fitted_values(self.screen, self.values, rows, conditions, similarity, choice.plain)
        if choice.gain > 0:
            found = fitted_values(self.screen, self.values, rows, conditions, similarity, choice.setting)
            out += choice.setting.weight * (found - out)
        return self.own.add(out, self.screen, conditions)

    def _combine(self, to: np.ndarray, conditions: Conditions) -> None:
        """Combinations beyond the sum, or with the mean effect in its place, into `to`."""
        several = np.flatnonzero([len(x) > 1 for x in conditions.parts])
        if not len(several):
            return
        if self.anchor == "mean":
            sizes = np.array([len(x) for x, _ in self.keys])
            to[several] = self.screen.effects[sizes > 1 if (sizes > 1).any() else sizes > 0].mean(axis=0)
        elif self.joint.gain > 0:
            kinds = np.array(self.kinds(conditions))[several]
            several = several[kinds != KINDS[4]]  # of an unseen part the sum knows more: its features, its own effect
            some = conditions.take(several)
            sums = np.zeros((len(several), len(self.screen.genes)))
            for i, (x, context) in enumerate(zip(some.parts, some.contexts, strict=True)):
                rows = [self.singles[part, context] for part in x]
                sums[i] = self.together.values[rows].sum(axis=0)
            similarity = self._similarity(sorted({*self.screen.conditions.universe, *some.universe}))
            to[several] = self.together.predict(some, sums, similarity)

    def interactions(self, conditions: Conditions) -> np.ndarray:
        """What two parts do together beyond the sum, float32, shape `(n, n_genes)`; 0 when none was found."""
        out = np.zeros((len(conditions), len(self.screen.genes)), dtype=np.float32)
        several = np.flatnonzero([len(x) == 2 for x in conditions.parts])  # noqa: PLR2004
        if self.interacts and len(several):
            some = conditions.take(several)
            similarity = self._similarity(sorted({*self.screen.conditions.universe, *some.universe}))
            out[several] = self.together.interactions(some, similarity)
        return out


def keys_of(conditions: Conditions) -> list[Key]:
    """Parts in the order of the alphabet and the context of each condition."""
    return [(tuple(sorted(x)), context) for x, context in zip(conditions.parts, conditions.contexts, strict=True)]
