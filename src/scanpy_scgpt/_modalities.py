"""Modalities of a MuData: what each of them is, which cells it has, what its columns say."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
import pandas as pd
from scipy import sparse

from ._counts import choose_counts
from ._logging import get_logger, quiet

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

logger = get_logger(__name__)
Kind = Literal["rna", "protein", "atac"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""What a modality can be, in the order of their codes."""
_TYPES: Mapping[str, Kind | None] = {
    "gene expression": "rna",
    "antibody capture": "protein",
    "peaks": "atac",
    "multiplexing capture": None,
    "crispr guide capture": None,
}  # values of `feature_types` as 10x writes them
_NAMES: Mapping[str, Kind | None] = {
    **dict.fromkeys(("rna", "gex", "mrna", "genes", "gene", "expression", "transcriptome"), "rna"),
    **dict.fromkeys(
        ("prot", "protein", "proteins", "adt", "cite", "ab", "antibody", "antibodies", "surface"), "protein"
    ),
    **dict.fromkeys(("atac", "peaks", "peak", "chromatin", "accessibility"), "atac"),
    **dict.fromkeys(("hto", "hashtag", "hashtags", "guides", "guide", "crispr", "vdj", "airr", "tcr", "bcr"), None),
}
PEAK = re.compile(r"^(?:chr)?([0-9]{1,2}|[XYM]|MT|[A-Z]+[0-9]+(?:\.[0-9]+)?)[:_-]([0-9]+)[-_]([0-9]+)$", re.IGNORECASE)
"""A peak as `chr1:10-20`, `chr1-10-20`, `chr1_10_20`, with `chr` or without."""
_LOOKED_AT = 200  # names of features
_SHOWN = 5
_LOGGED_MAX = 30  # no logarithm of counts spans more
LOG_RATIOS = "negative values, taken as log ratios"
NEGATIVE_COUNTS = "negative values, taken as counts without background: below 0 is 0"
"""What proteins below 0 are."""


class Modality(NamedTuple):
    """A modality: its name in `mdata.mod`, what it is, and how that was found out."""

    name: str
    kind: Kind
    found: str


def find_modalities(mdata: MuData, given: Mapping[str, str] | None = None) -> tuple[Modality, ...]:
    """The modalities that take part, in the order RNA, proteins, chromatin.

    Parameters
    ----------
    mdata
        Cells.
    given
        Kind (`"rna"`, `"protein"`, `"atac"`) of modalities by their names, in place of guessing; those that are not
        named take no part.

    Raises
    ------
    ValueError
        When none can be told, two are of one kind, or a kind is unknown.
    KeyError
        When a modality that was named is not there.
    """
    found = _named(mdata, given) if given is not None else _guessed(mdata)
    kept = []
    for one in found:
        shape = mdata.mod[one.name].shape
        if not min(shape):
            what = "cells" if not shape[0] else "features"
            logger.warning("modality %r has no %s and is left out.", one.name, what)
            continue
        kept.append(one)
    if not kept:
        listed = ", ".join(map(repr, mdata.mod)) or "none"
        msg = (
            f"No modality can be used (there are: {listed}). Say what they are: modalities={{'prot': 'protein'}}, or "
            "mdata.mod['prot'].var['feature_types'] = 'Antibody Capture' ('Gene Expression', 'Peaks')."
        )
        raise ValueError(msg)
    if given is None:
        logger.info("modalities: %s", " · ".join(f"{one.name!r} is {one.kind} ({one.found})" for one in kept))
    for kind in KINDS:
        same = [one.name for one in kept if one.kind == kind]
        if len(same) > 1:
            msg = (
                f"{', '.join(map(repr, same))} are both taken as {kind}. Name those that take part: "
                f"modalities={{{same[0]!r}: {kind!r}}}."
            )
            raise ValueError(msg)
    return tuple(sorted(kept, key=lambda one: KINDS.index(one.kind)))


