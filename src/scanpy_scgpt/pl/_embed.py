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
        Column of `.obs` with labels.
    palette
        Colour of each label; by default those of Matplotlib's `tab20`, in the order of the categories.
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
    """
    check_anndata(adata, function="pl.embeddings")
    check_key(adata.obs, color, where="adata.obs")
    panels = dict(bases) if isinstance(bases, Mapping) else {key: key for key in bases}
    for key in panels.values():
        if key not in adata.obsm:
            msg = f"adata.obsm has no {key!r}. Keys: {', '.join(map(repr, adata.obsm)) or 'none'}."
            raise KeyError(msg)
    labels = pd.Categorical(adata.obs[color])
    if palette is None:
        palette = {label: plt.get_cmap("tab20")(i % 20) for i, label in enumerate(labels.categories)}
    size = size or float(np.clip(30_000 / max(adata.n_obs, 1), 2, 40))
    given = axes is not None
    if axes is None:
        _, grid = plt.subplots(1, len(panels), figsize=(5 * len(panels) + 2.2, 5), squeeze=False, layout="constrained")
        axes = list(grid[0])
    for ax, (title, key) in zip(axes, panels.items(), strict=True):
        points = np.asarray(adata.obsm[key])
        for label in labels.categories:
            chosen = labels == label
            ax.scatter(*points[chosen, :2].T, s=size, color=palette[label], label=label, linewidths=0, **kwargs)
        ax.set(title=title, xticks=[], yticks=[])
        ax.spines[["top", "right", "bottom", "left"]].set_visible(False)
    axes[-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, markerscale=1.5, title=color)
    if show or (show is None and not given):
        plt.show()
        return None
    return list(axes)
