"""Regression of many outputs on few perturbations; what has to be chosen is chosen by leaving each one out."""

from __future__ import annotations

import numpy as np

PENALTIES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
_NEIGHBOURS = (1, 2, 3, 5, 10, 20)
_MARGIN = 1.645  # standard errors
_TINY = 1e-12


def principal_genes(values: np.ndarray, n: int) -> np.ndarray:
    """Coordinates of the genes in the first components of effects, shape `(n_genes, <= n)`; zeros pad few effects."""
    centred = (values - values.mean(axis=0)).T
    n = min(n, *centred.shape)
    left, strength, _ = np.linalg.svd(centred - centred.mean(axis=0), full_matrices=False)
    return left[:, :n] * strength[:n]


def kernel_ridge(x: np.ndarray, y: np.ndarray, new: np.ndarray, *, penalties: tuple[float, ...]) -> np.ndarray:
    """Ridge regression through the kernel `x x'`, penalty relative to its mean diagonal.

    Parameters
    ----------
    x
        Features of the known conditions, shape `(n_known, n_features)`.
    y
        Effects of the known conditions, shape `(n_known, n_genes)`.
    new
        Features of the wanted conditions, shape `(n_wanted, n_features)`.
    penalties
        Penalties to choose from; the mean, an infinite penalty, is always among them.

    Returns
    -------
    Effects, shape `(n_wanted, n_genes)`.
    """
    n = len(x)
    centre = x.mean(axis=0)
    kernel = (x - centre) @ (x - centre).T
    values, vectors = np.linalg.eigh(kernel)
    values = np.maximum(values, 0)
    scale = max(values.sum() / n, _TINY)
    mean = y.mean(axis=0)
    turned = vectors.T @ (y - mean)
    errors = {}
    for penalty in (*penalties, np.inf):
        shrink = values / (values + penalty * scale) if np.isfinite(penalty) else np.zeros(n)
        hat = np.einsum("ij,j,ij->i", vectors, shrink, vectors) + 1 / n
        left_out = (y - mean - vectors @ (shrink[:, None] * turned)) / np.maximum(1 - hat, _TINY)[:, None]
        errors[penalty] = np.mean(left_out**2, axis=1)
    chosen = _chosen(errors, plain=np.inf)
    if not np.isfinite(chosen):
        return np.tile(mean, (len(new), 1))
    weights = vectors @ (turned / (values + chosen * scale)[:, None])
    return mean + ((new - centre) @ (x - centre).T) @ weights


def _chosen(errors: dict[float, np.ndarray], *, plain: float) -> float:
    """Choice with the smallest mean error; `plain` unless its error is larger by a one-sided test at 5 %."""
    best = min(errors, key=lambda one: errors[one].mean())
    gain = errors[plain] - errors[best]
    return best if gain.mean() > _MARGIN * gain.std(ddof=1) / np.sqrt(len(gain)) else plain


def nearest(x: np.ndarray, y: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Mean effect of the nearest known conditions by cosine; parameters and result as of :func:`kernel_ridge`."""
    own = _cosine(x, x)
    np.fill_diagonal(own, -np.inf)
    order = np.argsort(-own, axis=1, kind="stable")
    n = len(x)
    mean = y.mean(axis=0)
    errors = {n: np.mean(((y - mean) * n / (n - 1)) ** 2, axis=1)}
    for k in (k for k in _NEIGHBOURS if k < n - 1):
        errors[k] = np.mean((y - y[order[:, :k]].mean(axis=1)) ** 2, axis=1)
    chosen = _chosen(errors, plain=n)
    if chosen == n:
        return np.tile(mean, (len(new), 1))
    return y[np.argsort(-_cosine(new, x), axis=1, kind="stable")[:, :chosen]].mean(axis=1)


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a = a / np.maximum(np.linalg.norm(a, axis=1, keepdims=True), _TINY)
    return a @ (b / np.maximum(np.linalg.norm(b, axis=1, keepdims=True), _TINY)).T
