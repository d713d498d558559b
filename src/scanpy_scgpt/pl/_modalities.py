"""What cells have, and how well what they lack was predicted."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from scanpy_scgpt._keys import UNS, ImputeKeys, IntegrateKeys
from scanpy_scgpt._modalities import column_of, is_mudata

from ._embed import embeddings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from mudata import MuData

_PARTS = {"ridge": "#9dc3e6", "kernel": "#5b9bd5", "neighbours": "#8a8a8a"}
_MIX, _COVERED = "#1f4e79", "#c55a11"
_MOST = 40  # features that have a bar


def modalities(
    mdata: MuData,
    basis: str = "X_umap",
    *,
    modality: str | None = None,
    color: str | None = None,
    size: float | None = None,
    show: bool | None = None,
) -> np.ndarray | None:
    """Draw cells by the modalities that they have, and how well a modality was predicted for cells left out.

    Parameters
    ----------
    mdata
        Cells that :func:`scanpy_scgpt.tl.integrate` or :func:`scanpy_scgpt.tl.embed` was run on.
    basis
        Key of a two-dimensional embedding in `.obsm`.
    modality
        Modality that :func:`scanpy_scgpt.tl.impute_modality` was run on, its kind, or the `key_added`: a second panel
        shows the correlation of each feature, of the mix (bar) and of its parts (marks), and the coverage of the
        interval.
    color
        Another column of `mdata.obs`, or of the modalities' `.obs`, for a further panel, such as the batch.
    size
        Area of a dot in points squared.
    show
        Show the figure, the default; False returns the axes.

    Returns
    -------
    The axes, array of shape `(n_panels,)`, or `None` if the figure is shown.

    Raises
    ------
    KeyError
        When the column, the embedding or the prediction is not there; the call that makes it is said.
    TypeError
        When this is no MuData.
    """
    if not is_mudata(mdata):
        msg = f"pl.modalities draws a MuData, this is {type(mdata).__name__}."
        raise TypeError(msg)
    column = IntegrateKeys().modalities
    if column not in mdata.obs:
        msg = f"mdata.obs has no {column!r}. Run scgpt.tl.integrate(mdata) first."
        raise KeyError(msg)
    record = None if modality is None else _record(mdata, modality)
    colors = [column] if color is None else [column, color]
    cells = ad.AnnData(obs=pd.DataFrame({name: column_of(mdata, name) for name in colors}, index=mdata.obs_names))
    if basis not in mdata.obsm:
        near = difflib.get_close_matches(basis, map(str, mdata.obsm), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else " Make it: sc.pp.neighbors, then sc.tl.umap(mdata)."
        msg = f"mdata.obsm has no {basis!r}. Keys: {', '.join(map(repr, mdata.obsm)) or 'none'}.{hint}"
        raise KeyError(msg)
    cells.obsm[basis] = np.asarray(mdata.obsm[basis])
    n = len(colors) + (record is not None)
    figure, axes = plt.subplots(1, n, figsize=(6 * n, 5), squeeze=False, layout="constrained")
    try:
        for ax, name in zip(axes[0], colors, strict=False):
            embeddings(cells, {name: basis}, color=name, axes=[ax], size=size, show=False)
    except (KeyError, TypeError):
        plt.close(figure)
        raise
    if record is not None:
        _bars(axes[0, -1], record)
    if show is False:
        return axes[0]
    plt.show()
    return None


def _record(mdata: MuData, modality: str) -> dict:
    key = ImputeKeys.named(modality, None).uns
    found = mdata.uns.get(UNS, {})
    of_kind = [name for name, one in found.items() if name.startswith("impute_") and one.get("kind") == modality]
    if key not in found and of_kind:
        key = of_kind[-1]
    if key not in found:
        msg = f"mdata.uns[{UNS!r}] has no {key!r}. Run scgpt.tl.impute_modality(mdata, {modality!r}) first."
        raise KeyError(msg)
    return found[key]


def _bars(ax: Axes, record: dict) -> None:
    table = pd.DataFrame(
        {name: np.asarray(x) for name, x in record["left_out"].items()}, index=list(record["features"])
    )
    table = table.sort_values("correlation", ascending=False).iloc[:_MOST]
    place = np.arange(len(table))
    ax.barh(place, table["correlation"], color=_MIX, label="mix", height=0.7)
    for name, shade in _PARTS.items():
        ax.scatter(table[f"correlation_{name}"], place, s=14, color=shade, label=name, zorder=3, edgecolors="white")
    ax.scatter(table["coverage"], place, marker="|", s=60, color=_COVERED, label="coverage", zorder=3)
    ax.axvline(record["level"], color=_COVERED, linewidth=0.8, linestyle=":")
    ax.set_yticks(place, [str(name) for name in table.index], fontsize=8)
    ax.grid(visible=False)
    ax.invert_yaxis()
    ax.set(xlim=(min(0, float(table["correlation"].min())), 1.02), xlabel="correlation with left-out cells")
    ax.set_title(f"{record['modality']}, {len(record['features']):,} features")
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    ax.spines[["top", "right"]].set_visible(False)
