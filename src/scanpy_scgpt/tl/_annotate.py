"""`tl.annotate`: labels of cells from labelled cells."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scanpy_scgpt import models
from scanpy_scgpt._keys import UNS, LabelKeys
from scanpy_scgpt._logging import get_logger, quiet
from scanpy_scgpt._validate import check_anndata, copied, seed_of
from scanpy_scgpt._version import __version__
from scanpy_scgpt.io import Checkpoint

from ._reference import held_out_comparison, labelled, query_of, read_reference
from ._rollup import lineages, roll_up

if TYPE_CHECKING:
    from anndata import AnnData

    from scanpy_scgpt.model import Assessment, SCGPTAnnotator

logger = get_logger(__name__)
_ALONE, _USUAL = 0.95, 0.7  # shares of one label in the query and in the reference that are suspicious together
_MOST_HELD = 0.4  # of the reference, twice
_NEW = 0.01  # share of held-out cells below which a cell is too far from the reference


def annotate(
    adata: AnnData,
    reference: AnnData | SCGPTAnnotator | str | os.PathLike[str],
    labels_key: str | None = None,
    *,
    batch_key: str | None = None,
    model: str | os.PathLike[str] | Checkpoint | None = None,
    layer: str | None = None,
    use_raw: bool | None = None,
    target_error: float = 0.05,
    unknown_error: float = _NEW,
    hierarchy: Mapping[str, str] | None = None,
    max_epochs: int = 5,
    validation_size: float = 0.1,
    baselines: bool = True,
    min_genes: int = 200,
    device: str = "auto",
    key_added: str = "scgpt_label",
    save: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    rng: int | np.random.Generator | None = 0,
    copy: bool = False,
) -> AnnData | None:
    """Name cells after labelled cells, with a confidence that holds :cite:p:`Cui2024`.

    Fine-tunes a pretrained transformer on the reference, or applies an annotator that was saved. Beside the network
    stand two linear classifiers; cells of the reference that are left out decide how much each of the three counts, and
    how sure the answer is (:class:`scanpy_scgpt.model.SCGPTAnnotator`). Logistic regression on principal components and
    nearest neighbours are fitted to the same cells, and their figures stand in the receipt and in `.uns`.

    Parameters
    ----------
    adata
        Cells to name, shape `(n_obs, n_vars)`; counts, or values in their order.
    reference
        Labelled cells with genes of their own, an `.h5ad` or `.zarr` file of them, an annotator, or the folder of one.
        `adata` itself: its labelled cells are learned from.
    labels_key
        Column of `reference.obs` with the labels. Cells without one are left out and counted. Not with an annotator.
    batch_key
        Column of `reference.obs` with donors, studies or technologies: confidence and label sets then hold for cells of
        a new one, since whole batches are left out to find them.
    model
        Where the weights start; as in :func:`scanpy_scgpt.tl.embed`. Not with an annotator.
    layer, use_raw
        Where the counts of `adata` are; those of `reference` too, where it has that layer.
    target_error
        Share of cells, like those of the reference, whose label set may lack their label.
    unknown_error
        Share of such cells that may be called unknown, for their best label or for their distance from the reference.
    hierarchy
        Parent of each label, as in `{"CD4 T": "T cell", "CD8 T": "T cell"}`, and of each parent: a cell whose label is
        not sure at `target_error` gets the nearest ancestor that is.
    max_epochs
        Passes over the reference; 0 leaves the network as it is and fits the head of the labels alone.
    validation_size
        Share of the reference that chooses the best epoch; as many cells are held out of everything and say how good
        the annotator is. Below 0.4.
    baselines
        Fit the simple methods too.
    min_genes
        Fewest genes of the vocabulary that reference and query must share.
    device
        `"auto"`, `"cpu"`, `"cuda"`, `"cuda:1"`, `"mps"`.
    key_added
        Name of the label in `.obs` in place of `scgpt_label`; the other slots then start with it.
    save
        Folder to save the annotator to.
    overwrite
        Replace an annotator that is there.
    rng
        Seed of the split, of new weights and of training.
    copy
        Return a copy instead of writing to `adata`.

    Returns
    -------
    `None`, or the copy if `copy=True`. Sets the fields

    `.obs["scgpt_label"]` : :class:`pandas.Categorical`, shape `(n_obs,)`
        The most likely label of the reference.
    `.obs["scgpt_confidence"]` : float32, shape `(n_obs,)`
        Its probability.
    `.obs["scgpt_unknown"]` : bool, shape `(n_obs,)`
        The best label is less likely, or the cell farther from the reference, than `unknown_error` allows.
    `.obs["scgpt_label_rollup"]` : :class:`pandas.Categorical`, shape `(n_obs,)`
        With `hierarchy`: the label or its nearest sure ancestor, missing where there is none.
    `.obsm["scgpt_label_prob"]` : float32, shape `(n_obs, n_labels)`
        Probabilities; rows sum to 1. A table of them: :func:`scanpy_scgpt.get.label_probabilities`.
    `.obsm["scgpt_label_sets"]` : bool, shape `(n_obs, n_labels)`
        Labels that cannot be ruled out at `target_error`. A table: :func:`scanpy_scgpt.get.label_sets`.
    `.uns["scgpt"]["annotate"]` : :class:`dict`
        Model, settings, cells left out, measures on held-out cells beside those of the simple methods.

    Raises
    ------
    KeyError
        When there is no such column; the nearest name is said.
    ValueError
        For a reference with one label, or one that shares too few genes with the query.
    GeneMatchError
        When too few genes are in the vocabulary.
    FileExistsError
        When `save` exists and `overwrite` is not given.
    CheckpointError
        When the folder is no annotator, damaged, or of a newer version.

    Examples
    --------
    >>> scgpt.tl.annotate(adata, reference, "cell_type")
    >>> adata.obs["scgpt_label"].value_counts()
    """
    started, seed = time.perf_counter(), seed_of(rng)
    check_anndata(adata, function="tl.annotate", copy=copy)
    _check_shares(target_error=target_error, unknown_error=unknown_error, validation_size=validation_size)
    _check(adata, save=save, overwrite=overwrite, max_epochs=max_epochs, key_added=key_added)
    keys = LabelKeys.named(key_added)
    place = {"layer": layer, "use_raw": use_raw}
    annotator, facts = _annotator(
        adata,
        reference,
        (labels_key, batch_key),
        place,
        model=model,
        settings={"min_genes": min_genes, "rng": seed % 2**31},
        training={"max_epochs": max_epochs, "validation_size": validation_size, "device": device},
        baselines=baselines,
        hierarchy=hierarchy,
    )
    query, where = query_of(adata, annotator, place, min_genes=min_genes)
    with quiet("scvi", "scanpy_scgpt._counts"):
        found = annotator.assess(query, target_error=target_error)
    annotator.forget(query)
    unknown = (found.support.to_numpy() < unknown_error) | (found.novelty.to_numpy() < unknown_error)
    _note_full_sets(found, target_error)
    labels, best = found.probabilities.columns, found.probabilities.to_numpy().argmax(axis=1)
    rolled = None if hierarchy is None else roll_up(found.probabilities, hierarchy, least=1 - target_error)
    adata = copied(adata) if copy else adata
    _write(adata, found, keys, unknown, rolled)
    record = {
        **facts,
        "labels": list(labels),
        "source": where,
        "n_cells": adata.n_obs,
        "n_unknown": int(unknown.sum()),
        "mean_set_size": float(found.sets.to_numpy().sum(axis=1).mean()),
        "target_error": target_error,
        "unknown_error": unknown_error,
        "degenerate": _degenerate(best, annotator),
        "seed": str(seed),
        "seconds": time.perf_counter() - started,
        "key": keys.label,
        "version": __version__,
    }
    adata.uns[UNS] = {**adata.uns.get(UNS, {}), keys.uns: record}
    if save is not None:
        annotator.save(save, overwrite=overwrite)
    _receipt(record, annotator)
    if model is None and not isinstance(reference, str | os.PathLike) and (better := models.better_than_default(adata)):
        logger.info("annotate: %s", better)
    return adata if copy else None


def _write(adata: AnnData, found: Assessment, keys: LabelKeys, unknown: np.ndarray, rolled: pd.Series | None) -> None:
    """Put the answers into the object."""
    probabilities = found.probabilities.to_numpy()
    adata.obs[keys.label] = pd.Categorical.from_codes(probabilities.argmax(axis=1), found.probabilities.columns)
    adata.obs[keys.confidence] = probabilities.max(axis=1)
    adata.obs[keys.unknown] = unknown
    adata.obsm[keys.prob], adata.obsm[keys.sets] = probabilities, found.sets.to_numpy()
    if rolled is not None:
        adata.obs[keys.rollup] = pd.Categorical(rolled)
    elif keys.rollup in adata.obs:
        del adata.obs[keys.rollup]  # of a former call


def _check(adata: AnnData, *, save: Any, overwrite: bool, max_epochs: int, key_added: str) -> None:
    """What can be refused before anything is trained."""
    if save is not None:
        from scanpy_scgpt.model import SCGPTAnnotator

        SCGPTAnnotator.check_place(save, overwrite=overwrite)
    if not adata.n_obs:
        msg = "adata has no cells. Look at the filter that it comes out of."
        raise ValueError(msg)
    if not isinstance(max_epochs, int) or max_epochs < 0:
        msg = f"max_epochs={max_epochs!r}: a whole number, 0 for the network as it is."
        raise ValueError(msg)
    if not isinstance(key_added, str) or key_added in {"", UNS} or "/" in key_added:
        msg = f"key_added={key_added!r}: a name other than {UNS!r}, without a slash, which cannot be written to a file."
        raise ValueError(msg)


def _check_shares(**shares: float) -> None:
    for name, share in shares.items():
        most = _MOST_HELD if name == "validation_size" else 1
        if not isinstance(share, int | float) or not 0 < share < most:
            msg = f"{name}={share!r}: a share between 0 and {most}, such as 0.05."
            raise ValueError(msg)


def _annotator(
    adata: AnnData,
    reference: Any,
    columns: tuple[str | None, str | None],
    place: Mapping[str, Any],
    *,
    model: Any,
    settings: Mapping[str, Any],
    training: Mapping[str, Any],
    baselines: bool,
    hierarchy: Mapping[str, str] | None,
) -> tuple[SCGPTAnnotator, dict[str, Any]]:
    """An annotator that is trained, and what is known about it."""
    from scanpy_scgpt.model import SCGPTAnnotator

    reference = read_reference(reference)
    if isinstance(reference, SCGPTAnnotator):
        for name, value in (("labels_key", columns[0]), ("batch_key", columns[1]), ("model", model)):
            if value is not None:
                msg = f"{name}={value!r} does not go with an annotator, which has its own. Leave it out."
                raise ValueError(msg)
        lineages(reference.labels_, hierarchy or {})
        reference.min_genes_ = settings["min_genes"]
        if training["device"] != "auto":
            reference.to_device(training["device"])
        return reference, dict(reference.facts_)
    cells, facts = labelled(reference, *columns, place, same=reference is adata)
    with quiet("scvi", "scanpy_scgpt._counts", "scanpy_scgpt.baselines"):  # the user's cells were spoken of already
        SCGPTAnnotator.setup_anndata(cells, labels_key="label", batch_key="batch" if columns[1] else None)
        annotator = SCGPTAnnotator(cells, model=model, **settings)
        lineages(annotator.labels_, hierarchy or {})
        query, _ = query_of(adata, annotator, place, min_genes=settings["min_genes"])  # refuses before the training
        annotator.only_shared(query.var)
        accelerator, _, number = training["device"].partition(":")
        annotator.train(
            max_epochs=training["max_epochs"],
            train_size=1 - 2 * training["validation_size"],
            validation_size=training["validation_size"],
            accelerator=accelerator,
            devices=[int(number)] if number else "auto" if accelerator != "cpu" else 1,
        )
    facts |= {
        "model": annotator.model_name,
        "labels_key": columns[0],
        "batch_key": columns[1] or "",
        **held_out_comparison(annotator, baselines=baselines),
    }
    annotator.facts_ = facts
    return annotator, dict(facts)


def _note_full_sets(found: Assessment, target_error: float) -> None:
    if found.sets.to_numpy().all() and found.sets.shape[1] > 1:
        logger.warning(
            "annotate: every label set holds every label: target_error=%s asks for more left-out cells than the "
            "reference has. Take a higher one, or more labelled cells.",
            target_error,
        )


def _degenerate(best: np.ndarray, annotator: SCGPTAnnotator) -> bool:
    """Whether nearly all cells got one label that is not that common in the reference; says so."""
    counts = np.bincount(best, minlength=len(annotator.labels_))
    share, usual = counts.max() / max(len(best), 1), annotator.shares_[int(counts.argmax())]
    if len(best) < 20 or share < _ALONE or usual > _USUAL:  # noqa: PLR2004
        return False
    logger.warning(
        "annotate: %s of the cells got the label %r, which %s of the reference have. That is what a query in another "
        "layer or with other genes looks like: scgpt.pp.tokenize(adata) says what is matched and where counts are.",
        f"{share:.0%}",
        annotator.labels_[int(counts.argmax())],
        f"{usual:.0%}",
    )
    return True


def _receipt(record: Mapping[str, Any], annotator: SCGPTAnnotator) -> None:
    parts = [
        f"{record['n_cells']:,} cells",
        f"{len(annotator.labels_)} labels",
        f"{record['n_unknown']:,} unknown",
        record["source"],
        str(record["model"]),
    ]
    if record.get("held_out"):
        told = ", ".join(f"{name} {row['macro_f1']:.3f}" for name, row in record["held_out"].items())
        parts.append(f"macro F1 on {record['n_held_out']:,} held-out cells: {told}")
    parts.append(f"{record['seconds']:.0f} s")
    logger.info("annotate: %s → obs[%r]", " · ".join(parts), record["key"])
