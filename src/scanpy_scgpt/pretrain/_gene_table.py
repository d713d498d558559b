"""First gene table of a new model: co-expression and gene knowledge instead of random numbers."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import LinearOperator, svds

from scanpy_scgpt._validate import check_one_of
from scanpy_scgpt.datasets import gene_features
from scanpy_scgpt.tokenizer import GeneVocab, Tokens, match_genes

GeneTableStart = Literal["random", "coexpression", "knowledge", "both"]
GENE_TABLES: tuple[GeneTableStart, ...] = ("random", "coexpression", "knowledge", "both")
_FEWEST_KNOWN = 0.05  # share of the genes of a vocabulary
_RIDGE = 0.1  # penalty as a share of the sum of squares of a feature
_EVEN = 0.25  # power of a singular value that its factor keeps: 1 is plain co-expression, 0 makes all factors alike
_NOISE = 0.1  # what a factor keeps that is no stronger than independent genes would give


class _Block(NamedTuple):
    """Factors of tokens, `(n_tokens, k)`; rows where `known` `(n_tokens,)` is False are zero."""

    factors: np.ndarray
    known: np.ndarray

    def scaled(self) -> _Block:
        """The block with a mean square length of 1 over the known tokens."""
        return _Block(self.factors / np.sqrt(np.square(self.factors).sum() / max(self.known.sum(), 1)), self.known)


def start_table(
    kind: GeneTableStart,
    tokens: Tokens,
    groups: np.ndarray,
    vocab: GeneVocab,
    *,
    d_model: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """First vectors of the tokens of a vocabulary.

    Parameters
    ----------
    kind
        `"random"`: independent normal numbers. `"coexpression"`: :func:`coexpression_table`. `"knowledge"`: the
        features of :func:`scanpy_scgpt.datasets.gene_features`. `"both"`: co-expression and knowledge side by side,
        each with half of the energy; where a gene has one of the two, the other is predicted from it (ridge regression
        over the genes that have both).
    tokens
        Cells; gene ids of `vocab`. Not looked at for `"random"` and `"knowledge"`.
    groups
        Integer group of each cell (study), shape `(n_cells,)`.
    vocab
        Names of the tokens. Names that are unknown to the features simply have no knowledge.
    d_model
        Length of a vector.
    rng
        Source of random numbers.

    Returns
    -------
    Table `(n_tokens, d_model)`, float32, with a typical entry of 1; genes of which nothing is known and special tokens
    hold small random vectors (except for `"random"`).

    Raises
    ------
    ValueError
        For another `kind`, or when knowledge is asked for and fewer than 5 % of the genes have any.
    """
    check_one_of(kind, GENE_TABLES, name="gene_table")
    if kind == "random":
        return rng.standard_normal((len(vocab), d_model)).astype(np.float32)
    if kind == "coexpression":
        return coexpression_table(tokens, groups, n_tokens=len(vocab), d_model=d_model, rng=rng)
    if kind == "knowledge":
        return _spread(_knowledge(vocab, width=d_model - 1, kind=kind), d_model, rng)
    knowledge = _knowledge(vocab, width=(d_model - 1) // 2, kind=kind).scaled()
    width = d_model - 1 - knowledge.factors.shape[1]
    expression = _coexpression(tokens, groups, n_tokens=len(vocab), width=width, rng=rng).scaled()
    factors = np.hstack([_completed(expression, knowledge), _completed(knowledge, expression)])
    return _spread(_Block(factors, expression.known | knowledge.known), d_model, rng)


def coexpression_table(
    tokens: Tokens, groups: np.ndarray, *, n_tokens: int, d_model: int, rng: np.random.Generator
) -> np.ndarray:
    """Gene vectors that are alike for genes that are expressed together.

    The digits of the cells are centred per gene within each group (study), divided by the square root of the standard
    deviation of the gene and factorised (truncated SVD). Factors count nearly alike (the fourth root of their singular
    value): the strong ones are few and tell lineages apart, the weak ones tell their subsets. Factors that are no
    stronger than independent genes would give (the edge of Marchenko and Pastur) count little. A random rotation
    spreads the factors over the channels and leaves the mean over the channels, which the layer norm behind the table
    removes, out of use.

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
    return _spread(_coexpression(tokens, groups, n_tokens=n_tokens, width=d_model - 1, rng=rng), d_model, rng)


