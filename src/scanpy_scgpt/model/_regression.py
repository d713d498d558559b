"""Multinomial logistic regression as one weight and one bias per label."""

from __future__ import annotations

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

UNSEEN = -30.0
"""Bias of a label without a cell."""
_MAX_ITER = 3000


def fit_regression(
    x: np.ndarray, labels: np.ndarray, *, n_labels: int, strength: float
) -> tuple[np.ndarray, np.ndarray]:
    """Fit on cells.

    Parameters
    ----------
    x
        Values, shape `(n, d)`.
    labels
        Int, shape `(n,)`, all 0 or above.
    n_labels
        Number of labels; one may lack cells. Where a single one has cells, it is the answer.
    strength
        Inverse of the penalty.

    Returns
    -------
    Weights `(n_labels, d)` and biases `(n_labels,)`, float64.
    """
    present = np.unique(labels)
    weight, bias = np.zeros((n_labels, x.shape[1])), np.full(n_labels, UNSEEN)
    if len(present) < 2 or not x.shape[1]:  # noqa: PLR2004
        bias[present] = 0.0
        return weight, bias
    model = LogisticRegression(C=strength, max_iter=_MAX_ITER)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(x, labels)
    coef, intercept = model.coef_, model.intercept_
    if len(present) == 2:  # noqa: PLR2004 - two labels have one row of coefficients
        coef, intercept = np.vstack([-coef / 2, coef / 2]), np.array([-intercept[0] / 2, intercept[0] / 2])
    weight[present], bias[present] = coef, intercept
    return weight, bias
