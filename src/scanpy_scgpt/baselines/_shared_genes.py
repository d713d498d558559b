"""Cells of a reference and of a query as log-normalised values of the same genes, in the same order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from scipy import sparse

from scanpy_scgpt._counts import CountSource, choose_counts
from scanpy_scgpt._logging import get_logger

logger = get_logger(__name__)

_TOTAL = 1e4  # counts that a cell is scaled to
_LEAST = 2  # genes: one has no direction in which cells differ


class SharedGenes(NamedTuple):
    """Log-normalised values, CSR float32, and the names of the genes.

    `reference` `(n_reference, n_genes)`, `query` `(n_query, n_genes)`, `names` `(n_genes,)`.
    """

    reference: sparse.csr_matrix
    query: sparse.csr_matrix
    names: pd.Index


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Put the name of the argument in front of the errors about its counts."""
    try:
        yield
    except (ValueError, KeyError) as error:
        msg = f"{name}: {error.args[0] if error.args else ''}"
        raise type(error)(msg) from error


def counts_of(adata: AnnData, *, name: str, layer: str | None, use_raw: bool | None) -> CountSource:
    """Where the counts of an argument are; errors begin with its name."""
    with _naming(name):
        return choose_counts(adata, layer=layer, use_raw=use_raw)


def _advice(reference: CountSource, query: CountSource) -> str:
    """The line that gives both one kind of gene names, if a column of one of them does."""
    for name, source, other in (("query", query, reference), ("reference", reference, query)):
        for column, values in source.gene_columns().items():
            if values.isin(other.var.index).sum() >= _LEAST:
                return f"{name}.var_names = {name}.var[{column!r}].astype(str)"
    return "query.var_names = [...], the names that the reference uses"


def _shared_names(reference: CountSource, query: CountSource) -> pd.Index:
    first, second = reference.var.index, query.var.index
    shared = first[first.isin(second)].unique()
    if len(shared) < _LEAST:
        msg = (
            f"reference and query share {len(shared)} gene names (reference: {', '.join(map(repr, first[:3]))}, ...; "
            f"query: {', '.join(map(repr, second[:3]))}, ...). "
            f"Give both one kind of names: {_advice(reference, query)}."
        )
        raise ValueError(msg)
    numbers = (f"{n:,}" for n in (len(shared), len(first), len(second)))
    logger.info("%s genes by name in both (reference %s, query %s).", *numbers)
    return shared


def _log_normalised(source: CountSource, rows: np.ndarray | None, names: pd.Index, *, name: str) -> sparse.csr_matrix:
    """Values of the named genes, each cell scaled to the same total over them, logged; `(n_rows, n_names)`."""
    with _naming(name):
        matrix = source.rows(0, source.n_obs)
    matrix = (matrix if rows is None else matrix[rows]).astype(np.float32)
    if source.kind() == "log-normalised values":  # back to a multiple of the counts: the other may have other genes
        matrix = matrix.expm1()
    place = names.get_indexer(source.var.index)
    kept = np.flatnonzero(place >= 0)
    ones = np.ones(len(kept), dtype=np.float32)
    into = sparse.csr_matrix((ones, (kept, place[kept])), shape=(matrix.shape[1], len(names)))
    matrix = sparse.csr_matrix(matrix @ into)  # columns of one name are summed
    total = np.asarray(matrix.sum(axis=1, dtype=np.float64)).ravel()
    scale = np.divide(_TOTAL, total, out=np.zeros_like(total), where=total > 0)
    matrix.data = np.log1p(matrix.data * np.repeat(scale, np.diff(matrix.indptr))).astype(np.float32)
    matrix.sort_indices()
    return matrix


def shared_genes(
    reference: CountSource, query: CountSource, *, rows: np.ndarray | None, n_top_genes: int
) -> SharedGenes:
    """Highly variable genes of the reference among those that both have, matched by name.

    Each cell is scaled to 10,000 over the shared genes, so that a panel of genes and a whole transcriptome compare.

    Parameters
    ----------
    reference, query
        Where their counts are.
    rows
        Cells of the reference to take; all if None.
    n_top_genes
        Number of genes; all shared ones when there are no more.
    """
    names = _shared_names(reference, query)
    first = _log_normalised(reference, rows, names, name="reference")
    second = _log_normalised(query, None, names, name="query")
    if n_top_genes >= len(names):
        return SharedGenes(first, second, names)
    found = sc.pp.highly_variable_genes(AnnData(first), n_top_genes=n_top_genes, inplace=False)
    chosen = np.flatnonzero(found["highly_variable"])
    return SharedGenes(first[:, chosen], second[:, chosen], names[chosen])
