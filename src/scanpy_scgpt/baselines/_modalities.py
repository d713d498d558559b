"""The opponents of `tl.integrate` and `tl.impute_modality` for a MuData."""

from __future__ import annotations

import contextlib
import io
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scanpy as sc
from scipy import sparse
from sklearn.linear_model import RidgeCV
from sklearn.neighbors import KNeighborsRegressor

from scanpy_scgpt._logging import quiet
from scanpy_scgpt._modalities import (
    check_mudata,
)
from scanpy_scgpt._optional import require
from scanpy_scgpt._validate import check_one_of

from ._glue import glue
from ._integrate import Integration, harmonised
from ._modal_task import Task, logged

if TYPE_CHECKING:
    from mudata import MuData

_LOUD = ("lightning.pytorch", "lightning.fabric", "lightning_fabric", "pytorch_lightning", "scvi", "mofapy2")
_NEIGHBOURS = 25
_LEAST = 20  # cells that have both modalities


@contextlib.contextmanager
def _silent(rng: int) -> Iterator[None]:
    """Other packages say nothing, and the global random state stays as it was."""
    from lightning.pytorch.utilities.seed import isolate_rng

    with isolate_rng():  # its import draws a number
        import scvi
    before, seed = scvi.settings.verbosity, scvi.settings.seed
    with (
        warnings.catch_warnings(),
        isolate_rng(),
        quiet(*_LOUD, level=logging.ERROR),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        try:
            scvi.settings.verbosity, scvi.settings.seed = logging.ERROR, rng
            yield
        finally:
            scvi.settings.verbosity, scvi.settings.seed = before, seed


def _pca(task: Task) -> np.ndarray:
    return np.concatenate(list(task.components.values()), axis=1)


def _harmony(task: Task) -> np.ndarray:
    x = _pca(task)
    if len(np.unique(task.groups)) < 2:  # noqa: PLR2004 - nothing to lay over
        return x
    return harmonised(x, task.groups, rng=task.rng)


def _totalvi_model(task: Task) -> Any:
    import scvi

    _require(task, "totalVI", "rna", "protein")
    cells = sc.AnnData(sparse.csr_matrix(np.rint(task.counts["rna"])), obs=pd.DataFrame({"batch": task.groups}))
    cells.obs_names = cells.obs_names.astype(str)
    cells.obsm["protein"] = pd.DataFrame(
        np.rint(task.counts["protein"].toarray()), index=cells.obs_names, columns=task.features["protein"]
    )
    scvi.model.TOTALVI.setup_anndata(cells, protein_expression_obsm_key="protein", batch_key="batch")
    model = scvi.model.TOTALVI(cells)
    model.train(max_epochs=task.max_epochs, accelerator="cpu", **_QUIET)
    return model


_QUIET = {"enable_progress_bar": False}


def _totalvi(task: Task) -> np.ndarray:
    with _silent(task.rng):
        return _totalvi_model(task).get_latent_representation()


def _multivi(task: Task) -> np.ndarray:
    import mudata
    import scvi

    _require(task, "MultiVI", "rna", "atac")
    with _silent(task.rng):
        mods = {kind: sc.AnnData(sparse.csr_matrix(np.rint(task.counts[kind]))) for kind in ("rna", "atac")}
        mods["atac"].X = (mods["atac"].X > 0).astype(np.float32)
        for cells in mods.values():
            cells.obs_names = pd.RangeIndex(task.n_obs).astype(str)
        for kind, cells in mods.items():
            cells.var_names = [f"{kind}_{i}" for i in range(cells.n_vars)]
        mods["rna"].obs["batch"] = task.groups  # batch and modalities, as its authors have it
        both = mudata.MuData(mods)
        where = {"rna_layer": "rna", "atac_layer": "atac", "batch_key": "rna"}
        scvi.model.MULTIVI.setup_mudata(both, batch_key="batch", modalities=where)
        sizes = {"n_genes": mods["rna"].n_vars, "n_regions": mods["atac"].n_vars}
        model = scvi.model.MULTIVI(both, **sizes)
        given = {} if task.max_epochs is None else {"max_epochs": task.max_epochs}
        model.train(**given, accelerator="cpu", **_QUIET)
        return model.get_latent_representation()


def _mofa(task: Task) -> np.ndarray:
    import mudata

    muon = require("muon", extra="multimodal", needed_for="the method 'mofa'")
    require("mofapy2", extra="multimodal", needed_for="the method 'mofa'")
    with _silent(task.rng):
        mods = {}
        for kind, x in task.scaled.items():
            there = task.there[kind]
            own = x[there]
            mods[kind] = sc.AnnData(own.toarray() if sparse.issparse(own) else own)
            mods[kind].obs_names, mods[kind].var_names = task.names[there], task.features[kind]
            mods[kind].var_names_make_unique()
        cells = mudata.MuData(mods)
        settings = {"n_factors": 15, "use_var": None, "use_obs": "union", "seed": task.rng + 1, "save_data": False}
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            muon.tl.mofa(cells, outfile=f"{folder}/mofa.hdf5", **settings)
        return pd.DataFrame(cells.obsm["X_mofa"], index=cells.obs_names).loc[task.names].to_numpy()


def _scmomat(task: Task) -> np.ndarray:
    scmomat = require("scmomat", extra="multimodal", needed_for="the method 'scmomat'")
    with _silent(task.rng):
        groups = np.unique(task.groups)
        rows = [np.flatnonzero(task.groups == group) for group in groups]
        kinds = {"rna": "RNA", "protein": "Protein", "atac": "ATAC"}
        counts: dict[str, Any] = {"nbatches": len(groups), "feats_name": {}}
        for kind, x in task.counts.items():
            scaled = x if kind != "atac" else (x > 0).astype(np.float32)
            values = [scaled[own].toarray() if task.there[kind][own].all() else None for own in rows]
            counts[kind] = [
                None if v is None else scmomat.preprocess(v, modality=kinds[kind], log=kind == "rna") for v in values
            ]
            counts["feats_name"][kind] = np.asarray(task.features[kind])
        model = scmomat.scmomat_model(counts=counts, K=30, batch_size=0.1, seed=task.rng, device="cpu")
        model.train_func(T=task.max_epochs or 4000)
        out = np.zeros((task.n_obs, 30), dtype=np.float32)
        for own, factors in zip(rows, model.extract_cell_factors(), strict=True):
            out[own] = factors
        return out


def _glue(task: Task) -> np.ndarray:
    with _silent(task.rng):
        return glue(task)


def _require(task: Task, method: str, *kinds: str) -> None:
    lacking = [kind for kind in kinds if kind not in task.counts]
    if lacking:
        msg = f"{method} needs the modality {lacking[0]!r}, and the cells have {', '.join(map(repr, task.counts))}."
        raise ValueError(msg)


MODAL_METHODS: Mapping[str, Callable[[Task], np.ndarray]] = {
    "pca": _pca,
    "harmony": _harmony,
    "totalvi": _totalvi,
    "multivi": _multivi,
    "mofa": _mofa,
    "scmomat": _scmomat,
    "glue": _glue,
}


def integrate_modalities(
    mdata: MuData,
    batch_key: str | None = None,
    *,
    methods: Sequence[str] = ("pca", "harmony"),
    n_top_genes: int = 1200,
    n_comps: int = 30,
    max_epochs: int | None = None,
    rng: int = 0,
) -> dict[str, Integration]:
    """Other joint spaces of a MuData, cells without a modality included.

    Parameters
    ----------
    mdata
        Cells; not changed. Modalities are found as by :func:`scanpy_scgpt.tl.integrate`.
    batch_key
        Column with the batches.
    methods
        `"pca"` (components of each modality side by side, zero where a cell lacks it), `"harmony"` (these, batches and
        what cells have laid over one another), `"totalvi"` :cite:p:`Gayoso2021` (RNA and proteins), `"multivi"`
        :cite:p:`Ashuach2023` (RNA and chromatin), `"mofa"` :cite:p:`Argelaguet2020` and `"scmomat"`
        :cite:p:`Zhang2023` (the extra `multimodal`), `"glue"` :cite:p:`Cao2022` (the extra `glue`; features are tied to
        the five genes that vary most with them in cells that have both).
    n_top_genes
        Highly variable genes.
    n_comps
        Components of each modality.
    max_epochs
        Of totalVI and MultiVI (by default their own number, with early stopping) and GLUE (300), iterations of
        scMoMaT (4,000).
    rng
        Seed.

    Returns
    -------
    Vectors and time of each method, by its name.

    Raises
    ------
    ValueError
        For an unknown method, or one whose modality is not there.
    ImportError
        When the package of a method is not installed.
    """
    check_mudata(mdata, function="baselines.integrate_modalities")
    methods = [methods] if isinstance(methods, str) else methods
    for name in methods:
        check_one_of(name, MODAL_METHODS, name="a method")
    task = Task(mdata, batch_key, n_top_genes, n_comps, rng)
    task.max_epochs = max_epochs
    out = {}
    for name in methods:
        started = time.perf_counter()
        found = np.asarray(MODAL_METHODS[name](task), dtype=np.float32)
        out[name] = Integration(found, time.perf_counter() - started)
    return out


def impute_modality(
    mdata: MuData,
    to: str = "protein",
    *,
    batch_key: str | None = None,
    methods: Sequence[str] = ("mean", "neighbours", "ridge"),
    n_top_genes: int = 1200,
    n_comps: int = 50,
    max_epochs: int | None = None,
    rng: int = 0,
) -> dict[str, pd.DataFrame]:
    """Simple predictions of a modality for all cells, learned from the cells that have it.

    Parameters
    ----------
    mdata
        Cells; not changed.
    to
        Name of the modality, or its kind: `"protein"`, `"atac"`, `"rna"`.
    batch_key
        Column with the batches, for totalVI.
    methods
        `"mean"` (the same for all cells), `"neighbours"` (mean of the 25 nearest cells by components of the other
        modalities), `"ridge"` (regression on these components), `"totalvi"` :cite:p:`Gayoso2021` (proteins from RNA).
    n_top_genes, n_comps, max_epochs, rng
        As of :func:`integrate_modalities`.

    Returns
    -------
    By method a table of all cells, on the scale of :func:`scanpy_scgpt.tl.impute_modality`.

    Raises
    ------
    ValueError
        For an unknown method or modality, or when fewer than 20 cells have it beside another.
    """
    check_mudata(mdata, function="baselines.impute_modality")
    methods = [methods] if isinstance(methods, str) else methods
    for name in methods:
        check_one_of(name, ("mean", "neighbours", "ridge", "totalvi"), name="a method")
    task = Task(mdata, batch_key, n_top_genes, n_comps, rng)
    task.max_epochs = max_epochs
    check_one_of(to, dict.fromkeys([*task.kinds, *task.counts]), name="to")
    to = task.kinds.get(to, to)
    others = [v for kind, v in task.there.items() if kind != to]
    there = task.there[to] & np.any([np.zeros(task.n_obs, dtype=bool), *others], axis=0)
    if there.sum() < _LEAST:
        msg = (
            f"{int(there.sum())} cells have {to} beside another modality, and at least {_LEAST} are needed to learn "
            "one from the other."
        )
        raise ValueError(msg)
    x = np.concatenate([v for kind, v in task.components.items() if kind != to], axis=1)
    counts = task.counts[to]
    if to == "rna":
        y = logged(counts, task.depth)
    else:
        y = counts.log1p() if to == "protein" else (counts > 0).astype(np.float32)
    known, n_near = y[there].toarray(), min(_NEIGHBOURS, int(there.sum()))
    out = {}
    for name in methods:
        if name == "mean":
            found = np.broadcast_to(known.mean(axis=0), y.shape)
        elif name == "totalvi":
            found = _totalvi_proteins(task)
        else:
            one = RidgeCV(np.logspace(0, 5, 11)) if name == "ridge" else KNeighborsRegressor(n_near)
            found = one.fit(x[there], known).predict(x)
        out[name] = pd.DataFrame(np.asarray(found, dtype=np.float32), index=task.names, columns=task.features[to])
    return out


def _totalvi_proteins(task: Task) -> np.ndarray:
    """Expected counts of proteins, logged, as if every cell came from a batch that has them."""
    with _silent(task.rng):
        model = _totalvi_model(task)
        with_proteins = sorted(set(task.groups[task.there["protein"]]))
        settings = {"n_samples": 25, "return_mean": True, "include_protein_background": True}
        _, proteins = model.get_normalized_expression(transform_batch=with_proteins, **settings)
        return np.log1p(proteins.to_numpy())
