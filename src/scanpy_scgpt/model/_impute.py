"""A modality that cells lack, from what they have: three regressions, their mix and intervals from left-out cells."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.optimize import nnls
from sklearn.base import clone
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import GroupKFold, KFold
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import make_pipeline

from ._blocks import _prepared

_FOLDS = 5
_PENALTIES = np.logspace(0, 5, 11)
_LANDMARKS = 400
_NEIGHBOURS = 25
_BINS = 3  # of the predicted value: each has its own interval
_LEAST = 20  # cells that have both


@dataclass(frozen=True)
class Imputed:
    """A modality of all cells.

    Attributes
    ----------
    features
        Tokens of the features.
    mean, lower, upper
        Prediction and its interval, float32, shape `(n_cells, n_features)`; NaN for a cell without any other modality.
    measured
        Cells that have the modality, bool, shape `(n_cells,)`: their prediction did not see them.
    table
        Of each feature: correlation with left-out cells, of the mix and of its parts, and coverage of the interval.
    weights
        Share of each regression in the mix.
    """

    features: list[str]
    mean: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    measured: np.ndarray
    table: pd.DataFrame
    weights: dict[str, float]


@dataclass
class Imputer:
    """Ridge regression, the same on kernel features, and the mean of the nearest cells; mixed by how well they do.

    All that is said of its quality comes from folds of cells that were left out, whole batches where there are several.

    Parameters
    ----------
    level
        Share of the cells whose value lies inside the interval.
    rng
        Seed of the folds and of the landmarks.

    Attributes
    ----------
    weights
        Share of each regression in the mix, by name.
    left_out
        Prediction of each cell by a mix that did not see it, float32, shape `(n_cells, n_features)`.
    table
        Of each feature: correlation of the mix and of each regression with the left-out values, and coverage.
    """

    level: float = 0.9
    rng: int = 0
    weights: dict[str, float] = field(default_factory=dict)
    left_out: np.ndarray | None = None
    table: pd.DataFrame | None = None

    def fit(self, x: np.ndarray, y: np.ndarray, batches: np.ndarray, names: list[str]) -> Imputer:
        """Fit on the cells that have both.

        Parameters
        ----------
        x
            What cells have, float32, shape `(n_cells, n_dims)`.
        y
            What others lack, float32, shape `(n_cells, n_features)`.
        batches
            Int, shape `(n_cells,)`.
        names
            Of the features.

        Raises
        ------
        ValueError
            For fewer than 20 cells.
        """
        if len(x) < _LEAST:
            msg = f"{len(x)} cells have both modalities, and at least {_LEAST} are needed to learn one from the other."
            raise ValueError(msg)
        self._center, self._spread = y.mean(axis=0), np.maximum(y.std(axis=0), 1e-6)
        target = (y - self._center) / self._spread
        made = _regressions(x, self.rng)
        folds = list(_folds(x, batches, self.rng))
        parts = {name: np.zeros_like(target) for name in made}
        for train, held in folds:
            for name, one in made.items():
                parts[name][held] = _predicted(clone(one).fit(x[train], target[train]), x[held])
        self.weights = _mix(parts, target)
        mixed = sum(weight * parts[name] for name, weight in self.weights.items())
        self._fitted = {name: one.fit(x, target) for name, one in made.items() if self.weights[name] > 0}
        residuals = target - mixed
        self._edges, self._offsets = _intervals(mixed, residuals, self.level)
        self.left_out = (mixed * self._spread + self._center).astype(np.float32)
        self.table = _table(parts, mixed, target, folds, self.level, names)
        return self

    def predict(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Prediction, and lower and upper end of the interval, float32, shape `(n, n_features)` each."""
        mixed = sum(self.weights[name] * _predicted(one, x) for name, one in self._fitted.items())
        return self._with_interval(mixed)

    def of_left_out(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As :meth:`predict`, of the cells of the fit, each by a mix that did not see it."""
        return self._with_interval((self.left_out - self._center) / self._spread)

    def _with_interval(self, mixed: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        low, high = _offsets_of(mixed, self._edges, self._offsets)
        scaled = (x * self._spread + self._center for x in (mixed, mixed + low, mixed + high))
        return tuple(np.asarray(x, dtype=np.float32) for x in scaled)


def _regressions(x: np.ndarray, rng: int) -> dict[str, Any]:
    n = len(x)
    kernel = Nystroem(gamma=0.5 / x.shape[1], n_components=min(_LANDMARKS, n // 2), random_state=rng)
    return {
        "ridge": RidgeCV(_PENALTIES),
        "kernel": make_pipeline(kernel, RidgeCV(_PENALTIES / 1e3)),
        "neighbours": KNeighborsRegressor(min(_NEIGHBOURS, n // 2), weights="distance"),
    }


def _predicted(one: Any, x: np.ndarray) -> np.ndarray:
    found = np.asarray(one.predict(x))
    return found[:, None] if found.ndim == 1 else found


def _folds(x: np.ndarray, batches: np.ndarray, rng: int) -> Any:
    """Left-out cells: whole batches where there are as many as folds, else cells at random."""
    if len(np.unique(batches)) >= _FOLDS:
        return GroupKFold(_FOLDS).split(x, groups=batches)
    return KFold(_FOLDS, shuffle=True, random_state=rng).split(x)


def _mix(parts: dict[str, np.ndarray], target: np.ndarray) -> dict[str, float]:
    """Shares that predict left-out values best (least squares, none below zero), the same for all features."""
    found, _ = nnls(np.column_stack([x.ravel() for x in parts.values()]), target.ravel())
    total = found.sum()
    shares = found / total if total > 0 else np.full(len(parts), 1 / len(parts))
    return dict(zip(parts, shares.tolist(), strict=True))


def _intervals(mixed: np.ndarray, residuals: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Edges `(bins - 1, n_features)` of bins of the prediction, and offsets `(2, bins, n_features)` of the interval."""
    edges = np.quantile(mixed, np.arange(1, _BINS) / _BINS, axis=0)
    place = (mixed[None] >= edges[:, None]).sum(axis=0)
    share = (1 - level) / 2
    offsets = np.zeros((2, _BINS, mixed.shape[1]))
    for i in range(_BINS):
        own = np.where(place == i, residuals, np.nan)
        n = np.maximum((place == i).sum(axis=0).min(), 1)
        wide = min(share * (1 - 1 / n), share)  # a little wider for few cells
        with np.errstate(all="ignore"):
            offsets[:, i] = np.nanquantile(own, [wide, 1 - wide], axis=0) if n > 1 else np.nan
    every = np.quantile(residuals, [share, 1 - share], axis=0)
    return edges, np.where(np.isfinite(offsets), offsets, every[:, None])


def _offsets_of(mixed: np.ndarray, edges: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    place = (mixed[None] >= edges[:, None]).sum(axis=0)
    return tuple(np.take_along_axis(ends, place, axis=0) for ends in offsets)


def _table(
    parts: dict[str, np.ndarray],
    mixed: np.ndarray,
    target: np.ndarray,
    folds: list[tuple[np.ndarray, np.ndarray]],
    level: float,
    names: list[str],
) -> pd.DataFrame:
    """Correlations with left-out values; coverage of intervals that were made without the fold."""
    out = {"correlation": correlations(mixed, target)}
    out |= {f"correlation_{name}": correlations(x, target) for name, x in parts.items()}
    inside = np.zeros(target.shape, dtype=bool)
    for train, held in folds:
        edges, offsets = _intervals(mixed[train], target[train] - mixed[train], level)
        low, high = _offsets_of(mixed[held], edges, offsets)
        inside[held] = (target[held] >= mixed[held] + low) & (target[held] <= mixed[held] + high)
    return pd.DataFrame({**out, "coverage": inside.mean(axis=0)}, index=pd.Index(names, name="feature"))


def as_target(counts: sparse.csr_matrix, kind: str) -> sparse.csr_matrix:
    """Counts on the scale on which they are predicted, CSR float32."""
    if kind == "rna":
        return sparse.csr_matrix(_prepared(counts, "counts"))
    return counts.log1p() if kind == "protein" else (counts > 0).astype(np.float32)


def correlations(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson correlation column by column, shape `(n_features,)`; NaN for a constant one."""
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    norm = np.sqrt((x**2).sum(axis=0) * (y**2).sum(axis=0))
    return np.divide((x * y).sum(axis=0), norm, out=np.full(x.shape[1], np.nan), where=norm > 0)
