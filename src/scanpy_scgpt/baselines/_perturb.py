"""The simple opponents of `tl.perturb`: effects of perturbations in, effects of other perturbations out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import numpy as np
import pandas as pd

from scanpy_scgpt._validate import check_one_of

from ._ridge import PENALTIES, kernel_ridge, nearest, principal_genes

_COMPONENTS = 10  # of the genes, as in the published linear model
_PENALTY = 0.1  # of the published linear model


class _Task:
    """What the methods are given: effects as arrays, and which genes each condition changes."""

    def __init__(self, effects: pd.DataFrame, targets: Mapping[str, Sequence[str]], wanted: Sequence[str]) -> None:
        self.genes = effects.columns
        self.known, self.wanted = list(effects.index), list(wanted)
        self.values = effects.to_numpy(dtype=np.float64)
        self.targets = {name: tuple(targets[name]) for name in (*self.known, *self.wanted)}
        self.mean = self.values.mean(axis=0)
        self.single = {
            self.targets[name][0]: self.values[i] for i, name in enumerate(self.known) if len(self.targets[name]) == 1
        }
        self.place = {gene: i for i, gene in enumerate(self.genes)}
        self.features: pd.DataFrame | None = None

    def fill(self, row: Callable[[tuple[str, ...]], np.ndarray]) -> np.ndarray:
        """One row for each wanted condition, from its genes."""
        return np.stack([row(self.targets[name]) for name in self.wanted])

    def vectors(self, names: Sequence[str], table: pd.DataFrame) -> np.ndarray:
        """Sum of the features of the genes of each condition, shape `(n_names, n_features)`; zero for those without."""
        places = table.index.get_indexer(pd.Index([gene for name in names for gene in self.targets[name]]))
        owner = np.repeat(np.arange(len(names)), [len(self.targets[name]) for name in names])
        out = np.zeros((len(names), table.shape[1]))
        np.add.at(out, owner[places >= 0], table.to_numpy(dtype=np.float64)[places[places >= 0]])
        return out

    @cached_property
    def own_features(self) -> pd.DataFrame:
        """Components of the genes in the effects that are known."""
        return pd.DataFrame(principal_genes(self.values, _COMPONENTS), index=self.genes)


def _no_change(task: _Task) -> np.ndarray:
    return np.zeros((len(task.wanted), len(task.genes)))


def _mean(task: _Task) -> np.ndarray:
    return np.tile(task.mean, (len(task.wanted), 1))


def _informed_mean(task: _Task) -> np.ndarray:
    """The mean, and the mean change of a target's own expression at the target."""
    own = [
        effect[task.place[gene]] - task.mean[task.place[gene]]
        for gene, effect in task.single.items()
        if gene in task.place
    ]
    change = float(np.mean(own)) if own else 0.0
    out = _mean(task)
    for i, name in enumerate(task.wanted):
        at = [task.place[gene] for gene in task.targets[name] if gene in task.place]
        out[i, at] += change
    return out


def _matching_mean(task: _Task) -> np.ndarray:
    def row(genes: tuple[str, ...]) -> np.ndarray:
        return np.mean([task.single.get(gene, task.mean) for gene in genes], axis=0) if genes else task.mean

    return task.fill(row)


def _additive(task: _Task) -> np.ndarray:
    def row(genes: tuple[str, ...]) -> np.ndarray:
        return np.sum([task.single.get(gene, task.mean) for gene in genes], axis=0) if genes else task.mean

    return task.fill(row)


def _ridge(task: _Task) -> np.ndarray:
    """`G W P' + b` with the components of the genes on both sides: the published linear model."""
    own = task.own_features
    g, p = own.to_numpy(), task.vectors(task.known, own)
    centred = (task.values - task.mean).T
    left = np.linalg.solve(g.T @ g + _PENALTY * np.eye(g.shape[1]), g.T @ centred)
    w = np.linalg.solve(p.T @ p + _PENALTY * np.eye(p.shape[1]), (left @ p).T).T
    return (g @ w @ task.vectors(task.wanted, own).T).T + task.mean


