"""Each measure of a predicted effect, for all perturbations of one method at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

_TINY = 1e-12
_MEASURES = (
    "pearson_delta", "pearson_delta_de", "pearson_perturbed", "l2", "mae", "centroid_accuracy", "discrimination",
    "discrimination_cosine", "de_overlap", "de_direction", "de_spearman",
)  # fmt: skip
_OF_EXPRESSION = ("pearson", "pearson_de")


@dataclass(frozen=True, eq=False)
class Case:
    """What all methods are measured against.

    `de` holds the places of the changed genes, by condition; `excluded` tells which genes are targets of a condition.
    """

    conditions: pd.Index
    truth: np.ndarray
    control: np.ndarray | None
    reference: np.ndarray
    excluded: np.ndarray
    de: list[np.ndarray]
    top: np.ndarray
    non_zero: bool

    @classmethod
    def of(
        cls,
        truth: pd.DataFrame,
        *,
        control: pd.Series | None,
        reference: pd.Series | None,
        targets: Mapping[str, Sequence[str]] | None,
        de_genes: Mapping[str, Sequence[str]] | None,
        n_top: int,
        n_de: int,
        non_zero: bool,
    ) -> Case:
        """From tables, aligned by the names of the genes."""
        values = truth.to_numpy(dtype=np.float64)
        level = None if control is None else _by_gene(control, truth.columns, name="control")
        if non_zero and level is None:
            msg = "non_zero=True needs the mean expression of the control cells: control=effects.control."
            raise ValueError(msg)
        centre = values.mean(axis=0) if reference is None else _by_gene(reference, truth.columns, name="reference")
        excluded = np.zeros(values.shape, dtype=bool)
        for i, name in enumerate(truth.index):
            places = truth.columns.get_indexer(pd.Index((targets or {}).get(name, ())))
            excluded[i, places[places >= 0]] = True
        size = np.where(excluded, -1.0, np.abs(values))
        order = np.argsort(-size, axis=1, kind="stable")[:, : min(n_de, values.shape[1])]
        de = list(order) if de_genes is None else [_given(de_genes, n, truth.columns) for n in truth.index]
        strength = np.abs(values).mean(axis=0) if level is None else level
        top = np.argsort(-strength, kind="stable")[:n_top]
        return cls(truth.index, values, level, centre, excluded, de, top, non_zero)

    @property
    def columns(self) -> list[str]:
        """Names of the measures."""
        return [*_MEASURES, *(() if self.control is None else _OF_EXPRESSION)]


def _by_gene(values: pd.Series, genes: pd.Index, *, name: str) -> np.ndarray:
    lacking = genes[~genes.isin(values.index)]
    if len(lacking):
        msg = f"{name} lacks {len(lacking):,} genes of truth, first {lacking[0]!r}; its index must hold the genes."
        raise KeyError(msg)
    return values.loc[genes].to_numpy(dtype=np.float64)


def _given(de_genes: Mapping[str, Sequence[str]], name: str, genes: pd.Index) -> np.ndarray:
    if name not in de_genes:
        msg = f"de_genes has no entry for {name!r}."
        raise KeyError(msg)
    places = genes.get_indexer(pd.Index(de_genes[name]))
    return places[places >= 0]


def measures_of(values: np.ndarray, case: Case) -> pd.DataFrame:
    """All measures of one method, conditions x measures."""
    truth = case.truth
    zero = (truth + case.control == 0) if case.non_zero else None
    near = {metric: _nearness(values, truth, case.excluded, metric) for metric in ("l1", "cosine")}
    centroid = _nearness(values, truth, None, "l2")
    found = {
        "pearson_delta": _rows(values, truth, zero),
        "pearson_delta_de": _on_genes(values, truth, case.de),
        "pearson_perturbed": _rows(values - case.reference, truth - case.reference, zero),
        "l2": np.linalg.norm((values - truth)[:, case.top], axis=1),
        "mae": np.abs(values - truth).mean(axis=1),
        "centroid_accuracy": centroid,
        "discrimination": near["l1"],
        "discrimination_cosine": near["cosine"],
        "de_overlap": _overlap(values, case),
        "de_direction": _direction(values, truth, case.de),
        "de_spearman": _on_genes(values, truth, case.de, ranks=True),
    }
    if case.control is not None:
        found["pearson"] = _rows(values + case.control, truth + case.control, zero)
        found["pearson_de"] = _on_genes(values + case.control, truth + case.control, case.de)
    return pd.DataFrame(found, index=case.conditions)


def variance_ratio(values: np.ndarray, truth: np.ndarray) -> float:
    """Variance of predictions between perturbations over that of the truth, summed over genes; NaN for a single one."""
    if len(truth) == 1:
        return float("nan")
    return float(values.var(axis=0).sum() / max(truth.var(axis=0).sum(), _TINY))


def _pearson(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation; 0 when the prediction `a` is constant, NaN when the truth `b` is."""
    a, b = a - a.mean(), b - b.mean()
    own, other = np.sqrt(a @ a), np.sqrt(b @ b)
    if other <= _TINY:
        return float("nan")
    return float(a @ b / (own * other)) if own > _TINY else 0.0


