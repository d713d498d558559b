"""Checks of arguments: each raises the final text and changes nothing."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ._keys import UNS

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put the name of a file in front of the errors about what it holds."""
    try:
        yield
    except (ValueError, KeyError) as error:
        text = str(error.args[0]) if error.args else ""
        if str(path) in text:
            raise
        msg = f"{path}: {text}"
        raise type(error)(msg) from error


def nearest(name: object, names: Iterable[object], *, cutoff: float = 0.6) -> str | None:
    """The name that looks most like another, whatever its capitals; None where none does."""
    return next(iter(near_names(name, names, n=1, cutoff=cutoff)), None)


def near_names(name: object, names: Iterable[object], *, n: int = 3, cutoff: float = 0.6) -> list[str]:
    """The names that look most like another, whatever its capitals; the nearest first."""
    folded = {str(one).casefold(): str(one) for one in names}
    return [folded[near] for near in difflib.get_close_matches(str(name).casefold(), folded, n=n, cutoff=cutoff)]


def check_one_of(value: object, choices: Iterable[object], *, name: str) -> None:
    """`value` must be one of `choices`."""
    choices = list(choices)
    if value not in choices:
        near = nearest(value, choices)
        hint = f"; did you mean {near!r}" if near else ""
        msg = f"{name}={value!r}: use one of {', '.join(map(repr, choices))}{hint}."
        raise ValueError(msg)


def check_key(frame: pd.DataFrame, key: str, *, where: str) -> None:
    """`frame` must have the column `key`."""
    if key in frame:
        return
    near = nearest(key, frame.columns)
    hint = f"; did you mean {near!r}" if near else ""
    msg = f"{where} has no column {key!r}{hint}. Columns: {', '.join(map(str, frame.columns)) or 'none'}."
    raise KeyError(msg)


def _is_a(data: object, name: str) -> bool:
    """Instance of a class by its name: the library is not imported for the question."""
    return any(kind.__name__ == name for kind in type(data).__mro__)


def check_anndata(data: object, *, function: str, copy: bool = True) -> None:
    """`data` must be an AnnData that results can be written into (or of which a copy is asked for)."""
    if _is_a(data, "MuData"):
        names = ", ".join(map(repr, data.mod))
        first = "rna" if "rna" in data.mod else next(iter(data.mod), "rna")
        msg = (
            f"{function} takes one AnnData, this is a MuData with the modalities {names}. "
            f"Pass the RNA modality: {function}(mdata[{first!r}])."
        )
        raise TypeError(msg)
    if not _is_a(data, "AnnData"):
        kind = type(data).__name__
        msg = f"{function} takes an AnnData, this is a {kind}. Read a file with anndata.read_h5ad(path)."
        raise TypeError(msg)
    if data.isbacked and data.is_view and not copy:
        msg = f"{function} cannot write into a view of cells on disk. Take them into memory: adata = adata.to_memory()."
        raise ValueError(msg)
    if not isinstance(data.uns.get(UNS, {}), Mapping):
        found = type(data.uns[UNS]).__name__
        msg = (
            f"adata.uns[{UNS!r}] holds a {found} that is not ours, and {function} keeps its records there. "
            f"Move it: adata.uns['other'] = adata.uns.pop({UNS!r})."
        )
        raise ValueError(msg)


def copied(adata: AnnData) -> AnnData:
    """A copy in memory, also of cells on disk."""
    return adata.to_memory() if getattr(adata, "isbacked", False) and hasattr(adata, "to_memory") else adata.copy()


def seed_of(rng: object) -> int:
    """Seed from an `rng` argument: an integer, or a numpy Generator from which one is drawn."""
    import numpy as np

    if isinstance(rng, int | np.integer) and not isinstance(rng, bool):
        return int(rng)
    if isinstance(rng, np.random.Generator):
        return int(rng.integers(2**63))
    if rng is None:
        return int(np.random.default_rng().integers(2**63))
    msg = f"rng={rng!r}: use an integer seed, a numpy.random.Generator, or None for a new draw."
    raise TypeError(msg)


def file_paths(data: object) -> list[Path] | None:
    """Paths out of what a verb was given, None when it is no path.

    Raises
    ------
    ValueError
        For an empty list, or one path twice.
    """
    given = list(data) if isinstance(data, list | tuple) else [data]
    if not all(isinstance(path, str | os.PathLike) for path in given):
        return None
    paths = [Path(path) for path in given]
    if not paths or len(set(paths)) < len(paths):
        twice = sorted({str(path) for path in paths if paths.count(path) > 1})
        msg = f"Give each file once: {twice[0]} is there twice." if twice else "The list of files is empty."
        raise ValueError(msg)
    return paths