def _coexpression(tokens: Tokens, groups: np.ndarray, *, n_tokens: int, width: int, rng: np.random.Generator) -> _Block:
    """Loadings of the digits, centred within groups and scaled per gene."""
    shape = (len(tokens), n_tokens)
    x = sparse.csr_matrix((tokens.values.astype(np.float32), tokens.gene_ids, tokens.indptr), shape=shape)
    members = sparse.csr_matrix((np.ones(len(groups), np.float32), (groups, np.arange(len(groups)))))
    means = sparse.diags(1 / np.asarray(members.sum(axis=1)).ravel()) @ members @ x
    size = np.asarray(members.sum(axis=1)).ravel()
    square = np.asarray(x.multiply(x).sum(axis=0)).ravel()
    variance = (square - np.asarray(means.multiply(means).multiply(size[:, None]).sum(axis=0)).ravel()) / len(tokens)
    scale = np.where(variance > 0, np.maximum(variance, np.median(variance[variance > 0])) ** -0.25, 0)
    x, means = x @ sparse.diags(scale), means @ sparse.diags(scale)
    operator = LinearOperator(
        shape,
        matvec=lambda v: x @ v - members.T @ (means @ v),
        rmatvec=lambda u: x.T @ u - means.T @ (members @ u),
        dtype=np.float32,
    )
    k = min(width, min(shape) - 1)
    _, strength, loadings = svds(operator, k=k, v0=rng.standard_normal(min(shape)), random_state=rng)
    known = scale > 0
    noise = np.sqrt((variance * scale**2).sum() / known.sum()) * (np.sqrt(len(tokens)) + np.sqrt(known.sum()))
    weights = strength**_EVEN * np.where(strength > noise, 1, _NOISE)
    return _Block((loadings * weights[:, None]).T * known[:, None], known)


def _knowledge(vocab: GeneVocab, *, width: int, kind: str) -> _Block:
    """The strongest `width` gene features of each token; Ensembl ids and former names are found too."""
    features = gene_features()
    names = GeneVocab(features.index)
    ids = np.full(len(vocab), -1)
    ids[vocab.ids(vocab.genes)] = match_genes(vocab.genes, names).ids
    known = ids >= 0
    if known.sum() < _FEWEST_KNOWN * len(vocab.genes):
        msg = (
            f"gene_table={kind!r}: {known.sum():,} of the {len(vocab.genes):,} genes of the vocabulary are among the "
            f"{len(features):,} human genes of datasets.gene_features(), which is too few. First names of the "
            f"vocabulary: {', '.join(map(repr, vocab.genes[:3]))}. Use gene_table='coexpression'."
        )
        raise ValueError(msg)
    factors = np.zeros((len(vocab), min(width, features.shape[1])), np.float32)
    factors[known] = features.to_numpy()[ids[known], : factors.shape[1]]
    return _Block(factors, known)


def _completed(block: _Block, other: _Block) -> np.ndarray:
    """Factors of the block; those of tokens that only the other one knows are predicted from it by ridge regression."""
    both, missing = block.known & other.known, ~block.known & other.known
    seen = other.factors[both].astype(np.float64)
    gram = seen.T @ seen
    penalty = _RIDGE * np.diag(gram).mean() + np.finfo(float).tiny  # without a common token the prediction is zero
    weights = np.linalg.solve(gram + penalty * np.eye(len(gram)), seen.T @ block.factors[both])
    factors = block.factors.copy()
    factors[missing] = other.factors[missing] @ weights
    return factors


def _spread(block: _Block, d_model: int, rng: np.random.Generator) -> np.ndarray:
    """Factors over the channels by a random rotation, the mean over the channels unused; typical entry 1."""
    k = block.factors.shape[1]
    typical = np.sqrt(np.square(block.factors).sum() / max(block.known.sum(), 1) / k)
    factors = block.factors.copy()
    factors[~block.known] = 0.1 * typical * rng.standard_normal(((~block.known).sum(), k))
    basis = np.linalg.qr(np.column_stack([np.ones(d_model), rng.standard_normal((d_model, d_model - 1))]))[0]
    return (factors / typical @ basis[:, 1 : k + 1].T).astype(np.float32)
