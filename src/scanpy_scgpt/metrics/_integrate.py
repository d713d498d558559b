"""How well batches are brought together, and how well cell types stay apart: the published scores."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, silhouette_samples
from sklearn.neighbors import NearestNeighbors

from scanpy_scgpt._optional import require

_RESOLUTIONS = np.round(np.arange(0.1, 2.01, 0.1), 1)
_BIO, _BATCH = 0.6, 0.4  # shares of the overall score
_FEWEST = 2
COLUMNS = ("nmi", "ari", "asw_label", "avg_bio", "asw_batch", "graph_connectivity", "avg_batch", "overall")


def integration(
    embedding: ArrayLike | Mapping[str, ArrayLike],
    labels: ArrayLike,
    batches: ArrayLike,
    *,
    n_neighbors: int = 15,
    rng: int = 0,
) -> pd.DataFrame:
    """AvgBIO, AvgBATCH and overall score of :cite:t:`Cui2024`, after :cite:t:`Luecken2022`.

    Cells are clustered (Leiden) at the resolutions 0.1, 0.2, ... 2.0 of a graph of nearest neighbours, and the
    clustering that agrees best with the labels counts. That search looks at the labels and so flatters; it is the same
    for every method. Cells without a label are left out of everything.

    Parameters
    ----------
    embedding
        Vectors of the cells, shape `(n_cells, n_dims)`; or one such array for each method, by its name.
    labels
        Cell type of each cell, shape `(n_cells,)`; NaN or None where there is none.
    batches
        Batch of each cell, shape `(n_cells,)`.
    n_neighbors
        Neighbours of the graph.
    rng
        Seed of the clustering.

    Returns
    -------
    One row for each method. `nmi` and `ari` of that clustering; `asw_label`: silhouette of the labels, brought to 0 to
    1; `avg_bio`: mean of the three. `asw_batch`: inside each label 1 less the absolute silhouette of the batches;
    `graph_connectivity`: share of a label in its largest connected part; `avg_batch`: mean of the two. `overall`:
    0.6 `avg_bio` + 0.4 `avg_batch`.

    Raises
    ------
    ValueError
        When lengths differ, vectors have NaN, a labelled cell has no batch, or there are fewer than two labels or
        batches.
    """
    methods = embedding if isinstance(embedding, Mapping) else {"embedding": embedding}
    known = pd.notna(pd.Series(np.asarray(labels, dtype=object))).to_numpy()
    names, groups = np.asarray(labels, dtype=object)[known].astype(str), np.asarray(batches, dtype=object)
    _check(methods, known, groups)
    groups = groups[known].astype(str)
    for what, values in (("labels", names), ("batches", groups)):
        if len(np.unique(values)) < _FEWEST:
            found = np.unique(values).tolist()
            msg = f"{what} of the cells with a label: {found}; the scores compare at least two of them."
            raise ValueError(msg)
    rows = {
        name: _scores(np.asarray(x, dtype=np.float64)[known], names, groups, n_neighbors, rng)
        for name, x in methods.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(COLUMNS)).rename_axis("method")


def scib(
    embedding: ArrayLike | Mapping[str, ArrayLike], labels: ArrayLike, batches: ArrayLike, *, n_neighbors: int = 90
) -> pd.DataFrame:
    """The measures of the package scib-metrics :cite:p:`Luecken2022`, which the extra `scib` installs.

    Parameters
    ----------
    embedding, labels, batches
        As of :func:`integration`.
    n_neighbors
        Neighbours that the local measures look at; a third of the cells at most.

    Returns
    -------
    One row for each method: `silhouette_label`, `silhouette_batch`, `isolated_labels`, `nmi_kmeans`, `ari_kmeans`,
    `clisi`, `ilisi`, `kbet`, `graph_connectivity`.

    Raises
    ------
    ImportError
        Without the package.
    ValueError
        As :func:`integration`.
    """
    tools = require("scib_metrics", extra="scib", needed_for="metrics.scib")
    nearest = require("scib_metrics.nearest_neighbors", extra="scib", needed_for="metrics.scib")
    methods = embedding if isinstance(embedding, Mapping) else {"embedding": embedding}
    known = pd.notna(pd.Series(np.asarray(labels, dtype=object))).to_numpy()
    groups = np.asarray(batches, dtype=object)
    _check(methods, known, groups)
    names, groups = np.asarray(labels, dtype=object)[known].astype(str), groups[known].astype(str)
    rows = {}
    for method, x in methods.items():
        vectors = np.ascontiguousarray(np.asarray(x, dtype=np.float32)[known])
        near = nearest.pynndescent(vectors, n_neighbors=min(n_neighbors, len(vectors) // 3), random_state=0)
        clusters = tools.nmi_ari_cluster_labels_kmeans(vectors, names)
        rows[method] = {
            "silhouette_label": tools.silhouette_label(vectors, names),
            "silhouette_batch": tools.silhouette_batch(vectors, names, groups),
            "isolated_labels": tools.isolated_labels(vectors, names, groups),
            "nmi_kmeans": clusters["nmi"],
            "ari_kmeans": clusters["ari"],
            "clisi": tools.clisi_knn(near, names),
            "ilisi": tools.ilisi_knn(near, groups),
            "kbet": tools.kbet_per_label(near, groups, names),
            "graph_connectivity": tools.graph_connectivity(near.subset_neighbors(15), names),
        }
    return pd.DataFrame.from_dict(rows, orient="index").astype(float).rename_axis("method")


def _check(methods: Mapping[str, ArrayLike], known: np.ndarray, batches: np.ndarray) -> None:
    if len(batches) != len(known):
        msg = f"labels has {len(known):,} entries, batches {len(batches):,}; both need one per cell."
        raise ValueError(msg)
    if pd.isna(batches[known]).any():
        n = int(pd.isna(batches[known]).sum())
        msg = f"batches: {n:,} cells with a label have no batch. Give them one, or set their labels to None."
        raise ValueError(msg)
    for name, given in methods.items():
        x = np.asarray(given)
        if x.ndim != 2:  # noqa: PLR2004 - cells, values
            msg = f"{name} has the shape {x.shape}; vectors of cells are a table, (n_cells, n_dims)."
            raise ValueError(msg)
        if len(x) != len(known):
            msg = f"{name}: {len(x):,} rows, and labels has {len(known):,} entries; both need one per cell."
            raise ValueError(msg)
        if not np.isfinite(x[known]).all():
            n = int((~np.isfinite(x[known])).any(axis=1).sum())
            msg = f"{name}: {n:,} rows have NaN or infinite values. Leave these cells out of everything."
            raise ValueError(msg)


def _scores(x: np.ndarray, labels: np.ndarray, batches: np.ndarray, n_neighbors: int, rng: int) -> list[float]:
    graph = NearestNeighbors(n_neighbors=min(n_neighbors, len(x) - 1)).fit(x).kneighbors_graph(mode="connectivity")
    graph = sparse.csr_matrix(graph.maximum(graph.T))
    nmi, ari = _best_clustering(graph, labels, rng)
    asw = (silhouette_samples(x, labels).mean() + 1) / 2
    mixed = _batch_silhouette(x, labels, batches)
    parts = []
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        parts.append(np.bincount(connected_components(graph[own][:, own], directed=False)[1]).max() / len(own))
    connected = float(np.mean(parts))
    bio, batch = (nmi + ari + asw) / 3, (mixed + connected) / 2
    return [nmi, ari, float(asw), float(bio), mixed, connected, float(batch), float(_BIO * bio + _BATCH * batch)]


def _best_clustering(graph: sparse.csr_matrix, labels: np.ndarray, rng: int) -> tuple[float, float]:
    """NMI and ARI at the resolution with the best NMI."""
    import igraph
    import leidenalg

    upper = sparse.triu(graph, k=1).tocoo()
    made = igraph.Graph(n=graph.shape[0], edges=np.column_stack([upper.row, upper.col]))
    kind, settings = leidenalg.RBConfigurationVertexPartition, {"n_iterations": 2, "seed": rng}
    best = (-1.0, 0.0)
    for resolution in _RESOLUTIONS.tolist():
        found = leidenalg.find_partition(made, kind, resolution_parameter=resolution, **settings).membership
        nmi = normalized_mutual_info_score(labels, found)
        if nmi > best[0]:
            best = (float(nmi), float(adjusted_rand_score(labels, found)))
    return best


def _batch_silhouette(x: np.ndarray, labels: np.ndarray, batches: np.ndarray) -> float:
    """Mean over the labels of the mean of 1 less the absolute silhouette of the batches."""
    found = []
    for label in np.unique(labels):
        own = labels == label
        n = len(np.unique(batches[own]))
        if 1 < n < own.sum():
            found.append(np.mean(1 - np.abs(silhouette_samples(x[own], batches[own]))))
    return float(np.mean(found)) if found else float("nan")
