"""First gene table of a new model: factorised co-expression instead of random numbers."""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import LinearOperator, svds

from scanpy_scgpt.tokenizer import Tokens


def coexpression_table(
    tokens: Tokens, groups: np.ndarray, *, n_tokens: int, d_model: int, rng: np.random.Generator
) -> np.ndarray:
    """Gene vectors whose inner products follow co-expression.

    The digits of the cells are centred per gene within each group (study), scaled to unit variance per gene and
    factorised (truncated SVD). A random rotation spreads the factors over the channels and leaves the mean over the
    channels, which the layer norm behind the table removes, out of use.

    Parameters
    ----------
    tokens
        Cells; gene ids below `n_tokens`.
    groups
        Integer group of each cell, shape `(n_cells,)`.
    n_tokens, d_model
        Shape of the table.
    rng
        Source of the start vector and the rotation.

    Returns
    -------
    Table `(n_tokens, d_model)`, float32; genes that never occur and special tokens hold small random vectors.
    """
    shape = (len(tokens), n_tokens)
    x = sparse.csr_matrix((tokens.values.astype(np.float32), tokens.gene_ids, tokens.indptr), shape=shape)
    members = sparse.csr_matrix((np.ones(len(groups), np.float32), (groups, np.arange(len(groups)))))
    means = sparse.diags(1 / np.asarray(members.sum(axis=1)).ravel()) @ members @ x
    size = np.asarray(members.sum(axis=1)).ravel()
    square = np.asarray(x.multiply(x).sum(axis=0)).ravel()
    variance = (square - np.asarray(means.multiply(means).multiply(size[:, None]).sum(axis=0)).ravel()) / len(tokens)
    scale = np.where(variance > 0, 1 / np.sqrt(np.maximum(variance, np.median(variance[variance > 0]))), 0)
    x, means = x @ sparse.diags(scale), means @ sparse.diags(scale)
    operator = LinearOperator(
        shape,
        matvec=lambda v: x @ v - members.T @ (means @ v),
        rmatvec=lambda u: x.T @ u - means.T @ (members @ u),
        dtype=np.float32,
    )
    k = min(d_model - 1, min(shape) - 1)
    _, strength, loadings = svds(operator, k=k, v0=rng.standard_normal(min(shape)), random_state=rng)
    factors = (loadings * strength[:, None]).T  # (n_tokens, k)
    typical = np.sqrt(np.square(factors).sum() / max((scale > 0).sum(), 1) / k)
    factors[scale == 0] = 0.1 * typical * rng.standard_normal(((scale == 0).sum(), k))
    basis = np.linalg.qr(np.column_stack([np.ones(d_model), rng.standard_normal((d_model, d_model - 1))]))[0]
    return (factors / typical @ basis[:, 1 : k + 1].T).astype(np.float32)
