"""Names and labels of the cells of an index: texts end to end, labels as codes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from ._storage import Arrays

_MISSING = frozenset({"nan", "<NA>", "NaN", "None", ""})  # as files spell a label that is not there


def add_names(arrays: Arrays, names: Sequence[str] | np.ndarray) -> None:
    """Append names of cells."""
    texts = [str(name).encode() for name in np.asarray(names, dtype=object)]
    first = int(arrays["name_ends"][-1]) if "name_ends" in arrays and len(arrays["name_ends"]) else 0
    arrays.grow("names", np.frombuffer(b"".join(texts), np.uint8))
    arrays.grow("name_ends", first + np.cumsum([len(text) for text in texts], dtype=np.int64))


def names_of(arrays: Arrays, rows: np.ndarray) -> np.ndarray:
    """Names of some cells, object, of the shape of `rows`; empty for -1."""
    flat, place = np.unique(np.asarray(rows).ravel(), return_inverse=True)
    ends, letters = arrays["name_ends"], arrays["names"]
    bounds = [(int(ends[row - 1]) if row else 0, int(ends[row])) if row >= 0 else (0, 0) for row in flat.tolist()]
    texts = np.array([letters[start:stop].tobytes().decode() for start, stop in bounds], dtype=object)
    return texts[place].reshape(np.shape(rows))


def add_labels(
    arrays: Arrays, keys: Mapping[str, list[str]], labels: Mapping[str, Sequence[str] | np.ndarray], *, n: int
) -> dict[str, list[str]]:
    """Append labels of cells.

    Parameters
    ----------
    arrays
        Where `label <key>` grows: codes, int32, -1 for none.
    keys
        Categories of each key so far.
    labels
        Values by key, each of shape `(n,)`.
    n
        Number of cells.

    Returns
    -------
    Categories of each key, new ones last.

    Raises
    ------
    ValueError
        When the keys are others, or their length is.
    """
    if set(labels) != set(keys):
        msg = f"Labels are given for {sorted(labels)}, the index has {sorted(keys)}: give one value per cell for each."
        raise ValueError(msg)
    new, coded = {}, {}
    for key, values in labels.items():
        if len(values) != n:
            msg = f"labels[{key!r}] has {len(values):,} values for {n:,} cells: give one for each."
            raise ValueError(msg)
        codes, found = pd.factorize(pd.Series(np.asarray(values, dtype=object)))
        texts = [str(value) for value in found]
        known = list(keys[key])
        known += sorted({text for text in texts if text not in _MISSING} - set(known))
        at = {text: i for i, text in enumerate(known)}
        coded[key] = np.append([at.get(text, -1) for text in texts], -1)[codes].astype("<i4")
        new[key] = known
    for key, codes in coded.items():
        arrays.grow(f"label {key}", codes)
    return new


def is_labelled(values: Sequence[str] | np.ndarray) -> np.ndarray:
    """Which values are labels: not missing, nor a text that files write for it.

    Parameters
    ----------
    values
        Labels, shape `(n,)`.

    Returns
    -------
    Array of bool, shape `(n,)`.
    """
    series = pd.Series(np.asarray(values, dtype=object))
    return (series.notna() & ~series.astype(str).isin(_MISSING)).to_numpy()
