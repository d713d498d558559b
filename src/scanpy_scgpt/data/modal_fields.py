"""Fields of scvi-tools' data manager for a MuData: all modalities at once. Loads scvi-tools."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scvi import REGISTRY_KEYS
from scvi.data.fields import BaseAnnDataField

from scanpy_scgpt._logging import get_logger, quiet
from scanpy_scgpt._modalities import (
    KINDS,
    Kind,
    Modality,
    column_of,
    find_modalities,
    own_features,
    patterns_of,
    rows_of,
    values_of,
    with_guesses,
)
from scanpy_scgpt._validate import check_one_of
from scanpy_scgpt.tokenizer import match_peaks, peak_tokens, protein_tokens

from .fields import CategoryField

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

logger = get_logger(__name__)
_FEW_SHARED, _MANY_SHARED = 0.05, 0.5  # share of peaks that overlap those of the model: refused below, said below
_TIMES_CHANCE, _ELSEWHERE = 2, 5_000_011  # of the share by chance, refused below; bases that peaks are moved by for it


class JoinedCategoryField(CategoryField):
    """A column of `mdata.obs`, or of the modalities' `obs` where the MuData has none of that name."""

    mod_key = None

    def validate_field(self, adata: MuData) -> None:
        """The column must be somewhere."""
        column_of(adata, self.column)

    def transfer_field(self, state_registry: dict[str, Any], adata_target: MuData, **kwargs: Any) -> dict[str, Any]:
        """As in the base class."""
        try:
            values = column_of(adata_target, self.column)
        except KeyError:
            return super().transfer_field(state_registry, adata_target, **kwargs)
        with _column(adata_target, self.column, values):
            return super().transfer_field(state_registry, adata_target, **kwargs)

    def _text(self, adata: MuData) -> pd.Series:
        with _column(adata, self.column, column_of(adata, self.column)):
            return super()._text(adata)


class _column:
    """A column that is in `obs` for a while."""

    def __init__(self, mdata: MuData, name: str, values: pd.Series) -> None:
        self.mdata, self.name, self.values = mdata, name, values

    def __enter__(self) -> None:
        self.added = self.name not in self.mdata.obs
        if self.added:
            self.mdata.obs[self.name] = self.values

    def __exit__(self, *_: object) -> None:
        if self.added:
            del self.mdata.obs[self.name]


