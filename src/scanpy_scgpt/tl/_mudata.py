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

_OBS, _UNS = ("_scvi_batch", "_scvi_labels"), ("_scvi_uuid", "_scvi_manager_uuid")


@contextmanager
def lent(mdata: MuData, batches: pd.Series | None = None, *, name: str | None = None) -> Iterator[MuData]:
    """The MuData with its batches in the column `name` of `obs`; what registering it leaves is taken away again."""
    columns = _OBS if batches is None else (*_OBS, name)
    tables: list[tuple[Any, str, Any]] = [
        (table, slot, table[slot] if slot in table else None)  # noqa: SIM401 - a DataFrame has another `get`
        for table, slots in ((mdata.obs, columns), (mdata.uns, _UNS))
        for slot in slots
    ]
    if batches is not None:
        mdata.obs[name] = batches.to_numpy()
    try:
        yield mdata
    finally:
        for table, slot, former in tables:
            if former is not None:
                table[slot] = former
            elif slot in table:
                del table[slot]


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
