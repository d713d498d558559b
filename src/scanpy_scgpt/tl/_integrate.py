"""`tl.integrate`: the cells of several batches in one space."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scanpy_scgpt import models
from scanpy_scgpt._keys import UNS, IntegrateKeys
from scanpy_scgpt._logging import get_logger, quiet
from scanpy_scgpt._modalities import check_mudata, column_of, is_mudata
from scanpy_scgpt._validate import check_anndata, check_key, copied, seed_of
from scanpy_scgpt._version import __version__
from scanpy_scgpt.io import Checkpoint

from ._mudata import BATCH, layers_of, lent
from ._shallow import shallow

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

    from scanpy_scgpt.model import SCGPTIntegrator, SCGPTMulti

logger = get_logger(__name__)
_SHOWN = 20_000  # cells that are shown in all epochs together, where nobody says how many epochs
_MOST_EPOCHS = 5
_FEW = 3  # cells of a batch that tell nothing about it


def integrate(
    adata: AnnData | MuData,
    batch_key: str | None = None,
    *,
    model: str | os.PathLike[str] | Checkpoint | SCGPTIntegrator | None = None,
    layer: str | Mapping[str, str] | None = None,
    use_raw: bool | None = None,
    modalities: Mapping[str, str] | None = None,
    max_epochs: int | None = None,
    objectives: Sequence[str] | None = None,
    domain_norm: bool = True,
    include_zeros: bool = False,
    freeze: Sequence[str] | str = (),
    early_stopping: bool = True,
    network_weight: float = 0.5,
    correct: bool | None = None,
    n_top_genes: int = 1200,
    n_components: int = 50,
    min_genes: int = 200,
    device: str = "auto",
    key_added: str | None = None,
    save: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    rng: int | np.random.Generator | None = 0,
    copy: bool = False,
) -> AnnData | MuData | None:
    """Bring the cells of all batches, and of all modalities, into one space :cite:p:`Cui2024`.

    Fine-tunes a pretrained transformer on the cells (hidden genes, similar cells, an adversary that tries to name the
    batch), puts the principal components of its vectors beside those of expression, and lays the batches of both over
    one another (:class:`scanpy_scgpt.model.SCGPTIntegrator`). Two label-free figures decide what is kept: how well
    batches mix, and how many of their neighbours inside their own batch cells keep. Training that does not pay is
    undone, a correction that does not pay is not made, and the receipt says so.

    A MuData is taken as it is: RNA, proteins and chromatin of the same cells, of some of them, or of different ones
    (:class:`scanpy_scgpt.model.SCGPTMulti`). Every cell gets a vector; what a cell lacks is filled from what it has.

    Parameters
    ----------
    adata
        Cells, shape `(n_obs, n_vars)`; counts, or values in their order. Or a MuData of cells.
    batch_key
        Column of `.obs` (of a MuData: or of the modalities' `.obs`) with the batches. Missing values are one batch
        more, and numbers become names.
    model
        Where the weights start, as in :func:`scanpy_scgpt.tl.embed`; or a trained integrator, or the folder of one:
        then nothing is trained, and its batches and new ones go into its space.
    layer, use_raw
        Where the counts are; of a MuData a layer by the name of the modality.
    modalities
        Of a MuData: kind (`"rna"`, `"protein"`, `"atac"`) of each modality that takes part, by its name; by default
        guessed from `feature_types`, names and the spelling of peaks, and said.
    max_epochs
        Passes over the cells; by default as many as show 20,000 cells, from 1 to 5. 0 leaves the network as it is.
    objectives
        Of :class:`scanpy_scgpt.model.SCGPT`; by default `"gep"`, `"gepc"`, `"ecs"`, `"dar"`.
    domain_norm
        Normalise what enters the network batch by batch.
    include_zeros
        Show genes that a cell does not express, and predict zeros. Takes several times as long.
    freeze
        Parts of the network to keep as they are, such as `"encoder"`: saves time and memory.
    early_stopping
        Stop when the criterion was not better for three epochs.
    network_weight
        Length of the network's part of a vector; that of expression is 1.
    correct
        `True` or `False` in place of the criterion.
    n_top_genes, n_components
        Highly variable genes, found batch by batch; components of each part.
    min_genes
        Fewest genes that must be in the vocabulary.
    device
        `"auto"`, `"cpu"`, `"cuda"`, `"cuda:1"`, `"mps"`.
    key_added
        Name in `.obsm` in place of `X_scgpt_integrated`.
    save
        Folder to save the integrator to, for cells to come.
    overwrite
        Replace an integrator that is there.
    rng
        Seed of the split, of new weights and of training.
    copy
        Return a copy instead of writing to `adata`.

    Returns
    -------
    `None`, or the copy if `copy=True`. Sets the fields

    `.obsm["X_scgpt_integrated"]` : :class:`numpy.ndarray` of float32, shape `(n_obs, 2 * n_components)`
        Components of expression, then those of the network; of a MuData those of each modality first.
    `.obs["scgpt_modalities"]` : :class:`pandas.Categorical`, shape `(n_obs,)`
        Of a MuData: the modalities that a cell has, such as `rna+prot`.
    `.uns["scgpt"]["integrate"]` : :class:`dict`
        Model, settings, batches, mixing and kept neighbours with and without correction, best epoch.

    Raises
    ------
    KeyError
        When there is no such column; the nearest name is said.
    ValueError
        When the matrix has NaN or negative values, or a setting is out of range.
    GeneMatchError
        When fewer than `min_genes` genes are in the vocabulary.
    FileExistsError
        When `save` exists and `overwrite` is not given.

    Examples
    --------
    >>> scgpt.tl.integrate(adata, "donor")
    >>> sc.pp.neighbors(adata, use_rep="X_scgpt_integrated")
    """
    started, seed = time.perf_counter(), seed_of(rng)
    keys = IntegrateKeys.named(key_added)
    if modal := is_mudata(adata):
        check_mudata(adata, function="tl.integrate")
    else:
        check_anndata(adata, function="tl.integrate", copy=copy)
    batches = _batches(adata, batch_key)
    _check(adata, modal=modal, save=save, overwrite=overwrite, max_epochs=max_epochs, key=keys.obsm)
    adata = copied(adata) if copy else adata
    made = {"objectives": objectives, "domain_norm": domain_norm, "include_zeros": include_zeros}
    made |= {"network_weight": network_weight, "correct": correct, "min_genes": min_genes, "rng": seed % 2**31}
    made |= {"n_top_genes": n_top_genes, "n_components": n_components}
    training = {"max_epochs": epochs_for(adata.n_obs) if max_epochs is None else max_epochs, "freeze": freeze}
    training |= {"early_stopping": early_stopping, "device": device}
    given = trained(model, modal=modal)
    with quiet("scvi", "scanpy_scgpt.data.fields"):
        if modal:
            setup = {"modalities": modalities, "layers": layers_of(layer)}
            with lent(adata, batches) as cells:
                integrator, where = _of_mudata(cells, given, model, made, training, setup), "mod"
                vectors = integrator.get_latent_representation()
                codes, names = integrator.patterns()
            adata.obs[keys.modalities] = pd.Categorical.from_codes(codes, categories=names)
        else:
            cells, where = shallow(adata, layer=layer, use_raw=use_raw)
            if batches is not None:
                cells.obs["batch"] = batches.to_numpy()
            integrator = _of_anndata(cells, given, model, made, training)
            vectors = integrator.get_latent_representation()
    adata.obsm[keys.obsm] = vectors
    record = {**record_of(integrator, training, applied=given is not None), "source": where, "seed": str(seed)}
    record |= {"batch_key": batch_key or "", "n_cells": adata.n_obs, "key": keys.obsm, "version": __version__}
    record["seconds"] = time.perf_counter() - started
    adata.uns[UNS] = {**adata.uns.get(UNS, {}), keys.uns: record}
    if save is not None:
        integrator.save(save, overwrite=overwrite)
    receipt(record)
    if model is None and not modal and (better := models.better_than_default(adata)):
        logger.info("integrate: %s", better)
    return adata if copy else None


def epochs_for(n_obs: int) -> int:
    """Passes over so many cells, where nobody says how many."""
    return int(np.clip(round(_SHOWN / max(n_obs, 1)), 1, _MOST_EPOCHS))


def trained(model: Any, *, modal: bool = False) -> SCGPTIntegrator | None:
    """An integrator, or what a folder of one holds; None for anything else."""
    from scanpy_scgpt.model import SCGPTIntegrator, SCGPTMulti

    if isinstance(model, SCGPTIntegrator):
        return model
    if isinstance(model, str | os.PathLike) and os.path.isfile(os.path.join(model, "model.json")):  # noqa: PTH113, PTH118
        return (SCGPTMulti if modal else SCGPTIntegrator).load(model, adata=False, accelerator="cpu")
    return None


def query(integrator: SCGPTIntegrator, cells: AnnData, *, device: str) -> SCGPTIntegrator:
    """The trained model on other cells."""
    accelerator, _, number = device.partition(":")
    where = {"accelerator": accelerator, "device": int(number) if number else "auto"}
    return type(integrator).load_query_data(cells, integrator, **where)


def _of_mudata(
    mdata: MuData,
    given: SCGPTIntegrator | None,
    model: Any,
    settings: Mapping[str, Any],
    training: Mapping[str, Any],
    setup: Mapping[str, Any],
) -> SCGPTMulti:
    """A trained model on other cells, or one that is trained on these."""
    from scanpy_scgpt.model import SCGPTMulti

    if given is not None:
        return query(given, mdata, device=training["device"])
    SCGPTMulti.setup_mudata(mdata, batch_key=BATCH if BATCH in mdata.obs else None, **setup)
    integrator = SCGPTMulti(mdata, model=model, **settings)
    train(integrator, training)
    return integrator


def _of_anndata(
    cells: AnnData,
    given: SCGPTIntegrator | None,
    model: Any,
    settings: Mapping[str, Any],
    training: Mapping[str, Any],
) -> SCGPTIntegrator:
    """A trained model on other cells, or one that is trained on these."""
    from scanpy_scgpt.model import SCGPTIntegrator

    if given is not None:
        return query(given, cells, device=training["device"])
    SCGPTIntegrator.setup_anndata(cells, batch_key="batch" if "batch" in cells.obs else None)
    integrator = SCGPTIntegrator(cells, model=model, **settings)
    train(integrator, training)
    return integrator


def train(integrator: SCGPTIntegrator, training: Mapping[str, Any]) -> None:
    """Train on the device that was asked for; with validation cells, where there are enough."""
    accelerator, _, number = training["device"].partition(":")
    integrator.train(
        max_epochs=training["max_epochs"],
        accelerator=accelerator,
        devices=[int(number)] if number else "auto" if accelerator != "cpu" else 1,
        freeze=training["freeze"],
        early_stopping=training["early_stopping"] and training["max_epochs"] > 1,
    )


def _batches(adata: AnnData | MuData, batch_key: str | None) -> pd.Series | None:
    """The batch of each cell."""
    if batch_key is None:
        return None
    if is_mudata(adata):
        column = column_of(adata, batch_key)
    else:
        check_key(adata.obs, batch_key, where="adata.obs")
        column = adata.obs[batch_key]
    _note_batches(column, batch_key)
    return column


def _check(adata: AnnData | MuData, *, modal: bool, save: Any, overwrite: bool, max_epochs: Any, key: str) -> None:
    """What can be refused before anything is trained."""
    if save is not None:
        from scanpy_scgpt.model import SCGPTIntegrator

        SCGPTIntegrator.check_place(save, overwrite=overwrite)
    if not adata.n_obs:
        msg = f"{'mdata' if modal else 'adata'} has no cells. Look at the filter that it comes out of."
        raise ValueError(msg)
    if max_epochs is not None and (not isinstance(max_epochs, int) or max_epochs < 0):
        msg = f"max_epochs={max_epochs!r}: a whole number, 0 for the network as it is, or None."
        raise ValueError(msg)
    if "/" in key:
        msg = f"key_added={key!r}: a name with a slash cannot be written to a file. Leave the slash out."
        raise ValueError(msg)


def _note_batches(column: pd.Series, batch_key: str) -> None:
    """What is unusual about the batches."""
    sizes = column.value_counts()
    sizes = sizes[sizes > 0]
    if n_missing := int(column.isna().sum()):
        logger.warning(
            "integrate: obs[%r] has %s missing values; these cells are the batch 'unknown_batch'.",
            batch_key,
            f"{n_missing:,}",
        )
    if len(sizes) + bool(n_missing) == 1:
        logger.warning("integrate: obs[%r] has one batch, so there is nothing to lay over.", batch_key)
    small = sizes[sizes < _FEW]
    if len(small) and len(sizes) > 1:
        named = ", ".join(f"{name!r} ({n})" for name, n in small.iloc[:5].items())
        logger.warning("integrate: batches of fewer than %s cells say little about their shift: %s.", _FEW, named)


def record_of(integrator: SCGPTIntegrator, training: Mapping[str, Any], *, applied: bool) -> dict[str, Any]:
    """What `.uns` keeps."""
    joint, history = integrator.joint, integrator.history_ or {}
    watched = history.get("integration_validation")
    return {
        "model": integrator.model_name,
        "batches": list(integrator.batches_),
        "applied": applied,
        "max_epochs": 0 if applied else training["max_epochs"],
        "objectives": list(integrator.module.objectives),
        "corrected": bool(joint.corrected),
        "measured": {name: dict(figures) for name, figures in integrator.measured_.items()},
        "start": float(integrator.start_) if integrator.start_ is not None else float("nan"),
        "epochs": [] if watched is None else watched.iloc[:, 0].astype(float).tolist(),
        "parts": {name: joint.weights[name] for name in joint.blocks},
    }


def receipt(record: Mapping[str, Any]) -> None:
    """One line on what was done."""
    parts = [f"{record['n_cells']:,} cells", f"{len(record['batches'])} batches", record["source"], record["model"]]
    if record["epochs"]:
        best = max(record["epochs"])
        helped = best > record["start"]
        text = f"epoch {1 + record['epochs'].index(best)} of {len(record['epochs'])} kept" if helped else "start kept"
        parts.append(f"network: {text} (mixing + kept neighbours {record['start']:.3f} → {best:.3f})")
    if record["measured"]:
        plain, corrected = record["measured"]["uncorrected"], record["measured"]["corrected"]
        parts.append(
            f"correction {'kept' if record['corrected'] else 'not made'}: mixing {plain['mixing']:.3f} → "
            f"{corrected['mixing']:.3f}, neighbours kept {corrected['kept']:.3f}"
        )
    parts.append(f"{record['seconds']:.0f} s")
    logger.info("integrate: %s → obsm[%r]", " · ".join(parts), record["key"])
