"""Blood against other tissues: does a corpus of the same tissue help to integrate donors of blood?

    python -m benchmarks.studies.context [--data FOLDER] [--seeds N] [--steps N]

Networks learn from all cells of the files of other tissues, or from as many random blood cells of files with whole gene
lists, with the same number of steps. Both embed blood of eight donors, frozen. AvgBIO is the mean of NMI, ARI and the
silhouette of the labels, scaled to 0 to 1: Louvain clusters of the neighbour graph at ten fixed resolutions, the one
with the best NMI counts, for every method. AvgBATCH is the mean of the connectivity of the graph inside the labels and
of 1 - |silhouette of the donors|.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from anndata import AnnData
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, silhouette_score
from sklearn.neighbors import kneighbors_graph
from sklearn.preprocessing import normalize

from benchmarks.studies._common import (
    UNTRAINED,
    Kept,
    Setup,
    cells_of,
    digest,
    read,
    run,
    store_of,
    trained,
    vocabulary,
)
from benchmarks.studies._tables import Arms
from scanpy_scgpt import baselines, models, tl
from scanpy_scgpt.io import Checkpoint

OTHERS = (
    "tumour_breast_gao2021.h5ad",
    "pancreas_baron2016_175.h5ad",
    "pancreas_fetal_cimseq.h5ad",
    "brain_npc_pollen2014_64.h5ad",
    "celllines_cimseq_81.h5ad",
)
BLOOD = (  # with whole gene lists, as the others
    "pbmc_3chemistries_10x.h5ad",
    "pbmc_hao2021_1k.h5ad",
    "cite_mimitou2019_500.h5mu",
    "pbmc_celltypist_sample.h5ad",
)
TARGET = "pbmc_kang2018_ctrl_8donors.h5ad"
TARGET_CELLS = 1000
RESOLUTIONS = tuple(np.arange(1, 11) / 5)
NEIGHBOURS = 15
FROM_BLOOD, FROM_OTHERS, QUERY_PCA = "blood", "other tissues", "PCA of the query"
MEASURES = ("AvgBIO", "NMI", "ARI", "ASW of labels", "AvgBATCH")


def target(setup: Setup) -> AnnData:
    """Random labelled cells of all donors."""
    adata = read(setup.data / TARGET)
    rows = np.flatnonzero(adata.obs["cell_type"].astype(str) != "unlabelled")
    return adata[np.sort(np.random.default_rng(0).permutation(rows)[:TARGET_CELLS])].copy()


def neighbours(vectors: np.ndarray) -> sparse.csr_matrix:
    """Graph of the nearest neighbours by cosine, in either direction."""
    graph = kneighbors_graph(normalize(vectors), NEIGHBOURS)
    return sparse.csr_matrix(graph.maximum(graph.T))


def clusters(graph: sparse.csr_matrix, resolution: float) -> np.ndarray:
    """Louvain cluster of each cell."""
    import networkx

    found = networkx.community.louvain_communities(
        networkx.from_scipy_sparse_array(graph), resolution=float(resolution), seed=0
    )
    cluster = np.empty(graph.shape[0], dtype=int)
    for i, members in enumerate(found):
        cluster[list(members)] = i
    return cluster


def connected(graph: sparse.csr_matrix, labels: np.ndarray) -> float:
    """Share of the cells of a label in its largest connected part, mean over the labels."""
    parts = [connected_components(graph[labels == label][:, labels == label])[1] for label in np.unique(labels)]
    return float(np.mean([np.bincount(part).max() / len(part) for part in parts]))


def integration(vectors: np.ndarray, labels: np.ndarray, donors: np.ndarray) -> dict[str, float]:
    """Scores of an embedding."""
    graph = neighbours(vectors)
    found = [clusters(graph, resolution) for resolution in RESOLUTIONS]
    best = max(found, key=lambda cluster: normalized_mutual_info_score(labels, cluster))
    nmi, ari = normalized_mutual_info_score(labels, best), adjusted_rand_score(labels, best)
    asw = (silhouette_score(vectors, labels, metric="cosine") + 1) / 2
    mixed = 1 - abs(silhouette_score(vectors, donors, metric="cosine"))
    values = (np.mean([nmi, ari, asw]), nmi, ari, asw, np.mean([mixed, connected(graph, labels)]))
    return dict(zip(MEASURES, map(float, values), strict=True))


def scores(adata: AnnData, checkpoint: Checkpoint | None) -> dict[str, float]:
    """Scores of the frozen embedding of a network, or of PCA."""
    if checkpoint is None:
        baselines.embed_pca(adata, key_added="X_study")
    else:
        tl.embed(adata, checkpoint, key_added="X_study", device="cpu", backend="torch")
    labels, donors = (adata.obs[column].astype(str).to_numpy() for column in ("cell_type", "batch"))
    return integration(adata.obsm["X_study"], labels, donors)


def one(setup: Setup, others: AnnData, blood: AnnData, adata: AnnData, *, seed: int) -> Arms:
    """Both corpora with the same seed."""
    vocab = vocabulary(setup)
    rows = np.random.default_rng(seed).permutation(blood.n_obs)[: others.n_obs]
    name = f"context-{digest(BLOOD, OTHERS, others.n_obs)}"
    stores = {
        FROM_BLOOD: store_of(setup, f"{name}-blood-{seed}", vocab, blood[np.sort(rows)].copy),
        FROM_OTHERS: store_of(setup, f"{name}-others", vocab, lambda: others),
    }
    networks = {arm: trained(setup, store, seed=seed) for arm, store in stores.items()}
    networks[UNTRAINED] = models.untrained(networks[FROM_BLOOD], rng=seed)
    return {arm: scores(adata, checkpoint) for arm, checkpoint in networks.items()}


def study(setup: Setup) -> dict[str, Any]:
    """All runs, or those that are missing."""
    vocab, adata = vocabulary(setup), target(setup)
    others, blood = (cells_of(setup, files, vocab) for files in (OTHERS, BLOOD))
    kept = Kept(setup, blood=BLOOD, others=OTHERS, target_cells=adata.n_obs, neighbours=NEIGHBOURS)
    kept.once("PCA", lambda: {QUERY_PCA: scores(adata, None)})
    result = {}
    for seed in range(setup.seeds):
        kept.once("corpora", partial(one, setup, others, blood, adata, seed=seed), seed=seed)
        result = kept.result(**described(cells=others.n_obs))
    return result


def described(*, cells: int) -> dict[str, Any]:
    """What the tables and figures show."""
    rivals = (FROM_OTHERS, UNTRAINED, QUERY_PCA)
    return {
        "cells": cells,
        "directions": dict.fromkeys(MEASURES, "higher"),
        "tables": [{"title": f"Blood of eight donors ({Path(TARGET).stem})", "measures": list(MEASURES)}],
        "comparisons": [[FROM_BLOOD, rival, measure] for rival in rivals for measure in ("AvgBIO", "AvgBATCH")],
        "figure": {
            "panels": [{"measure": measure, "arms": [FROM_BLOOD, *rivals]} for measure in ("AvgBIO", "AvgBATCH")]
        },
    }


def main() -> int:
    return run(study, "context", __doc__)


if __name__ == "__main__":
    sys.exit(main())
