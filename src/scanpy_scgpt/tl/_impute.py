"""`tl.impute_modality`: proteins, genes or open chromatin of cells that lack them."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata.utils import make_index_unique

from scanpy_scgpt._keys import UNS, ImputeKeys
from scanpy_scgpt._logging import get_logger, quiet
from scanpy_scgpt._modalities import (
    LOG_RATIOS,
    NEGATIVE_COUNTS,
    check_mudata,
    column_of,
    find_modalities,
    is_mudata,
    values_of,
)
from scanpy_scgpt._validate import seed_of
from scanpy_scgpt._version import __version__
from scanpy_scgpt.io import Checkpoint

from ._integrate_checks import check_device
from ._integrators import train
from ._mudata import layers_of, lent

if TYPE_CHECKING:
    from mudata import MuData

    from scanpy_scgpt.model import Imputed, SCGPTMulti

logger = get_logger(__name__)
_SCALE = {"rna": "log(1 + counts per 10,000)", "protein": "log(1 + counts)", "atac": "share that is open"}
_RATIOS = "log ratios above the lowest protein of the cell"
_POOR = 0.1  # mean correlation with left-out cells below which the mean of a feature does as well


def impute_modality(
    mdata: MuData,
    to: str = "protein",
    *,
    batch_key: str | None = None,
    model: str | os.PathLike[str] | Checkpoint | None = None,
    layer: Mapping[str, str] | None = None,
    modalities: Mapping[str, str] | None = None,
    max_epochs: int = 0,
    level: float = 0.9,
    network_weight: float = 0.5,
    n_top_genes: int = 1200,
    n_top_peaks: int = 4000,
    min_genes: int = 200,
    device: str = "auto",
    key_added: str | None = None,
    rng: int | np.random.Generator | None = 0,
    copy: bool = False,
) -> MuData | None:
    """Predict a modality of all cells, with intervals and with how well it does on cells that were left out.

    Cells that have both modalities teach. Three regressions (ridge, ridge on kernel features, nearest cells) go from
    the components of the other modalities and of the network's vector (:class:`scanpy_scgpt.model.SCGPTMulti`) to each
    feature; their mix and the intervals come from left-out cells: whole batches where there are five or more.

    Parameters
    ----------
    mdata
        Cells, some of which may lack the modality.
    to
        Name of the modality, or its kind: `"protein"`, `"atac"`, `"rna"`.
    batch_key
        Column with the batches, as in :func:`scanpy_scgpt.tl.integrate`: they are laid over one another first.
    model
        Where the network's weights start, as in :func:`scanpy_scgpt.tl.embed`.
    layer, modalities
        As in :func:`scanpy_scgpt.tl.integrate`.
    max_epochs
        Passes of fine-tuning; 0 leaves the network as it is, which predicted as well as five on the data we measured.
        More let the network see the modality of all cells that have it, so that what is said of left-out cells is then
        too good.
    level
        Share of the cells whose value lies inside the interval.
    network_weight
        0 leaves the network out.
    n_top_genes, n_top_peaks
        Highly variable genes, and most peaks.
    min_genes
        Fewest genes that must be in the vocabulary.
    device
        As in :func:`scanpy_scgpt.tl.embed`.
    key_added
        Name in `.obsm` in place of `scgpt_<modality>`.
    rng
        Seed.
    copy
        Return a copy instead of writing to `mdata`.

    Returns
    -------
    `None`, or the copy if `copy=True`. Sets the fields

    `.obsm["scgpt_prot"]` : :class:`pandas.DataFrame` of float32, shape `(n_obs, n_features)`
        Prediction: of proteins as `log(1 + counts)` (of log ratios: above the lowest protein of the cell), of peaks as
        share that is open, of genes as `log(1 + counts per 10,000)`. A cell that has the modality gets a prediction
        that did not see it; one without any other modality has NaN.
    `.obsm["scgpt_prot_lower"]` : :class:`pandas.DataFrame` of float32, shape `(n_obs, n_features)`
        Lower end of the interval.
    `.obsm["scgpt_prot_upper"]` : :class:`pandas.DataFrame` of float32, shape `(n_obs, n_features)`
        Upper end of the interval.
    `.uns["scgpt"]["impute_prot"]` : :class:`dict`
        Features, and for each the correlation with left-out values and the coverage; shares of the regressions.

    Raises
    ------
    KeyError
        When there is no such modality, layer or column.
    ValueError
        When fewer than 20 cells have the modality beside another, or a setting is out of range.
    TypeError
        When this is no MuData.

    Examples
    --------
    >>> mdata = mudata.MuData({"rna": rna_of_all_cells, "prot": proteins_of_some})
    >>> scgpt.tl.impute_modality(mdata, "prot")
    >>> mdata.obsm["scgpt_prot"]["CD3"]
    """
    started, seed = time.perf_counter(), seed_of(rng)
    check_device(device)
    _check(mdata, level=level, max_epochs=max_epochs, key_added=key_added)
    name, kind = _target(mdata, to, modalities)
    keys = ImputeKeys.named(name, key_added)
    mdata = mdata.copy() if copy else mdata
    setup = {"modalities": modalities, "layers": layers_of(mdata, layer), "n_top_peaks": n_top_peaks}
    made = {"network_weight": network_weight, "n_top_genes": n_top_genes, "min_genes": min_genes, "rng": seed % 2**31}
    batches = None if batch_key is None else column_of(mdata, batch_key)
    with quiet("scvi", "scanpy_scgpt.data.fields"), lent(mdata, batches, name=batch_key) as cells:
        setup["batch_key"] = batch_key
        fitted = _fitted(cells, model, setup, made, {"max_epochs": max_epochs, "device": device})
        found = fitted.impute(kind, level=level)
    names = _names(mdata, name, kind, found.features)
    scale = _scale(mdata, name, kind, setup["layers"])
    for key, values in ((keys.obsm, found.mean), (keys.lower, found.lower), (keys.upper, found.upper)):
        mdata.obsm[key] = pd.DataFrame(values, index=mdata.obs_names, columns=names)
    record = {
        "model": fitted.model_name,
        "modality": name,
        "kind": kind,
        "scale": scale,
        "key": keys.obsm,
        "level": level,
        "features": names,
        "left_out": {column: found.table[column].to_numpy() for column in found.table},
        "shares": found.weights,
        "n_cells": mdata.n_obs,
        **_counted(found),
        "batch_key": batch_key or "",
        "max_epochs": max_epochs,
        "seed": str(seed),
        "seconds": time.perf_counter() - started,
        "version": __version__,
    }
    mdata.uns[UNS] = {**mdata.uns.get(UNS, {}), keys.uns: record}
    _receipt(record, found.table)
    return mdata if copy else None


def _fitted(
    cells: MuData, model: Any, setup: Mapping[str, Any], made: Mapping[str, Any], training: Mapping[str, Any]
) -> SCGPTMulti:
    from scanpy_scgpt.model import SCGPTMulti

    SCGPTMulti.setup_mudata(cells, **setup)
    fitted = SCGPTMulti(cells, model=model, **made)
    if training["max_epochs"]:
        train(fitted, {**training, "freeze": (), "early_stopping": True})
    return fitted


def _counted(found: Imputed) -> dict[str, int]:
    """Cells that have the modality, those of them that taught, and those that nothing could be predicted for."""
    given = np.isfinite(found.mean).any(axis=1)
    return {
        "n_measured": int(found.measured.sum()),
        "n_taught": int((found.measured & given).sum()),
        "n_predicted": int((~found.measured & given).sum()),
        "n_without": int((~given).sum()),
    }


def _scale(mdata: MuData, name: str, kind: str, layers: Mapping[str, str] | None) -> str:
    """What the predicted values are."""
    if kind != "protein":
        return _SCALE[kind]
    layers = layers or {}
    _, what = values_of(mdata.mod[name], "protein", layers.get(name, layers.get(kind)))
    if what not in {LOG_RATIOS, NEGATIVE_COUNTS}:
        return _SCALE[kind]
    logger.info("note: %r has %s.", name, what)
    return _RATIOS if what == LOG_RATIOS else _SCALE[kind]


def _check(mdata: Any, *, level: float, max_epochs: int, key_added: str | None) -> None:
    if not is_mudata(mdata):
        msg = (
            f"tl.impute_modality takes a MuData, this is {type(mdata).__name__}: mudata.MuData({{'rna': adata, "
            "'prot': proteins}), where some cells have both."
        )
        raise TypeError(msg)
    check_mudata(mdata, function="tl.impute_modality")
    if key_added is not None and "/" in key_added:
        msg = f"key_added={key_added!r}: a name with a slash cannot be written to a file. Leave the slash out."
        raise ValueError(msg)
    if not 0 < level < 1:
        msg = f"level={level!r}: a share between 0 and 1, such as 0.9."
        raise ValueError(msg)
    if not isinstance(max_epochs, int) or max_epochs < 0:
        msg = f"max_epochs={max_epochs!r}: a whole number, 0 for the network as it is."
        raise ValueError(msg)


def _target(mdata: MuData, to: str, modalities: Mapping[str, str] | None) -> tuple[str, str]:
    """Name and kind of the modality."""
    with quiet("scanpy_scgpt._modalities", level=logging.ERROR):
        found = find_modalities(mdata, modalities)
    for one in found:
        if to in {one.name, one.kind}:
            return one.name, one.kind
    listed = ", ".join(f"{one.name!r} ({one.kind})" for one in found)
    msg = f"There is no modality {to!r}. Modalities: {listed}."
    raise KeyError(msg)


def _names(mdata: MuData, name: str, kind: str, features: list[str]) -> list[str]:
    """Names of the features as the user's; tokens of what has none."""
    if kind == "rna":
        return features
    from scanpy_scgpt.tokenizer import peak_tokens, protein_tokens

    own = mdata.mod[name].var_names.astype(str)
    tokens = protein_tokens(own) if kind == "protein" else peak_tokens(own)
    place = dict(zip(tokens, own, strict=True))
    names = pd.Index([place.get(feature, feature).replace("/", "_") for feature in features])  # no file takes a slash
    return list(make_index_unique(names)) if not names.is_unique else list(names)


