"""Networks of genes as tables and graphs, and the genes most like others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from scanpy_scgpt._keys import GrnKeys, center_of
from scanpy_scgpt._validate import check_one_of, nearest

if TYPE_CHECKING:
    from anndata import AnnData

_GROUP, _NO_LENGTH = "group", 1e-9


def grn_edges(
    adata: AnnData,
    *,
    key: str = GrnKeys.edges,
    group: str | None = None,
    genes: Sequence[str] | None = None,
    threshold: float | None = None,
    both_ways: bool = False,
) -> pd.DataFrame:
    """Edges of a network of genes.

    Parameters
    ----------
    adata
        Cells, after :func:`scanpy_scgpt.tl.grn`.
    key
        Its `key_added`.
    group
        Edges of one group of cells alone.
    genes
        Edges among these genes alone.
    threshold
        Edges with a weight above it alone.
    both_ways
        Each edge twice, once from each end: what `decoupler` and others that go by `source` need of edges without a
        direction.

    Returns
    -------
    Table with `source`, `target`, `weight` and what else the network has.

    Raises
    ------
    KeyError
        When there is no such network.
    ValueError
        When it has no such group.
    """
    edges = _edges(adata, key)
    if group is not None:
        groups = [] if _GROUP not in edges else list(dict.fromkeys(edges[_GROUP]))
        check_one_of(group, groups, name="group")
        edges = edges[edges[_GROUP] == group]
    if genes is not None:
        genes = _named(adata, genes, edges)
        edges = edges[edges["source"].isin(genes) & edges["target"].isin(genes)]
    if threshold is not None:
        edges = edges[edges["weight"] > threshold]
    if both_ways:
        edges = pd.concat([edges, edges.rename(columns={"source": "target", "target": "source"})])
    return edges.reset_index(drop=True)


def grn_graph(
    adata: AnnData,
    *,
    as_: Literal["networkx", "igraph"] = "networkx",
    key: str = GrnKeys.edges,
    group: str | None = None,
    genes: Sequence[str] | None = None,
    threshold: float | None = None,
    directed: bool | None = None,
) -> Any:
    """A network of genes as a graph.

    Parameters
    ----------
    adata
        Cells, after :func:`scanpy_scgpt.tl.grn`.
    as_
        Package: `"networkx"` or `"igraph"`.
    key, group, genes, threshold
        As in :func:`grn_edges`.
    directed
        Edges go from `source` to `target`; by default those of attention do. Without a direction the larger of two
        opposite edges counts.

    Returns
    -------
    A `networkx.Graph` (or `DiGraph`) or an `igraph.Graph`: genes by name, edges with `weight`. Genes without an edge
    are in it when `genes` names them.

    Raises
    ------
    KeyError
        When there is no such network.
    ValueError
        When it has no such group, or several and `group` names none.
    """
    check_one_of(as_, ("networkx", "igraph"), name="as_")
    edges = grn_edges(adata, key=key, group=group, genes=genes, threshold=threshold)
    if _GROUP in edges and edges[_GROUP].nunique() > 1:
        names = ", ".join(map(repr, dict.fromkeys(edges[_GROUP])))
        msg = f"adata.uns[{key!r}] has networks of several groups: {names}. Name one: group=..."
        raise ValueError(msg)
    directed = _has_direction(edges) if directed is None else directed
    if not directed:
        edges = _one_way(edges)
    own = pd.concat([edges["source"], edges["target"]])
    nodes = list(dict.fromkeys([*([] if genes is None else _named(adata, genes, edges)), *own]))
    if as_ == "igraph":
        import igraph

        rows = edges[["source", "target", "weight"]].itertuples(index=False)
        number = {gene: i for i, gene in enumerate(nodes)}
        graph = igraph.Graph(n=len(nodes), directed=directed, vertex_attrs={"name": nodes})
        pairs = [(number[source], number[target]) for source, target, _ in rows]
        graph.add_edges(pairs, attributes={"weight": edges["weight"].tolist()})
        return graph
    import networkx as nx

    graph = nx.DiGraph() if directed else nx.Graph()
    graph.add_nodes_from(nodes)
    graph.add_weighted_edges_from(zip(edges["source"], edges["target"], edges["weight"].tolist(), strict=True))
    return graph


def _named(adata: AnnData, genes: str | Sequence[str], edges: pd.DataFrame) -> list[str]:
    """The genes, all of which must be there."""
    wanted = [genes] if isinstance(genes, str) else list(map(str, genes))
    known = {*adata.var_names.astype(str), *edges["source"], *edges["target"]}
    lost = [gene for gene in wanted if gene not in known]
    if lost:
        near = nearest(lost[0], sorted(known))
        hint = f"; did you mean {near!r}" if near else ""
        msg = f"{len(lost)} of the {len(wanted)} genes are not there, such as {lost[0]!r}{hint}. Leave them out."
        raise ValueError(msg)
    return wanted


def _has_direction(edges: pd.DataFrame) -> bool:
    """Whether any pair stands in the table from either end with two weights."""
    turned = edges.rename(columns={"source": "target", "target": "source"})
    both = edges.merge(turned, on=["source", "target"], suffixes=("", "_back"))
    return bool((both["weight"] != both["weight_back"]).any())


def _one_way(edges: pd.DataFrame) -> pd.DataFrame:
    """Each pair once, with the weight of the larger size."""
    pair = np.sort(edges[["source", "target"]].astype(str).to_numpy(), axis=1)
    order = edges["weight"].abs().sort_values(ascending=False, kind="stable").index
    first = ~pd.DataFrame(pair, index=edges.index).loc[order].duplicated()
    return edges.loc[np.sort(first.index[first])]


def similar_genes(
    adata: AnnData,
    genes: str | Sequence[str] | Mapping[str, float],
    *,
    n: int = 20,
    use_varm: str = GrnKeys.varm,
) -> pd.Series:
    """Genes whose vectors are most like that of a gene, or the mean of several.

    Parameters
    ----------
    adata
        Cells with vectors of genes in `.varm`.
    genes
        A gene; or several, whose mean vector is taken; or genes and their weights in the mean, also below 0.
    n
        Number of genes.
    use_varm
        Key in `.varm`, as :func:`scanpy_scgpt.tl.grn` and `tl.embed(gene_embeddings=True)` write it. Off the vectors of
        a group of cells the mean of its tokens is taken first, as for the edges of `tl.grn`.

    Returns
    -------
    Cosines by gene, the largest first; a single gene itself is the first.

    Raises
    ------
    KeyError
        When there are no such vectors or genes.
    ValueError
        For fewer than one gene, or weights whose mean has no length.
    """
    if use_varm not in adata.varm:
        found = ", ".join(map(str, adata.varm)) or "none"
        msg = f"adata.varm has no {use_varm!r}. Found: {found}. Get the vectors of genes: scgpt.tl.grn(adata)."
        raise KeyError(msg)
    center = center_of(adata.uns, use_varm)
    vectors = pd.DataFrame(np.asarray(adata.varm[use_varm]) - center, index=adata.var_names).dropna()
    weights = {genes: 1.0} if isinstance(genes, str) else genes
    if n < 1 or not len(weights):
        msg = f"n={n!r}: give 1 or more." if n < 1 else "genes is empty: name a gene, or several."
        raise ValueError(msg)
    weights = pd.Series(weights if isinstance(weights, Mapping) else dict.fromkeys(weights, 1.0), dtype=float)
    if lacking := [gene for gene in weights.index if gene not in vectors.index]:
        near = nearest(lacking[0], vectors.index)
        hint = f"; did you mean {near!r}" if near else ""
        msg = f"{lacking[0]!r} has no vector in adata.varm[{use_varm!r}]{hint}."
        raise KeyError(msg)
    mean = weights.to_numpy() @ vectors.loc[weights.index].to_numpy()
    if not np.linalg.norm(mean) > _NO_LENGTH:
        msg = f"The weighted mean of {', '.join(map(repr, weights.index[:3]))} has no length. Give other weights."
        raise ValueError(msg)
    lengths = np.linalg.norm(vectors.to_numpy(), axis=1) * np.linalg.norm(mean)
    cosines = pd.Series(vectors.to_numpy() @ mean / lengths, index=vectors.index, name="cosine")
    return cosines.sort_values(ascending=False, kind="stable").head(n)


def _edges(adata: AnnData, key: str) -> pd.DataFrame:
    edges = adata.uns.get(key)
    if not isinstance(edges, pd.DataFrame) or not {"source", "target", "weight"} <= set(edges):
        near = nearest(key, adata.uns)
        hint = f"; did you mean {near!r}" if near and near != key else ""
        added = "" if key == GrnKeys.edges else f", key_added={key!r}"
        msg = f"adata.uns has no network {key!r}{hint}. Make it first: scgpt.tl.grn(adata{added})."
        raise KeyError(msg)
    return edges
