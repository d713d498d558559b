"""A network of genes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import colormaps
from matplotlib.collections import LineCollection

from scanpy_scgpt._keys import GrnKeys
from scanpy_scgpt._validate import check_anndata
from scanpy_scgpt.get import grn_graph

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

_MOST_GENES = 300
_GREY = "#c9c9c9"


def grn(
    adata: AnnData,
    genes: Sequence[str] | None = None,
    *,
    group: str | None = None,
    threshold: float | None = None,
    colors: Mapping[str, str] | None = None,
    key: str = GrnKeys.edges,
    min_genes: int = 1,
    rng: int = 0,
    ax: Axes | None = None,
    show: bool | None = None,
) -> Axes | None:
    """Draw a network of genes; genes that are linked lie together.

    Parameters
    ----------
    adata
        Cells, after :func:`scanpy_scgpt.tl.grn`.
    genes
        These genes alone, those without an edge too.
    group
        Network of one group of cells.
    threshold
        Edges with a weight above it alone.
    colors
        Class of each gene, such as `{"HLA-A": "class I"}`: a colour for each class.
    key
        `key_added` of :func:`scanpy_scgpt.tl.grn`.
    min_genes
        Leave connected parts with fewer genes out.
    rng
        Seed of the layout.
    ax
        Axes to draw in.
    show
        Show the figure, the default; False returns the axes.

    Returns
    -------
    The axes, or `None` if the figure is shown.

    Raises
    ------
    KeyError
        When there is no such network.
    ValueError
        When it has no edge, several groups, or more than 300 genes.
    """
    import networkx as nx

    check_anndata(adata, function="pl.grn")
    graph = grn_graph(adata, key=key, group=group, genes=genes, threshold=threshold, directed=False)
    parts = [part for part in nx.connected_components(graph) if len(part) >= min_genes]
    graph = graph.subgraph({gene for part in parts for gene in part})
    if not graph.number_of_edges():
        msg = f"The network {key!r} has no edge among these genes. Lower the threshold, or name other genes."
        raise ValueError(msg)
    if len(graph) > _MOST_GENES:
        msg = f"The network {key!r} has {len(graph):,} genes, and a figure has room for {_MOST_GENES}. Take fewer: "
        raise ValueError(msg + "genes=..., a higher threshold=..., or get.grn_graph(adata) for another program.")
    if ax is None:
        size = 4 + 0.5 * np.sqrt(len(graph))
        _, ax = plt.subplots(figsize=(size + 1.5, size), layout="constrained")
    _draw(ax, graph, _places(graph, rng), colors or {})
    ax.set_axis_off()
    if group is not None:
        ax.set_title(group)
    if show is False:
        return ax
    plt.show()
    return None


def _places(graph: object, rng: int) -> dict[str, np.ndarray]:
    """Where the genes lie: each connected part by itself, parts beside one another by size."""
    import networkx as nx

    parts = sorted(nx.connected_components(graph), key=lambda part: (-len(part), min(part)))
    places: dict[str, np.ndarray] = {}
    width, x, y, row = 1.6 * np.sqrt(len(graph)), 0.0, 0.0, 0.0
    for part in parts:
        side = 1.5 * np.sqrt(len(part))
        if x > 0 and x + side > width:
            x, y, row = 0.0, y - row - 0.4, 0.0
        own = graph.subgraph(sorted(part))
        laid = nx.kamada_kawai_layout(own, weight=None) if len(part) > 2 else _line(own)  # noqa: PLR2004
        laid = nx.spring_layout(own, pos=laid, seed=rng, iterations=20) if len(part) > 2 else laid  # noqa: PLR2004
        array = np.array(list(laid.values()))
        span = np.maximum(np.ptp(array, axis=0), 1e-9) if len(part) > 1 else np.ones(2)
        scaled = (array - array.min(axis=0)) / span * [side * 0.8, -side * 0.8]
        places.update(dict(zip(laid, scaled + np.array([x, y]), strict=True)))
        x, row = x + side, max(row, side)
    return places


def _line(graph: object) -> dict[str, np.ndarray]:
    return {gene: np.array([i, i * 0.4]) for i, gene in enumerate(graph)}


def _draw(ax: Axes, graph: object, places: Mapping[str, np.ndarray], classes: Mapping[str, str]) -> None:
    edges = [(places[a], places[b], data["weight"]) for a, b, data in graph.edges(data=True)]
    weights = np.array([weight for *_, weight in edges])
    low, high = min(weights.min(), 0.0), weights.max()
    lines = LineCollection([edge[:2] for edge in edges], cmap="Blues", linewidths=0.6 + 2 * weights.clip(0), zorder=1)
    lines.set_array(weights)
    lines.set_clim(low, high)
    ax.add_collection(lines)
    names = list(dict.fromkeys(classes.get(gene, "") for gene in sorted(graph)))
    palette = {name: colormaps["Set2"](i % 8) for i, name in enumerate(sorted(name for name in names if name))}
    for name in sorted(names):
        own = np.array([places[gene] for gene in graph if classes.get(gene, "") == name])
        ax.scatter(*own.T, s=90, color=palette.get(name, _GREY), label=name or None, edgecolor="white", zorder=2)
    for gene, (x, y) in places.items():
        ax.annotate(gene, (x, y), xytext=(0, 6), textcoords="offset points", ha="center", fontsize=7, zorder=3)
    ax.margins(0.12)
    ax.figure.colorbar(lines, ax=ax, shrink=0.5, label="weight")
    if palette:
        ax.legend(frameon=False, loc="best", fontsize=8)
