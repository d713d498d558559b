"""Attention networks: what changes among a few genes, and the targets of one gene."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from scanpy_scgpt._keys import UNS, AttentionKeys
from scanpy_scgpt._validate import check_anndata, check_one_of

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

_UP, _DOWN, _INK, _PLAIN = "#b2182b", "#2166ac", "#1f4e79", "#d9d9d9"
_MOST_GENES = 100  # of a heat map
_WIDTHS = (0.6, 4.0)  # of edges, weakest and strongest


class _Made(NamedTuple):
    """What an attention network left in `.uns`, of one group."""

    edges: pd.DataFrame
    record: Mapping[str, Any]
    group: str
    number: int
    genes: list[str]

    @property
    def title(self) -> str:
        control = str(self.record["controls"][self.number])
        return f"{self.group} - {control}" if control else self.group


def _made(adata: AnnData, key: str | None, group: str | None, *, function: str) -> _Made:
    check_anndata(adata, function=function)
    keys = AttentionKeys.named(key)
    record = adata.uns.get(UNS, {}).get(keys.uns, {})
    if "controls" not in record or keys.edges not in adata.uns:
        msg = f"adata has no attention network {keys.edges!r}. Make it first: scgpt.tl.attention_network(adata, ...)."
        raise KeyError(msg)
    groups = [str(name) for name in record["groups"]]
    if group is None and len(groups) > 1:
        msg = f"adata has networks of {len(groups)} groups ({', '.join(groups[:5])}). Name one: group={groups[0]!r}."
        raise ValueError(msg)
    group = groups[0] if group is None else str(group)
    check_one_of(group, groups, name="group")
    edges = adata.uns[keys.edges]
    own = edges[edges["group"].astype(str) == group]
    return _Made(own, record, group, groups.index(group), [str(gene) for gene in record["genes"]])


def _first_targets(made: _Made, source: str, n_top: int) -> pd.DataFrame:
    """The first edges of a source, in the order in which they were kept."""
    found = made.edges[made.edges["source"].astype(str) == source].head(n_top)
    if not len(found):
        check_one_of(source, made.genes, name="source")
        msg = f"No edge of {source!r} was kept. Make the network with tfs=[{source!r}], or without tfs."
        raise ValueError(msg)
    return found


def attention_difference(
    adata: AnnData,
    source: str | None = None,
    *,
    genes: Sequence[str] | None = None,
    group: str | None = None,
    n_top: int = 20,
    key: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
) -> Axes | None:
    """Draw the attention network among a gene and its first targets as a heat map :cite:p:`Cui2024`.

    Parameters
    ----------
    adata
        After :func:`scanpy_scgpt.tl.attention_network` with `matrices=True`, its default.
    source
        A gene: shown with the first of its targets, in the order of their edges.
    genes
        Genes to show instead.
    group
        Which network, where there are several.
    n_top
        Number of targets.
    key
        The `key_added` of the network.
    ax
        Where to draw; a new figure by default.
    show
        Show the figure, the default where no `ax` is given; False returns the axes.

    Returns
    -------
    The axes, or `None` if the figure is shown. Rows are sources, columns targets; a difference is red where the source
    gained influence and blue where it lost.

    Raises
    ------
    KeyError
        When there is no network.
    ValueError
        For a group or gene that is not there, both or neither of `source` and `genes`, or a network without matrices.
    """
    made = _made(adata, key, group, function="pl.attention_difference")
    if (source is None) == (genes is None):
        msg = f"Name a gene, whose targets are then shown, or the genes: source={made.genes[0]!r} or genes=[...]."
        raise ValueError(msg)
    if "weights" not in made.record:
        msg = "The network was made without its matrices. Make it anew: scgpt.tl.attention_network(matrices=True, ...)."
        raise ValueError(msg)
    if genes is None:
        genes = [source, *_first_targets(made, source, n_top)["target"].astype(str)]
    genes = [genes] if isinstance(genes, str) else list(genes)
    for gene in genes:
        check_one_of(gene, made.genes, name="a gene of the network")
    if not 2 <= len(genes) <= _MOST_GENES:  # noqa: PLR2004
        msg = f"{len(genes)} genes: a heat map has room for 2 to {_MOST_GENES}. Name others: genes=[...], or n_top=."
        raise ValueError(msg)
    places = [made.genes.index(gene) for gene in genes]
    weights = np.asarray(made.record["weights"], dtype=np.float64)[made.number][np.ix_(places, places)]
    np.fill_diagonal(weights, np.nan)
    between = bool(str(made.record["controls"][made.number]))
    if ax is None:
        size = 2.2 + 0.26 * len(genes)
        ax_, given = plt.subplots(figsize=(size + 1, size), layout="constrained")[1], False
    else:
        ax_, given = ax, True
    most = float(np.nanmax(np.abs(weights))) if len(genes) > 1 else 1.0
    limits = {"vmin": -most, "vmax": most, "cmap": "RdBu_r"} if between else {"cmap": "viridis"}
    ax_.grid(visible=False)
    image = ax_.imshow(weights, **limits)
    ax_.set_xticks(range(len(genes)), genes, rotation=90, fontsize=8)
    ax_.set_yticks(range(len(genes)), genes, fontsize=8)
    ax_.set(title=made.title, xlabel="target", ylabel="source")
    ax_.figure.colorbar(image, ax=ax_, shrink=0.7, label="difference of mean ranks" if between else "mean rank")
    return _finish(ax_, given=given, show=show)


def target_network(
    adata: AnnData,
    source: str,
    *,
    targets: Iterable[str] | None = None,
    group: str | None = None,
    n_top: int = 20,
    key: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
) -> Axes | None:
    """Draw a gene and its first targets as a star; what is known stands out.

    Parameters
    ----------
    adata
        After :func:`scanpy_scgpt.tl.attention_network`.
    source
        The gene in the middle.
    targets
        Known targets: drawn filled.
    group
        Which network, where there are several.
    n_top
        Number of targets.
    key
        The `key_added` of the network.
    ax
        Where to draw; a new figure by default.
    show
        Show the figure, the default where no `ax` is given; False returns the axes.

    Returns
    -------
    The axes, or `None` if the figure is shown. Edges are as wide as their weight is large, from the first at the top
    clockwise; those of a difference are red where the source gained influence and blue where it lost.

    Raises
    ------
    KeyError
        When there is no network.
    ValueError
        For a group or gene that is not there, or a gene without edges.
    """
    made = _made(adata, key, group, function="pl.target_network")
    edges = _first_targets(made, source, n_top)
    known = {targets} if isinstance(targets, str) else set(map(str, () if targets is None else targets))
    weight = edges["weight"].to_numpy(dtype=np.float64)
    between = bool(str(made.record["controls"][made.number]))
    size = np.abs(weight) if between else weight - weight.min()
    width = _WIDTHS[0] + (_WIDTHS[1] - _WIDTHS[0]) * size / max(float(size.max()), np.finfo(float).tiny)
    angle = np.pi / 2 - 2 * np.pi * np.arange(len(edges)) / len(edges)
    if ax is None:
        ax_, given = plt.subplots(figsize=(6.2, 6.2), layout="constrained")[1], False
    else:
        ax_, given = ax, True
    for i, (target, x, y) in enumerate(zip(edges["target"].astype(str), np.cos(angle), np.sin(angle), strict=True)):
        color = _INK if not between else _UP if weight[i] > 0 else _DOWN
        ax_.plot([0, x], [0, y], color=color, linewidth=width[i], alpha=0.7, zorder=1)
        face = "#fee08b" if target in known else "white"
        ax_.scatter([x], [y], s=90, color=face, edgecolors=_INK, zorder=2)
        turn = np.degrees(angle[i])
        upright = turn if x >= 0 else turn + 180
        place = {"ha": "left" if x >= 0 else "right", "va": "center", "rotation": upright, "rotation_mode": "anchor"}
        ax_.text(1.09 * x, 1.09 * y, target, fontsize=9, fontweight="bold" if target in known else None, **place)
    ax_.scatter([0], [0], s=1500, color=_PLAIN, edgecolors=_INK, zorder=2)
    ax_.text(0, 0, source, ha="center", va="center", fontsize=9, fontweight="bold", zorder=3)
    n_known = sum(target in known for target in edges["target"].astype(str))
    title = f"{made.title}: {n_known} of {len(edges)} are known targets" if known else made.title
    ax_.set(title=title, xlim=(-1.6, 1.6), ylim=(-1.6, 1.6), aspect="equal")
    ax_.set_axis_off()
    return _finish(ax_, given=given, show=show)


def _finish(ax: Axes, *, given: bool, show: bool | None) -> Axes | None:
    if show or (show is None and not given):
        plt.show()
        return None
    return ax