class ModalitiesField(BaseAnnDataField):
    """All modalities of a MuData: what they are, their features as tokens, the cells that they have.

    Parameters
    ----------
    modalities
        Kind of modalities by their names, in place of guessing.
    layers
        Layer with the counts by the name of the modality.
    gene_symbols
        Column of `var` of the RNA with the names of the genes, where the index has others.
    n_top_peaks
        Most peaks: those whose openness varies most between cells.
    """

    registry_key = REGISTRY_KEYS.X_KEY
    attr_name, attr_key, is_empty, mod_key = "mod", None, False, None

    def __init__(
        self,
        modalities: Mapping[str, str] | None = None,
        *,
        layers: Mapping[str, str] | None = None,
        gene_symbols: str | None = None,
        n_top_peaks: int = 4000,
    ) -> None:
        super().__init__()
        self.modalities, self.layers = modalities, dict(layers or {})
        self.gene_symbols, self.n_top_peaks = gene_symbols, n_top_peaks

    def found(self, mdata: MuData) -> tuple[Modality, ...]:
        """Modalities of a MuData: those that were named, where it has them, the others by guessing."""
        named, there = self.modalities or {}, set(mdata.mod)
        if set(named) <= there:
            return find_modalities(mdata, named or None)
        return find_modalities(mdata, with_guesses(mdata, named) if set(named) & there else None)

    def _require_named(self, mdata: MuData) -> None:
        """Of cells that a model is made from: what was named must be there."""
        with quiet("scanpy_scgpt._modalities", level=logging.ERROR):
            find_modalities(mdata, self.modalities)
        check_layers(mdata, self.layers)

    def part(self, mdata: MuData, one: Modality) -> AnnData:
        """A modality without columns of another kind."""
        adata = mdata.mod[one.name]
        with quiet("scanpy_scgpt._modalities"):  # it is said once
            mine = own_features(adata, one.kind)
        return adata if mine.all() else adata[:, mine]

    def layer_of(self, mdata: MuData, one: Modality) -> str | None:
        """Layer with the counts, where one was named."""
        layer = self.layers.get(one.name, self.layers.get(one.kind))
        if layer is not None and layer not in mdata.mod[one.name].layers:
            listed = ", ".join(map(repr, mdata.mod[one.name].layers)) or "none"
            msg = (
                f"mdata.mod[{one.name!r}] has no layer {layer!r}. Layers: {listed}. Say where its counts are: "
                f"{{{one.name!r}: 'counts'}}, or {{}} for X."
            )
            raise KeyError(msg)
        return layer

    def validate_field(self, mdata: MuData) -> None:
        """Names of cells, NaN, negative values, layers, and names of peaks."""
        with quiet("scanpy_scgpt._modalities", level=logging.ERROR):
            found = self.found(mdata)
        for one in found:
            rows_of(mdata, one.name)
            part, layer = self.part(mdata, one), self.layer_of(mdata, one)
            if one.kind == "protein" and not part.var_names.is_unique:
                twice = part.var_names[part.var_names.duplicated()][0]
                where = f"mdata.mod[{one.name!r}]"
                msg = f"{where} has the protein {twice!r} twice. Tell them apart: {where}.var_names_make_unique()."
                raise ValueError(msg)
            try:
                values_of(part, one.kind, layer)
            except ValueError as error:
                msg = f"mdata.mod[{one.name!r}]: {error}"
                raise ValueError(msg) from error
            if one.kind == "atac":
                _require_peaks(one.name, mdata.mod[one.name].var_names)

    def register_field(self, mdata: MuData) -> dict[str, Any]:
        """Names of modalities, tokens of features, names of the genes, sizes."""
        self._require_named(mdata)
        self.validate_field(mdata)
        found = self.found(mdata)
        _note_apart(mdata, found)
        state = self._shared(mdata, found)
        for one in found:
            part = self.part(mdata, one)
            if one.kind == "protein":
                state["features"]["protein"] = protein_tokens(part.var_names)
            elif one.kind == "atac":
                state["features"]["atac"] = self._peaks(part, self.layer_of(mdata, one))
        return state

    def _shared(self, mdata: MuData, found: tuple[Modality, ...]) -> dict[str, Any]:
        note_other_columns(mdata, found)
        rna = next((one for one in found if one.kind == "rna"), None)
        names = np.asarray([] if rna is None else self.part(mdata, rna).var_names.astype(str), dtype=object)
        symbols = names
        if rna is not None and self.gene_symbols is not None:
            symbols = self.part(mdata, rna).var[self.gene_symbols].astype(str).to_numpy()
        codes, listed = patterns_of(mdata, found)
        counted = np.bincount(codes, minlength=len(listed))
        logger.info("cells: %s", " · ".join(f"{n:,} with {name}" for name, n in zip(listed, counted, strict=True)))
        return {
            "n_obs": mdata.n_obs,
            "n_vars": mdata.n_vars,
            "column_names": names,
            "symbols": symbols,
            "where": "mod",
            "modalities": {one.name: one.kind for one in found},
            "features": {},
        }

    def _peaks(self, atac: AnnData, layer: str | None) -> list[str]:
        """Tokens of the peaks that are open in some cells and closed in others, in the order of the columns."""
        values, _ = values_of(atac, "atac", layer)
        share = np.asarray((values != 0).mean(axis=0)).ravel()
        tokens = peak_tokens(atac.var_names)
        usable = np.asarray([token is not None for token in tokens]) & (share > 0)
        order = np.argsort(-np.where(usable, share * (1 - share), -1), kind="stable")
        chosen = np.sort(order[: min(self.n_top_peaks, int(usable.sum()))])
        return list(dict.fromkeys(tokens[i] for i in chosen))

    def transfer_field(self, state_registry: dict[str, Any], mdata_target: MuData, **_kwargs: Any) -> dict[str, Any]:
        """Of other cells: the features stay those of the model; peaks of another genome build are refused."""
        self.validate_field(mdata_target)
        found = self.found(mdata_target)
        features = state_registry["features"]
        for one in found:
            if one.kind != "rna" and one.kind not in features:
                logger.warning(
                    "modality %r is %s, which the model was made without, and takes no part.", one.name, one.kind
                )
            if one.kind in features:
                _require_shared(one, self.part(mdata_target, one).var_names, list(features[one.kind]))
        return {**self._shared(mdata_target, found), "features": features}

    def get_summary_stats(self, state_registry: dict[str, Any]) -> dict[str, int]:
        """`n_vars` and `n_cells`."""
        return {"n_vars": state_registry["n_vars"], "n_cells": state_registry["n_obs"]}

    def view_state_registry(self, state_registry: dict[str, Any]) -> None:
        """There is nothing to show beyond the summary."""


