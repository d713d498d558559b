"""`tl.grn`: networks of genes."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from scanpy_scgpt._keys import UNS, AttentionKeys, GrnKeys
from scanpy_scgpt._logging import get_logger
from scanpy_scgpt._validate import check_anndata, check_one_of, copied, seed_of
from scanpy_scgpt._version import __version__
from scanpy_scgpt.io import Checkpoint

from ._attention_grn import attention_network
from ._gene_graph import cosine_pairs
from ._gene_lists import chosen_genes
from ._gene_vectors import ALL, context_vectors, group_codes, matched, network_of, table_vectors

if TYPE_CHECKING:
    from anndata import AnnData

    from scanpy_scgpt.model import SCGPT

logger = get_logger(__name__)
METHODS = ("embedding", "attention")
_THRESHOLD = 0.4  # of the paper's network of CD genes


def grn(
    adata: AnnData,
    model: str | os.PathLike[str] | Checkpoint | SCGPT | None = None,
    *,
    method: Literal["embedding", "attention"] = "embedding",
    genes: Sequence[str] | str | None = None,
    groupby: str | None = None,
    groups: Sequence[str] | None = None,
    threshold: float | None = None,
    n_neighbors: int | None = None,
    center: bool | None = None,
    min_cells: int = 10,
    layer: str | None = None,
    use_raw: bool | None = None,
    gene_symbols: str | None = None,
    min_genes: int = 1,
    device: str = "auto",
    key_added: str | None = None,
    rng: int | np.random.Generator | None = 0,
    copy: bool = False,
    **kwargs: Any,
) -> AnnData | None:
    """Link genes whose vectors are alike, or of which one attends to the other :cite:p:`Cui2024`.

    With `method="embedding"` an edge is the cosine of two vectors of genes: rows of the gene table of a pretrained or
    fine-tuned network, which no cell is needed for; or, with `groupby`, what the last layer gives for a gene, averaged
    over the cells of a group that express it. Cells are streamed, so memory grows with genes and groups alone. Edges
    have no direction and no sign: two genes are used alike, which is not regulation.

    Parameters
    ----------
    adata
        Cells, shape `(n_obs, n_vars)`; without `groupby` only the names of the genes are looked at.
    model
        Name or folder of a checkpoint or of a fine-tuned model, a checkpoint, a model object such as
        :class:`scanpy_scgpt.model.SCGPT`, or `None` for `settings.model`.
    method
        `"embedding"`, or `"attention"`.
    genes
        Genes to link: names, or a column of `.var` with True and False. By default `.var["highly_variable"]` where
        there is one, else all; with `method="attention"` the 1,200 most variable, or as many as a number says.
    groupby
        Column of `.obs`: a network for each of its groups.
    groups
        Some of the groups.
    threshold
        Link pairs with a cosine above it; 0.4 by default where `n_neighbors` is not given.
    n_neighbors
        Link each gene to so many nearest; with `threshold`, to those of them above it.
    center
        Take the mean over all genes (with `groupby`, over all tokens of a group) off the vectors first. By default with
        `groupby`: what the last layer gives has a large part that all genes share.
    min_cells
        With `groupby`: fewest cells of a group, and fewest cells of it that express a gene.
    layer, use_raw, gene_symbols
        Where counts and gene names are; see :func:`scanpy_scgpt.pp.tokenize`.
    min_genes
        Fewest genes that must be in the vocabulary.
    device
        `"auto"`, or a torch device.
    key_added
        Name in `.uns` in place of `scgpt_grn`; the vectors then stand in `.varm["<key_added>_genes"]`.
    rng
        Seed of random ties, and of the choice of genes of cells that have too many.
    copy
        Return a copy instead of writing to `adata`.
    **kwargs
        Of `method="attention"`.

    Returns
    -------
    `None`, or the copy if `copy=True`. Sets the fields

    `.uns["scgpt_grn"]` : :class:`pandas.DataFrame`
        An edge a row: `source`, `target`, `weight` (the cosine), each pair once, the strongest first; with `groupby`
        also `group`. Read it with :func:`scanpy_scgpt.get.grn_edges` or :func:`scanpy_scgpt.get.grn_graph`.
    `.varm["scgpt_genes"]` : float32, shape `(n_vars, d_model)`
        Vector of each gene, NaN where it is not in the vocabulary. With `groupby` it is `scgpt_genes_<group>`, one for
        each group, with NaN also where a gene was not asked for or too few cells have it.
    `.uns["scgpt"]["grn"]` : :class:`dict`
        Model and its hash, settings, numbers of genes and edges.

    Raises
    ------
    KeyError
        When there is no such column.
    ValueError
        When no two of the genes are there, a group is missing or too small, or there are too many edges.
    TypeError
        For a keyword that the method does not take.
    GeneMatchError
        When fewer than `min_genes` genes are in the vocabulary.
    CheckpointError
        With `groupby`, for a network that normalises what enters batch by batch.

    Examples
    --------
    >>> scgpt.tl.grn(adata, genes=[gene for gene in adata.var_names if gene.startswith("HLA-")])
    >>> scgpt.get.grn_edges(adata)
    >>> scgpt.pl.grn(adata)
    """
    check_one_of(method, METHODS, name="method")
    common = {"genes": genes, "groupby": groupby, "layer": layer, "use_raw": use_raw, "gene_symbols": gene_symbols}
    common |= {"device": device, "key_added": key_added, "rng": rng, "copy": copy, "min_cells": min_cells}
    if method == "attention":
        alone = {"groups": groups, "threshold": threshold, "n_neighbors": n_neighbors, "center": center}
        told = {name: value for name, value in {**common, **alone}.items() if value is not None}
        return attention_network(adata, model, **told, **kwargs)  # what was not given is left to it
    if kwargs:
        msg = f"method='embedding' takes no {next(iter(kwargs))!r}; that is for method='attention'."
        raise TypeError(msg)
    started = time.perf_counter()
    check_anndata(adata, function="tl.grn", copy=copy)
    _check(threshold, n_neighbors, min_cells, key_added)
    if groups is not None and groupby is None:
        msg = f"groups={groups!r} are groups of a column: name it, groupby=..."
        raise ValueError(msg)
    keys, checkpoint = GrnKeys.named(key_added), network_of(model)
    at = chosen_genes(adata, genes, verb="grn", gene_symbols=gene_symbols)
    made = {"where": {"layer": layer, "use_raw": use_raw, "gene_symbols": gene_symbols}, "min_genes": min_genes}
    made |= {"min_cells": min_cells, "device": device, "seed": seed_of(rng)}
    if groupby is None:
        match = matched(adata, checkpoint, gene_symbols=gene_symbols, min_genes=min_genes)
        vectors, of_cells = {ALL: table_vectors(checkpoint, match)}, {"genes": match.report()}
        centers = np.nanmean(vectors[ALL], axis=0, keepdims=True)
    else:
        names, codes = group_codes(adata, groupby, groups, min_cells=min_cells)
        stacked, centers, of_cells = context_vectors(adata, checkpoint, at, codes, len(names), **made)
        vectors = dict(zip(names, stacked, strict=True))
    center = groupby is not None if center is None else center
    centers = centers if center else np.zeros_like(centers)
    threshold = _THRESHOLD if threshold is None and n_neighbors is None else threshold
    links = {"threshold": threshold, "n_neighbors": n_neighbors}
    edges, linked = edges_of(vectors, centers, at, adata.var_names, links)
    adata = copied(adata) if copy else adata
    slots = {group: keys.varm if groupby is None else keys.of_group(group) for group in vectors}
    for group, slot in slots.items():
        adata.varm[slot] = vectors[group]
    adata.uns.pop(AttentionKeys.named(key_added).influence, None)  # of a former network of attention
    adata.uns[keys.edges] = edges.drop(columns="group") if groupby is None else edges
    record = {**of_cells, "method": method, "model": checkpoint.name, "model_hash": checkpoint.digest}
    record |= {"groupby": groupby or "", "groups": list(slots), "varm": list(slots.values()), "center": center}
    record |= {name: "" if value is None else value for name, value in links.items()}
    record |= {"n_genes_asked": len(at), "n_genes_linked": linked, "n_edges": len(edges), "key": keys.edges}
    record |= {"centers": dict(zip(slots.values(), centers, strict=True)) if groupby is not None and center else {}}
    record |= {"min_cells": min_cells, "version": __version__, "seconds": time.perf_counter() - started}
    adata.uns[UNS] = {**adata.uns.get(UNS, {}), keys.uns: record}
    _receipt(record, checkpoint)
    return adata if copy else None


def _check(threshold: Any, n_neighbors: Any, min_cells: Any, key_added: str | None) -> None:
    """What can be refused before anything is read."""
    if threshold is not None and (isinstance(threshold, str) or not -1 <= threshold < 1):
        msg = f"threshold={threshold!r}: a cosine from -1 to below 1, such as 0.4."
        raise ValueError(msg)
    for name, value in (("n_neighbors", n_neighbors), ("min_cells", min_cells)):
        if value is not None and (not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1):
            msg = f"{name}={value!r}: a whole number of at least 1, such as 15."
            raise ValueError(msg)
    if key_added is not None and (not key_added or key_added == UNS or "/" in key_added):
        msg = f"key_added={key_added!r}: a name other than {UNS!r}, without a slash, which cannot be written to a file."
        raise ValueError(msg)


def edges_of(
    vectors: Mapping[str, np.ndarray], centers: np.ndarray, at: np.ndarray, names: pd.Index, links: Mapping[str, Any]
) -> tuple[pd.DataFrame, int]:
    """Table of edges of all groups, and number of genes that could be linked in one of them at least."""
    tables, usable = [], np.zeros(len(at), dtype=bool)
    for (group, all_vectors), mean in zip(vectors.items(), centers, strict=True):
        known = ~np.isnan(all_vectors[at, 0])
        usable |= known
        if known.sum() < 2:  # noqa: PLR2004 - a pair
            logger.warning("grn: fewer than two of the genes have a vector in %r; it has no edges.", group)
            continue
        i, j, weights = cosine_pairs(all_vectors[at[known]] - mean, **links)
        order = np.argsort(-weights, kind="stable")
        own = names[at[known]]
        table = {"source": own[i[order]], "target": own[j[order]], "weight": weights[order].astype(np.float64)}
        tables.append(pd.DataFrame({**table, "group": group}))
    if not tables:
        asked = ", ".join(map(repr, names[at][:5]))
        msg = f"Fewer than two of the {len(at):,} genes have a vector ({asked}): they are not in the vocabulary, or "
        msg += "too few cells express them (min_cells=). Ask for other genes."
        raise ValueError(msg)
    edges = pd.concat(tables, ignore_index=True)
    for column in ("source", "target", "group"):
        edges[column] = edges[column].astype(str).astype(object)
    return edges, int(usable.sum())


def _receipt(record: Mapping[str, Any], checkpoint: Checkpoint) -> None:
    rule = [f"cosine > {record['threshold']}"] if record["threshold"] != "" else []
    rule += [f"{record['n_neighbors']} nearest"] if record["n_neighbors"] != "" else []
    parts = [f"{record['n_genes_linked']:,} of {record['n_genes_asked']:,} genes", checkpoint.label]
    if record["groupby"]:
        parts.append(f"{len(record['groups'])} groups of {record['groupby']!r}")
    parts += [f"{record['n_edges']:,} edges ({', '.join(rule)})", f"{record['seconds']:.1f} s"]
    logger.info("grn: %s → uns[%r], varm[%r]", " · ".join(parts), record["key"], record["varm"][0])
    if not record["n_edges"]:
        logger.warning("grn: no pair is above threshold=%s. Lower it, or give n_neighbors=5.", record["threshold"])
