"""From a label that is not sure to the ancestor that is."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd


def _lineage(label: str, parents: Mapping[str, str | None]) -> list[str]:
    """The label and its ancestors, nearest first."""
    line = [label]
    while parents.get(line[-1]) is not None:
        parent = str(parents[line[-1]])
        if parent in line:
            msg = (
                f"hierarchy: {parent!r} is its own ancestor ({' > '.join([*line, parent])}). Remove one of these pairs."
            )
            raise ValueError(msg)
        line.append(parent)
    return line


def lineages(labels: Iterable[str], hierarchy: Mapping[str, str | None]) -> dict[str, list[str]]:
    """Each label with its ancestors, nearest first.

    Raises
    ------
    TypeError
        When the hierarchy is no mapping.
    ValueError
        For a circle, a name that is neither a label nor a parent, or when no label has a parent.
    """
    if not isinstance(hierarchy, Mapping):
        msg = f"hierarchy is a {type(hierarchy).__name__}. Map each label to its parent: {{'CD4 T': 'T cell'}}."
        raise TypeError(msg)
    lines = {label: _lineage(label, hierarchy) for label in map(str, labels)}
    if hierarchy and not any(len(line) > 1 for line in lines.values()):
        known, shown = list(map(str, hierarchy))[:3], list(lines)[:3]
        msg = f"hierarchy names none of the labels: it has {known}, the labels are {shown}. Map label to parent."
        raise ValueError(msg)
    used = {node for line in lines.values() for node in line}
    for name in map(str, hierarchy):
        if name not in used:
            near = difflib.get_close_matches(name, lines, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            msg = f"hierarchy: {name!r} is no label and no parent of one.{hint} Labels: {', '.join(map(repr, lines))}."
            raise ValueError(msg)
    return lines


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
        As :func:`lineages`.
    """
    lines = lineages(probabilities.columns, hierarchy)
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
