"""How alike two perturbations are: kernels over what they are made of. Arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ._screen import Conditions, Screen

COMPONENTS = "components"
_N_COMPONENTS = 20
_OFFSET = 0.3  # of how alike parts of pairs are: what a part does in any pair is learned too
_FLAT = 100.0  # variance of the effect that all perturbations share, in that of the noise: it is not shrunk


@dataclass(frozen=True)
class Setting:
    """What is believed of effects, in units of the variance of the noise.

    Attributes
    ----------
    signal
        Variance of what a part does beyond the mean effect.
    source
        Name of the features of genes, or None.
    share
        Share of `signal` that genes with the same features have in common.
    pairs
        Variance of what two parts do together beyond the sum, as a multiple of `signal`.
    pair_source
        Features by which pairs are alike; None for `source`.
    across
        Share of what a part does that is the same in all contexts.
    flat
        Variance of the mean effect; 0 for none.
    flat_across
        Share of the mean effect that is the same in all contexts.
    trust
        1 when rows weigh by their cells, 0 when all weigh the same.
    weight
        By which what differs from the plain guess (the sum, or the mean effect) is multiplied.
    """

    signal: float = 0.0
    source: str | None = None
    share: float = 0.0
    pairs: float = 0.0
    pair_source: str | None = None
    across: float = 1.0
    flat: float = _FLAT
    flat_across: float = 1.0
    trust: float = 0.0
    weight: float = 1.0


class Similarity:
    """Features of parts, turned into how alike parts are.

    Parameters
    ----------
    features
        Tables by name: index gene, any columns.
    universe
        Parts that occur.
    """

    def __init__(self, features: Mapping[str, pd.DataFrame], universe: Sequence[str]) -> None:
        self.universe = list(universe)
        self.grams = {name: unit_gram(table, self.universe) for name, table in features.items()}

    def with_components(self, screen: Screen) -> Similarity:
        """With the components of the effects of a screen as one more source."""
        out = Similarity({}, self.universe)
        out.grams = {**self.grams, COMPONENTS: unit_gram(components(screen, self.universe), self.universe)}
        return out

    def of(self, source: str | None) -> np.ndarray:
        """How alike parts are, shape `(n_parts, n_parts)`; several sources joined by `+` are averaged."""
        if source is None:
            return np.zeros((len(self.universe),) * 2)
        grams = [self.grams[name] for name in source.split("+")]
        return np.mean(grams, axis=0)


def unit_gram(table: pd.DataFrame, universe: Sequence[str]) -> np.ndarray:
    """Cosines of the features of parts, centred over the parts that have some; 0 for others."""
    found = table.reindex(universe).to_numpy(dtype=np.float64)
    known = np.isfinite(found).all(axis=1) & (found != 0).any(axis=1)
    out = np.zeros((len(universe),) * 2)
    if known.sum() > 1:
        some = found[known] - found[known].mean(axis=0)
        some /= np.maximum(np.linalg.norm(some, axis=1, keepdims=True), 1e-12)
        out[np.ix_(known, known)] = some @ some.T
    return out


def components(screen: Screen, universe: Iterable[str]) -> pd.DataFrame:
    """Components of the genes over the perturbations of a screen, for the parts that are measured genes."""
    centred = screen.effects - screen.effects.mean(axis=0)
    _, vectors = np.linalg.eigh(centred @ centred.T)
    place = {gene: i for i, gene in enumerate(screen.genes)}
    names = [part for part in universe if part in place]
    columns = [place[name] for name in names]
    return pd.DataFrame(centred[:, columns].T @ vectors[:, -_N_COMPONENTS:], index=names)


def gram(a: Conditions, b: Conditions, similarity: Similarity, setting: Setting) -> np.ndarray:
    """Covariance of the effects of conditions, shape `(len(a), len(b))`."""
    universe = similarity.universe
    m_a, m_b = a.members(universe).astype(np.float64), b.members(universe).astype(np.float64)
    size_a, size_b = (np.array([len(x) for x in c.parts], dtype=np.float64) for c in (a, b))
    same = np.equal.outer(np.array(a.contexts), np.array(b.contexts))
    mean = setting.flat * np.outer(size_a, size_b) * (setting.flat_across + (1 - setting.flat_across) * same)
    out = np.zeros(mean.shape)
    if setting.signal:
        like = setting.share * similarity.of(setting.source) if setting.share else 0.0
        between = like + (1 - setting.share) * np.eye(len(universe))
        out += setting.signal * (m_a @ between @ m_b.T)
        if setting.pairs:
            alike = (_OFFSET + similarity.of(setting.pair_source or setting.source)) / (1 + _OFFSET)
            out += setting.signal * setting.pairs * _pairs(a, b, alike, universe)
    return mean + out * (setting.across + (1 - setting.across) * same)


def _pairs(a: Conditions, b: Conditions, between: np.ndarray, universe: Sequence[str]) -> np.ndarray:
    """Covariance of what two parts do together: both are alike, in either order."""
    place = {part: i for i, part in enumerate(universe)}
    out = np.zeros((len(a), len(b)))
    rows, columns = (np.array([i for i, x in enumerate(c.parts) if len(x) == 2], dtype=int) for c in (a, b))  # noqa: PLR2004
    if not len(rows) or not len(columns):
        return out
    i, j = np.array([[place[part] for part in a.parts[row]] for row in rows]).T
    k, n = np.array([[place[part] for part in b.parts[row]] for row in columns]).T
    both = between[np.ix_(i, k)] * between[np.ix_(j, n)] + between[np.ix_(i, n)] * between[np.ix_(j, k)]
    out[np.ix_(rows, columns)] = both
    return out