def _receipt(record: Mapping[str, Any], table: pd.DataFrame) -> None:
    logger.info(
        "impute_modality: %s (%s features) of %s cells without it, learned from %s · correlation with left-out cells "
        "%.3f, coverage of %.0f %% intervals %.0f %% · %s · %.0f s → obsm[%r]",
        record["modality"],
        f"{len(record['features']):,}",
        f"{record['n_predicted']:,}",
        f"{record['n_taught']:,}",
        table["correlation"].mean(),
        100 * record["level"],
        100 * table["coverage"].mean(),
        record["model"],
        record["seconds"],
        record["key"],
    )
    if record["n_without"]:
        text = "impute_modality: %s cells have no other modality to predict %s from, and NaN."
        logger.warning(text, f"{record['n_without']:,}", record["modality"])
    mean, n_constant = table["correlation"].mean(), int(table["correlation"].isna().sum())
    if not mean >= _POOR:
        logger.warning(
            "impute_modality: the correlation with left-out cells is %.3f: the prediction is hardly better than the "
            "mean of each feature. Do not rely on it.",
            mean,
        )
    if n_constant and n_constant < len(table):
        text = "impute_modality: %s features are the same in all cells that teach; of them nothing is learned."
        logger.warning(text, f"{n_constant:,}")
