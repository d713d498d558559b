"""`tl.integrate`: the cells of several batches in one space."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scanpy_scgpt import models
from scanpy_scgpt._keys import UNS, IntegrateKeys
from scanpy_scgpt._logging import get_logger, quiet
from scanpy_scgpt._modalities import is_mudata
from scanpy_scgpt._validate import copied, seed_of
from scanpy_scgpt._version import __version__
from scanpy_scgpt.io import Checkpoint

from ._integrate_checks import (
    batches_for,
    batches_of,
    check_device,
    check_input,
    check_settings,
    note_empty,
    note_nothing,
    note_unused,
)
from ._integrators import column_for, of_anndata, of_mudata, trained
from ._mudata import layers_of, lent
from ._shallow import shallow

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

    from scanpy_scgpt.model import SCGPTIntegrator

logger = get_logger(__name__)
_SHOWN = 20_000  # cells that are shown in all epochs together, where nobody says how many epochs
_MOST_EPOCHS = 5
_SHOWN_BATCHES = 5
_FEW_SHARED = 0.5  # share of the features of a model: said below


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
    min_genes: int | None = None,
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

    A MuData is taken as it is: RNA, proteins and chromatin of the same cells or of some of them
    (:class:`scanpy_scgpt.model.SCGPTMulti`). Every cell with any of them gets a vector; what it lacks is filled from
    what it has, as cells that have both teach. Where no cell has both, places in one space mean nothing: that is said.

    Parameters
    ----------
    adata
        Cells, shape `(n_obs, n_vars)`; counts, or values in their order. Or a MuData of cells.
    batch_key
        Column of `.obs` (of a MuData: or of the modalities' `.obs`) with the batches. Missing values are one batch
        more, and numbers become names.
    model
        Where the weights start, as in :func:`scanpy_scgpt.tl.embed`; or a trained integrator, or the folder of one:
        then nothing is trained, and its batches and new ones go into its space. Cells without `batch_key` are one new
        batch then. What concerns training has no effect, and that is said.
    layer, use_raw
        Where the counts are; of a MuData a layer by the name of the modality (`{}`, with a trained integrator, for
        `X`), and no `use_raw`.
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
        Fewest genes that must be in the vocabulary: 200, or what a trained integrator was made with.
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

    `.obsm["X_scgpt_integrated"]` : :class:`numpy.ndarray` of float32, shape `(n_obs, n_dims)`
        Components of expression, then those of the network: at most `n_components` each. Of a MuData those of each
        modality first; a cell without any modality that takes part has NaN.
    `.obs["scgpt_modalities"]` : :class:`pandas.Categorical`, shape `(n_obs,)`
        Of a MuData: what a cell has of what takes part, such as `rna+protein`, or `nothing`.
    `.uns["scgpt"]["integrate"]` : :class:`dict`
        Model, settings, batches, of a MuData what each modality was taken as, mixing and kept neighbours with and
        without correction, best epoch.

    Raises
    ------
    KeyError
        When there is no such column; the nearest name is said.
    ValueError
        When the matrix has NaN or negative values, or a setting is out of range.
    GeneMatchError
        When fewer than `min_genes` genes are in the vocabulary.
    TypeError
        When arguments or model are for the other kind of cells: an AnnData, a MuData.
    FileExistsError
        When `save` exists and `overwrite` is not given.

    Examples
    --------
    >>> scgpt.tl.integrate(adata, "donor")
    >>> sc.pp.neighbors(adata, use_rep="X_scgpt_integrated")
    """
    started, seed = time.perf_counter(), seed_of(rng)
    keys, modal = IntegrateKeys.named(key_added), is_mudata(adata)
    check_input(adata, copy=copy, batch_key=batch_key, layer=layer, use_raw=use_raw, modalities=modalities)
    check_device(device)
    check_settings(adata, save=save, overwrite=overwrite, max_epochs=max_epochs, correct=correct, key=keys.obsm)
    made = {"objectives": objectives, "domain_norm": domain_norm, "include_zeros": include_zeros}
    made |= {"network_weight": network_weight, "correct": correct}
    made |= {"n_top_genes": n_top_genes, "n_components": n_components}
    training = {"max_epochs": max_epochs, "freeze": freeze, "early_stopping": early_stopping}
    given = trained(model, modal=modal)
    batches = batches_of(adata, batch_key, modalities=modalities, fitted=given is None)
    if given is not None:
        note_unused(integrate, {**made, **training})
        batches = batches_for(given, batches, adata)
    adata = copied(adata) if copy else adata
    column = column_for(batch_key, batches, given)
    made |= {"min_genes": 200 if min_genes is None else min_genes, "rng": seed % 2**31}
    training |= {"max_epochs": epochs_for(adata.n_obs) if max_epochs is None else max_epochs}
    training |= {"device": device, "min_genes": min_genes}
    fields = quiet("scanpy_scgpt.data.fields", level=logging.ERROR)  # missing batches were spoken of
    with fields, quiet("scvi", *(("scanpy_scgpt.model._query",) if given is not None else ())):
        if modal:
            setup = {"modalities": modalities, "layers": layers_of(adata, layer)}
            with lent(adata, batches, name=column) as cells:
                integrator, where = of_mudata(cells, column, given, model, made, training, setup), "mod"
                taken = {"modalities": integrator.modalities_}
                vectors = integrator.get_latent_representation()
                codes, names = integrator.patterns()
                of_query = {} if given is None else record_of_query(integrator, given, model, batches)
            adata.obs[keys.modalities] = pd.Categorical.from_codes(codes, categories=names)
            note_nothing(np.isnan(vectors).all(axis=1), column=keys.modalities)
        else:
            (cells, where), taken = shallow(adata, layer=layer, use_raw=use_raw), {}
            if batches is not None:
                cells.obs[column] = batches.to_numpy()
            integrator = of_anndata(cells, column, given, model, made, training)
            vectors = integrator.get_latent_representation()
            note_empty(integrator)
            of_query = {} if given is None else record_of_query(integrator, given, model, batches)
    adata.obsm[keys.obsm] = vectors
    record = {**record_of(integrator, training, given), "source": where, "seed": str(seed)}
    record |= {"batch_key": batch_key or "", "n_cells": adata.n_obs, "key": keys.obsm, "version": __version__}
    record |= {**taken, **of_query, "seconds": time.perf_counter() - started}
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


