"""From a label that is not sure to the ancestor that is."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd


def _lineage(label: str, parents: Mapping[str, str]) -> list[str]:
    """The label and its ancestors, nearest first."""
    line = [label]
    while line[-1] in parents:
        parent = str(parents[line[-1]])
        if parent in line:
            msg = (
                f"hierarchy: {parent!r} is its own ancestor ({' > '.join([*line, parent])}). Remove one of these pairs."
            )
            raise ValueError(msg)
        line.append(parent)
    return line


def roll_up(probabilities: pd.DataFrame, hierarchy: Mapping[str, str], *, least: float) -> pd.Series:
    """The nearest ancestor of the most likely label whose labels have enough probability together.

    Parameters
    ----------
    probabilities
        Table, cells x labels.
    hierarchy
        Parent of each label and of each parent.
    least
        Probability that is enough.

    Returns
    -------
    Label or ancestor of each cell; missing where even the highest ancestor has too little.

    Raises
    ------
    ValueError
        For a circle, or when no label of the table is in the hierarchy.
    """
    lines = {label: _lineage(label, hierarchy) for label in map(str, probabilities.columns)}
    if not any(len(line) > 1 for line in lines.values()):
        known, labels = list(map(str, hierarchy))[:3], list(lines)[:3]
        msg = f"hierarchy names none of the labels: it has {known}, the labels are {labels}. Map label to parent."
        raise ValueError(msg)
    nodes = list(dict.fromkeys(node for line in lines.values() for node in line))
    below = np.array([[node in line for node in nodes] for line in lines.values()], dtype=np.float32)
    depth = np.array([max((line.index(node) for line in lines.values() if node in line), default=0) for node in nodes])
    enough = probabilities.to_numpy() @ below >= least
    best = probabilities.to_numpy().argmax(axis=1)
    allowed = enough & (below[best] > 0)
    rank = np.where(allowed, depth, len(nodes) + 1)
    chosen = rank.argmin(axis=1)
    names = np.array(nodes, dtype=object)[chosen]
    names[~allowed.any(axis=1)] = None
    return pd.Series(names, index=probabilities.index, name="rollup")