def _rows(a: np.ndarray, b: np.ndarray, left_out: np.ndarray | None) -> np.ndarray:
    """Correlation row by row."""
    if left_out is None:
        a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
        own, other = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
        together = np.einsum("ij,ij->i", a, b)
        score = np.divide(together, own * other, out=np.zeros(len(a)), where=(own > _TINY) & (other > _TINY))
        return np.where(other > _TINY, score, np.nan)
    return np.array([_pearson(x[~out], y[~out]) for x, y, out in zip(a, b, left_out, strict=True)])


def _on_genes(a: np.ndarray, b: np.ndarray, genes: list[np.ndarray], *, ranks: bool = False) -> np.ndarray:
    """Correlation, or rank correlation, over some genes of each row."""
    out = []
    for x, y, places in zip(a, b, genes, strict=True):
        mine, true = x[places], y[places]
        if ranks:
            mine, true = (pd.Series(part).rank().to_numpy() for part in (mine, true))
        out.append(_pearson(mine, true) if len(places) > 1 else float("nan"))
    return np.array(out)


def _direction(values: np.ndarray, truth: np.ndarray, genes: list[np.ndarray]) -> np.ndarray:
    """Share of the changed genes whose sign is right; a prediction of zero counts one half."""
    out = []
    for x, y, places in zip(values, truth, genes, strict=True):
        agreement = np.sign(x[places]) * np.sign(y[places])
        out.append(float(np.mean((agreement + 1) / 2)) if len(places) else float("nan"))
    return np.array(out)


def _overlap(values: np.ndarray, case: Case) -> np.ndarray:
    """Share of the changed genes among as many genes with the largest predicted change; ties count in part."""
    size = np.abs(values).copy()
    size[case.excluded] = -1.0  # targets are not asked for
    out = []
    for row, places in zip(size, case.de, strict=True):
        n = len(places)
        if n == 0:
            out.append(float("nan"))
            continue
        edge = np.partition(row, len(row) - n)[len(row) - n]
        above, level = row > edge, row == edge
        share = (n - above.sum()) / max(level.sum(), 1)
        out.append(float((above[places].sum() + share * level[places].sum()) / n))
    return np.array(out)


def _nearness(values: np.ndarray, truth: np.ndarray, excluded: np.ndarray | None, metric: str) -> np.ndarray:
    """Share of the other perturbations whose truth is farther from a prediction than its own truth; ties are halves."""
    n = len(truth)
    if n == 1:
        return np.full(1, np.nan)
    out = np.empty(n)
    for i in range(n):
        kept = slice(None) if excluded is None else ~excluded[i]
        distance = _distances(values[i, kept], truth[:, kept], metric)
        others = np.delete(distance, i)
        slack = _TINY * max(abs(distance[i]), 1.0)
        farther, equal = others > distance[i] + slack, np.abs(others - distance[i]) <= slack
        out[i] = (farther.sum() + equal.sum() / 2) / (n - 1)
    return out


def _distances(one: np.ndarray, many: np.ndarray, metric: str) -> np.ndarray:
    if metric == "l1":
        return np.abs(many - one).sum(axis=1)
    if metric == "l2":
        return np.linalg.norm(many - one, axis=1)
    length = np.linalg.norm(many, axis=1) * np.linalg.norm(one)
    return 1 - np.divide(many @ one, length, out=np.zeros(len(many)), where=length > _TINY)
