"""Batches before and after they were laid over one another, and the scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from scanpy_scgpt._modalities import is_mudata
from scanpy_scgpt._validate import check_anndata

from ._embed import embeddings

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

_SCORES = {"avg_bio": "AvgBIO", "avg_batch": "AvgBATCH", "overall": "overall"}
_COLORS = ("#1f4e79", "#9dc3e6", "#8a8a8a")
_HEIGHT = 0.8  # of the bars of a method together


def integration(
    adata: AnnData,
    bases: Mapping[str, str] | Sequence[str],
    *,
    batch_key: str,
    labels_key: str | None = None,
    scores: pd.DataFrame | None = None,
    size: float | None = None,
    show: bool | None = None,
    **kwargs: Any,
) -> np.ndarray | None:
    """Draw embeddings side by side, coloured by batch and by label, with the scores beneath.

    Parameters
    ----------
    adata
        Cells.
    bases
        Keys of two-dimensional embeddings in `.obsm`, such as UMAPs made before and after, or a mapping title -> key.
    batch_key
        Column of `.obs` with the batches: the first row.
    labels_key
        Column of `.obs` with the labels: the second row.
    scores
        Table of :func:`scanpy_scgpt.metrics.integration`: the last row has its bars, method by method.
    size
        Area of a dot in points squared.
    show
        Show the figure, the default; False returns the axes.
    **kwargs
        Of :func:`embeddings`.

    Returns
    -------
    The axes, array of shape `(n_rows, n_bases)` (the bars take the whole last row, so its other places hold None), or
    `None` if the figure is shown.

    Raises
    ------
    KeyError
        When a key is not in `.obsm`, a column not in `.obs`, or a score not in the table.
    TypeError
        For a MuData.
    ValueError
        When there are no bases.
    """
    if is_mudata(adata):
        msg = "pl.integration draws an AnnData. Of a MuData: pl.modalities(mdata, 'X_umap', color='batch')."
        raise TypeError(msg)
    check_anndata(adata, function="pl.integration")
    bases = [bases] if isinstance(bases, str) else bases
    if not len(bases):
        msg = "bases is empty: name keys of adata.obsm, such as bases=['X_umap']."
        raise ValueError(msg)
    if scores is not None and (lacking := [name for name in _SCORES if name not in scores]):
        msg = f"scores has no column {lacking[0]!r}; it must be a table of metrics.integration(...)."
        raise KeyError(msg)
    colors = [batch_key] if labels_key is None else [batch_key, labels_key]
    n_columns, n_rows = len(bases), len(colors) + (scores is not None)
    figure = plt.figure(figsize=(4.4 * n_columns + 2.2, 4 * n_rows), layout="constrained")
    grid = figure.add_gridspec(n_rows, n_columns)
    axes = np.full((n_rows, n_columns), None, dtype=object)
    try:
        for row, color in enumerate(colors):
            axes[row] = [figure.add_subplot(grid[row, column]) for column in range(n_columns)]
            embeddings(adata, bases, color=color, axes=list(axes[row]), size=size, show=False, **kwargs)
    except (KeyError, TypeError):
        plt.close(figure)
        raise
    if scores is not None:
        axes[-1, 0] = figure.add_subplot(grid[-1, :])
        _bars(axes[-1, 0], scores)
    if show is False:
        return axes
    plt.show()
    return None


def _bars(ax: Axes, scores: pd.DataFrame) -> None:
    place, height = np.arange(len(scores)), _HEIGHT / len(_SCORES)
    for i, (name, title) in enumerate(_SCORES.items()):
        bars = ax.barh(place + i * height, scores[name], height=height, label=title, color=_COLORS[i])
        ax.bar_label(bars, fmt="%.3f", padding=2, fontsize=8)
    ax.set_yticks(place + height, [str(name) for name in scores.index])
    ax.grid(visible=False)
    ax.invert_yaxis()
    ax.set(xlim=(0, 1.08), xlabel="score")
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    ax.spines[["top", "right"]].set_visible(False)