def check_layers(mdata: MuData, layers: Mapping[str, str] | None) -> None:
    """Layers are said by the names of modalities, or by what they are.

    Raises
    ------
    ValueError
        For another name.
    """
    for name in layers or ():
        check_one_of(name, dict.fromkeys([*mdata.mod, *KINDS]), name="a modality in layer")


def note_other_columns(mdata: MuData, found: Sequence[Modality]) -> None:
    """Say which columns of modalities are of another kind."""
    for one in found:
        own_features(mdata.mod[one.name], one.kind)


def _note_apart(mdata: MuData, found: tuple[Modality, ...]) -> None:
    """Modalities that share no cell with another one."""
    there = {one.name: rows_of(mdata, one.name) >= 0 for one in found}
    apart = [
        name
        for name, own in there.items()
        if len(there) > 1 and not any((own & x).any() for other, x in there.items() if other != name)
    ]
    if apart:
        logger.warning(
            "no cell has %s beside another modality, so nothing says where cells with it belong among the others: "
            "where they lie in one space means nothing. Add cells that have both.",
            ", ".join(map(repr, apart)),
        )


def _require_peaks(name: str, features: pd.Index) -> None:
    if not any(token is not None for token in peak_tokens(features)):
        some = ", ".join(map(repr, features[:3]))
        msg = (
            f"mdata.mod[{name!r}] is taken as chromatin, and its features are no peaks ({some}): write them as "
            "'chr1:10-20' or 'chr1-10-20', or say what the modality is: modalities={...}."
        )
        raise ValueError(msg)


def columns_among(kind: Kind, names: pd.Index, features: list[str]) -> np.ndarray:
    """Place of each column among the features of a model, int64; -1 for none. Peaks go to those that they overlap."""
    place = {token: i for i, token in enumerate(features)}
    if kind == "protein":
        return np.asarray([place.get(token, -1) for token in protein_tokens(names)], dtype=np.int64)
    tokens = peak_tokens(names)
    known = np.flatnonzero([token is not None for token in tokens])
    out = np.full(len(tokens), -1, dtype=np.int64)
    out[known] = match_peaks([tokens[i] for i in known], features)
    return out


def _n_by_chance(names: pd.Index, features: list[str]) -> int:
    """Peaks of a model that others overlap when they lie elsewhere."""
    moved = []
    for token in (token for token in peak_tokens(names) if token is not None):
        chromosome, ends = token.split(":")
        start, end = map(int, ends.split("-"))
        moved.append(f"{chromosome}:{start + _ELSEWHERE}-{end + _ELSEWHERE}")
    found = match_peaks(moved, features) if moved else np.zeros(0, dtype=np.int64)
    return len(np.unique(found[found >= 0]))


def _require_shared(one: Modality, names: pd.Index, features: list[str]) -> None:
    found = columns_among(one.kind, names, features)
    n_shared = len(np.unique(found[found >= 0]))
    if one.kind == "protein":
        if not n_shared:
            msg = (
                f"None of the {len(names):,} proteins of mdata.mod[{one.name!r}] is among the {len(features):,} of the "
                f"model ({', '.join(features[:5])}, ...). Leave the modality out, or give them these names."
            )
            raise ValueError(msg)
        if n_shared < _MANY_SHARED * len(features):
            text = "mdata.mod[%r] has %s of the %s proteins of the model; cells with proteins alone are placed poorly."
            logger.warning(text, one.name, f"{n_shared:,}", f"{len(features):,}")
        return
    n_least = max(min(len(features), len(names)), 1)
    share, chance = n_shared / n_least, _n_by_chance(names, features) / n_least
    if share < max(_FEW_SHARED, min(_TIMES_CHANCE * chance, _MANY_SHARED)):
        msg = (
            f"{share:.0%} of the peaks of mdata.mod[{one.name!r}] overlap those of the model ({chance:.0%} would by "
            "chance): the two are of other genome builds. Lift the peaks over, or count reads in those of the model."
        )
        raise ValueError(msg)
    if share < _MANY_SHARED:
        logger.warning("%s of the peaks of %r overlap those of the model.", f"{share:.0%}", one.name)
