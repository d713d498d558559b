"""Genes that a cell does not express, as tokens of value 0."""

from __future__ import annotations

import numba
import numpy as np

from ._tokens import Tokens


@numba.njit(cache=True, nogil=True)
def _kernel(indptr, gene_ids, values, panel, n_ids, max_genes, out_indptr, out_ids, out_values):  # pragma: no cover
    last_seen = np.full(n_ids, -1, np.int64)
    end = 0
    for r in range(indptr.shape[0] - 1):
        start = end
        for i in range(indptr[r], indptr[r + 1]):
            out_ids[end], out_values[end] = gene_ids[i], values[i]
            last_seen[gene_ids[i]] = r
            end += 1
        for gene in panel:
            if end - start >= max_genes:
                break
            if last_seen[gene] != r:
                out_ids[end], out_values[end] = gene, 0
                end += 1
        out_indptr[r + 1] = end
    return end


def with_zeros(tokens: Tokens, panel: np.ndarray, *, max_genes: int) -> Tokens:
    """Cells with the genes of a panel that they do not express, as tokens of value 0 behind the expressed ones.

    Parameters
    ----------
    tokens
        Cells of expressed genes.
    panel
        Vocabulary ids in the order in which they enter, int, shape `(n_genes,)`; each once.
    max_genes
        Most tokens of a cell; a cell that has as many gets none.
    """
    panel = np.ascontiguousarray(panel, dtype=np.int32)
    n_ids = int(max(panel.max(initial=0), tokens.gene_ids.max(initial=0))) + 1
    size = int(np.maximum(np.minimum(tokens.lengths + len(panel), max_genes), tokens.lengths).sum())
    indptr = np.zeros(len(tokens) + 1, dtype=np.int64)
    gene_ids, values = np.empty(size, dtype=np.int32), np.empty(size, dtype=np.uint8)
    end = _kernel(tokens.indptr, tokens.gene_ids, tokens.values, panel, n_ids, max_genes, indptr, gene_ids, values)
    return Tokens(indptr, gene_ids[:end], values[:end])
