"""`tl.perturb_space`: all single and double perturbations of a list of genes."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scanpy_scgpt._keys import PERTURB, UNS
from scanpy_scgpt._logging import get_logger
from scanpy_scgpt._perturbation_names import is_control
from scanpy_scgpt._validate import seed_of
from scanpy_scgpt._version import __version__

if TYPE_CHECKING:
    from anndata import AnnData

    from scanpy_scgpt.model import Conditions, SCGPTPerturber

logger = get_logger(__name__)
_BLOCK = 512  # perturbations that are predicted at a time
_FEW = 5  # perturbations that no spectrum starts a layout of
_FITTED = 2000  # perturbations that components are found from


def perturb_space(
    model: SCGPTPerturber,
    genes: Sequence[str] | None = None,
    *,
    max_order: int = 2,
    context: str | None = None,
    n_components: int = 50,
    n_neighbors: int = 15,
    resolution: float = 0.5,
    umap: bool = True,
    rng: int | np.random.Generator | None = 0,
) -> AnnData:
    """Predict all single and double perturbations of a list of genes, lay them out and cluster them.

    Rows are predicted block by block and kept as components of their changes, so memory grows with perturbations
    times components and not times genes. :func:`space_changes` gives changes of some rows, or the table of all.

    Parameters
    ----------
    model
        A trained :class:`scanpy_scgpt.model.SCGPTPerturber`.
    genes
        Genes; by default all that the screen perturbs.
    max_order
        1 for single perturbations, 2 for doubles too.
    context
        Context; the first of the screen by default.
    n_components
        Components of the changes.
    n_neighbors, resolution
        Of the graph and of Leiden clustering; the published resolution is 0.5.
    umap
        Lay the perturbations out in two dimensions.
    rng
        Seed.

    Returns
    -------
    AnnData, one row for each perturbation:

    `.X` : :class:`numpy.ndarray` of float32, shape `(n, n_components)`
        Components of the predicted changes; `.varm["loadings"]`, shape `(n_components, n_genes)`, and
        `.uns["scgpt"]["perturb_space"]["mean"]` turn them back: `X @ loadings + mean`.
    `.obs` : `n_targets`, `kind`, `cluster`, `dominant_gene`, `dominant_share`, `size`
        Leiden cluster; the gene that most perturbations of the cluster have, and how many do; length of the change.
    `.obsm["X_umap"]`
        With `umap`.
    `.uns["scgpt"]["perturb_space"]` : :class:`dict`
        Genes, context, mean change, share of the variance that the components keep.

    Raises
    ------
    ValueError
        For fewer than two genes, a gene twice, what is no single gene, or another order than 1 and 2.
    """
    started, seed = time.perf_counter(), seed_of(rng) % 2**31
    chosen = (
        list(model.screen_.conditions.universe) if genes is None else [genes] if isinstance(genes, str) else [*genes]
    )
    _check(chosen, max_order, n_components)
    wanted = [(gene,) for gene in sorted(chosen)]
    if max_order > 1:
        wanted += list(combinations(sorted(chosen), 2))
    context = model.contexts_[0] if context is None else context
    conditions = model.conditions(wanted, [context])
    components, loadings, mean, kept, sizes = _components(model, conditions, n_components, seed)
    result = _laid_out(components, conditions, model, sizes)
    result.varm["loadings"] = loadings
    record = {"genes": list(model.screen_.genes), "mean": mean, "kept": kept, "version": __version__}
    record["context"] = context
    result.uns[UNS] = {PERTURB.space: record}
    _cluster(result, n_neighbors, resolution, seed, umap=umap)
    logger.info(
        "perturb_space: %s perturbations of %s genes%s · %s clusters · %.0f %% of variance in %s components · %.1f s",
        f"{result.n_obs:,}",
        f"{len(chosen):,}",
        f" in {context}" if context else "",
        result.obs["cluster"].nunique(),
        100 * kept,
        result.n_vars,
        time.perf_counter() - started,
    )
    return result


def space_changes(adata: AnnData, rows: Sequence[str] | None = None) -> pd.DataFrame:
    """Changes of expression in a space, from its components.

    Parameters
    ----------
    adata
        Result of :func:`perturb_space`.
    rows
        Names of perturbations; all by default.

    Returns
    -------
    Changes, float32, perturbations x genes.
    """
    record = adata.uns[UNS][PERTURB.space]
    some = adata if rows is None else adata[[rows] if isinstance(rows, str) else list(rows)]
    values = np.asarray(some.X) @ np.asarray(adata.varm["loadings"]) + np.asarray(record["mean"])
    return pd.DataFrame(values.astype(np.float32), index=some.obs_names, columns=list(record["genes"]))


def _check(genes: list[str], max_order: int, n_components: int) -> None:
    if n_components < 1:
        msg = f"n_components={n_components!r}: give 1 or more."
        raise ValueError(msg)
    for gene in genes:
        if "+" in gene or is_control(gene):
            msg = f"genes: {gene!r} is no single gene. Give single genes: pairs are made of them, max_order=2."
            raise ValueError(msg)
    if max_order not in (1, 2):
        msg = f"max_order={max_order!r}: 1 for single perturbations, 2 for doubles too."
        raise ValueError(msg)
    twice = [gene for gene, n in Counter(genes).items() if n > 1]
    if twice or len(genes) < 2:  # noqa: PLR2004
        what = f"{twice[0]!r} is there twice" if twice else f"there are {len(genes)}, and a space needs two"
        msg = f"genes: {what}. Give each gene once: genes=['A', 'B', 'C']."
        raise ValueError(msg)


def _components(
    model: SCGPTPerturber, conditions: Conditions, n: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float, np.ndarray]:
    """Components of the changes, loadings, mean, share of the variance kept, and length of each change."""
    rows = np.random.default_rng([seed, 81]).permutation(len(conditions))[:_FITTED]
    some = _changes(model, conditions, np.sort(rows))
    mean = some.mean(axis=0)
    some -= mean
    values, vectors = np.linalg.eigh(some @ some.T)
    n = min(n, int((values > 1e-6 * max(float(values[-1]), 1e-12)).sum()) or 1)
    loadings = (vectors[:, -n:][:, ::-1].T @ some).astype(np.float32)
    loadings /= np.maximum(np.linalg.norm(loadings, axis=1, keepdims=True), 1e-12)
    kept = float(((some @ loadings.T) ** 2).sum() / max(float((some**2).sum()), 1e-12))
    del some
    components = np.empty((len(conditions), n), dtype=np.float32)
    sizes = np.empty(len(conditions), dtype=np.float32)
    for start in range(0, len(conditions), _BLOCK):
        block = np.arange(start, min(start + _BLOCK, len(conditions)))
        change = _changes(model, conditions, block)
        sizes[block] = np.linalg.norm(change, axis=1)
        components[block] = (change - mean) @ loadings.T
    return components, loadings, mean.astype(np.float32), kept, sizes


def _changes(model: SCGPTPerturber, conditions: Conditions, rows: np.ndarray) -> np.ndarray:
    """Changes of some rows, block by block."""
    out = np.empty((len(rows), len(model.screen_.genes)), dtype=np.float32)
    for start in range(0, len(rows), _BLOCK):
        out[start : start + _BLOCK] = model.changes(conditions.take(rows[start : start + _BLOCK]))
    return out


def _laid_out(components: np.ndarray, conditions: Conditions, model: SCGPTPerturber, sizes: np.ndarray) -> AnnData:
    from anndata import AnnData

    obs = pd.DataFrame(
        {
            "n_targets": [len(x) for x in conditions.parts],
            "kind": pd.Categorical(model.kinds(conditions)),
            "size": sizes,
        },
        index=["+".join(x) for x in conditions.parts],
    )
    var = pd.DataFrame(index=[f"c{i}" for i in range(components.shape[1])])
    return AnnData(components, obs=obs, var=var)


def _cluster(result: AnnData, n_neighbors: int, resolution: float, seed: int, *, umap: bool) -> None:
    """Graph, clusters, layout, and the gene that rules each cluster."""
    import scanpy as sc

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        near = max(min(n_neighbors, result.n_obs - 1), 2)
        sc.pp.neighbors(result, n_neighbors=near, use_rep="X", random_state=seed)
        settings = {"flavor": "igraph", "n_iterations": 2, "directed": False}
        sc.tl.leiden(result, resolution=resolution, key_added="cluster", random_state=seed, **settings)
        if umap:
            start = "spectral" if result.n_obs > _FEW else "random"
            sc.tl.umap(result, init_pos=start, random_state=seed)
    dominant, share = {}, {}
    for cluster, rows in result.obs.groupby("cluster", observed=True):
        counts = Counter(part for name in rows.index for part in name.split("+"))
        gene, n = min(counts.items(), key=lambda item: (-item[1], item[0]))
        dominant[cluster], share[cluster] = gene, n / len(rows)
    result.obs["dominant_gene"] = pd.Categorical([dominant[one] for one in result.obs["cluster"]])
    result.obs["dominant_share"] = np.array([share[one] for one in result.obs["cluster"]], dtype=np.float32)
