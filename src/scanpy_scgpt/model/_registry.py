"""Registries of scvi-tools' data manager: what is read from them, and as plain values for JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

_ARRAY, _FRAME = "array of", "columns of"


def state_of(registry: Mapping[str, Any], key: str) -> dict[str, Any]:
    """What a field remembers, empty when it was not registered."""
    return registry["field_registries"].get(key, {}).get("state_registry", {})


def categories_of(registry: Mapping[str, Any], key: str) -> list[str]:
    """Names of the categories of `"labels"` or `"batch"`, in the order of their integers."""
    return [str(name) for name in state_of(registry, key).get("categorical_mapping", ())]


def setup_of(cls: type, registry: Mapping[str, Any]) -> Callable[..., None]:
    """The method of a class that registers cells as those of a registry were."""
    method = getattr(cls, registry["setup_method_name"], None)
    if method is None:
        msg = (
            f"This {cls.__name__} was made from the registry of a data module, which does not say how cells are "
            "registered. Load it with adata=False, and give batches: dataloader=..."
        )
        raise ValueError(msg)
    return method


def gene_names(registry: Mapping[str, Any]) -> list[str]:
    """Names of the genes of the registered cells by which they are matched."""
    state = state_of(registry, "X")
    return [str(name) for name in state.get("symbols", state["column_names"])]


def to_plain(value: Any) -> Any:
    """A value in what JSON knows; arrays and tables remember that they are."""
    if isinstance(value, pd.DataFrame):
        columns = {str(name): column.tolist() for name, column in value.items()}
        return {_FRAME: columns, "index": value.index.tolist(), "name": value.index.name}
    if isinstance(value, np.ndarray):
        kind = value.dtype.str if value.dtype != object else "O"
        return {_ARRAY: kind, "shape": list(value.shape), "values": value.ravel().tolist()}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {str(key): to_plain(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(x) for x in value]
    return value


def from_plain(value: Any) -> Any:
    """The inverse of :func:`to_plain`; tuples come back as lists."""
    if isinstance(value, list):
        return [from_plain(x) for x in value]
    if not isinstance(value, dict):
        return value
    if _ARRAY in value:
        return np.asarray(value["values"], dtype=value[_ARRAY]).reshape(value["shape"])
    if _FRAME in value:
        return pd.DataFrame(value[_FRAME], index=pd.Index(value["index"], name=value["name"]))
    return {key: from_plain(x) for key, x in value.items()}
