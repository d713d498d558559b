"""What the figures of predicted labels read from an AnnData."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scanpy_scgpt._keys import LabelKeys
from scanpy_scgpt._validate import check_key

if TYPE_CHECKING:
    from anndata import AnnData


def slot(slots: Mapping[str, Any] | pd.DataFrame, name: str, *, where: str, key: str) -> Any:
    """What `tl.annotate` wrote under `name`."""
    if name in slots:
        return slots[name]
    near = difflib.get_close_matches(name, map(str, slots), n=1)
    hint = f"; did you mean {near[0]!r}" if near else ""
    added = "" if key == LabelKeys.label else f", key_added={key!r}"
    msg = (
        f"{where} has no {name!r}{hint}. Found: {', '.join(map(str, slots)) or 'none'}. "
        f"Predict the labels first: scgpt.tl.annotate(adata, reference, labels_key=...{added})."
    )
    raise KeyError(msg)


def label_column(adata: AnnData, column: str) -> pd.Series:
    """Labels as text, shape `(n_cells,)`; None where there is none."""
    check_key(adata.obs, column, where="adata.obs")
    values = adata.obs[column]
    if pd.api.types.is_float_dtype(values) and values.notna().any():
        msg = (
            f"adata.obs[{column!r}] holds numbers ({values.dtype}); labels are needed. If the numbers are names of "
            f"groups: adata.obs[{column!r}] = adata.obs[{column!r}].astype('Int64')."
        )
        raise TypeError(msg)
    return values.astype(object).astype(str).astype(object).where(values.notna().to_numpy(), None)


def truth_column(adata: AnnData, truth: str) -> pd.Series:
    """As :func:`label_column`; at least one cell must have a label."""
    labels = label_column(adata, truth)
    if labels.isna().all():
        msg = (
            f"adata.obs[{truth!r}] has no label in any of the {adata.n_obs:,} cells. Name the column with the true "
            "labels: truth='cell_type'."
        )
        raise ValueError(msg)
    return labels


def flags(adata: AnnData, keys: LabelKeys) -> np.ndarray | None:
    """Whether a cell is flagged unknown, bool `(n_cells,)`; None without that column."""
    if keys.unknown not in adata.obs:
        return None
    column = adata.obs[keys.unknown]
    if not pd.api.types.is_bool_dtype(column) or column.isna().any():
        found = "missing values" if column.isna().any() else f"{column.dtype}"
        name = f"adata.obs[{keys.unknown!r}]"
        msg = f"{name} holds {found}; True and False are needed: {name} = {name}.astype(str) == 'True'."
        raise TypeError(msg)
    return column.to_numpy(dtype=bool)
