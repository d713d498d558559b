"""Programs of genes: where they are active, and which pathways they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from scanpy_scgpt import get
from scanpy_scgpt._keys import ProgramKeys
from scanpy_scgpt._validate import check_anndata, check_one_of

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

_OURS = ("scgpt", "lists")
_COLORS = {
    "scgpt": "#1f4e79",
    "lists": "#1f4e79",
    "coexpression": "#c55a11",
    "coexpression_matched": "#f4b183",
    "random": "#8a8a8a",
}
_TITLES = {
    "scgpt": "scGPT",
    "lists": "lists",
    "coexpression": "co-expression",
    "coexpression_matched": "co-expression, same size",
    "random": "random, same sizes",
}


def gene_programs(
    adata: AnnData,
    groupby: str,
    *,
    resolution: float | None = None,
    programs: Sequence[str] | None = None,
    n_programs: int = 40,
    n_names: int = 4,
    key: str = ProgramKeys.table,
    ax: Axes | None = None,
    show: bool | None = None,
) -> Axes | None:
    """Draw how active programs are in groups of cells.

    Scores run from 0 to 1 over the cells, their means over groups from 0 to 1 over the groups, program by program.

    Parameters
    ----------
    adata
        Cells, after :func:`scanpy_scgpt.tl.gene_programs`.
    groupby
        Column of `.obs` with the groups.
    resolution
        Programs of one resolution alone.
    programs
        These programs alone.
    n_programs
        At most so many, those that differ most between groups.
    n_names
        Genes to name of each program.
    key
        `key_added` of :func:`scanpy_scgpt.tl.gene_programs`.
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
        When there are no scores, or no such column.
    ValueError
        When there is no such program or resolution, or no cell has a group.
    """
    check_anndata(adata, function="pl.gene_programs")
    members = get.gene_programs(adata, resolution=resolution, key=key)
    means = get.program_scores(adata, groupby=groupby, resolution=resolution, key=key).T
    if means.shape[1] == 0:
        msg = f"adata.obs[{groupby!r}] has no value in any cell. Name a column with groups."
        raise ValueError(msg)
    if programs is not None:
        programs = [programs] if isinstance(programs, str) else programs
        for name in programs:
            check_one_of(name, list(means.index), name="a program")
        means = means.loc[list(programs)]
    spread = (means.max(axis=1) - means.min(axis=1)).sort_values(ascending=False, kind="stable")
    means = means.loc[spread.index[:n_programs]]
    scaled = means.sub(means.min(axis=1), axis=0).div((means.max(axis=1) - means.min(axis=1)).clip(lower=1e-9), axis=0)
    scaled = scaled.iloc[np.lexsort((-scaled.max(axis=1).to_numpy(), scaled.to_numpy().argmax(axis=1)))]
    if ax is None:
        _, ax = plt.subplots(figsize=(4.5 + 0.35 * means.shape[1], 1.5 + 0.24 * len(means)), layout="constrained")
    ax.grid(visible=False)
    image = ax.imshow(scaled.to_numpy(), aspect="auto", cmap="viridis", vmin=0, vmax=1)
    ax.set_xticks(range(scaled.shape[1]), [str(name) for name in scaled.columns], rotation=90, fontsize=8)
    ax.set_yticks(range(len(scaled)), [_named(name, members[name], n_names) for name in scaled.index], fontsize=7)
    ax.figure.colorbar(image, ax=ax, label="mean score, 0 to 1 over groups", shrink=0.6)
    if show is False:
        return ax
    plt.show()
    return None


def _named(name: str, genes: Sequence[str], n_names: int) -> str:
    more = ", …" if len(genes) > n_names else ""
    return f"{name} ({len(genes)}): {', '.join(genes[:n_names])}{more}"


def enrichment(
    adata: AnnData,
    *,
    resolution: float | None = None,
    against: str = "coexpression",
    n_sets: int = 15,
    key: str = ProgramKeys.table,
    show: bool | None = None,
) -> np.ndarray | None:
    """Draw how many sets of genes programs hit, beside co-expression and chance, and which.

    Parameters
    ----------
    adata
        Cells, after :func:`scanpy_scgpt.tl.enrich`.
    resolution
        Whose hits are listed; by default that with the most.
    against
        Kind of programs that the list is compared with.
    n_sets
        Sets to list at most.
    key
        `key_added` of :func:`scanpy_scgpt.tl.enrich`.
    show
        Show the figure, the default; False returns the axes.

    Returns
    -------
    Two axes (hits at each resolution; hits of one resolution and whether the other kind has them), or `None` if the
    figure is shown.

    Raises
    ------
    KeyError
        When nothing was tested.
    ValueError
        When there is no such resolution or kind.
    """
    check_anndata(adata, function="pl.enrichment")
    tests = get.enrichment(adata, key=key)
    summary = adata.uns[ProgramKeys.named(None if key == ProgramKeys.table else key).hits]
    ours = next(name for name in _OURS if name in set(summary["network"]))
    kinds = [name for name in _COLORS if name in set(summary["network"])]
    if ours != "lists":
        check_one_of(against, [name for name in _COLORS if name not in {ours, "random"}], name="against")
        levels = list(dict.fromkeys(summary["resolution"]))
        best = summary[summary["network"] == ours].set_index("resolution")["hits"].idxmax()
        resolution = float(best if resolution is None else resolution)
        check_one_of(resolution, levels, name="resolution")
        tests = tests[tests["resolution"] == resolution]
    _, axes = plt.subplots(1, 2, figsize=(13, 4.6), layout="constrained", width_ratios=[1, 1.1])
    _counts(axes[0], summary, kinds)
    hits = {name: tests[(tests["network"] == name) & tests["hit"].astype(bool)] for name in (ours, against)}
    others = set(hits[against]["gene_set"]) if against in kinds else None
    _list(axes[1], hits[ours], others, n_sets, (ours, against), resolution)
    if show is False:
        return axes
    plt.show()
    return None


def _counts(ax: Axes, summary: pd.DataFrame, kinds: Sequence[str]) -> None:
    """Bars of hits, a group of them for each resolution."""
    levels = list(dict.fromkeys(summary["resolution"]))
    width = 0.8 / len(kinds)
    for i, name in enumerate(kinds):
        own = summary[summary["network"] == name].set_index("resolution")["hits"].reindex(levels)
        bars = ax.bar(np.arange(len(levels)) + i * width, own, width, color=_COLORS[name], label=_TITLES[name])
        ax.bar_label(bars, fmt="%.3g", fontsize=6)
    named = ["" if np.isnan(level) else f"{level:g}" for level in levels]
    ax.set_xticks(np.arange(len(levels)) + 0.4 - width / 2, named)
    ax.set(xlabel="resolution of Leiden", ylabel="gene sets hit")
    ax.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    ax.grid(visible=False)
    ax.spines[["top", "right"]].set_visible(False)


def _list(
    ax: Axes, hits: pd.DataFrame, others: set[str] | None, n_sets: int, names: tuple[str, str], resolution: float | None
) -> None:
    """Bars of p values of the sets that were hit, in another colour where the other kind, if tested, has them too."""
    own = hits.drop_duplicates("gene_set")
    ours, against = (_TITLES.get(name, name) for name in names)
    at = "" if resolution is None else f"resolution {resolution:g}: "
    title = f"{at}{len(own)} sets"
    if others is not None:
        common = own["gene_set"].isin(others)
        rest = len(others - set(own["gene_set"]))
        title = f"{at}{common.sum()} common, {(~common).sum()} {ours} alone, {rest} {against} alone"
    ax.set_title(title, fontsize=9)
    others = others or set()
    shown = own.head(n_sets)
    colors = [_COLORS["scgpt"] if gene_set not in others else "#9dc3e6" for gene_set in shown["gene_set"]]
    smallest = np.finfo(np.float64).tiny
    ax.barh(np.arange(len(shown)), -np.log10(shown["p_adjusted"].clip(lower=smallest)), color=colors)
    ax.set_yticks(np.arange(len(shown)), [_readable(name)[:60] for name in shown["gene_set"]], fontsize=7)
    ax.invert_yaxis()
    ax.grid(visible=False)
    ax.set_xlabel("-log10 corrected p" + (f" (dark: {ours} alone)" if others else ""))
    ax.spines[["top", "right"]].set_visible(False)


def _readable(name: str) -> str:
    """A name such as `REACTOME_TCR_SIGNALING` without what is the same in all of them."""
    return name.removeprefix("REACTOME_").replace("_", " ").capitalize() if name.isupper() else name
