"""CellTypist, trained on a reference."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse, special
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.preprocessing import StandardScaler

from scanpy_scgpt._logging import get_logger
from scanpy_scgpt._optional import is_installed, require

logger = get_logger(__name__)

MODULE = "celltypist"
_AT_A_TIME = 4096  # cells that are made dense
_LARGEST = 10  # standard deviations, as CellTypist cuts them
_MAX_ITER = 1000


@contextmanager
def _undisturbed() -> Iterator[None]:
    """CellTypist configures the root logger and the warnings when it is imported, and reports each step."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger(f"{MODULE}.logger").setLevel(logging.WARNING)
        try:
            yield
        finally:
            root.handlers[:] = handlers
            root.setLevel(level)


def celltypist_is_installed() -> bool:
    """Whether its extra is there."""
    return is_installed(MODULE)


def load_celltypist() -> ModuleType:
    """The package, or the error that says how to install it."""
    with _undisturbed():
        return require(MODULE, extra=MODULE, needed_for='methods=["celltypist"]')


def _trained(values: np.ndarray, labels: np.ndarray, names: pd.Index) -> tuple[Any, Any, np.ndarray]:
    """Scaler, classifier and columns of CellTypist with its default solver."""
    celltypist = load_celltypist()
    try:
        with _undisturbed():
            model = celltypist.train(values, labels=labels, genes=np.asarray(names), check_expression=False)
    except TypeError as error:
        if "multi_class" not in str(error):
            raise
        logger.info("note: CellTypist does not train with this scikit-learn; its steps are taken here.")
    else:
        return model.scaler, model.classifier, names.get_indexer(model.features)
    scaler = StandardScaler().fit(values)
    classifier = OneVsRestClassifier(LogisticRegression(max_iter=_MAX_ITER))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        classifier.fit(np.minimum(scaler.transform(values), _LARGEST), labels)
    return scaler, classifier, np.arange(len(names))


def celltypist_probabilities(
    reference: sparse.csr_matrix, labels: np.ndarray, query: sparse.csr_matrix, names: pd.Index
) -> np.ndarray:
    """Probability of each label, sorted, for the cells of a query, `(n_query, n_labels)`.

    Genes are scaled to unit variance and cut at 10; logistic regression with C = 1, one label against the others. The
    probabilities of the labels are independent of each other; here they are divided by their sum. CellTypist holds the
    scaled genes of the reference as a dense matrix; the query is read in parts.

    Releases of CellTypist that set an option which scikit-learn 1.8 removed cannot train with it: the same scaling and
    regression are then done here.

    Parameters
    ----------
    reference, query
        Log-normalised values, `(n_cells, n_genes)`.
    labels
        Code of the label of each cell of the reference; int, shape `(n_reference,)`.
    names
        Names of the genes.
    """
    scaler, classifier, columns = _trained(reference.toarray(), labels, names)
    found = []
    for start in range(0, query.shape[0], _AT_A_TIME):
        values = scaler.transform(query[start : start + _AT_A_TIME, columns].toarray())
        scores = classifier.decision_function(np.minimum(values, _LARGEST))
        found.append(special.expit(np.column_stack([-scores, scores]) if scores.ndim == 1 else scores))
    values = np.concatenate(found)
    return values / np.maximum(values.sum(axis=1, keepdims=True), np.finfo(values.dtype).tiny)