def _scaled(task: _Task) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Features of known and wanted conditions, centred and scaled on the known, and which have any."""
    table = task.features if task.features is not None else task.own_features
    known, wanted = task.vectors(task.known, table), task.vectors(task.wanted, table)
    there, asked = known.any(axis=1), wanted.any(axis=1)
    centre = known[there].mean(axis=0) if there.any() else 0.0
    spread = known[there].std(axis=0) if there.any() else 1.0
    scale = np.sqrt(np.mean(np.square(spread))) or 1.0  # one for all features: strong ones stay strong
    return (known - centre) / scale, (wanted - centre) / scale, there, asked


def _learned(task: _Task, fit: Callable[..., np.ndarray]) -> np.ndarray:
    known, wanted, there, asked = _scaled(task)
    out = _mean(task)
    if there.sum() > 2 and asked.any():  # noqa: PLR2004  # a choice by leaving out needs others
        out[asked] = fit(known[there], task.values[there], wanted[asked])
    return out


def _ridge_features(task: _Task) -> np.ndarray:
    return _learned(task, lambda x, y, new: kernel_ridge(x, y, new, penalties=PENALTIES))


def _knn(task: _Task) -> np.ndarray:
    return _learned(task, nearest)


METHODS: dict[str, Callable[[_Task], np.ndarray]] = {
    "no_change": _no_change,
    "mean": _mean,
    "informed_mean": _informed_mean,
    "matching_mean": _matching_mean,
    "additive": _additive,
    "ridge": _ridge,
    "ridge_features": _ridge_features,
    "knn": _knn,
}
_ON_FEATURES = ("ridge_features", "knn")


def perturb(
    effects: pd.DataFrame,
    targets: Mapping[str, Sequence[str]],
    wanted: Sequence[str | tuple[str, ...]],
    *,
    methods: Sequence[str] | None = None,
    features: pd.DataFrame | Mapping[str, pd.DataFrame | None] | None = None,
) -> dict[str, pd.DataFrame]:
    """Predict effects of perturbations that were not measured, in the simple ways.

    `no_change`: zero. `mean`: mean effect of the known perturbations. `informed_mean`: the same, and at the target
    itself what the known perturbations do to their own targets :cite:p:`Wong2025`. `matching_mean`: mean of the
    effects of the genes of a combination, `additive`: their sum; for a gene that was never perturbed alone the mean
    effect stands in :cite:p:`Vinas2025`. `ridge`: the linear model of :cite:t:`AhlmannEltze2025`, ten components of
    the genes on both sides, penalty 0.1. `ridge_features`: ridge regression of the effects on features of the target
    genes; the penalty is the one with the smallest error when each known perturbation is left out in turn, and `mean`
    stays unless that error is smaller by more than 1.6 standard errors. `knn`: mean of the nearest perturbations in
    these features; their number is chosen alike.

    Parameters
    ----------
    effects
        Effects of the known conditions, conditions x genes, such as the `deltas` of :func:`pseudobulk_effects`.
    targets
        Genes of each condition, of the known and of the wanted ones; empty for a stimulus.
    wanted
        Names of conditions; or tuples of genes, which are named by their genes joined with `+`.
    methods
        Names of methods; all by default.
    features
        Features of genes, genes x features, or several such tables by name: `ridge_features` and `knn` then come once
        for each, as `ridge_features:name`. None, the default, stands for the components of the genes in `effects`,
        which a gene that is not measured lacks; :func:`scanpy_scgpt.datasets.gene_features` are others. A gene without
        features gets `mean`.

    Returns
    -------
    Effects of the wanted conditions, conditions x genes, by method.

    Raises
    ------
    KeyError
        When the genes of a condition are not in `targets`.
    ValueError
        For an unknown method, no known condition, or NaN in `effects`.
    """
    names, genes_of = _wanted(wanted, targets)
    _check(effects, {**genes_of}, names)
    chosen = list(METHODS) if methods is None else [methods] if isinstance(methods, str) else list(methods)
    for method in chosen:
        check_one_of(method, METHODS, name="a method")
    task = _Task(effects, genes_of, names)
    tables = features if isinstance(features, Mapping) else {"": features}
    out = {}
    for method in chosen:
        for title, table in tables.items() if method in _ON_FEATURES else [("", None)]:
            task.features = table
            found = METHODS[method](task)
            index = pd.Index(names, name=effects.index.name)
            out[f"{method}:{title}" if title else method] = pd.DataFrame(found, index=index, columns=effects.columns)
    return out


def _wanted(
    wanted: Sequence[str | tuple[str, ...]], targets: Mapping[str, Sequence[str]]
) -> tuple[list[str], dict[str, tuple[str, ...]]]:
    """Names of the wanted conditions, and the genes of all."""
    genes = {str(name): (own,) if isinstance(own, str) else tuple(own) for name, own in targets.items()}
    names = []
    for one in [wanted] if isinstance(wanted, str) else wanted:
        name = one if isinstance(one, str) else "+".join(sorted(one))
        if not isinstance(one, str):
            genes.setdefault(name, tuple(sorted(one)))
        names.append(name)
    return names, genes


def _check(effects: pd.DataFrame, targets: Mapping[str, Sequence[str]], wanted: Sequence[str]) -> None:
    if effects.empty:
        msg = f"effects has the shape {effects.shape}; it needs at least one condition and one gene."
        raise ValueError(msg)
    if not wanted:
        msg = "wanted is empty. Name the conditions to predict: wanted=['A', 'A+B']."
        raise ValueError(msg)
    bad = int((~np.isfinite(effects.to_numpy(dtype=np.float64))).sum())
    if bad:
        msg = f"effects has {bad:,} NaN or infinite values. Leave these genes out: effects = effects.dropna(axis=1)."
        raise ValueError(msg)
    lacking = [name for name in (*effects.index, *wanted) if name not in targets]
    if lacking:
        msg = f"targets has no entry for {lacking[0]!r}. Add its genes: targets[{lacking[0]!r}] = ('GENE',)."
        raise KeyError(msg)
