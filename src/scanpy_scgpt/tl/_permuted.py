"""Differences between two sets of blocks of cells, and what they are when the blocks change places."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.stats import false_discovery_control

_STEP, _MOST = 1e-3, 100.0  # of the histogram of absolute statistics
_VALUES = 2**23  # statistics of permutations at a time


class Permuted(NamedTuple):
    """Statistics of edges and genes.

    Attributes
    ----------
    z
        Difference of the means over its standard error between blocks, float32, shape `(n_sources, n_targets)`.
    p, p_adjusted
        Share of permuted statistics of all edges that are as large, and the same after Benjamini and Hochberg; float32,
        NaN without permutations.
    exerted, received
        Mean absolute `z` of the edges from and to each gene, float64, shape `(n_genes,)`.
    exerted_p, received_p
        Their adjusted shares, from the same permutations.
    """

    z: np.ndarray
    p: np.ndarray
    p_adjusted: np.ndarray
    exerted: np.ndarray
    received: np.ndarray
    exerted_p: np.ndarray
    received_p: np.ndarray


def permuted(
    a: np.ndarray,
    b: np.ndarray,
    *,
    sizes: tuple[np.ndarray, np.ndarray] | None = None,
    n_permutations: int,
    rng: np.random.Generator,
) -> Permuted:
    """Welch's statistic of every edge, against the same with blocks that change sides at random.

    A mean of few cells is noisier than one of many, so what a block differs by from the mean of all is scaled to its
    new place by the root of the numbers of cells: the sides keep their spread whatever the sizes of their blocks. All
    edges share one null distribution, so that a few hundred permutations tell small shares.

    Parameters
    ----------
    a, b
        Mean networks of blocks, float32, shape `(n_blocks, n_genes, n_genes)`, two blocks or more on each side.
    sizes
        Cells of each block, of either side; the same for all by default.
    n_permutations
        0 leaves the shares out.
    rng
        Draws.
    """
    n_genes, both = a.shape[1], len(a) + len(b)
    edges = ~np.eye(n_genes, dtype=bool)
    cells = np.ones(both) if sizes is None else np.concatenate(sizes).astype(np.float64)
    root = np.sqrt(cells / cells.mean()).astype(np.float32)
    identity = np.arange(both)[None]
    places = np.array([rng.permutation(both) for _ in range(n_permutations)], dtype=np.int64).reshape(-1, both)
    z = np.empty((n_genes, n_genes), dtype=np.float32)
    counts = np.zeros(int(_MOST / _STEP) + 1, dtype=np.int64)
    out, into = np.zeros((len(places), n_genes)), np.zeros((len(places), n_genes))
    step = max(1, _VALUES // (n_genes * max(len(places), both)))
    for start in range(0, n_genes, step):
        rows = slice(start, min(start + step, n_genes))
        block = np.concatenate([a[:, rows], b[:, rows]])
        block -= np.average(block, axis=0, weights=cells).astype(np.float32)
        block *= root[:, None, None]
        z[rows] = _welch(block, identity, len(a), root)[0]
        if len(places):
            drawn = np.abs(_welch(block, places, len(a), root)) * edges[rows]
            counts += np.bincount(_bin(drawn[:, edges[rows]]).ravel(), minlength=len(counts))
            out[:, rows] = drawn.sum(axis=2) / max(n_genes - 1, 1)
            into += drawn.sum(axis=1) / max(n_genes - 1, 1)
    z[~edges] = 0
    size = np.abs(z)
    exerted, received = (size.sum(axis=axis, dtype=np.float64) / max(n_genes - 1, 1) for axis in (1, 0))
    p, adjusted = np.full((2, *z.shape), np.nan, dtype=np.float32)
    if len(places):
        above = counts[::-1].cumsum()[::-1]
        p[edges] = (1 + above[_bin(size[edges])]) / (1 + counts.sum())
        adjusted[edges] = false_discovery_control(p[edges].astype(np.float64))
    return Permuted(z, p, adjusted, exerted, received, _share(exerted, out), _share(received, into))


def _bin(values: np.ndarray) -> np.ndarray:
    """Number of the bin of each absolute statistic."""
    return np.minimum(values / _STEP, _MOST / _STEP).astype(np.int32)


def _welch(block: np.ndarray, places: np.ndarray, n_first: int, root: np.ndarray) -> np.ndarray:
    """Statistics `(n_draws, ...)` of scaled blocks `(n_blocks, ...)` at their places `(n_draws, n_blocks)`."""
    shape, flat = block.shape[1:], block.reshape(len(block), -1)
    square = flat * flat
    means, variances = [], []
    scale = 1 / root[places]
    for side, n in ((places < n_first, n_first), (places >= n_first, len(block) - n_first)):
        member = np.where(side, scale, 0).astype(np.float32)
        mean = member @ flat / n
        variances.append(np.maximum((member * member) @ square / n - mean * mean, 0) / (n - 1))
        means.append(mean)
    error = np.sqrt(variances[0] + variances[1])
    difference = means[0] - means[1]
    tiny = np.finfo(np.float32).eps * 4  # ranks are of the order of 1: below is rounding
    return np.where(error > tiny, difference / np.maximum(error, tiny), 0.0).reshape(-1, *shape)


def _share(observed: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Adjusted share of the permuted values of all genes that are as large; NaN without permutations."""
    if not len(drawn):
        return np.full(len(observed), np.nan)
    ordered = np.sort(drawn.ravel())
    above = len(ordered) - np.searchsorted(ordered, observed, side="left")
    return false_discovery_control((1 + above) / (1 + len(ordered)))
