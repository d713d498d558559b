"""What perturbed genes do together: a joint regression on parts and combinations. Arrays in, arrays out.

Effects of parts add up on a scale of their own: relative to the expression of the control, as folds do, or as they are.
The scale, the settings, and whether two parts do more than the sum are decided by leaving combinations out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import numpy as np

from ._gram import Setting, Similarity, gram
from ._screen import Conditions, Screen, level_of
from ._selection import Choice, Selection, surely_positive

_JOINT, _PAIRS = (0.1, 0.3, 1.0, 3.0, 10.0), (0.1, 0.3, 1.0, 3.0)
_INTERACTION = 0.0025  # share of the change of combinations; scales bend a little on their own
_FLOOR = 0.3  # added to the expression of the control: below it a fold is mostly noise
_ERRORS = 2.0  # standard errors that a gain of interactions must have


class Scale:
    """Effects relative to the control, to first order in the units of the effects themselves.

    `to` is `l log(1 + effect / l)` with `l` the expression of the control and a floor; `back` its inverse.

    Parameters
    ----------
    screen
        With controls; without any (a table of effects) the scale is that of the effects.
    """

    def __init__(self, screen: Screen | None) -> None:
        self.screen = screen if screen is not None and screen.controls else None

    def _levels(self, conditions: Conditions) -> np.ndarray:
        return np.stack([level_of(self.screen, context) for context in conditions.contexts]) + _FLOOR

    def to(self, effects: np.ndarray, conditions: Conditions) -> np.ndarray:
        """On the scale, float64, shape `(n, n_genes)`."""
        if self.screen is None or not len(conditions):
            return effects.astype(np.float64)
        level = self._levels(conditions)
        return level * np.log(np.maximum(effects + level, _FLOOR) / level)

    def back(self, values: np.ndarray, conditions: Conditions) -> np.ndarray:
        """Effects, float64, shape `(n, n_genes)`."""
        if self.screen is None or not len(conditions):
            return values.astype(np.float64)
        level = self._levels(conditions)
        return level * np.expm1(values / level)


class Together:
    """Joint regression on parts and combinations of a screen.

    Parameters
    ----------
    screen
        What was measured.
    singles
        Row of each part that was measured alone, by part and context.
    pairs
        Rows of combinations whose parts were all measured alone in the same context.
    similarity
        How alike parts are.
    sources
        Names of the features that may tell how alike parts are; of the joint regression, and of interactions.
    few
        Combinations below which nothing is chosen.

    Attributes
    ----------
    choice
        The setting, and its gain over the sum; a gain of 0 is the sum itself.
    interacts
        Whether two parts surely do more together than the sum.
    """

    def __init__(
        self,
        screen: Screen,
        singles: dict[tuple[str, str], int],
        pairs: np.ndarray,
        similarity: Similarity,
        *,
        sources: Sequence[str] = (),
        few: int = 8,
    ) -> None:
        self.screen, self.pairs, self.similarity = screen, pairs, similarity
        self.sums = np.zeros((len(pairs), len(screen)))
        for i, row in enumerate(pairs):
            for part in screen.conditions.parts[row]:
                self.sums[i, singles[part, screen.conditions.contexts[row]]] += 1
        self.scale, self.choice, self.interacts = Scale(None), Choice(Setting(), Setting()), False
        self._solved: np.ndarray | None = None
        self._trial = self._tried(self.scale)
        if sources and len(pairs) >= few:
            self._choose(sources)
        some = screen.conditions.take(pairs)
        self.left_out = self.scale.back(self._trial.whole(self.choice)[pairs], some)
        self.values = self.scale.to(screen.effects, screen.conditions)
        del self._trial

    def _tried(self, scale: Scale) -> Selection:
        values = scale.to(self.screen.effects, self.screen.conditions)
        blocks = [np.array([row]) for row in self.pairs]
        return Selection(self.screen, values, blocks, self.similarity, sums=self.sums)

    def _choose(self, sources: Sequence[str]) -> None:
        plain = Setting()
        features = [(None, 0.0), *product(sources, (0.5, 0.9))]
        others = [Setting(signal=s, source=name, share=share) for (name, share), s in product(features, _JOINT)]
        self.choice = self._trial.best([plain], others)
        if self.screen.controls and self.choice.gain > 0:
            scale = Scale(self.screen)
            trial = self._tried(scale)
            choice = trial.best([plain], others)
            if choice.gain > 0 and surely_positive(self._errors(self._trial, self.scale, self.choice)
                                                   - self._errors(trial, scale, choice)):  # fmt: skip
                self.scale, self.choice, self._trial = scale, choice, trial
        if self.choice.gain > 0:
            self._choose_interactions(sources)

    def _errors(self, trial: Selection, scale: Scale, choice: Choice) -> np.ndarray:
        """Error of each combination that is left out, in its own size, on the scale of the effects."""
        truth = self.screen.effects[self.pairs].astype(np.float64)
        found = scale.back(trial.whole(choice)[self.pairs], self.screen.conditions.take(self.pairs))
        return ((truth - found) ** 2).sum(axis=1) / np.maximum((truth**2).sum(axis=1), 1e-12)

    def _choose_interactions(self, sources: Sequence[str]) -> None:
        """Of the settings that are surely better than the one without interactions, the one with the largest gain."""
        like, best = self.choice.setting, (0.0, None)
        for source, pairs, factor in product(sources, _PAIRS, (1.0, 3.0)):
            setting = replace(like, pairs=pairs, pair_source=source, signal=like.signal * factor)
            gains = self._trial.gains(replace(self.choice, setting=setting), self.choice)
            least = gains.mean() - _ERRORS * gains.std(ddof=1) / np.sqrt(len(gains))
            if gains.mean() > max(_INTERACTION, best[0]) and least > 0:
                best = (float(gains.mean()), setting)
        if best[1] is not None:
            self.choice, self.interacts = replace(self.choice, setting=best[1]), True

    def _weights(self) -> np.ndarray:
        """Of the rows in the joint regression, float64, shape `(n_rows, n_genes)`; solved once."""
        if self._solved is None:
            known, setting = self.screen.conditions, self.choice.setting
            inner = gram(known, known, self.similarity, setting) + np.diag(self.screen.noise**setting.trust)
            self._solved = np.linalg.solve(inner, self.values)
        return self._solved

    def predict(self, conditions: Conditions, sums: np.ndarray, similarity: Similarity) -> np.ndarray:
        """Effects of combinations, float64, shape `(n, n_genes)`.

        Parameters
        ----------
        conditions
            Combinations whose parts were all measured alone in the context.
        sums
            Sums of the effects of their parts on the scale, shape `(n, n_genes)`.
        similarity
            How alike parts are, with those of the conditions.
        """
        setting = self.choice.setting
        found = gram(conditions, self.screen.conditions, similarity, setting) @ self._weights()
        return self.scale.back(sums + setting.weight * (found - sums), conditions)

    def interactions(self, conditions: Conditions, similarity: Similarity) -> np.ndarray:
        """What two parts do together beyond the sum, float64, shape `(n, n_genes)`."""
        known, setting = self.screen.conditions, self.choice.setting
        whole, alone = (
            self.scale.back(gram(conditions, known, similarity, one) @ self._weights(), conditions)
            for one in (setting, replace(setting, pairs=0.0))
        )
        return setting.weight * (whole - alone)
