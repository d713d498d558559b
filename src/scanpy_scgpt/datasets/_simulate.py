"""Perturbations simulated on real control cells, with effects and interactions that are known."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from scanpy_scgpt._counts import choose_counts
from scanpy_scgpt._keys import SIMULATION
from scanpy_scgpt._validate import check_anndata, seed_of

if TYPE_CHECKING:
    from numpy.random import Generator

_PROGRAMMES = 8  # of genes that change together
_CELLS = 2000  # from which the programmes are read
_EXPRESSED = 0.05  # share of the control cells that a gene must be found in
_NOISE = 0.3  # part of an effect that no feature of the gene tells
_LIMIT = 3.0  # largest natural logarithm of a fold change
_BITS = 2
_GROUPS = 2**_BITS  # of genes, by the side of the middle of two programmes; an interaction belongs to a pair of groups


class _Truth(NamedTuple):
    """Logarithms of fold changes, shape `(n_conditions, n_genes)`, and the part that is no sum of single effects."""

    names: list[str]
    total: np.ndarray
    interaction: np.ndarray


def simulate_perturb(
    adata: AnnData,
    genes: Sequence[str] | None = None,
    *,
    n_genes: int = 12,
    doubles: float = 0.5,
    interactions: float = 0.4,
    strength: float = 0.8,
    interaction_strength: float = 1.0,
    n_cells: int = 60,
    n_control: int = 200,
    layer: str | None = None,
    rng: int = 0,
) -> AnnData:
    """Simulate a screen of single and double knock-downs on real control cells.

    **This is a simulation**: it says so in `.uns`, in `.obs` and in the names of the cells. A cell of a condition is a
    real cell whose counts are thinned (genes that fall) or added to (genes that rise). The effect of a gene is its own
    fall to a fifth and a mixture of eight programmes of genes that vary together in the control cells, as the gene
    itself does, with 30 % noise: genes with similar features have similar effects. Effects of two genes add up (as
    logarithms), and some pairs also have an interaction: genes belong to one of four groups, by what they vary with in
    the control cells, and each pair of groups that interacts has a direction of its own.

    Parameters
    ----------
    adata
        Control cells with counts, shape `(n_obs, n_vars)`; not changed.
    genes
        Genes to perturb; `n_genes` expressed ones are drawn by default.
    n_genes
        Number of genes that are drawn.
    doubles
        Share of all pairs that are in the screen.
    interactions
        Share of the pairs of groups with an interaction; 0 for effects that only add up.
    strength
        Spread of the logarithms of fold changes of the most affected genes.
    interaction_strength
        The same of an interaction, relative to `strength`.
    n_cells
        Cells of each condition.
    n_control
        Control cells, unchanged.
    layer
        Layer with the counts, as in :func:`scanpy_scgpt.pp.tokenize`.
    rng
        Seed.

    Returns
    -------
    Cells with integer counts (CSR). `.obs["perturbation"]`: `control`, `A` or `A+B`; `.obs["simulated"]`: True, also
    for controls. `.uns["simulation"]`: `description`, `conditions`, and the known truth `log_fold_change` and
    `interaction`, float64, shape `(n_conditions, n_vars)`, natural logarithms; `interacting`, the names of the doubles
    whose effects do not add up.

    Raises
    ------
    ValueError
        When the values are no counts, a gene is not there, too few genes are expressed, or a number is out of range.
    """
    check_anndata(adata, function="datasets.simulate_perturb")
    _check(doubles=doubles, interactions=interactions)
    _check(np.inf, strength=strength, interaction_strength=interaction_strength)
    _check(np.inf, 1, n_genes=n_genes, n_cells=n_cells, n_control=n_control)
    source = choose_counts(adata, layer=layer)
    if source.kind() != "counts":
        msg = f"{source.where} holds {source.kind()}; a simulation needs counts. Name their layer: layer='counts'."
        raise ValueError(msg)
    generator = np.random.default_rng([seed_of(rng), 21])
    rows = sparse.csr_matrix(source.rows(0, source.n_obs))
    names = source.var.index.astype(str)
    chosen = _chosen(names, rows, genes, n_genes, generator)
    programmes = _programmes(rows, generator)
    truth = _effects(chosen, names, programmes, doubles, interactions, strength, interaction_strength, generator)
    blocks = [rows[np.sort(generator.integers(rows.shape[0], size=n_control))]]
    level = np.asarray(rows.mean(axis=0)).ravel() / max(rows.sum() / rows.shape[0], 1.0)
    for change in truth.total:
        drawn = rows[np.sort(generator.integers(rows.shape[0], size=n_cells))]
        blocks.append(_changed(drawn, change, level, generator))
    labels = np.repeat(["control", *truth.names], [n_control, *[n_cells] * len(truth.names)])
    return _labelled(sparse.vstack(blocks, format="csr"), labels, names, truth)


def _check(most: float = 1.0, least: float = 0.0, **given: float) -> None:
    """Shares from 0 to 1, strengths from 0, numbers from 1."""
    for name, value in given.items():
        if isinstance(value, str | bool) or not least <= value <= most or (least and value != int(value)):
            kind = "a share from 0 to 1" if most == 1 else "a whole number from 1" if least else "a number from 0"
            msg = f"{name}={value!r}: {kind}."
            raise ValueError(msg)


def _chosen(
    names: pd.Index, rows: sparse.csr_matrix, genes: Sequence[str] | None, n: int, generator: Generator
) -> list[str]:
    if genes is not None:
        genes = [genes] if isinstance(genes, str) else list(dict.fromkeys(genes))
        lacking = [gene for gene in genes if gene not in names]
        if lacking:
            msg = f"genes: {lacking[0]!r} is none of the {len(names):,} genes of adata. Choose from adata.var_names."
            raise ValueError(msg)
        return sorted(genes)
    share = np.bincount(rows.indices, minlength=rows.shape[1]) / rows.shape[0]
    there = np.flatnonzero(share >= _EXPRESSED)
    if len(there) < n:
        msg = f"{len(there):,} genes are found in at least 5 % of the cells, n_genes={n}. Lower n_genes."
        raise ValueError(msg)
    return sorted(names[generator.permutation(there)[:n]])


def _programmes(rows: sparse.csr_matrix, generator: Generator) -> np.ndarray:
    """Loadings of the genes on components of logged counts, largest of each 1, shape `(n_genes, 8)`."""
    some = rows[np.sort(generator.permutation(rows.shape[0])[:_CELLS])].astype(np.float64)
    total = np.maximum(np.asarray(some.sum(axis=1)).ravel(), 1.0)
    some.data = np.log1p(some.data * np.repeat(1e4 / total, np.diff(some.indptr)))
    mean = np.asarray(some.mean(axis=0)).ravel()
    centred = sparse.linalg.LinearOperator(
        some.shape,
        matvec=lambda v: some @ np.ravel(v) - mean @ np.ravel(v),
        rmatvec=lambda v: some.T @ np.ravel(v) - mean * np.sum(v),
        dtype=np.float64,
    )
    n = min(_PROGRAMMES, min(some.shape) - 1)
    loadings = sparse.linalg.svds(centred, k=n, v0=np.ones(min(some.shape)), return_singular_vectors="vh")[2].T
    order = np.abs(loadings).argmax(axis=0)
    return loadings / loadings[order, np.arange(n)]


def _effects(
    genes: list[str], names: pd.Index, programmes: np.ndarray, doubles: float, interactions: float, strength: float,
    interaction_strength: float, generator: Generator,
) -> _Truth:  # fmt: skip
    """Singles, then the doubles that were drawn."""
    n_programmes = programmes.shape[1]
    places = names.get_indexer(pd.Index(genes))
    own = programmes[places] / np.maximum(np.linalg.norm(programmes[places], axis=1, keepdims=True), 1e-12)
    noise = generator.normal(size=own.shape) / np.sqrt(n_programmes)
    weights = strength * ((1 - _NOISE) * own @ _rotation(n_programmes, generator) + _NOISE * noise)
    single = weights @ programmes.T
    single[np.arange(len(genes)), places] = np.log(0.2)
    group = (own[:, :_BITS] > np.median(own[:, :_BITS], axis=0)) @ (2 ** np.arange(_BITS))
    kinds = [(a, b) for a in range(_GROUPS) for b in range(a, _GROUPS)]
    active = generator.permutation(len(kinds))[: round(interactions * len(kinds))]
    between = {kinds[i]: generator.normal(size=n_programmes) for i in active}
    pairs = list(combinations(range(len(genes)), 2))
    kept = np.sort(generator.permutation(len(pairs))[: round(doubles * len(pairs))])
    total, extra, labels = list(single), [np.zeros(len(names))] * len(genes), list(genes)
    for i, j in (pairs[k] for k in kept):
        direction = between.get(tuple(sorted((group[i], group[j]))), np.zeros(n_programmes))
        length = np.linalg.norm(direction)
        own_extra = interaction_strength * strength * (direction / length if length else direction) @ programmes.T
        total.append(np.clip(single[i] + single[j] + own_extra, -_LIMIT, _LIMIT))
        extra.append(own_extra)
        labels.append(f"{genes[i]}+{genes[j]}")
    return _Truth(labels, np.clip(np.array(total), -_LIMIT, _LIMIT), np.array(extra))


def _rotation(n: int, generator: Generator) -> np.ndarray:
    """What a gene varies with is not what it changes; but both are tied by one map for all genes."""
    return np.linalg.qr(generator.normal(size=(n, n)))[0]


def _changed(rows: sparse.csr_matrix, change: np.ndarray, level: np.ndarray, generator: Generator) -> sparse.csr_matrix:
    """Counts after a fold change by gene: thinned where genes fall, Poisson counts added where they rise."""
    fold = np.exp(change)
    out = rows.copy().astype(np.int64)
    out.data = generator.binomial(out.data, np.minimum(fold, 1.0)[out.indices])
    rising = np.flatnonzero(fold > 1.0)
    depth = np.asarray(rows.sum(axis=1)).ravel()
    added = np.zeros(rows.shape, dtype=np.int64)
    added[:, rising] = generator.poisson(depth[:, None] * (level * (fold - 1.0))[rising])
    return sparse.csr_matrix(out + sparse.csr_matrix(added)).astype(np.int32)


def _labelled(counts: sparse.csr_matrix, labels: np.ndarray, names: pd.Index, truth: _Truth) -> AnnData:
    counts.eliminate_zeros()
    obs = pd.DataFrame(
        {"perturbation": pd.Categorical(labels), "simulated": True},
        index=[f"simulated_{i}" for i in range(len(labels))],
    )
    result = AnnData(counts, obs=obs, var=pd.DataFrame(index=names))
    interacting = [name for name, extra in zip(truth.names, truth.interaction, strict=True) if extra.any()]
    result.uns[SIMULATION] = {
        "description": "SIMULATION on real control cells: no gene was perturbed (datasets.simulate_perturb)",
        "conditions": np.array(truth.names),
        "log_fold_change": truth.total,
        "interaction": truth.interaction,
        "interacting": np.array(interacting, dtype=str),
    }
    return result
