"""What `tl.integrate` refuses before anything is trained, and what it says about batches and arguments."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scanpy_scgpt._logging import get_logger, quiet
from scanpy_scgpt._modalities import check_mudata, column_of, find_modalities, is_mudata, rows_of
from scanpy_scgpt._validate import check_anndata, check_key

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

    from scanpy_scgpt.model import SCGPTIntegrator

logger = get_logger(__name__)
_FEW = 3  # cells of a batch that tell nothing about it
_CELLS_OF_BATCH = 3  # on average; with fewer a column is hardly one of batches


def check_input(
    adata: Any, *, copy: bool, batch_key: Any, layer: Any, use_raw: bool | None, modalities: Mapping[str, str] | None
) -> None:
    """What is asked for must fit what was given: an AnnData, or a MuData."""
    if batch_key is not None and not isinstance(batch_key, str):
        msg = (
            f"batch_key={batch_key!r}: the name of one column. Join several: adata.obs['batch'] = adata.obs['study'] + "
            "'|' + adata.obs['donor']."
        )
        raise TypeError(msg)
    if is_mudata(adata):
        check_mudata(adata, function="tl.integrate")
        if use_raw is not None:
            msg = f"use_raw={use_raw!r}: of a MuData say a layer of the modality: layer={{'rna': 'counts'}}."
            raise ValueError(msg)
        return
    check_anndata(adata, function="tl.integrate", copy=copy)
    if isinstance(layer, Mapping):
        msg = f"layer={dict(layer)!r}: an AnnData has one modality. Name the layer alone, such as layer='counts'."
        raise TypeError(msg)
    if modalities is not None:
        msg = f"modalities={dict(modalities)!r}: this is one AnnData. Leave it out, or pass mudata.MuData({{...}})."
        raise TypeError(msg)


def check_device(device: str) -> None:
    """The device must be there."""
    from scanpy_scgpt.model import choose_device

    choose_device(device)


def check_settings(
    adata: AnnData | MuData, *, save: Any, overwrite: bool, max_epochs: Any, correct: Any, key: str
) -> None:
    """What can be refused before anything is trained."""
    if save is not None:
        from scanpy_scgpt.model import SCGPTIntegrator

        SCGPTIntegrator.check_place(save, overwrite=overwrite)
    if not adata.n_obs:
        msg = f"{'mdata' if is_mudata(adata) else 'adata'} has no cells. Look at the filter that it comes out of."
        raise ValueError(msg)
    if max_epochs is not None and (not isinstance(max_epochs, int) or max_epochs < 0):
        msg = f"max_epochs={max_epochs!r}: a whole number, 0 for the network as it is, or None."
        raise ValueError(msg)
    if correct is not None and not isinstance(correct, bool):
        msg = f"correct={correct!r}: True, False, or None to let the criterion decide."
        raise ValueError(msg)
    if "/" in key:
        msg = f"key_added={key!r}: a name with a slash cannot be written to a file. Leave the slash out."
        raise ValueError(msg)


def batches_of(
    adata: AnnData | MuData, batch_key: str | None, *, modalities: Mapping[str, str] | None, fitted: bool
) -> pd.Series | None:
    """The batch of each cell."""
    if batch_key is None:
        return None
    if is_mudata(adata):
        column = _without_nothing(adata, column_of(adata, batch_key), modalities)
    else:
        check_key(adata.obs, batch_key, where="adata.obs")
        column = adata.obs[batch_key]
    _note_batches(column, batch_key, fitted=fitted)
    return column


def _without_nothing(mdata: MuData, column: pd.Series, modalities: Mapping[str, str] | None) -> pd.Series:
    """A cell without any modality takes no part: where its batch is missing, it is in no batch of its own."""
    with quiet("scanpy_scgpt._modalities", level=logging.ERROR):
        found = find_modalities(mdata, modalities)
    there = np.any([rows_of(mdata, one.name) >= 0 for one in found], axis=0)
    alone = column.isna().to_numpy() & ~there
    known = column[column.notna()]
    return column.mask(alone, known.iloc[0]) if alone.any() and len(known) else column


def _note_batches(column: pd.Series, batch_key: str, *, fitted: bool) -> None:
    """What is unusual about the batches."""
    sizes = column.value_counts()
    sizes = sizes[sizes > 0]
    if not len(sizes):
        msg = f"obs[{batch_key!r}] has no value in any cell. Name the column with the batches."
        raise ValueError(msg)
    if len(sizes) > _CELLS_OF_BATCH and len(sizes) * _CELLS_OF_BATCH > len(column):
        logger.warning(
            "integrate: obs[%r] has %s values for %s cells. Is it a measurement? Batches are names of samples.",
            batch_key,
            f"{len(sizes):,}",
            f"{len(column):,}",
        )
    if n_missing := int(column.isna().sum()):
        logger.warning(
            "integrate: obs[%r] has %s missing values; these cells are the batch 'unknown_batch'.",
            batch_key,
            f"{n_missing:,}",
        )
    if fitted and len(sizes) + bool(n_missing) == 1:
        logger.warning("integrate: obs[%r] has one batch, so there is nothing to lay over.", batch_key)
    small = sizes[sizes < _FEW]
    if len(small) and len(sizes) > 1:
        named = ", ".join(f"{name!r} ({n})" for name, n in small.iloc[:5].items())
        logger.warning("integrate: batches of fewer than %s cells say little about their shift: %s.", _FEW, named)


def batches_for(given: SCGPTIntegrator, batches: pd.Series | None, adata: AnnData | MuData) -> pd.Series | None:
    """Batches of cells that go into the space of a trained integrator: one new one where none are named."""
    if not given.batches_:
        if batches is not None:
            logger.warning("integrate: batch_key has no effect: the model was made without batches.")
        return None
    if batches is not None or not given.joint.corrected:
        return batches
    name = "query"
    while name in given.batches_:
        name += "_"
    logger.warning(
        "integrate: no batch_key, and the model lays batches over one another: the %s cells are taken as one new "
        "batch, %r. Name their batches: batch_key='...'.",
        f"{adata.n_obs:,}",
        name,
    )
    return pd.Series(name, index=adata.obs_names)


def note_empty(integrator: SCGPTIntegrator) -> None:
    """Cells of which nothing is known all get one vector."""
    if n := int((integrator._cells().tokens.lengths == 0).sum()):
        logger.warning(
            "integrate: %s cells have no gene of the vocabulary, and their vectors say nothing. Leave them out: "
            "sc.pp.filter_cells(adata, min_genes=1).",
            f"{n:,}",
        )


def note_unused(function: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """Arguments that were given and have no effect, since nothing is trained."""
    usual = inspect.signature(function).parameters
    unused = [
        name for name, value in given.items() if value is not usual[name].default and value != usual[name].default
    ]
    if unused:
        logger.warning(
            "integrate: model is a trained integrator, nothing is trained, and %s %s no effect. Leave %s out, or "
            "name a checkpoint.",
            ", ".join(unused),
            "has" if len(unused) == 1 else "have",
            "it" if len(unused) == 1 else "them",
        )


def note_nothing(without: np.ndarray, *, column: str) -> None:
    """Cells without any modality that takes part."""
    if without.any():
        logger.warning(
            "integrate: %s cells have no modality that takes part, and NaN. Bring cells together with mdata.update(), "
            "or drop them: mdata = mdata[mdata.obs[%r] != 'nothing'].copy().",
            f"{int(without.sum()):,}",
            column,
        )
