"""The simple opponents of `tl.annotate`."""

from __future__ import annotations

import inspect
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import KNeighborsClassifier

from scanpy_scgpt._counts import CountSource
from scanpy_scgpt._logging import get_logger
from scanpy_scgpt._validate import check_anndata, check_key, check_one_of

from ._celltypist import celltypist_is_installed, celltypist_probabilities, load_celltypist
from ._shared_genes import SharedGenes, counts_of, shared_genes

if TYPE_CHECKING:
    from anndata import AnnData

logger = get_logger(__name__)

_MAX_ITER, _TOLERANCE = 5000, 1e-6  # of the solvers
_LEAST = 2  # labels, and cells of a reference


class Prediction(NamedTuple):
    """What one method says of the cells of a query.

    Attributes
    ----------
    probabilities
        Probability of each label, float32, shape `(n_query, n_labels)`: index the names of the cells, columns the
        labels in the order of the alphabet; rows sum to 1.
    seconds
        Time to fit and predict, with the steps that the method needs: scaling, choice of genes, components.
    """

    probabilities: pd.DataFrame
    seconds: float

    @property
    def labels(self) -> pd.Series:
        """The most likely label of each cell (of equal ones the first), shape `(n_query,)`."""
        return self.probabilities.idxmax(axis=1).rename("label")


