"""GLUE, which ties the features of modalities to one another by a graph."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from typing import TYPE_CHECKING

import networkx as nx
import numpy as np
import scanpy as sc
from scipy import sparse

from scanpy_scgpt._optional import require

if TYPE_CHECKING:
    from ._modal_task import Task

_PARTNERS, _LEAST = 5, 0.1  # genes that a feature is tied to, and the correlation that it takes
_EPOCHS = 300


def glue(task: Task) -> np.ndarray:
    """Vectors of all cells; of a cell with several modalities the mean of its vectors."""
    scglue = require("scglue", extra="glue", needed_for="the method 'glue'")
    scglue.log.console_log_level = logging.ERROR
    parts = {}
    for kind, there in task.there.items():
        cells = sc.AnnData(sparse.csr_matrix(np.rint(task.counts[kind][there])))
        cells.obs_names = task.names[there]
        cells.var_names = [f"{kind}:{name}" for name in task.features[kind]]
        cells.obs["batch"] = task.batch[there]
        cells.obsm["X_parts"] = task.components[kind][there]
        several = {"use_batch": "batch"} if len(np.unique(task.batch)) > 1 else {}
        scglue.models.configure_dataset(
            cells, "NB", use_highly_variable=False, use_rep="X_parts", use_obs_names=True, **several
        )
        parts[kind] = cells
    graph = guidance(task, parts)
    out, n = np.zeros((task.n_obs, 0), dtype=np.float32), np.zeros((task.n_obs, 1), dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder:
        fit = {"directory": folder, "max_epochs": task.max_epochs or _EPOCHS}
        model = scglue.models.fit_SCGLUE(
            parts, graph, model=scglue.models.PairedSCGLUEModel, init_kws={"random_seed": task.rng}, fit_kws=fit
        )
        for kind, there in task.there.items():
            found = model.encode_data(kind, parts[kind])
            out = np.zeros((task.n_obs, found.shape[1]), dtype=np.float32) if not out.size else out
            out[there] += found
            n[there] += 1
    return out / np.maximum(n, 1)


def guidance(task: Task, parts: Mapping[str, sc.AnnData]) -> nx.MultiDiGraph:
    """Each feature by itself, and tied to the genes that vary most with it in cells that have both."""
    graph = nx.MultiDiGraph()
    for cells in parts.values():
        graph.add_edges_from((name, name, {"weight": 1.0, "sign": 1}) for name in cells.var_names)
    if "rna" not in parts:
        return graph
    genes = task.scaled["rna"]
    for kind in [kind for kind in parts if kind != "rna"]:
        both = task.there["rna"] & task.there[kind]
        if both.sum() < 2:  # noqa: PLR2004 - no correlation of one cell
            continue
        correlation = _correlation(genes[both], task.scaled[kind][both])
        for j, name in enumerate(parts[kind].var_names):
            for i in np.argsort(-np.abs(correlation[:, j]), kind="stable")[:_PARTNERS]:
                weight = float(correlation[i, j])
                if abs(weight) > _LEAST:
                    edge = {"weight": abs(weight), "sign": 1 if weight > 0 else -1}
                    gene = parts["rna"].var_names[i]
                    graph.add_edge(gene, name, **edge)
                    graph.add_edge(name, gene, **edge)
    return graph


def _correlation(x: np.ndarray | sparse.csr_matrix, y: np.ndarray | sparse.csr_matrix) -> np.ndarray:
    """Of each column of x with each of y, shape `(n_x, n_y)`."""
    x, y = (z.toarray() if sparse.issparse(z) else np.asarray(z) for z in (x, y))
    x, y = ((z - z.mean(axis=0)) / np.maximum(z.std(axis=0), 1e-9) for z in (x, y))
    return (x.T @ y) / len(x)
