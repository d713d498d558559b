"""What to believe of perturbations: settings of kernel ridge regression, judged on rows that are left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from ._gram import COMPONENTS, Setting, Similarity, gram
from ._screen import Conditions, Screen

_WEIGHTS = (0.5, 1.0)
_N_DIMS = 128
ONE, MANY = 1.645, 3.0  # standard errors that a gain must have: of one setting, of the best of many
_TINY = 1e-12
_MOSTLY = 2 / 3  # share of signal from which rows keep their length


@dataclass(frozen=True)
class Choice:
    """A setting, and how well it did on perturbations that were left out.

    Attributes
    ----------
    setting
        The setting.
    plain
        The best plain guess: no change, the mean effect, or that of each context.
    gain
        Mean gain over the plain guess, 0 for that itself: half of what the correlation of changes gains, and half of
        the correlation of what differs from the plain guess.
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


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine of rows, 0 where one has no length; float64, shape `(n,)`."""
    norm = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.divide((a * b).sum(axis=1), norm, out=np.zeros(len(a)), where=norm > _TINY)


def surely_positive(gain: np.ndarray, errors: float = ONE) -> bool:
    """Whether the mean of a gain is above 0 by so many of its standard errors: one-sided at 5 % by default."""
    if len(gain) < 2:  # noqa: PLR2004
        return False
    return bool(gain.mean() > max(errors * gain.std(ddof=1) / np.sqrt(len(gain)), _TINY))


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
    if setting.signal and COMPONENTS in (setting.source or "") and fresh:
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
    """Prediction for conditions from these rows of a screen, float64, shape `(n, n_genes)`."""
    known = screen.take(rows)
    inner = gram(known.conditions, known.conditions, similarity, setting) + _noise(known, setting)
    return gram(conditions, known.conditions, similarity, setting) @ np.linalg.solve(inner, values[rows])


class Selection:
    """Settings on trial: each predicts rows that are left out.

    Parameters
    ----------
    screen
        The rows.
    values
        What is predicted of them; what is the same by construction, such as the effect on the target, is left out.
    blocks
        Rows that are left out together; only these are judged.
    similarity
        How alike parts are.
    fresh
        The same for each block, with components that are found without it.
    sums
        In place of plain guesses: weights of all rows in the guess for each judged row, shape `(n_judged, n_rows)`.
    """

    def __init__(
        self,
        screen: Screen,
        values: np.ndarray,
        blocks: Sequence[np.ndarray],
        similarity: Similarity,
        fresh: Sequence[Similarity] = (),
        sums: np.ndarray | None = None,
    ) -> None:
        self.screen, self.values, self.blocks = screen, values, blocks
        self.similarity, self.fresh, self.sums = similarity, fresh, sums
        self.rows = np.unique(np.concatenate(blocks))
        centred = values - values.mean(axis=1, keepdims=True)
        _, vectors = np.linalg.eigh(centred @ centred.T)  # rows are combined, so their space is all that is needed
        basis, _ = np.linalg.qr(centred.T @ vectors[:, -_N_DIMS:])
        self.space = centred @ basis
        self.truth = self.space[self.rows]

    def predictions(self, setting: Setting) -> np.ndarray:
        """Of the judged rows, in the space of all rows, shape `(n_judged, n_dims)`."""
        return left_out(self.screen, self.space, self.blocks, setting, self.similarity, self.fresh)[self.rows]

    def whole(self, choice: Choice) -> np.ndarray:
        """Predictions of a choice for the judged rows, all genes; NaN for other rows."""
        given = self.screen, self.values, self.blocks
        if self.sums is None:
            out = left_out(*given, choice.plain, self.similarity, self.fresh)
        else:
            out = np.full(self.values.shape, np.nan)
            out[self.rows] = self.sums @ self.values
        if choice.gain > 0:
            found = left_out(*given, choice.setting, self.similarity, self.fresh)
            out += choice.setting.weight * (found - out)
        return out

    def plainest(self, plain: Sequence[Setting]) -> tuple[Setting, np.ndarray]:
        """The first plain guess, or another one that is surely better; with its predictions."""
        if self.sums is not None:
            return plain[0], self.sums @ self.space
        chosen, centre = plain[0], self.predictions(plain[0])
        for setting in plain[1:]:
            found = self.predictions(setting)
            if surely_positive(cosines(found, self.truth) - cosines(centre, self.truth)):
                chosen, centre = setting, found
        return chosen, centre

    def best(self, plain: Sequence[Setting], others: Sequence[Setting]) -> Choice:
        """The best of the settings, or the plain guess when none is surely better."""
        base, centre = self.plainest(plain)
        start = cosines(centre, self.truth)
        best, table = (0.0, base), []
        for like in others:
            setting = replace(like, flat=base.flat, flat_across=base.flat_across, trust=base.trust)
            found = self.predictions(setting) - centre
            beyond = cosines(found, self.truth - centre)
            for weight in _WEIGHTS:
                score = cosines(centre + weight * found, self.truth)
                gain = (score - start + beyond) / 2
                table.append((setting.source, float(gain.mean()), float(score.mean()), float(beyond.mean())))
                if gain.mean() > best[0] and surely_positive(gain, MANY):
                    best = (float(gain.mean()), replace(setting, weight=weight))
        shown = pd.DataFrame(table, columns=["source", "gain", "correlation", "beyond"])
        shown = shown.sort_values("gain", ascending=False).groupby("source", dropna=False, sort=False).head(1)
        return Choice(best[1], base, best[0], float(start.mean()), shown.reset_index(drop=True))

    def gains(self, choice: Choice, over: Choice) -> np.ndarray:
        """What the error of each judged row falls by, in its own size, when one choice takes the place of another."""
        errors = []
        for one in (choice, over):
            _, centre = self.plainest([one.plain])
            found = centre + one.setting.weight * (self.predictions(one.setting) - centre) if one.gain > 0 else centre
            errors.append(((self.truth - found) ** 2).sum(axis=1))
        return (errors[1] - errors[0]) / np.maximum((self.truth**2).sum(axis=1), _TINY)


def denoised(difference: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Differences of rows half as they are, half by the components that stand out of their noise.

    Rows keep their length where most of it is signal; else they are shrunk by the share that is.

    Parameters
    ----------
    difference
        Shape `(n, n_genes)`.
    noise
        Variance of its noise, same shape.
    """
    of_row = np.sqrt(np.maximum(noise.mean(axis=1), _TINY) / max(float(noise.mean()), _TINY))[:, None]
    of_gene = np.sqrt((noise / of_row**2).mean(axis=0)) + 1e-6
    left, strength, right = np.linalg.svd(difference / of_row / of_gene, full_matrices=False)
    few, many = sorted(difference.shape)
    square = np.maximum(strength**2 / many, _TINY)
    kept = strength * np.maximum(0, 1 - (1 + few / many) / square)
    mixed = (left * kept) @ right * of_row * of_gene + difference
    square = np.maximum((difference**2).sum(axis=1), _TINY)
    signal = np.clip(1 - noise.sum(axis=1) / square, 0, 1)
    signal = np.maximum(signal, np.clip(1 - noise.sum() / square.sum(), 0, 1))  # weak rows stay apart
    length = np.sqrt(square) / np.maximum(np.linalg.norm(mixed, axis=1), _TINY)
    return mixed * (length * np.where(signal > _MOSTLY, 1.0, signal))[:, None]
