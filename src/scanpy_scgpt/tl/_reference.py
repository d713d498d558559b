"""Reference and query of `tl.annotate`: what is read, left out, refused, compared."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scanpy_scgpt import baselines as simple
from scanpy_scgpt import metrics
from scanpy_scgpt._logging import get_logger
from scanpy_scgpt._validate import check_anndata, check_key
from scanpy_scgpt.tokenizer import GeneMatchError

from ._shallow import shallow

if TYPE_CHECKING:
    from anndata import AnnData

    from scanpy_scgpt.model import SCGPTAnnotator

logger = get_logger(__name__)
_FILES = {".h5ad", ".zarr"}
_LEAST_HELD = 20  # cells below which a figure says nothing
_NO_LABEL = {"", "nan", "none", "null", "na", "<na>"}


def read_reference(reference: Any) -> Any:
    """Labelled cells or an annotator: a path is read, anything else is given back."""
    if not isinstance(reference, str | os.PathLike):
        return reference
    path = Path(reference).expanduser()
    if not path.exists():
        msg = f"There is no {path}. Name a file of labelled cells (.h5ad, .zarr), or the folder of a saved annotator."
        raise FileNotFoundError(msg)
    if path.suffix in _FILES:
        import anndata as ad

        return ad.read_h5ad(path) if path.suffix == ".h5ad" else ad.read_zarr(path)
    from scanpy_scgpt.model import SCGPTAnnotator

    return SCGPTAnnotator.load(path, adata=False)


def _labels(reference: AnnData, labels_key: str) -> pd.Series:
    """Labels as text without blanks around; missing where there is none, or a word for that."""
    column = reference.obs[labels_key]
    if column.dtype.kind == "f" and (column.dropna() % 1 != 0).any():
        msg = f"reference.obs[{labels_key!r}] holds measurements ({column.dtype}), no labels. Name another column."
        raise ValueError(msg)
    labels = column.astype(object).map(str, na_action="ignore").str.strip()
    labels = labels.mask(labels.str.lower().isin(_NO_LABEL))
    return labels


def labelled(
    reference: AnnData, labels_key: str | None, batch_key: str | None, place: Mapping[str, Any], *, same: bool
) -> tuple[AnnData, dict[str, Any]]:
    """The labelled cells of a reference with nothing but counts and labels, and what was left out.

    Raises
    ------
    KeyError, ValueError
        For a column that is not there, and one with fewer than two labels.
    """
    check_anndata(reference, function="tl.annotate (reference)")
    if labels_key is None:
        listed = ", ".join(map(str, reference.obs.columns)) or "none"
        msg = f"labels_key: name the column of reference.obs with the labels. Columns: {listed}."
        raise ValueError(msg)
    for key in (labels_key, *([] if batch_key is None else [batch_key])):
        check_key(reference.obs, key, where="reference.obs")
    labels = _labels(reference, labels_key)
    known = labels.notna().to_numpy()
    counts = labels[known].value_counts()
    if len(counts) < 2:  # noqa: PLR2004
        found = "no label" if not len(counts) else f"one label, {counts.index[0]!r}"
        msg = f"reference.obs[{labels_key!r}] has {found}; at least two are needed to tell cells apart."
        raise ValueError(msg)
    where = dict(place)
    if where["layer"] is not None and where["layer"] not in reference.layers:
        where["layer"] = None  # named for the query; the reference has its own place
    if where["use_raw"] and reference.raw is None:
        where["use_raw"] = None
    try:
        cells, _ = shallow(reference, **where)
    except ValueError as error:
        hint = " For the reference alone: reference = reference.raw.to_adata()." if reference.raw is not None else ""
        msg = f"reference: {error}{hint}"
        raise ValueError(msg) from error
    cells.obs["label"] = labels.to_numpy()
    if batch_key is not None:
        cells.obs["batch"] = reference.obs[batch_key].to_numpy()
    if not known.all():
        logger.info("annotate: %s cells of the reference have no label and are left out", f"{int((~known).sum()):,}")
        cells = cells[known].copy()
    alone = counts.index[counts == 1]
    if len(alone):
        logger.warning(
            "annotate: %s label%s a single cell (%s): learned from, but nothing can be held out to check.",
            len(alone),
            "s have" if len(alone) > 1 else " has",
            ", ".join(map(repr, alone[:5])),
        )
    if same:
        logger.warning(
            "annotate: reference and query are the same object; its %s labelled cells are learned from, so what is "
            "said of them looks better than it is.",
            f"{int(known.sum()):,}",
        )
    facts = {"n_reference": int(known.sum()), "n_unlabelled": int((~known).sum()), "n_labels": len(counts)}
    return cells, facts


def query_of(
    adata: AnnData, annotator: SCGPTAnnotator, place: Mapping[str, Any], *, min_genes: int
) -> tuple[AnnData, str]:
    """The query with nothing but its counts, and where they are.

    Raises
    ------
    GeneMatchError
        When it shares too few genes with the cells of the annotator.
    """
    query, where = shallow(adata, **place)
    shared = annotator.shared_genes(query.var)
    if len(shared) < min_genes:
        msg = (
            f"Reference and query share {len(shared):,} genes of the vocabulary, min_genes={min_genes}. The query "
            f"starts with {', '.join(map(repr, query.var_names[:3]))}, the reference with "
            f"{', '.join(map(repr, annotator.genes_[:3]))}. Take a query with the same genes, or lower min_genes."
        )
        raise GeneMatchError(msg)
    return query, where


def held_out_comparison(annotator: SCGPTAnnotator, *, baselines: bool) -> dict[str, Any]:
    """Measures on cells that nothing was learned from or chosen by, those of the simple methods beside them."""
    held = np.asarray(annotator.test_indices_)
    trained = np.union1d(annotator.train_indices_, annotator.validation_indices_)
    cells = annotator.adata
    if len(held) < _LEAST_HELD:
        return {"held_out": {}, "n_held_out": 0}
    truth = cells.obs["label"].iloc[held]
    rows = {"scGPT": metrics.annotation(truth, *_answer(annotator.predict(indices=held, soft=True)))}
    if baselines:
        answers = simple.annotate(
            cells[trained].copy(), cells[held].copy(), "label", methods=("logistic", "knn"), rng=annotator.rng_
        )
        rows |= {name: metrics.annotation(truth, *_answer(found.probabilities)) for name, found in answers.items()}
    kept = ("accuracy", "macro_f1")
    return {
        "held_out": {name: {measure: float(row[measure]) for measure in kept} for name, row in rows.items()},
        "n_held_out": len(held),
    }


def _answer(probabilities: pd.DataFrame) -> tuple[pd.Series]:
    return (probabilities.idxmax(axis=1),)