@dataclass
class _Task:
    """What the methods are given. Steps that several need run once; `seconds` holds the time that each took.

    `codes` (n_reference,) int are positions in `labels`, sorted text; `rows` the labelled cells of the reference.
    """

    reference: CountSource
    query: CountSource
    rows: np.ndarray
    codes: np.ndarray
    labels: np.ndarray
    n_top_genes: int
    n_comps: int
    n_neighbors: int
    rng: int
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def _timed(self, step: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[step] = time.perf_counter() - start

    @cached_property
    def genes(self) -> SharedGenes:
        """Log-normalised values of the highly variable genes."""
        with self._timed("genes"):
            return shared_genes(self.reference, self.query, rows=self.rows, n_top_genes=self.n_top_genes)

    @cached_property
    def components(self) -> tuple[np.ndarray, np.ndarray]:
        """Principal components of the reference, and the query projected onto them; `(n_cells, n_comps)` each."""
        genes = self.genes
        with self._timed("components"):
            n_comps = min(self.n_comps, min(genes.reference.shape) - 1)
            pca = PCA(n_comps, svd_solver="arpack", random_state=self.rng)
            return pca.fit_transform(genes.reference), pca.transform(genes.query)


@contextmanager
def _without_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


def _majority(task: _Task) -> np.ndarray:
    shares = np.bincount(task.codes) / len(task.codes)
    return np.broadcast_to(shares, (task.query.n_obs, len(shares)))


def _logistic(task: _Task) -> np.ndarray:
    reference, query = (values.astype(np.float64) for values in task.components)  # single precision stops early
    with _without_warnings():
        model = LogisticRegression(max_iter=_MAX_ITER, tol=_TOLERANCE).fit(reference, task.codes)
    _note_steps(model.n_iter_, method="logistic")
    return model.predict_proba(query)


def _logistic_l1(task: _Task) -> np.ndarray:
    new = inspect.signature(LogisticRegression).parameters["penalty"].default == "deprecated"  # scikit-learn 1.8
    penalty = {"l1_ratio": 1.0} if new else {"penalty": "l1"}
    one = LogisticRegression(solver="liblinear", max_iter=_MAX_ITER, tol=_TOLERANCE, random_state=task.rng, **penalty)
    with _without_warnings():
        model = OneVsRestClassifier(one).fit(task.genes.reference, task.codes)
    _note_steps([one.n_iter_ for one in model.estimators_], method="logistic_l1")
    return model.predict_proba(task.genes.query)


def _knn(task: _Task) -> np.ndarray:
    reference, query = task.components
    n_neighbors = min(task.n_neighbors, len(reference))
    return KNeighborsClassifier(n_neighbors).fit(reference, task.codes).predict_proba(query)


def _celltypist(task: _Task) -> np.ndarray:
    reference, query, names = task.genes
    return celltypist_probabilities(reference, task.codes, query, names)


def _note_steps(n_iter: object, *, method: str) -> None:
    if np.max(n_iter) >= _MAX_ITER:
        logger.info("note: %s stopped after %d steps, short of its optimum.", method, _MAX_ITER)


# Method -> the steps that it shares with others, and what predicts.
_METHODS: dict[str, tuple[tuple[str, ...], Callable[[_Task], np.ndarray]]] = {
    "majority": ((), _majority),
    "logistic": (("genes", "components"), _logistic),
    "logistic_l1": (("genes",), _logistic_l1),
    "knn": (("genes", "components"), _knn),
    "celltypist": (("genes",), _celltypist),
}


def _chosen(methods: Sequence[str] | None) -> list[str]:
    if methods is None:
        methods = [method for method in _METHODS if method != "celltypist" or celltypist_is_installed()]
    methods = list(dict.fromkeys([methods] if isinstance(methods, str) else methods))
    if not methods:
        msg = f"methods is empty: name one of {', '.join(map(repr, _METHODS))}, or leave it out for all."
        raise ValueError(msg)
    for method in methods:
        check_one_of(method, _METHODS, name="methods")
    if "celltypist" in methods:
        load_celltypist()  # before anything is computed, and outside of the time that is told
    return methods


def _labelled(reference: AnnData, labels_key: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions of the cells with a label, codes of their labels, and the labels, sorted."""
    check_key(reference.obs, labels_key, where="reference.obs")
    column = reference.obs[labels_key]
    rows = np.flatnonzero(column.notna())
    left_out = reference.n_obs - len(rows)
    if left_out:
        text = f"{left_out:,} of {reference.n_obs:,} cells of the reference have no label and are left out."
        logger.info(text)
    labels, codes = np.unique(column.astype(object).to_numpy()[rows].astype(str), return_inverse=True)
    if len(labels) < _LEAST:
        what = f"are all {str(labels[0])!r}" if len(labels) else "hold no label"
        msg = (
            f"labels_key={labels_key!r}: the {len(rows) or reference.n_obs:,} cells of the reference {what}; a "
            "classifier needs two labels or more. Name the column that holds them, or add cells of another type."
        )
        raise ValueError(msg)
    return rows, codes, labels.astype(object)


def annotate(
    reference: AnnData,
    query: AnnData,
    labels_key: str,
    *,
    methods: Sequence[str] | None = None,
    layer: str | None = None,
    use_raw: bool | None = None,
    n_top_genes: int = 2000,
    n_comps: int = 50,
    n_neighbors: int = 15,
    rng: int = 0,
) -> dict[str, Prediction]:
    """Labels of a query by the simple methods that any annotation model has to beat.

    Of the query only the names of its genes are used before it is labelled; everything else is learned from the
    reference. Genes are matched by name (`var_names`; those of one name are summed), cells scaled to 10,000 over the
    shared genes and logged (values that are logged already are brought back first), and the highly variable genes of
    the reference taken. The query is projected onto principal components that the reference gave. Neither object is
    changed.

    - `"majority"`: the shares of the labels in the reference, for every cell.
    - `"logistic"`: logistic regression with L2 penalty (C = 1) on the components.
    - `"logistic_l1"`: logistic regression with L1 penalty (C = 1) on the genes, one label against the others
      :cite:p:`Boiarsky2023`.
    - `"knn"`: votes of the nearest neighbours by Euclidean distance in the components.
    - `"celltypist"`: CellTypist :cite:p:`DominguezConde2022` with its defaults on the same genes, its probabilities
      divided by their sum. Needs the extra `celltypist`.

    Parameters
    ----------
    reference
        Cells with labels, shape `(n_reference, n_vars)`; those without one (NaN) are left out, and counted in the log.
    query
        Cells to label, shape `(n_query, n_vars)`; its genes may be others, in another order.
    labels_key
        Column of `reference.obs` with the labels; they are taken as text.
    methods
        Names of the methods; by default all of them, CellTypist if it is installed.
    layer, use_raw
        Where the counts of both are; see :func:`scanpy_scgpt.pp.tokenize`.
    n_top_genes
        Highly variable genes; all shared genes when there are no more.
    n_comps
        Number of components, at most one less than cells or genes.
    n_neighbors
        Neighbours that vote, at most the cells of the reference.
    rng
        Seed of the solvers.

    Returns
    -------
    A :class:`Prediction` for each method by name, in the order asked for: probabilities of the labels, shape
    `(n_query, n_labels)`, and the time it took.

    Raises
    ------
    KeyError
        When the column or the layer does not exist.
    ValueError
        When the reference has fewer than two labels, reference and query share no gene names, the query has no cells,
        a method is unknown, or the values are no counts.
    TypeError
        When one of them is no AnnData.
    ImportError
        When CellTypist is asked for by name and not installed.
    """
    for adata in (reference, query):
        check_anndata(adata, function="baselines.annotate")
    for name, value in {"n_top_genes": n_top_genes, "n_comps": n_comps, "n_neighbors": n_neighbors}.items():
        if value < 1:
            msg = f"{name}={value!r}: use a whole number of at least 1."
            raise ValueError(msg)
    chosen = _chosen(methods)
    rows, codes, labels = _labelled(reference, labels_key)
    if query.n_obs == 0:
        msg = "query has no cells. Check the selection that made it: query.n_obs is 0."
        raise ValueError(msg)
    task = _Task(
        counts_of(reference, name="reference", layer=layer, use_raw=use_raw),
        counts_of(query, name="query", layer=layer, use_raw=use_raw),
        rows,
        codes,
        labels,
        n_top_genes=n_top_genes,
        n_comps=n_comps,
        n_neighbors=n_neighbors,
        rng=rng,
    )
    return {method: _predicted(task, method, cells=query.obs_names) for method in chosen}


def _predicted(task: _Task, method: str, *, cells: pd.Index) -> Prediction:
    steps, predict = _METHODS[method]
    for step in steps:
        getattr(task, step)  # once for all methods, outside of the time of this one
    start = time.perf_counter()
    values = predict(task)
    seconds = time.perf_counter() - start + sum(task.seconds[step] for step in steps)
    return Prediction(pd.DataFrame(np.array(values, dtype=np.float32), index=cells, columns=task.labels), seconds)
