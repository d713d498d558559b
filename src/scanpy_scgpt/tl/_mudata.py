"""A MuData that is registered for a while, and left as it was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pandas as pd

from scanpy_scgpt._modalities import KINDS
from scanpy_scgpt._validate import check_one_of

if TYPE_CHECKING:
    from mudata import MuData

BATCH = "_scgpt_batch"
"""Column of `mdata.obs` that is there while a MuData is lent."""
_OBS, _UNS = (BATCH, "_scvi_batch", "_scvi_labels"), ("_scvi_uuid", "_scvi_manager_uuid")


@contextmanager
def lent(mdata: MuData, batches: pd.Series | None = None) -> Iterator[MuData]:
    """The MuData with its batches in `obs["_scgpt_batch"]`; what registering it leaves is taken away again."""
    tables: list[tuple[Any, str, Any]] = [
        (table, name, table[name] if name in table else None)  # noqa: SIM401 - a DataFrame has another `get`
        for table, names in ((mdata.obs, _OBS), (mdata.uns, _UNS))
        for name in names
    ]
    if batches is not None:
        mdata.obs[BATCH] = batches.to_numpy()
    try:
        yield mdata
    finally:
        for table, name, former in tables:
            if former is not None:
                table[name] = former
            elif name in table:
                del table[name]


def layers_of(mdata: MuData, layer: str | Mapping[str, str] | None) -> Mapping[str, str] | None:
    """Layers by modality.

    Raises
    ------
    TypeError
        For the name of one layer: modalities have their own.
    ValueError
        For a modality that is not there.
    """
    if isinstance(layer, str):
        msg = f"layer={layer!r}: of a MuData say the modality too, such as layer={{'rna': {layer!r}}}."
        raise TypeError(msg)
    for name in layer or ():
        check_one_of(name, dict.fromkeys([*mdata.mod, *KINDS]), name="a modality in layer")
    return layer
