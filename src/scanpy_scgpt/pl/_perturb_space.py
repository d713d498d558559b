"""The space of perturbations, and the search backwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from scanpy_scgpt._validate import check_anndata, check_one_of, nearest

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

_COLORS = {"correct": "#1f4e79", "relevant": "#c55a11"}
_MOST_TEXT = 40  # clusters that get their name


def perturb_space(
    adata: AnnData,
    *,
    color: str | np.ndarray | pd.Series | None = None,
    label: bool = True,
    size: float = 8.0,
    ax: Axes | None = None,
    show: bool | None = None,
    **kwargs: Any,
) -> Axes | None:
    """Draw all perturbations, coloured by cluster, by a column or by values; clusters carry their dominant gene.

    Parameters
    ----------
    adata
        Result of :func:`scanpy_scgpt.tl.perturb_space`, with its UMAP.
    color
        Column of `.obs`, or one value for each row, such as the predicted change of a gene; the cluster by default.
    label
        Write the dominant gene of each cluster.
    size
        Area of a dot in points squared.
    ax
        Where to draw.
    show
        Show the figure, the default without `ax`; False returns the axes.
    **kwargs
        Of :meth:`matplotlib.axes.Axes.scatter`.

    Returns
    -------
    The axes, or `None` if the figure is shown.

    Raises
    ------
    KeyError
        When there is no UMAP or no such column.
    """
    check_anndata(adata, function="pl.perturb_space")
    if "X_umap" not in adata.obsm:
        msg = "adata has no obsm['X_umap']. Lay it out: tl.perturb_space(model, umap=True)."
        raise KeyError(msg)
    if isinstance(color, str) and color not in adata.obs:
        msg = f"adata.obs has no column {color!r}. Columns: {', '.join(map(str, adata.obs))}."
        raise KeyError(msg)
    column = adata.obs["cluster" if color is None else color] if color is None or isinstance(color, str) else color
    given, place = ax is not None, np.asarray(adata.obsm["X_umap"])
    ax = plt.subplots(figsize=(6, 5), layout="constrained")[1] if ax is None else ax
    values = pd.Series(np.asarray(column))
    numbers = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
    shown = values.to_numpy() if numbers else pd.factorize(values, sort=True)[0]
    drawn = ax.scatter(
        place[:, 0],
        place[:, 1],
        c=shown,
        **{"s": size, "cmap": "coolwarm" if numbers else "tab20", "linewidths": 0, **kwargs},
    )
    if numbers:
        ax.figure.colorbar(drawn, ax=ax, label=color if isinstance(color, str) else "")
    single = adata.obs["n_targets"].to_numpy() == 1
    ax.scatter(*place[single].T, s=2.5 * size, facecolors="none", edgecolors="black", linewidths=0.5, label="single")
    if label and "dominant_gene" in adata.obs:
        _names(ax, adata, place)
    ax.set(xticks=[], yticks=[], xlabel="UMAP 1", ylabel="UMAP 2", title=f"{adata.n_obs:,} predicted perturbations")
    ax.legend(frameon=False, loc="best")
    return _finish(ax, given=given, show=show)


def _names(ax: Axes, space: AnnData, place: np.ndarray) -> None:
    sizes = space.obs["cluster"].value_counts()
    for cluster in sizes.index[:_MOST_TEXT]:
        rows = (space.obs["cluster"] == cluster).to_numpy()
        x, y = np.median(place[rows], axis=0)
        ax.text(
            x, y, str(space.obs["dominant_gene"][rows].iloc[0]), ha="center", va="center", fontsize=8, weight="bold"
        )


def reverse(
    ranking: pd.DataFrame,
    *,
    true: str | None = None,
    k: int = 8,
    column: str = "rank",
    ax: Axes | None = None,
    show: bool | None = None,
) -> Axes | None:
    """Draw the candidates as a grid of combinations: one gene by rows, one by columns, single genes on the diagonal.

    Parameters
    ----------
    ranking
        Table of :func:`scanpy_scgpt.tl.reverse_perturb`.
    true
        The perturbation that was made: it is framed.
    k
        First places that carry their rank.
    column
        What colours the grid: `"rank"`, `"score"`, `"distance"`, `"correlation"`.
    ax
        Where to draw.
    show
        Show the figure, the default without `ax`; False returns the axes.

    Returns
    -------
    The axes, or `None` if the figure is shown.

    Raises
    ------
    KeyError
        When there is no such column, or `true` is no candidate.
    """
    for name in (column, "rank"):
        if name not in ranking:
            msg = f"ranking has no column {name!r}. It must be a table of tl.reverse_perturb(...)."
            raise KeyError(msg)
    if true is not None:
        true = next((name for name in map(str, ranking.index) if _same(name, true)), true)
    if true is not None and true not in ranking.index:
        near = nearest(true, ranking.index)
        hint = f"; did you mean {near!r}" if near else ""
        msg = f"true={true!r} is none of the {len(ranking):,} candidates, such as {ranking.index[0]!r}{hint}."
        raise KeyError(msg)
    pairs = {str(name): str(name).split("+") for name in ranking.index}
    genes = sorted({gene for both in pairs.values() for gene in both})
    place, grid = {gene: i for i, gene in enumerate(genes)}, np.full((len(genes),) * 2, np.nan)
    for name, both in pairs.items():
        i, j = place[both[0]], place[both[-1]]
        grid[i, j] = grid[j, i] = float(ranking.loc[name, column])
    given = ax is not None
    side = 2.5 + 0.24 * len(genes)
    ax = plt.subplots(figsize=(side + 1, side), layout="constrained")[1] if ax is None else ax
    drawn = ax.imshow(grid, cmap="viridis_r" if column in {"rank", "distance"} else "viridis")
    ax.figure.colorbar(drawn, ax=ax, label=column, shrink=0.8)
    for name, row in ranking.nsmallest(k, "rank").iterrows():
        i, j = place[pairs[str(name)][0]], place[pairs[str(name)][-1]]
        for x, y in {(i, j), (j, i)}:
            ax.text(x, y, int(row["rank"]), ha="center", va="center", fontsize=7, color="black", weight="bold")
    if true is not None:
        i, j = place[pairs[true][0]], place[pairs[true][-1]]
        for x, y in {(i, j), (j, i)}:
            frame = plt.Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, edgecolor="#c00000", linewidth=2)
            ax.add_patch(frame)
        ax.set_title(f"{true}: rank {int(ranking.loc[true, 'rank'])} of {len(ranking):,}")
    ax.set_xticks(range(len(genes)), genes, rotation=90, fontsize=7)
    ax.set_yticks(range(len(genes)), genes, fontsize=7)
    ax.grid(visible=False)
    return _finish(ax, given=given, show=show)


def reverse_hits(
    rates: pd.DataFrame | Mapping[str, pd.DataFrame],
    *,
    measures: Sequence[str] = ("correct", "relevant"),
    ax: Axes | None = None,
    show: bool | None = None,
) -> Axes | None:
    """Draw how often the true perturbation is among the first `k`, with exact intervals and chance.

    Parameters
    ----------
    rates
        Table of :func:`scanpy_scgpt.tl.hit_rates`, or several by the name of the method.
    measures
        Which measures.
    ax
        Where to draw.
    show
        Show the figure, the default without `ax`; False returns the axes.

    Returns
    -------
    The axes, or `None` if the figure is shown.

    Raises
    ------
    KeyError
        When a table lacks a column.
    ValueError
        For another measure.
    """
    tables = rates if isinstance(rates, Mapping) else {"": rates}
    for table in tables.values():
        for name in ("k", "measure", "rate", "low", "high", "chance"):
            if name not in table:
                msg = f"rates has no column {name!r}. It must be a table of tl.hit_rates(...)."
                raise KeyError(msg)
    measures = [measures] if isinstance(measures, str) else list(measures)
    for measure in measures:
        check_one_of(measure, _COLORS, name="a measure")
    given = ax is not None
    ax = plt.subplots(figsize=(5, 4), layout="constrained")[1] if ax is None else ax
    for i, (title, table) in enumerate(tables.items()):
        for measure in measures:
            own = table[table["measure"] == measure].sort_values("k")
            around = np.abs(own[["low", "high"]].to_numpy().T - own["rate"].to_numpy())
            ax.errorbar(
                own["k"],
                own["rate"],
                yerr=around,
                label=f"{title} {measure}".strip(),
                color=_COLORS.get(measure),
                linestyle=("-", "--", ":", "-.")[i % 4],
                marker="osD^"[i % 4],
                capsize=2,
            )
            if i == 0:
                ax.plot(own["k"], own["chance"], color=_COLORS.get(measure), alpha=0.35, label=f"chance, {measure}")
    ax.set(xlabel="first places k", ylabel="share of the perturbations", ylim=(0, 1.03))
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=8)
    return _finish(ax, given=given, show=show)


def _finish(ax: Axes, *, given: bool, show: bool | None) -> Axes | None:
    if show is False or (show is None and given):
        return ax
    plt.show()
    return None


def _same(name: str, other: str) -> bool:
    """Names of one perturbation, in whatever order its genes stand."""
    return sorted(name.split("+")) == sorted(str(other).split("+"))