def _named(mdata: MuData, given: Mapping[str, str]) -> list[Modality]:
    for name, kind in given.items():
        if name not in mdata.mod:
            near = difflib.get_close_matches(name, list(mdata.mod), n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            msg = f"There is no modality {name!r}. Modalities: {', '.join(map(repr, mdata.mod))}.{hint}"
            raise KeyError(msg)
        if kind not in KINDS:
            msg = f"modalities[{name!r}]={kind!r}: use one of {', '.join(map(repr, KINDS))}."
            raise ValueError(msg)
    return [Modality(name, kind, "as given") for name, kind in given.items()]


def _guessed(mdata: MuData) -> list[Modality]:
    found = []
    for name, adata in mdata.mod.items():
        kind, how = kind_of(name, adata)
        if kind is None:
            logger.info("note: modality %r (%s) takes no part.", name, how)
        else:
            found.append(Modality(name, kind, how))
    return found


def kind_of(name: str, adata: AnnData) -> tuple[Kind | None, str]:
    """What a modality is and how that is known; None for one that takes no part."""
    if "feature_types" in adata.var and adata.n_vars:
        types = adata.var["feature_types"].astype(str).str.lower()
        most = str(types.value_counts().index[0])
        if most in _TYPES:
            return _TYPES[most], "by feature_types"
    if name.lower() in _NAMES:
        return _NAMES[name.lower()], "by its name"
    some = [str(x) for x in adata.var_names[:_LOOKED_AT]]
    if some and sum(bool(PEAK.match(x)) for x in some) > len(some) / 2:
        return "atac", "by the names of its features"
    return None, f"what it is cannot be told: modalities={{{name!r}: 'protein'}}"


def with_guesses(mdata: MuData, named: Mapping[str, Kind]) -> dict[str, Kind]:
    """Kinds of modalities by name: of those that were named and are there, and guesses that add another kind."""
    known = {name: kind for name, kind in named.items() if name in mdata.mod}
    guessed = {name: kind_of(name, adata)[0] for name, adata in mdata.mod.items() if name not in known}
    return {**{name: kind for name, kind in guessed.items() if kind not in {None, *known.values()}}, **known}


def own_features(adata: AnnData, kind: Kind) -> np.ndarray:
    """Columns of a modality that are of its kind, bool, shape `(n_vars,)`: tables may hold antibodies among genes."""
    return own_columns(adata.var, kind)


def own_columns(var: pd.DataFrame, kind: Kind) -> np.ndarray:
    """As :func:`own_features`, by the table of the columns."""
    mine = np.ones(len(var), dtype=bool)
    if "feature_types" not in var:
        return mine
    types = var["feature_types"].astype(str).str.lower()
    known = types.map(lambda x: _TYPES.get(x, kind)).to_numpy()
    mine = known == kind
    if not mine.any():  # the user says that it is of this kind
        return np.ones(len(var), dtype=bool)
    if not mine.all():
        logger.info("note: %s columns are no %s by feature_types and are left out.", f"{(~mine).sum():,}", kind)
    return mine


def rows_of(mdata: MuData, name: str) -> np.ndarray:
    """Row of each cell of a MuData in a modality, int64, shape `(n_obs,)`; -1 where the modality lacks the cell.

    Raises
    ------
    ValueError
        When names of cells repeat, or cells of the modality are not among those of the MuData.
    """
    for key, adata in mdata.mod.items():
        if not adata.obs_names.is_unique:
            where, twice = f"mdata.mod[{key!r}]", adata.obs_names[adata.obs_names.duplicated()][0]
            msg = (
                f"{where} has the cell name {twice!r} twice. Make them unique: {where}.obs_names_make_unique(), then "
                "mdata.update()."
            )
            raise ValueError(msg)
    if not mdata.obs_names.is_unique:
        twice = mdata.obs_names[mdata.obs_names.duplicated()][0]
        msg = f"mdata has the cell name {twice!r} twice, its modalities do not. Bring them together: mdata.update()."
        raise ValueError(msg)
    rows = mdata.mod[name].obs_names.get_indexer(mdata.obs_names)
    if (rows >= 0).sum() != mdata.mod[name].n_obs:
        lost = mdata.mod[name].n_obs - int((rows >= 0).sum())
        msg = (
            f"mdata.mod[{name!r}] has {lost:,} cells that mdata.obs does not know. Bring them together: mdata.update()."
        )
        raise ValueError(msg)
    return rows.astype(np.int64)


def patterns(there: Mapping[str, np.ndarray]) -> tuple[np.ndarray, list[str]]:
    """Which modalities each cell has.

    Parameters
    ----------
    there
        By modality: bool, shape `(n_obs,)`.

    Returns
    -------
    Code of the pattern of each cell, int64, shape `(n_obs,)`, and the names of the patterns, such as `rna+protein`.
    """
    names = list(there)
    bits = sum(np.asarray(there[name], dtype=np.int64) << i for i, name in enumerate(names))
    present, codes = np.unique(bits, return_inverse=True)
    return codes, ["+".join(n for i, n in enumerate(names) if bit >> i & 1) or "nothing" for bit in present.tolist()]


def patterns_of(mdata: MuData, found: Sequence[Modality]) -> tuple[np.ndarray, list[str]]:
    """:func:`patterns` of modalities, named by what they are; in their order."""
    return patterns({one.kind: rows_of(mdata, one.name) >= 0 for one in found})


def column_of(mdata: MuData, key: str) -> pd.Series:
    """A column of `mdata.obs`, or what the modalities say in their columns of that name.

    Raises
    ------
    KeyError
        When there is none.
    ValueError
        When two modalities contradict each other.
    """
    if key in mdata.obs:
        return mdata.obs[key]
    found: pd.Series | None = None
    for name, adata in mdata.mod.items():
        if key not in adata.obs:
            continue
        own = adata.obs[key].astype(object).reindex(mdata.obs_names)
        if found is not None:
            both = found.notna() & own.notna()
            if (found[both] != own[both]).any():
                msg = (
                    f"The modalities disagree about obs[{key!r}] (see mod {name!r}). Say what holds: "
                    f"mdata.obs[{key!r}] = ..."
                )
                raise ValueError(msg)
            own = found.where(found.notna(), own)
        found = own
    if found is None:
        columns = [*map(str, mdata.obs.columns), *{str(c) for adata in mdata.mod.values() for c in adata.obs.columns}]
        near = difflib.get_close_matches(key, columns, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        listed = ", ".join(map(repr, dict.fromkeys(columns[:_SHOWN])))
        msg = f"There is no column {key!r} in mdata.obs nor in a modality. Columns: {listed}, ...{hint}"
        raise KeyError(msg)
    return found


def is_mudata(data: Any) -> bool:
    """Whether something is a MuData; mudata is not imported for the question."""
    return any(kind.__name__ == "MuData" for kind in type(data).__mro__)


def check_mudata(mdata: MuData, *, function: str) -> None:
    """A MuData of cells (not of shared features) that results can be written into.

    Raises
    ------
    ValueError
        For shared features, a view, or no cells.
    """
    if getattr(mdata, "axis", 0) != 0:
        msg = f"{function} takes a MuData whose modalities share cells (axis=0); this has axis={mdata.axis}."
        raise ValueError(msg)
    if mdata.is_view:
        msg = f"{function} cannot write into a view of a MuData. Make it an object: mdata = mdata.copy()."
        raise ValueError(msg)
    if not mdata.n_obs:
        msg = "mdata has no cells. Look at the filter that it comes out of."
        raise ValueError(msg)


def _in_memory(matrix: Any) -> Any:
    """A matrix, read from its file if it lies in one."""
    if isinstance(matrix, np.ndarray) or sparse.issparse(matrix):
        return matrix
    return matrix.to_memory() if hasattr(matrix, "to_memory") else np.asarray(matrix[:])


def _read(adata: AnnData) -> AnnData:
    """Cells in memory: a modality of a MuData on disk is a part of its file."""
    return adata.to_memory() if adata.isbacked else adata


def _of_negative(matrix: Any) -> tuple[sparse.csr_matrix, str]:
    """Proteins below 0 on the scale of counts, and what they are."""
    x = np.asarray(matrix.toarray() if sparse.issparse(matrix) else matrix, dtype=np.float32)
    above = x - x.min(axis=1, keepdims=True)
    if not np.isfinite(above).all():
        msg = "it holds NaN or infinite values beside negative ones. Find out why."
        raise ValueError(msg)
    if above.max() > _LOGGED_MAX:
        return sparse.csr_matrix(np.maximum(x, 0)), NEGATIVE_COUNTS
    return sparse.csr_matrix(np.expm1(above)), LOG_RATIOS


def values_of(adata: AnnData, kind: Kind, layer: str | None = None) -> tuple[sparse.csr_matrix, str]:
    """Counts of a modality, or values in their order that can stand for counts; CSR float32, and what they are.

    Proteins may be negative. Log ratios are shifted by the least value of the cell, which keeps ranks and differences
    of logarithms; where values of a cell are too far apart for logarithms, background was subtracted from counts, and
    what is below 0 counts as 0.

    Raises
    ------
    ValueError
        For NaN, and for negative values of genes and peaks.
    """
    if kind == "protein":
        matrix = adata.layers[layer] if layer else adata.layers.get("counts", adata.X)
        matrix = None if matrix is None or hasattr(matrix, "dask") else _in_memory(matrix)
        if matrix is not None and min(matrix.shape) and matrix.min() < 0:
            return _of_negative(matrix)
    with quiet("scanpy_scgpt._counts"):
        source = choose_counts(_read(adata), layer=layer)
    values = source.rows(0, source.n_obs).astype(np.float32)
    found = source.kind()
    if found == "log-normalised values" and kind != "atac":
        values = values.expm1()
    return sparse.csr_matrix(values), f"{source.where} ({found})"
