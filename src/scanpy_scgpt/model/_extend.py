"""Tokens that a checkpoint does not have: a vocabulary that grows, and where the new vectors start."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from scipy import sparse

from scanpy_scgpt.io import Checkpoint
from scanpy_scgpt.tokenizer import PEAK, GeneVocab

_GENES = "transformer.encoder.genes.embedding.weight"
_PARTNERS = 20  # genes that a feature starts from
_LEAST = 0.05  # correlation of a partner
_NEAR = 100_000  # bases between a gene and a peak
_LOOKED_AT = 3000  # cells


def extended(
    checkpoint: Checkpoint, tokens: Sequence[str], vectors: np.ndarray | None = None, *, rng: int = 0
) -> Checkpoint:
    """A checkpoint that knows further tokens; all that it had stays as it was.

    Parameters
    ----------
    checkpoint
        Source, not changed.
    tokens
        New tokens; those that it has are left out.
    vectors
        Where their vectors start, float32, shape `(len(tokens), d_model)`, NaN for one of which nothing is known; None
        for none. What is not known starts at the mean vector of the genes and a little noise.
    rng
        Seed of the noise.
    """
    vocab = checkpoint.vocab
    new = [i for i, token in enumerate(tokens) if token not in vocab]
    if not new:
        return checkpoint
    table = checkpoint.weights[_GENES]
    known = table[torch.as_tensor(vocab.ids(vocab.genes))].float()
    noise = np.random.default_rng([rng, 31]).standard_normal((len(new), table.shape[1])).astype(np.float32)
    rows = known.mean(dim=0).numpy() + noise * known.std(dim=0).numpy() / 2
    if vectors is not None:
        given = vectors[new]
        rows = np.where(np.isfinite(given), given, rows)
    grown = GeneVocab([*vocab.tokens, *(tokens[i] for i in new)])
    weights = {**checkpoint.weights, _GENES: torch.cat([table, torch.from_numpy(rows.astype(np.float32)).to(table)])}
    shape = replace(checkpoint.transformer, n_tokens=len(grown))
    return replace(checkpoint, vocab=grown, transformer=shape, weights=weights)


def from_partners(
    checkpoint: Checkpoint, genes: sparse.csr_matrix, gene_ids: np.ndarray, features: sparse.csr_matrix, *, rng: int = 0
) -> np.ndarray:
    """Vectors of features as means over the genes that vary with them, weighted by the correlation.

    Parameters
    ----------
    checkpoint
        With the vectors of the genes.
    genes
        Counts of genes, shape `(n_cells, n_genes)`.
    gene_ids
        Vocabulary id of each column, -1 for none.
    features
        Counts of the same cells, shape `(n_cells, n_features)`.
    rng
        Seed of the choice of cells.

    Returns
    -------
    Float32, shape `(n_features, d_model)`; NaN where no gene varies with the feature.
    """
    n = genes.shape[0]
    if n > _LOOKED_AT:
        some = np.sort(np.random.default_rng([rng, 32]).choice(n, _LOOKED_AT, replace=False))
        genes, features = genes[some], features[some]
    columns = np.flatnonzero(gene_ids >= 0)
    correlation = _correlation(_logged(genes)[:, columns], _logged(features))
    table = checkpoint.weights[_GENES].float().numpy()[gene_ids[columns]]
    out = np.full((features.shape[1], table.shape[1]), np.nan, dtype=np.float32)
    k = min(_PARTNERS, len(columns))
    best = np.argpartition(-correlation, k - 1, axis=0)[:k]  # k genes of each feature
    strength = np.take_along_axis(correlation, best, axis=0)
    weight = np.where(strength > _LEAST, strength, 0)
    some = weight.sum(axis=0) > 0
    share = weight[:, some] / weight[:, some].sum(axis=0)
    out[some] = np.einsum("kf,kfd->fd", share, table[best[:, some]])
    return out


def _logged(x: sparse.csr_matrix) -> sparse.csr_matrix:
    total = np.maximum(np.asarray(x.sum(axis=1)).ravel(), 1)
    return sparse.csr_matrix(sparse.diags(np.median(total) / total) @ x).log1p()


def _correlation(x: sparse.csr_matrix, y: sparse.csr_matrix) -> np.ndarray:
    """Pearson correlation of each column of x with each of y, float32, without dense cells."""
    n = x.shape[0]
    means = [np.asarray(z.mean(axis=0)).ravel() for z in (x, y)]
    spreads = [
        np.sqrt(np.maximum(np.asarray(z.multiply(z).mean(axis=0)).ravel() - mean**2, 0))
        for z, mean in zip((x, y), means, strict=True)
    ]
    shared = (x.T @ y).toarray() / n - np.outer(*means)
    scale = np.outer(*spreads)
    return np.divide(shared, scale, out=np.zeros_like(shared), where=scale > 0).astype(np.float32)


def from_neighbours(
    checkpoint: Checkpoint, var: pd.DataFrame, gene_ids: np.ndarray, peaks: Sequence[str]
) -> np.ndarray | None:
    """Vectors of peaks as means over the genes that lie near, within 100,000 bases.

    Parameters
    ----------
    checkpoint
        With the vectors of the genes.
    var
        Table of the genes with a column `interval` (`chr1:10-20`, as 10x writes it) or the columns `chrom`, `start`
        and `end`.
    gene_ids
        Vocabulary id of each gene, -1 for none.
    peaks
        Tokens of the peaks.

    Returns
    -------
    Float32, shape `(len(peaks), d_model)`, NaN without a gene; None when the table says no positions.
    """
    places = _places(var)
    if places is None:
        return None
    table = checkpoint.weights[_GENES].float().numpy()
    usable = (gene_ids >= 0) & places["start"].notna().to_numpy()
    of_genes = places[usable].assign(id=gene_ids[usable])
    split = [re.split("[:-]", peak) for peak in peaks]
    own = pd.DataFrame({"chrom": [x[0] for x in split], "middle": [(int(x[1]) + int(x[2])) / 2 for x in split]})
    out = np.full((len(peaks), table.shape[1]), np.nan, dtype=np.float32)
    for name, group in own.groupby("chrom"):
        here = of_genes[of_genes["chrom"] == name].sort_values("start")
        if here.empty:
            continue
        first = np.searchsorted(here["start"], group["middle"] - _NEAR)
        last = np.searchsorted(here["start"], group["middle"] + _NEAR)
        sums = np.concatenate([np.zeros((1, table.shape[1])), np.cumsum(table[here["id"].to_numpy()], axis=0)])
        n = last - first
        rows = group.index.to_numpy()[n > 0]
        out[rows] = ((sums[last] - sums[first])[n > 0] / n[n > 0, None]).astype(np.float32)
    return out


def _places(var: pd.DataFrame) -> pd.DataFrame | None:
    """`chrom`, `start` of genes; None when the table has none."""
    if "interval" in var:
        parts = var["interval"].astype(str).str.extract(PEAK)
        chrom = "chr" + parts[0].str.removeprefix("chr")
        return pd.DataFrame({"chrom": chrom, "start": pd.to_numeric(parts[1])}, index=var.index)
    if {"chrom", "start"} <= set(var.columns):
        chrom = "chr" + var["chrom"].astype(str).str.removeprefix("chr")
        return pd.DataFrame({"chrom": chrom, "start": pd.to_numeric(var["start"], errors="coerce")}, index=var.index)
    return None
