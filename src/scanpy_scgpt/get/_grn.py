"""Networks of genes as tables and graphs, and the genes most like others."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from scanpy_scgpt._keys import GrnKeys
from scanpy_scgpt._validate import check_one_of

if TYPE_CHECKING:
    from anndata import AnnData

_GROUP = "group"


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
        edges = edges[edges["source"].isin(list(genes)) & edges["target"].isin(list(genes))]
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
    directed: bool = False,
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
        Edges go from `source` to `target`.

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
    own = pd.concat([edges["source"], edges["target"]])
    nodes = list(dict.fromkeys([*(genes or ()), *own]))
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
        A gene; or several, whose mean vector is taken; or genes and their weights in the mean.
    n
        Number of genes.
    use_varm
        Key in `.varm`, as :func:`scanpy_scgpt.tl.grn` and `tl.embed(gene_embeddings=True)` write it.

    Returns
    -------
    Cosines by gene, the largest first; a single gene itself is the first.

    Raises
    ------
    KeyError
        When there are no such vectors or genes.
    """
    if use_varm not in adata.varm:
        found = ", ".join(map(str, adata.varm)) or "none"
        msg = f"adata.varm has no {use_varm!r}. Found: {found}. Get the vectors of genes: scgpt.tl.grn(adata)."
        raise KeyError(msg)
    vectors = pd.DataFrame(np.asarray(adata.varm[use_varm]), index=adata.var_names).dropna()
    weights = {genes: 1.0} if isinstance(genes, str) else genes
    weights = pd.Series(weights if isinstance(weights, Mapping) else dict.fromkeys(weights, 1.0), dtype=float)
    if lacking := [gene for gene in weights.index if gene not in vectors.index]:
        near = difflib.get_close_matches(lacking[0], vectors.index, n=1)
        hint = f"; did you mean {near[0]!r}" if near else ""
        msg = f"{lacking[0]!r} has no vector in adata.varm[{use_varm!r}]{hint}."
        raise KeyError(msg)
    mean = weights.to_numpy() @ vectors.loc[weights.index].to_numpy() / weights.sum()
    lengths = np.linalg.norm(vectors.to_numpy(), axis=1) * np.linalg.norm(mean)
    cosines = pd.Series(vectors.to_numpy() @ mean / lengths, index=vectors.index, name="cosine")
    return cosines.sort_values(ascending=False, kind="stable").head(n)


def _edges(adata: AnnData, key: str) -> pd.DataFrame:
    edges = adata.uns.get(key)
    if not isinstance(edges, pd.DataFrame) or not {"source", "target", "weight"} <= set(edges):
        near = difflib.get_close_matches(key, map(str, adata.uns), n=1)
        hint = f"; did you mean {near[0]!r}" if near and near[0] != key else ""
        added = "" if key == GrnKeys.edges else f", key_added={key!r}"
        msg = f"adata.uns has no network {key!r}{hint}. Make it first: scgpt.tl.grn(adata{added})."
        raise KeyError(msg)
    return edges
