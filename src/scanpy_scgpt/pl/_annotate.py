"""Predicted labels beside the true ones: what is mistaken for what, and whether the confidence holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from scanpy_scgpt._keys import LabelKeys
from scanpy_scgpt._validate import check_anndata
from scanpy_scgpt.get import label_probabilities
from scanpy_scgpt.metrics import calibration_error
from scanpy_scgpt.metrics import reliability as binned

from ._labels import flags, label_column, slot, truth_column

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

_UNKNOWN = "unknown"
_MAX_WRITTEN = 15  # labels; of more, the numbers do not fit into the squares
_DARK = 0.5  # luminance below which text is white
_FULL = 0.995  # shares above are written as 1 only if they are 1
_INK, _SOFT, _FILL = "#1f4e79", "#8a8a8a", "#9dc3e6"  # lines and points; what is in the background; areas
_WHISKERS = (0.05, 0.25, 0.5, 0.75, 0.95)


class _Counts(NamedTuple):
    """Cells by true and predicted label, `(n_rows, n_columns)`: labels of both first, unknown cells last, if any."""

    table: pd.DataFrame
    n_shared: int
    has_unknown: bool
    n_left_out: int


def _finish(ax: Axes, *, given: bool, show: bool | None) -> Axes | None:
    if show or (show is None and not given):
        plt.show()
        return None
    return ax


def _without(n: int, column: str) -> str:
    return f"\n{n:,} without a label in {column!r} left out" if n else ""


def _counts(adata: AnnData, truth: str, *, key: str) -> _Counts:
    keys = LabelKeys.named(key)
    slot(adata.obs, keys.label, where="adata.obs", key=key)
    true, predicted, flagged = truth_column(adata, truth), label_column(adata, keys.label), flags(adata, keys)
    known = true.notna().to_numpy()
    rejected = predicted.isna().to_numpy() | (False if flagged is None else flagged)
    rows, columns = true[known].unique(), predicted[known & ~rejected].unique()
    offered = columns  # the labels that could be predicted, where that is known
    if keys.prob in adata.obsm:
        offered = label_probabilities(adata, key=keys.label).columns
    shared = np.intersect1d(rows, np.union1d(columns, offered))
    rows, columns = ([*shared, *np.setdiff1d(found, shared)] for found in (rows, columns))
    codes = pd.Index(columns, dtype=object).get_indexer(predicted)
    codes[rejected] = len(columns)
    counts = np.zeros((len(rows), len(columns) + 1), dtype=np.int64)
    np.add.at(counts, (pd.Index(rows, dtype=object).get_indexer(true[known]), codes[known]), 1)
    unknown = f"({_UNKNOWN})" if _UNKNOWN in columns else _UNKNOWN
    table = pd.DataFrame(counts, index=rows, columns=[*columns, unknown])
    has_unknown = bool(rejected[known].any())
    return _Counts(table if has_unknown else table.iloc[:, :-1], len(shared), has_unknown, int((~known).sum()))


def _share(value: float) -> str:
    """A share in two decimals; neither a small one is written as 0, nor one of nearly all as 1."""
    if value in (0, 1):
        return "1" if value else ""
    if _FULL <= value < 1:
        return ">.99"
    return f"{value:.2f}".lstrip("0") if value >= 1 - _FULL else "<.01"


def _percent(value: float) -> str:
    if 0 < value < 1 - _FULL:
        return "<1 %"
    return ">99 %" if _FULL <= value < 1 else f"{value:.0%}".replace("%", " %")


def _write_numbers(ax: Axes, image: AxesImage, texts: np.ndarray) -> None:
    """Texts in the squares of a heat map, white where the square is dark."""
    colors = image.cmap(image.norm(np.asarray(image.get_array())))
    dark = colors[..., :3] @ [0.299, 0.587, 0.114] < _DARK
    for (row, column), text in np.ndenumerate(texts):
        color = "white" if dark[row, column] else "black"
        ax.text(column, row, text, ha="center", va="center", fontsize=8, color=color)


def confusion(
    adata: AnnData,
    truth: str,
    *,
    key: str = LabelKeys.label,
    normalize: bool = True,
    ax: Axes | None = None,
    show: bool | None = None,
    **kwargs: Any,
) -> Axes | None:
    """Heat map of true against predicted labels.

    Labels that occur in the truth and can be predicted come first, in the order of the alphabet, so that right cells
    lie on the diagonal; beyond a line, those of the truth alone (rows) or of the prediction alone (columns). The last
    column, `"unknown"`, has the cells that are flagged unknown, whatever their label, and those without a prediction.

    Parameters
    ----------
    adata
        Cells with predicted labels, as `tl.annotate` writes them.
    truth
        Column of `.obs` with the true labels. Cells without one are left out; the title has their number.
    key
        Column of `.obs` with the predicted labels; the flags are read from the column that belongs to it. Labels are
        compared as text.
    normalize
        Draw the share of the cells of a true label, so that rows sum to 1, instead of numbers of cells.
    ax
        Axes to draw on.
    show
        Show the figure; by default when no `ax` was given.
    **kwargs
        Passed to :meth:`matplotlib.axes.Axes.imshow`.

    Returns
    -------
    The axes, or `None` if the figure is shown. Their image holds the drawn numbers, shape `(n_rows, n_columns)`; they
    are also written into the squares if there are no more than 15 labels.

    Raises
    ------
    KeyError
        When a column is not in `.obs`.
    ValueError
        When no cell has a true label.
    TypeError
        When a column of labels holds floating-point numbers, or that of the flags other values than True and False.
    """
    check_anndata(adata, function="pl.confusion")
    table, n_shared, has_unknown, n_left_out = _counts(adata, truth, key=key)
    n_cells = table.sum(axis=1)
    values = table.div(n_cells, axis=0) if normalize else table
    n_rows, n_columns = table.shape
    written = max(n_rows, n_columns - has_unknown) <= _MAX_WRITTEN
    given = ax is not None
    if ax is None:
        width, height = (min((0.5 if written else 0.24) * n, 20) for n in (n_columns, n_rows))
        _, ax = plt.subplots(figsize=(width + 3.6, height + 2.4), layout="constrained")
    style = {"cmap": "Blues", "aspect": "equal", "vmin": 0, **({"vmax": 1} if normalize else {})}
    norm = {"vmin": None, "vmax": None} if "norm" in kwargs else {}
    ax.grid(visible=False)
    image = ax.imshow(values.to_numpy(), **{**style, **norm, **kwargs})
    if written:
        write = _share if normalize else "{:,}".format
        _write_numbers(ax, image, values.map(lambda value: write(value) if value else "").to_numpy())
    if has_unknown:
        ax.axvline(n_columns - 1.5, color=_SOFT, linewidth=1)
    if 0 < n_shared < max(n_rows, n_columns - has_unknown):  # beyond the lines no cell is right
        ax.axhline(n_shared - 0.5, color=_SOFT, linewidth=1)
        ax.axvline(n_shared - 0.5, color=_SOFT, linewidth=1)
    ax.set_xticks(range(n_columns), table.columns, rotation=90)
    ax.set_yticks(range(n_rows), [f"{label} ({n:,})" for label, n in n_cells.items()])
    ax.tick_params(length=0)
    ax.set(xlabel=f"predicted: {key}", ylabel=f"truth: {truth}")
    ax.set_title(f"{n_cells.sum():,} cells{_without(n_left_out, truth)}", fontsize=10)
    ax.figure.colorbar(image, ax=ax, shrink=0.6, label="share of the cells of a row" if normalize else "cells")
    return _finish(ax, given=given, show=show)


def reliability(
    adata: AnnData,
    truth: str,
    *,
    key: str = LabelKeys.label,
    n_bins: int = 15,
    ax: Axes | None = None,
    show: bool | None = None,
) -> Axes | None:
    """Confidence against accuracy, with the number of cells of each confidence beneath.

    Of calibrated predictions the points lie on the diagonal; below it, predictions are surer than they are right. The
    numbers are those of :func:`scanpy_scgpt.metrics.reliability`, the bars Wilson's intervals at a level of 95 %; the
    corner has :func:`scanpy_scgpt.metrics.calibration_error`. Cells that are flagged unknown count as the others.

    Parameters
    ----------
    adata
        Cells with the probability of each label, as `tl.annotate` writes them.
    truth
        Column of `.obs` with the true labels. Cells without one are left out; the title has their number. A cell whose
        true label has no probability is wrong.
    key
        Column of `.obs` with the predicted labels; the probabilities are read from the slot of `.obsm` that belongs to
        it, shape `(n_cells, n_labels)`.
    n_bins
        Number of bins of one width.
    ax
        Axes to draw on; the histogram takes the space beneath.
    show
        Show the figure; by default when no `ax` was given.

    Returns
    -------
    The axes, or `None` if the figure is shown. The histogram is their first child, `ax.child_axes[0]`.

    Raises
    ------
    KeyError
        When `truth` is not in `.obs`, or there are no probabilities.
    ValueError
        When no cell has a true label, probabilities do not sum to 1, or `n_bins` is no number of bins.
    TypeError
        When `truth` holds floating-point numbers.
    """
    check_anndata(adata, function="pl.reliability")
    prob = label_probabilities(adata, key=key)
    labels = truth_column(adata, truth)
    table = binned(labels, prob, n_bins=n_bins)
    error = calibration_error(labels, prob, n_bins=n_bins)
    given = ax is not None
    if ax is None:
        _, ax = plt.subplots(figsize=(4.6, 6), layout="constrained")
    _draw_reliability(ax, table[table["n"] > 0])
    _draw_histogram(ax, table)
    ax.text(0.04, 0.96, f"calibration error {error:.3f}", transform=ax.transAxes, va="top")
    ax.set_title(f"{table['n'].sum():,} cells{_without(int(labels.isna().sum()), truth)}", fontsize=10)
    return _finish(ax, given=given, show=show)


def _draw_reliability(ax: Axes, table: pd.DataFrame) -> None:
    ax.plot([0, 1], [0, 1], color=_SOFT, linewidth=1, linestyle="--", zorder=1)
    bars = np.abs(table[["accuracy_low", "accuracy_high"]].sub(table["accuracy"], axis=0).to_numpy()).T
    style = {"fmt": "o-", "color": _INK, "markersize": 5, "linewidth": 1, "elinewidth": 1.5, "capsize": 2}
    ax.errorbar(table["confidence"], table["accuracy"], yerr=bars, clip_on=False, **style)
    ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", ylabel="accuracy (95 % interval)")
    ax.tick_params(labelbottom=False)
    ax.spines[["top", "right"]].set_visible(False)


def _draw_histogram(ax: Axes, table: pd.DataFrame) -> None:
    below = ax.inset_axes([0, -0.27, 1, 0.22])
    width = table["upper"] - table["lower"]
    below.bar(table["lower"], table["n"], width=width, align="edge", color=_FILL, edgecolor="white")
    below.set(xlim=(0, 1), xlabel="confidence", ylabel="cells")
    below.yaxis.set_major_locator(plt.MaxNLocator(2, integer=True))
    below.spines[["top", "right"]].set_visible(False)


def _draw_boxes(ax: Axes, quantiles: pd.DataFrame) -> None:
    """One horizontal box per row of `quantiles`, `(n_groups, 5)`, the first on top."""
    low, first, median, third, high = quantiles.to_numpy().T
    at = np.arange(len(quantiles))
    ax.hlines(at, low, high, color=_INK, linewidth=1, zorder=1)
    ax.barh(at, third - first, left=first, height=0.6, color=_FILL, edgecolor=_INK, linewidth=1, zorder=2)
    ax.vlines(median, at - 0.3, at + 0.3, color=_INK, linewidth=2.5, zorder=3)
    ax.set(xlim=(0, 1), ylim=(len(at) - 0.4, -0.6), xlabel="confidence")
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", color="0.9", zorder=0)
    ax.set_axisbelow(True)


def confidence(
    adata: AnnData,
    *,
    key: str = LabelKeys.label,
    groupby: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
) -> Axes | None:
    """Box of the confidence of each predicted label, the label with the highest median on top.

    Boxes go from the first to the third quartile, with the median inside; lines from the 5 % to the 95 % quantile.
    Behind each box stands the share of its cells that are flagged unknown, if there are flags.

    Parameters
    ----------
    adata
        Cells with predicted labels and confidences, as `tl.annotate` writes them.
    key
        Column of `.obs` with the predicted labels; confidences and flags are read from the columns that belong to it.
    groupby
        Column of `.obs` with other groups than the predicted labels. Cells without a group or a confidence are left
        out; the title has their number.
    ax
        Axes to draw on.
    show
        Show the figure; by default when no `ax` was given.

    Returns
    -------
    The axes, or `None` if the figure is shown.

    Raises
    ------
    KeyError
        When a column is not in `.obs`.
    ValueError
        When no cell has a group and a confidence.
    TypeError
        When the confidences are no numbers, the groups floating-point numbers, or the flags other values than True and
        False.
    """
    check_anndata(adata, function="pl.confidence")
    values, groups, flagged = _confidences(adata, key=key, groupby=groupby)
    kept = (values.notna() & groups.notna()).to_numpy()
    if not kept.any():
        msg = f"None of the {adata.n_obs:,} cells has a confidence and a group. Name other groups: groupby='sample'."
        raise ValueError(msg)
    grouped = values[kept].groupby(groups[kept].to_numpy())
    quantiles = grouped.quantile(list(_WHISKERS)).unstack()
    quantiles = quantiles.sort_index().sort_values(0.5, ascending=False, kind="stable")
    n_cells = grouped.size()[quantiles.index]
    given = ax is not None
    if ax is None:
        _, ax = plt.subplots(figsize=(6.4, min(0.32 * len(quantiles), 20) + 1.4), layout="constrained")
    _draw_boxes(ax, quantiles)
    ax.set_yticks(range(len(quantiles)), [f"{group} ({n:,})" for group, n in n_cells.items()])
    ax.set_ylabel(groupby or key)
    if flagged is not None:
        shares = pd.Series(flagged[kept]).groupby(groups[kept].to_numpy()).mean()[quantiles.index]
        place = {"transform": ax.get_yaxis_transform(), "va": "center", "ha": "right"}
        for row, share in enumerate(shares):
            ax.text(1.12, row, _percent(share), **place)
        ax.text(1.12, -0.95, _UNKNOWN, color=_SOFT, **place)
    left_out = f"\n{(~kept).sum():,} without a group or a confidence left out" if not kept.all() else ""
    ax.set_title(f"{kept.sum():,} cells{left_out}", fontsize=10)
    return _finish(ax, given=given, show=show)


def _confidences(adata: AnnData, *, key: str, groupby: str | None) -> tuple[pd.Series, pd.Series, np.ndarray | None]:
    """Confidence, group and flag of each cell, `(n_cells,)` each."""
    keys = LabelKeys.named(key)
    values = slot(adata.obs, keys.confidence, where="adata.obs", key=key)
    if not pd.api.types.is_numeric_dtype(values) or pd.api.types.is_bool_dtype(values):
        name = f"adata.obs[{keys.confidence!r}]"
        msg = f"{name} holds {values.dtype}; numbers are needed: {name} = pd.to_numeric({name})."
        raise TypeError(msg)
    if groupby is None:
        slot(adata.obs, keys.label, where="adata.obs", key=key)
    return values.astype(np.float64), label_column(adata, groupby or keys.label), flags(adata, keys)
