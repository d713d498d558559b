"""Matrices of attention networks as tables of edges and of genes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from ._attention_cells import Comparison, Panel
from ._permuted import Permuted

ORDERS = ("weight", "absolute", "z")
DIRECTIONS = ("out", "in", "both")


class Network(NamedTuple):
    """A network: what was compared, weights `[source, target]` float32, and what they are beside permuted ones."""

    comparison: Comparison
    weights: np.ndarray
    tested: Permuted | None


def edges(network: Network, genes: Panel, *, n_targets: int | None, direction: str, order: str) -> pd.DataFrame:
    """The strongest edges from, or to, each chosen gene, strongest first."""
    score = network.weights if order != "z" or network.tested is None else network.tested.z
    score = np.where(np.eye(len(genes.ids), dtype=bool), -np.inf, score if order == "weight" else np.abs(score))
    n = min(n_targets or len(genes.ids), len(genes.ids) - 1)
    chosen = np.flatnonzero(genes.chosen)
    found = []
    if direction != "in":
        best = np.argsort(-score[chosen], axis=1, kind="stable")[:, :n]
        found.append(np.column_stack([np.repeat(chosen, n), best.ravel()]))
    if direction != "out":
        best = np.argsort(-score[:, chosen].T, axis=1, kind="stable")[:, :n]
        found.append(np.column_stack([best.ravel(), np.repeat(chosen, n)]))
    pairs = pd.DataFrame(np.concatenate(found)).drop_duplicates().to_numpy()
    source, target = pairs.T
    columns = {
        "group": network.comparison.name,
        "source": genes.names[source],
        "target": genes.names[target],
        "weight": network.weights[source, target],
    }
    if network.tested is not None:
        columns |= {"z": network.tested.z[source, target]}
        columns |= {"p": network.tested.p[source, target], "p_adjusted": network.tested.p_adjusted[source, target]}
    return pd.DataFrame(columns)


def influence(network: Network, genes: Panel) -> pd.DataFrame:
    """How much each gene has to do with all others, most received first."""
    tested = network.tested
    columns = {"group": network.comparison.name, "gene": genes.names, "tf": genes.chosen}
    if tested is None:
        off = network.weights * ~np.eye(len(genes.ids), dtype=bool)
        n = max(len(genes.ids) - 1, 1)
        columns |= {"received": np.abs(off).sum(axis=0) / n, "exerted": np.abs(off).sum(axis=1) / n}
    else:
        columns |= {"received": tested.received, "received_p_adjusted": tested.received_p}
        columns |= {"exerted": tested.exerted, "exerted_p_adjusted": tested.exerted_p}
    return pd.DataFrame(columns).sort_values("received", ascending=False, kind="stable").reset_index(drop=True)
