"""The simple opponents of `tl.integrate`."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
import scanpy as sc
from scipy import sparse

from scanpy_scgpt._counts import choose_counts
from scanpy_scgpt._logging import quiet
from scanpy_scgpt._modalities import own_columns
from scanpy_scgpt._validate import check_anndata, check_key, check_one_of

if TYPE_CHECKING:
    from anndata import AnnData

_FEW = 20  # cells of a batch that has no say in which genes are variable


class Integration(NamedTuple):
    """What one method makes of the cells.

    Attributes
    ----------
    embedding
        Vectors, float32, shape `(n_obs, n_dims)`.
    seconds
        Time that it took, with the steps that it needs: scaling, choice of genes, components.
    """

    embedding: np.ndarray
    seconds: float


class _Task:
    """What the methods are given. Steps that several need run once; `seconds` holds the time that each took."""

    def __init__(self, adata: AnnData, batch_key: str, layer: str | None, n_top_genes: int, n_comps: int) -> None:
        self.source = choose_counts(adata, layer=layer)
        self.batches = adata.obs[batch_key].astype(object).fillna("unknown_batch").astype(str).to_numpy()
        self.n_top_genes, self.n_comps = n_top_genes, n_comps
        self.max_epochs: int | None = None
        self.rng = 0
        self.seconds: dict[str, float] = {}

    @contextmanager
    def _timed(self, step: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[step] = time.perf_counter() - start

    @cached_property
    def genes(self) -> AnnData:
        """Log-normalised values of the highly variable genes; counts, or what stands for them, in a layer."""
        with self._timed("genes"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rows = sparse.csr_matrix(self.source.rows(0, self.source.n_obs), dtype=np.float32)
            rows = rows[:, own_columns(self.source.var, "rna")]
            work = sc.AnnData(
                rows, obs=pd.DataFrame({"batch": self.batches}, index=pd.RangeIndex(len(self.batches)).astype(str))
            )
            logged = self.source.kind() == "log-normalised values"
            work.layers["counts"] = rows.expm1() if logged else rows.copy()
            if not logged:
                sc.pp.normalize_total(work, target_sum=1e4)
                sc.pp.log1p(work)
            if self.n_top_genes < work.n_vars:
                sizes = work.obs["batch"].value_counts()
                some = work[work.obs["batch"].isin(sizes.index[sizes >= _FEW])]
                many = some.n_obs and some.obs["batch"].nunique() > 1
                chosen = some.copy() if many else work
                settings = {"n_top_genes": self.n_top_genes, "inplace": False}
                table = sc.pp.highly_variable_genes(chosen, batch_key="batch" if many else None, **settings)
                work = work[:, table["highly_variable"].to_numpy()].copy()
            return work

    @cached_property
    def components(self) -> np.ndarray:
        """Principal components, `(n_cells, n_comps)`."""
        genes = self.genes
        with self._timed("components"):
            n = min(self.n_comps, min(genes.shape) - 1)
            return np.asarray(sc.pp.pca(genes.X, n_comps=n, random_state=self.rng), dtype=np.float32)


def _pca(task: _Task) -> np.ndarray:
    return task.components


def _hvg(task: _Task) -> np.ndarray:
    return task.genes.X.toarray()


def harmonised(components: np.ndarray, batches: np.ndarray, *, rng: int) -> np.ndarray:
    """Components after Harmony, shape `(n_cells, n_comps)`."""
    import harmonypy

    names = pd.DataFrame({"batch": batches})
    few = {} if round(len(components) / 30) else {"nclust": 1}  # as many cells has a cluster of Harmony
    with quiet("harmonypy", level=logging.ERROR):
        found = harmonypy.run_harmony(
            components.astype(np.float64), names, "batch", verbose=False, random_state=rng, **few
        )
    return found.Z_corr


def _harmony(task: _Task) -> np.ndarray:
    return harmonised(task.components, task.batches, rng=task.rng)


def _scvi(task: _Task) -> np.ndarray:
    import scvi
    from lightning.pytorch.utilities.seed import isolate_rng

    cells = sc.AnnData(sparse.csr_matrix(np.rint(task.genes.layers["counts"])), obs=task.genes.obs[["batch"]].copy())
    loud = ("lightning.pytorch", "lightning.fabric", "lightning_fabric", "pytorch_lightning")
    before, seed = scvi.settings.verbosity, scvi.settings.seed
    with warnings.catch_warnings(), isolate_rng(), quiet(*loud, level=logging.ERROR):
        warnings.simplefilter("ignore")
        try:
            scvi.settings.verbosity, scvi.settings.seed = logging.ERROR, task.rng
            scvi.model.SCVI.setup_anndata(cells, batch_key="batch")
            model = scvi.model.SCVI(cells, n_layers=2, n_latent=30, gene_likelihood="nb")
            settings = {"enable_progress_bar": False, "logger": False, "enable_checkpointing": False}
            model.train(max_epochs=task.max_epochs, accelerator="cpu", **settings)
            return model.get_latent_representation()
        finally:
            scvi.settings.verbosity, scvi.settings.seed = before, seed


METHODS: dict[str, Callable[[_Task], np.ndarray]] = {"pca": _pca, "hvg": _hvg, "harmony": _harmony, "scvi": _scvi}
_STEPS = {"pca": ("genes", "components"), "hvg": ("genes",), "harmony": ("genes", "components"), "scvi": ("genes",)}


def integrate(
    adata: AnnData,
    batch_key: str,
    *,
    methods: Sequence[str] | None = None,
    layer: str | None = None,
    n_top_genes: int = 1200,
    n_comps: int = 50,
    max_epochs: int | None = None,
    rng: int = 0,
) -> dict[str, Integration]:
    """Principal components, the variable genes themselves, Harmony and scVI, on the same genes.

    Counts are scaled to 10,000 per cell and logged; highly variable genes are found batch by batch.

    Parameters
    ----------
    adata
        Cells, shape `(n_obs, n_vars)`, in memory; not changed.
    batch_key
        Column of `.obs` with the batches.
    methods
        `"pca"` (not corrected), `"hvg"` (log-normalised values of the genes), `"harmony"` :cite:p:`Korsunsky2019`,
        `"scvi"` :cite:p:`Lopez2018` (two layers, 30 dimensions; values that are no integers are rounded); all by
        default.
    layer
        Layer with the counts, as in :func:`scanpy_scgpt.pp.tokenize`.
    n_top_genes
        Highly variable genes; all genes when there are no more.
    n_comps
        Number of principal components.
    max_epochs
        Of scVI; its own number by default.
    rng
        Seed.

    Returns
    -------
    Vectors and time of each method, by its name.

    Raises
    ------
    KeyError
        When there is no such column.
    ValueError
        For an unknown method.
    """
    check_anndata(adata, function="baselines.integrate")
    check_key(adata.obs, batch_key, where="adata.obs")
    names = list(METHODS) if methods is None else [methods] if isinstance(methods, str) else list(methods)
    for name in names:
        check_one_of(name, METHODS, name="a method")
    task = _Task(adata, batch_key, layer, n_top_genes, n_comps)
    task.max_epochs, task.rng = max_epochs, rng
    out = {}
    for name in names:
        for step in _STEPS[name]:
            getattr(task, step)
        started = time.perf_counter()
        embedding = np.asarray(METHODS[name](task), dtype=np.float32)
        seconds = time.perf_counter() - started + sum(task.seconds[step] for step in _STEPS[name])
        out[name] = Integration(embedding, seconds)
    return out
