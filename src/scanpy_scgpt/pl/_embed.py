"""Embeddings side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from scanpy_scgpt._validate import check_anndata, check_key

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes


_TABLES = ("tab20", "tab20b", "tab20c")  # of Matplotlib, 20 colours each
_MISSING, _MISSING_COLOR = "NA", "lightgray"


def _labels(adata: AnnData, color: str) -> pd.Categorical:
    column = adata.obs[color]
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
        msg = (
            f"adata.obs[{color!r}] holds numbers ({column.dtype}); pl.embeddings draws labels. Use "
            f"sc.pl.embedding(adata, basis=..., color={color!r}), or if the numbers are names of groups: "
            f"adata.obs[{color!r}] = adata.obs[{color!r}].astype(str)."
        )
        raise TypeError(msg)
    return pd.Categorical(column)


def _default_palette(adata: AnnData, color: str, categories: pd.Index) -> dict[Any, Any]:
    """Colours of `.uns` as Scanpy keeps them, else of Matplotlib's tables."""
    kept = adata.uns.get(f"{color}_colors")
    n = len(categories)
    if kept is not None and len(kept) >= n:
        return dict(zip(categories, kept, strict=False))
    colors = [shade for name in _TABLES for shade in plt.get_cmap(name).colors]
    if n > len(colors):
        colors = list(plt.get_cmap("gist_rainbow")(np.linspace(0, 1, n)))
    return dict(zip(categories, colors, strict=False))


def _legend(ax: Axes, title: str) -> None:
    handles, texts = ax.get_legend_handles_labels()
    order = sorted(range(len(texts)), key=lambda i: handles[i].get_gid() == _MISSING)  # missing labels come last
    place = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5), "frameon": False, "markerscale": 1.5}
    ax.legend([handles[i] for i in order], [texts[i] for i in order], title=title, **place)


def embeddings(
    adata: AnnData,
    bases: Mapping[str, str] | Sequence[str],
    *,
    color: str,
    palette: Mapping[str, Any] | None = None,
    size: float | None = None,
    axes: Sequence[Axes] | None = None,
    show: bool | None = None,
    **kwargs: Any,
) -> list[Axes] | None:
    """Scatter two or more two-dimensional embeddings next to each other, coloured by one column.

    Parameters
    ----------
    adata
        Cells.
    bases
        Keys of `.obsm` (the first two columns are drawn), or a mapping title -> key.
    color
        Column of `.obs` with labels. Cells without one are drawn first, in light gray, as `"NA"`.
    palette
        Colour of each label; by default `.uns["<color>_colors"]`, where Scanpy keeps them, else those of Matplotlib's
        `tab20`, `tab20b` and `tab20c` one after another (of more than 60 labels, a rainbow), in the order of the
        categories.
    size
        Area of a dot in points squared.
    axes
        Axes to draw on, one per embedding.
    show
        Show the figure; by default when no `axes` were given.
    **kwargs
        Passed to :meth:`matplotlib.axes.Axes.scatter`.

    Returns
    -------
    The axes, or `None` if the figure is shown.

    Raises
    ------
    KeyError
        When a key is not in `.obsm`, or `color` not in `.obs`.
    TypeError
        When the column `color` holds numbers.
    """
    check_anndata(adata, function="pl.embeddings")
    check_key(adata.obs, color, where="adata.obs")
    panels = dict(bases) if isinstance(bases, Mapping) else {key: key for key in bases}
    for key in panels.values():
        if key not in adata.obsm:
            msg = f"adata.obsm has no {key!r}. Keys: {', '.join(map(repr, adata.obsm)) or 'none'}."
            raise KeyError(msg)
    labels = _labels(adata, color)
    palette = _default_palette(adata, color, labels.categories) if palette is None else palette
    size = size or float(np.clip(30_000 / max(adata.n_obs, 1), 2, 40))
    given = axes is not None
    if axes is None:
        _, grid = plt.subplots(1, len(panels), figsize=(5 * len(panels) + 2.2, 5), squeeze=False, layout="constrained")
        axes = list(grid[0])
    for ax, (title, key) in zip(axes, panels.items(), strict=True):
        points = np.asarray(adata.obsm[key])
        style = {"s": size, "linewidths": 0, **kwargs}
        missing = labels.isna()
        if missing.any():
            ax.scatter(*points[missing, :2].T, color=_MISSING_COLOR, label=_MISSING, gid=_MISSING, **style)
        for label in labels.categories:
            chosen = labels == label
            ax.scatter(*points[chosen, :2].T, color=palette[label], label=label, **style)
        ax.set(title=title, xticks=[], yticks=[])
        ax.spines[["top", "right", "bottom", "left"]].set_visible(False)
    _legend(axes[-1], color)
    if show or (show is None and not given):
        plt.show()
        return None
    return list(axes)
