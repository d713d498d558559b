"""`tl.embed`: cells to vectors."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scanpy_scgpt import models
from scanpy_scgpt._keys import EMBED, UNS, EmbedKeys
from scanpy_scgpt._logging import get_logger
from scanpy_scgpt._types import Pooling, Select, Ties
from scanpy_scgpt._validate import check_anndata, check_one_of, copied, seed_of
from scanpy_scgpt._version import __version__
from scanpy_scgpt.io import Checkpoint
from scanpy_scgpt.model import CellTokens, Embedder

if TYPE_CHECKING:
    import os

    from anndata import AnnData

logger = get_logger(__name__)


def embed(
    adata: AnnData,
    model: str | os.PathLike[str] | Checkpoint | None = None,
    *,
    layer: str | None = None,
    use_raw: bool | None = None,
    gene_symbols: str | None = None,
    gene_table: pd.DataFrame | None = None,
    max_length: int | None = None,
    select: Select | None = None,
    ties: Ties | None = None,
    pooling: Pooling | None = None,
    normalize: bool = True,
    gene_embeddings: bool = False,
    min_genes: int = 200,
    max_tokens: int | None = None,
    device: str = "auto",
    key_added: str | None = None,
    rng: int | np.random.Generator | None = 0,
    copy: bool = False,
) -> AnnData | None:
    """Embed cells with a pretrained scGPT transformer, zero-shot :cite:p:`Cui2024`.

    Makes its own tokens from the counts, also after :func:`scanpy_scgpt.pp.tokenize`, whose layer is for your eyes and
    other tools; its settings are arguments here too. Rows are read, tokenised and encoded in blocks, so nothing is
    densified and, beyond the result, the memory does not grow with the number of cells. The same cell gets the same
    vector (to rounding) whatever the order, subset or batch.

    Parameters
    ----------
    adata
        Cells, shape `(n_obs, n_vars)`; in memory or backed, dense or sparse. MuData: pass one modality.
    model
        Name out of `models.available()`, folder of a checkpoint (ours or of the original release), a checkpoint, or
        `None` for `settings.model`.
    layer, use_raw, gene_symbols, gene_table
        Where counts and gene names are; see :func:`scanpy_scgpt.pp.tokenize`.
    max_length
        Longest sequence with `<cls>`; the checkpoint's own by default.
    select
        Genes that enter when a cell has more: `"random"` or `"top"` (the highest bins).
    ties
        Bin of tied values: `"random"`, `"low"`, `"mid"`, `"high"`; the checkpoint's own by default.
    pooling
        `"cls"`, `"mean"` or `"weighted"`; the checkpoint's own by default.
    normalize
        Scale each vector to length 1.
    gene_embeddings
        Also write the vectors of the genes.
    min_genes
        Fewest genes that must be found in the vocabulary.
    max_tokens
        Most tokens of a batch; lower it when memory is short. Does not change the result.
    device
        `"auto"` (CUDA, MPS, CPU), or a torch device.
    key_added
        Name in `.obsm` in place of `X_scgpt`; the record then stands in `.uns["scgpt"]["embed_<key_added>"]`.
    rng
        Seed of random ties and of the choice of genes; the draws depend on the names of cell and gene.
    copy
        Return a copy instead of writing to `adata`.

    Returns
    -------
    `None`, or the copy if `copy=True`. Sets the fields

    `.obsm["X_scgpt"]` : :class:`numpy.ndarray` of float32, shape `(n_obs, d_model)`
        Vector of each cell. A cell without any gene of the vocabulary gets the vector of an empty cell.
    `.obs["scgpt_qc"]` : :class:`pandas.Categorical`, shape `(n_obs,)`
        `ok` or `empty`; written only when there are empty cells (or the column exists).
    `.varm["scgpt_genes"]` : float32, shape `(n_vars, d_model)`
        With `gene_embeddings=True`: vector of each gene, NaN where it has no token.
    `.uns["scgpt"]["embed"]` : :class:`dict`
        Model and its hash, settings, report of the genes, speed.

    Raises
    ------
    GeneMatchError
        When fewer than `min_genes` genes are in the vocabulary.
    CheckpointError
        When the checkpoint is incomplete, damaged, or does not fit its own settings.
    ValueError
        When the matrix has NaN or negative values, or there is no such model.

    Examples
    --------
    >>> import scanpy as sc
    >>> import scanpy_scgpt as scgpt
    >>> adata = sc.datasets.pbmc68k_reduced()
    >>> scgpt.tl.embed(adata, use_raw=True)
    >>> sc.pp.neighbors(adata, use_rep="X_scgpt")
    """
    check_anndata(adata, function="tl.embed", copy=copy)
    seed, keys = seed_of(rng), EmbedKeys.named(key_added)
    checkpoint = models.load(model)
    pooling = checkpoint.info.get("pooling", "cls") if pooling is None else pooling
    check_one_of(pooling, ("cls", "mean", "weighted"), name="pooling")
    tokens = CellTokens(
        adata,
        checkpoint,
        checkpoint.tokenizer.updated(max_length=max_length, select=select, ties=ties),
        layer=layer,
        use_raw=use_raw,
        gene_symbols=gene_symbols,
        gene_table=gene_table,
        min_genes=min_genes,
        seed=seed,
    )
    embedder = Embedder(checkpoint, device=device, max_tokens=max_tokens, pooling=pooling)
    started = time.perf_counter()
    vectors = embedder.embed_blocks(tokens, n_obs=adata.n_obs, normalize=normalize)
    record = {
        **tokens.record(),
        **embedder.record(),
        "normalize": normalize,
        "n_cells": adata.n_obs,
        "n_empty_cells": int(tokens.empty.sum()),
        "n_cut_cells": tokens.n_cut,
        "cells_per_second": adata.n_obs / max(time.perf_counter() - started, 1e-9),
        "key": keys.obsm,
        "version": __version__,
    }
    adata = copied(adata) if copy else adata
    adata.obsm[keys.obsm] = vectors
    if tokens.empty.any() or EMBED.quality in adata.obs:
        adata.obs[keys.quality] = pd.Categorical(np.where(tokens.empty, "empty", "ok"), categories=["ok", "empty"])
    if gene_embeddings:
        adata.varm[keys.varm] = embedder.gene_vectors(tokens.match.among(adata.var_names).ids)
    adata.uns[UNS] = {**adata.uns.get(UNS, {}), keys.uns: record}
    _receipt(record, tokens, model_given=model is not None)
    return adata if copy else None


def _receipt(record: dict[str, Any], tokens: CellTokens, *, model_given: bool) -> None:
    parts = [
        f"{record['n_cells']:,} cells",
        tokens.match.summary(),
        f"{record['source']} ({record['values']})",
        tokens.checkpoint.label + ("" if model_given else " (default model)"),
        f"{record['device']} {record['precision']}",
        f"{record['cells_per_second']:,.0f} cells/s",
    ]
    if tokens.n_cut:
        parts.insert(3, f"{tokens.n_cut:,} cells cut to {tokens.config.max_length - 1:,} genes")
    logger.info("embed: %s → obsm[%r]", " · ".join(parts), record["key"])
    if n_ignored := len(record["ignored_tensors"]):
        first = ", ".join(record["ignored_tensors"][:3])
        logger.warning("embed: %s tensors of the checkpoint have no place in this network: %s.", n_ignored, first)
    if warning := tokens.match.warning():
        logger.warning("embed: %s", warning)
    if record["n_empty_cells"]:
        logger.warning(
            "embed: %s cells have no gene of the vocabulary and got the vector of an empty cell; "
            "they are marked in obs[%r]. Drop them: adata = adata[adata.obs[%r] != 'empty'].copy()",
            f"{record['n_empty_cells']:,}",
            EMBED.quality,
            EMBED.quality,
        )
