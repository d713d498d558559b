"""Labels of `tl.annotate` as tables."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

import pandas as pd

from scanpy_scgpt._keys import UNS, LabelKeys

if TYPE_CHECKING:
    from anndata import AnnData


def label_probabilities(adata: AnnData, *, key: str = LabelKeys.label) -> pd.DataFrame:
    """Probability of each label.

    Parameters
    ----------
    adata
        Cells that :func:`scanpy_scgpt.tl.annotate` named.
    key
        Its `key_added`.

    Returns
    -------
    Table of float32, cells x labels; rows sum to 1.

    Raises
    ------
    KeyError
        When the cells were not named under that key.
    """
    keys = LabelKeys.named(key)
    return _table(adata, keys.prob, keys, key)


def label_sets(adata: AnnData, *, key: str = LabelKeys.label) -> pd.DataFrame:
    """Labels that cannot be ruled out.

    Parameters
    ----------
    adata
        Cells that :func:`scanpy_scgpt.tl.annotate` named.
    key
        Its `key_added`.

    Returns
    -------
    Table of bool, cells x labels.

    Raises
    ------
    KeyError
        When the cells were not named under that key.
    """
    keys = LabelKeys.named(key)
    return _table(adata, keys.sets, keys, key)


def _table(adata: AnnData, name: str, keys: LabelKeys, key: str) -> pd.DataFrame:
    record = adata.uns.get(UNS, {}).get(keys.uns, {})
    if name not in adata.obsm or "labels" not in record:
        near = difflib.get_close_matches(name, map(str, adata.obsm), n=1)
        hint = f"; did you mean {near[0]!r}" if near and near[0] != name else ""
        added = "" if key == LabelKeys.label else f", key_added={key!r}"
        what = (
            f"adata.obsm has no {name!r}{hint}" if name not in adata.obsm else f"adata.uns[{UNS!r}] has no record of it"
        )
        msg = (
            f"{what}. Found: {', '.join(map(str, adata.obsm)) or 'none'}. "
            f"Predict the labels first: scgpt.tl.annotate(adata, reference, labels_key=...{added})."
        )
        raise KeyError(msg)
    labels = pd.Index([str(label) for label in record["labels"]], name="label")
    return pd.DataFrame(adata.obsm[name], index=adata.obs_names, columns=labels)
