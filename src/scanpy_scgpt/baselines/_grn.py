"""The simple opponents of gene networks: co-expression, trees, differential expression, chance."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
import scanpy as sc
from scipy import sparse
from scipy.stats import rankdata
from sklearn.ensemble import ExtraTreesRegressor

from scanpy_scgpt._counts import choose_counts
from scanpy_scgpt._validate import check_anndata, check_key, check_one_of

if TYPE_CHECKING:
    from anndata import AnnData

_TREES, _CELLS = 50, 1000  # of each target; cells that trees are grown on


class _Task(NamedTuple):
    """Log-normalised values (CSR, float32), the places of sources among the genes, and groups."""

    values: sparse.csr_matrix
    genes: np.ndarray
    sources: np.ndarray
    groups: np.ndarray | None
    contrast: tuple[str, str] | None
    rng: int


def _moments(values: sparse.csr_matrix, sources: np.ndarray) -> np.ndarray:
    """Correlations `(n_sources, n_genes)` of sparse columns; nothing of the size of the cells is made dense."""
    n = values.shape[0]
    mean = np.asarray(values.mean(axis=0), dtype=np.float64).ravel()
    square = np.asarray(values.multiply(values).mean(axis=0), dtype=np.float64).ravel()
    spread = np.sqrt(np.maximum(square - mean**2, 0))
    product = np.asarray((values[:, sources].T @ values).todense(), dtype=np.float64) / n
    scale = np.outer(spread[sources], spread)
    return np.divide(product - np.outer(mean[sources], mean), scale, out=np.zeros_like(scale), where=scale > 1e-12)  # noqa: PLR2004


def _pearson(task: _Task) -> np.ndarray:
    return np.abs(_moments(task.values, task.sources))


def _spearman(task: _Task) -> np.ndarray:
    """Ranks less the rank of zero are as sparse as the values, and a shift changes no correlation."""
    columns = task.values.tocsc().astype(np.float64)
    columns.sort_indices()
    n = columns.shape[0]
    for j in range(columns.shape[1]):
        own = slice(columns.indptr[j], columns.indptr[j + 1])
        n_zero = n - (own.stop - own.start)
        columns.data[own] = rankdata(columns.data[own]) + n_zero - (n_zero + 1) / 2
    return np.abs(_moments(columns.tocsr(), task.sources))


def _trees(task: _Task) -> np.ndarray:
    """GENIE3: each gene from the sources by extremely randomised trees; weights are importances."""
    rows = np.random.default_rng(task.rng).permutation(task.values.shape[0])[:_CELLS]
    dense = task.values[np.sort(rows)].toarray()
    dense = (dense - dense.mean(axis=0)) / np.maximum(dense.std(axis=0), 1e-6)
    out = np.zeros((len(task.sources), dense.shape[1]))
    for target in range(dense.shape[1]):
        own = task.sources != target
        if not own.any() or not dense[:, target].any():
            continue
        forest = ExtraTreesRegressor(_TREES, max_features="sqrt", min_samples_leaf=5, random_state=task.rng)
        out[own, target] = forest.fit(dense[:, task.sources[own]], dense[:, target]).feature_importances_
    return out


def _de(task: _Task) -> np.ndarray:
    """Absolute Wilcoxon statistic of each gene between the groups; the same for every source."""
    kept = np.isin(task.groups, task.contrast)
    obs = pd.DataFrame({"group": pd.Categorical(task.groups[kept])}, index=np.flatnonzero(kept).astype(str))
    cells = sc.AnnData(task.values[kept], obs=obs, var=pd.DataFrame(index=task.genes.astype(str)))
    first, second = task.contrast
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sc.tl.rank_genes_groups(cells, "group", groups=[first], reference=second, method="wilcoxon")
        table = sc.get.rank_genes_groups_df(cells, first).set_index("names")
    scores = np.abs(table["scores"].reindex(cells.var_names).to_numpy(dtype=np.float64))
    return np.tile(np.nan_to_num(scores), (len(task.sources), 1))


def _random(task: _Task) -> np.ndarray:
    return np.random.default_rng(task.rng).random((len(task.sources), len(task.genes)))


METHODS: dict[str, Callable[[_Task], np.ndarray]] = {
    "pearson": _pearson, "spearman": _spearman, "trees": _trees, "de": _de, "random": _random,
}  # fmt: skip


def grn(
    adata: AnnData,
    *,
    methods: Sequence[str] | None = None,
    genes: Sequence[str] | None = None,
    tfs: Sequence[str] | None = None,
    groupby: str | None = None,
    contrast: tuple[str, str] | None = None,
    layer: str | None = None,
    rng: int = 0,
) -> dict[str, pd.DataFrame]:
    """Networks without a neural network: co-expression, GENIE3's trees, differential expression, chance.

    Counts are scaled to 10,000 per cell and logged.

    Parameters
    ----------
    adata
        Cells, shape `(n_obs, n_vars)`, in memory; not changed.
    methods
        `"pearson"` and `"spearman"` (absolute correlation), `"trees"` (importance in 50 extremely randomised trees for
        each gene, on 1,000 cells at most; after :cite:t:`HuynhThu2010`), `"de"` (absolute Wilcoxon statistic between
        the groups of `contrast`, the same for every source), `"random"`. By default all but trees, and `"de"` with a
        contrast alone.
    genes
        Genes of the network; by default all.
    tfs
        Sources; those that are there. By default every gene.
    groupby, contrast
        Column of `.obs` and two of its groups, for `"de"`.
    layer
        Layer with the counts, as in :func:`scanpy_scgpt.pp.tokenize`.
    rng
        Seed.

    Returns
    -------
    For each method a table `source`, `target`, `weight` of all pairs but a gene with itself, as decoupler takes it.

    Raises
    ------
    KeyError
        When there is no such column.
    ValueError
        For an unknown method, gene or group, `tfs` of which none is there, or `"de"` without a contrast.
    """
    check_anndata(adata, function="baselines.grn")
    default = ["pearson", "spearman", *(["de"] if contrast is not None else []), "random"]
    names = default if methods is None else [methods] if isinstance(methods, str) else list(methods)
    for name in names:
        check_one_of(name, METHODS, name="a method")
    if "de" in names and (groupby is None or contrast is None):
        msg = "'de' compares two groups: give groupby='condition' and contrast=('treated', 'control')."
        raise ValueError(msg)
    task = _task(adata, genes, tfs, groupby, contrast, layer, rng)
    source = np.repeat(task.sources, len(task.genes))
    target = np.tile(np.arange(len(task.genes)), len(task.sources))
    pairs = source != target
    out = {}
    for name in names:
        weight = METHODS[name](task).ravel()[pairs].astype(np.float32)
        columns = {"source": task.genes[source[pairs]], "target": task.genes[target[pairs]], "weight": weight}
        out[name] = pd.DataFrame(columns)
    return out


def _task(
    adata: AnnData,
    genes: Sequence[str] | None,
    tfs: Sequence[str] | None,
    groupby: str | None,
    contrast: tuple[str, str] | None,
    layer: str | None,
    rng: int,
) -> _Task:
    source = choose_counts(adata, layer=layer)
    values = sparse.csr_matrix(source.rows(0, source.n_obs), dtype=np.float32)
    if source.kind() != "log-normalised values":
        total = np.asarray(values.sum(axis=1)).ravel()
        factor = np.divide(1e4, total, out=np.zeros_like(total), where=total > 0)
        values = sparse.csr_matrix(sparse.diags(factor) @ values).log1p()
    names = pd.Index(source.var.index.astype(str))
    if isinstance(genes, str):
        msg = f"genes={genes!r} is one gene: a network needs several, genes=[{genes!r}, ...]."
        raise ValueError(msg)
    if genes is not None:
        places = names.get_indexer(list(dict.fromkeys(map(str, genes))))
        if (places < 0).any():
            lost = [gene for gene in dict.fromkeys(map(str, genes)) if gene not in names]
            msg = f"{len(lost):,} genes of genes= are not in the cells: {', '.join(lost[:5])}. Leave them out."
            raise ValueError(msg)
        values, names = values[:, places], names[places]
    tfs = [tfs] if isinstance(tfs, str) else tfs
    sources = np.arange(len(names)) if tfs is None else np.flatnonzero(names.isin(list(map(str, tfs))))
    if not len(sources):
        msg = f"None of the {len(list(tfs)):,} genes of tfs= is among the {len(names):,} genes. Use the names of adata."
        raise ValueError(msg)
    groups = None
    if groupby is not None:
        check_key(adata.obs, groupby, where="adata.obs")
        groups = adata.obs[groupby].astype(str).to_numpy()
        if contrast is not None and (isinstance(contrast, str) or len({*map(str, contrast)}) != 2):  # noqa: PLR2004
            msg = f"contrast={contrast!r}: two different groups of obs[{groupby!r}], such as ('treated', 'control')."
            raise ValueError(msg)
        for group in contrast or ():
            check_one_of(group, np.unique(groups).tolist(), name=f"a group of obs[{groupby!r}]")
    return _Task(values, names.to_numpy(dtype=object), sources, groups, contrast, rng)