def record_of(
    integrator: SCGPTIntegrator, training: Mapping[str, Any], given: SCGPTIntegrator | None
) -> dict[str, Any]:
    """What `.uns` keeps."""
    joint, history = integrator.joint, integrator.history_ or {}
    watched = history.get("integration_validation")
    return {
        "model": integrator.model_name,
        "batches": list(integrator.batches_),
        "applied": given is not None,
        "max_epochs": 0 if given is not None else training["max_epochs"],
        "objectives": list(integrator.module.objectives),
        "corrected": bool(joint.corrected and any(x is not None for x in joint.alignments.values())),
        "measured": {name: dict(figures) for name, figures in integrator.measured_.items()},
        "start": float(integrator.start_) if integrator.start_ is not None else float("nan"),
        "least_gain": integrator.least_gain,
        "epochs": [] if watched is None else watched.iloc[:, 0].astype(float).tolist(),
        "parts": {name: joint.weights[name] for name in joint.blocks},
    }


def record_of_query(
    integrator: SCGPTIntegrator, given: SCGPTIntegrator, model: Any, batches: pd.Series | None
) -> dict[str, Any]:
    """What `.uns` keeps of cells that a trained integrator was applied to."""
    named = os.fspath(model) if isinstance(model, str | os.PathLike) else f"{type(given).__name__} ({given.model_name})"
    new = [name for name in integrator.batches_ if name not in set(given.batches_)]
    present = [] if batches is None else integrator.batches_of_cells()
    shared = {name: list(counted) for name, counted in integrator.shared_features().items()}
    return {
        "model": named,
        "known_batches": [name for name in present if name not in new],
        "new_batches": [name for name in present if name in new],
        "shared_features": shared,
    }


def receipt(record: Mapping[str, Any]) -> None:
    """One line on what was done."""
    parts = [f"{record['n_cells']:,} cells", *_of_batches(record), record["source"], record["model"]]
    if record["applied"]:
        parts += [
            f"{n:,} of its {every:,} features of {name}" for name, (n, every) in record["shared_features"].items()
        ]
    if record["epochs"]:
        best = max(record["epochs"])
        helped = best >= record["start"] + record["least_gain"]
        text = f"epoch {1 + record['epochs'].index(best)} of {len(record['epochs'])} kept" if helped else "start kept"
        parts.append(f"network: {text} (mixing + kept neighbours {record['start']:.3f} → {best:.3f})")
    if record["measured"] and not record["applied"]:
        plain, corrected = record["measured"]["uncorrected"], record["measured"]["corrected"]
        parts.append(
            f"correction {'kept' if record['corrected'] else 'not made'}: mixing {plain['mixing']:.3f} → "
            f"{corrected['mixing']:.3f}, neighbours kept {corrected['kept']:.3f}"
        )
    parts.append(f"{record['seconds']:.0f} s")
    logger.info("integrate: %s → obsm[%r]", " · ".join(parts), record["key"])
    for name, (n, every) in record.get("shared_features", {}).items():
        if name in {"expression", "rna"} and n < _FEW_SHARED * every:  # of others it is said when they are matched
            logger.warning(
                "integrate: the cells have %s of the %s features of %s that the model goes by, so their vectors say "
                "little. Are names and species the same?",
                f"{n:,}",
                f"{every:,}",
                name,
            )


def _of_batches(record: Mapping[str, Any]) -> list[str]:
    if not record["applied"]:
        n = len(record["batches"])
        return [f"{n} batch{'es' if n > 1 else ''}"] if n else []
    known, new = record["known_batches"], record["new_batches"]
    text = [f"{len(known)} known batch{'es' if len(known) > 1 else ''}"] if known else []
    if new:
        shown = ", ".join(map(repr, new[:_SHOWN_BATCHES])) + (", ..." if len(new) > _SHOWN_BATCHES else "")
        shifted = "laid over them" if record["corrected"] else "not corrected"
        text.append(f"{len(new)} new ({shown}), {shifted}")
    return text
