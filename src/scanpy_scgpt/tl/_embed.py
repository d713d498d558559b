"""`tl.embed`: cells to vectors."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pandas as pd

from scanpy_scgpt import models
from scanpy_scgpt._keys import EMBED, UNS, EmbedKeys
from scanpy_scgpt._logging import get_logger
from scanpy_scgpt._modalities import is_mudata
from scanpy_scgpt._types import Backend, Pooling, Precision, Select, Ties
from scanpy_scgpt._validate import check_anndata, check_one_of, copied, file_paths, seed_of
from scanpy_scgpt._version import __version__
from scanpy_scgpt.io import Checkpoint, CheckpointError
from scanpy_scgpt.model import CellFiles, CellTokens, Embedder, active_client, embed_on_workers

from ._embed_files import check_places, embed_to_file
from ._embed_mudata import embed_mudata

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

logger = get_logger(__name__)


def embed(
    data: AnnData | MuData | str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    model: str | os.PathLike[str] | Checkpoint | None = None,
    *,
    layer: str | Mapping[str, str] | None = None,
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
    device: str | Sequence[str] = "auto",
    precision: Precision = "auto",
    backend: Backend = "auto",
    key_added: str | None = None,
    rng: int | np.random.Generator | None = 0,
    out: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    shard: tuple[int, int] | None = None,
    copy: bool = False,
) -> AnnData | MuData | Path | None:
    """Embed cells with a pretrained scGPT transformer, zero-shot :cite:p:`Cui2024`.

    Makes its own tokens from the counts, also after :func:`scanpy_scgpt.pp.tokenize`, whose layer is for your eyes and
    other tools; its settings are arguments here too. Rows are read, tokenised and encoded in blocks, so nothing is
    densified and, beyond the result, the memory does not grow with the number of cells. The same cell gets the same
    vector (to rounding) whatever the order, subset or batch.

    Files go to a file: `scgpt.tl.embed("cells.h5ad", out="vectors.zarr")`. Blocks of cells are read, embedded and
    written one after the other. A call that was killed goes on where it was when it is repeated, and a call whose
    result is there already does nothing.

    Parameters
    ----------
    data
        Cells, shape `(n_obs, n_vars)`: an AnnData in memory, backed or with dask arrays, dense or sparse; a MuData,
        whose cells are embedded by the modalities that they have (a cell has NaN when the checkpoint knows none of its
        features); or the path of an `.h5ad`, `.zarr` or `.h5mu` file (its modality `rna`), or a list of paths,
        whose genes may differ. Columns that are antibodies, guides or peaks by `var["feature_types"]` are left out.
    model
        Name out of `models.available()`, folder of a checkpoint (ours or of the original release), a checkpoint, or
        `None` for `settings.model`.
    layer, use_raw, gene_symbols, gene_table
        Where counts and gene names are; see :func:`scanpy_scgpt.pp.tokenize`. Of a MuData a layer by modality.
    max_length
        Longest sequence with `<cls>`; the checkpoint's own by default.
    select
        Genes that enter when a cell has more: `"random"` or `"top"` (the highest bins).
    ties
        Bin of tied values: `"random"`, `"low"`, `"mid"`, `"high"`; the checkpoint's own by default.
    pooling
        `"cls"` (the vector of the first token), `"mean"` (of all tokens), `"weighted"` (their sum, weighted by the
        bins) or `"layers"` (such a sum of every layer and of its input); the checkpoint's own by default.
    normalize
        Scale each vector to length 1; those of `"weighted"` and `"layers"` have that length anyway.
    gene_embeddings
        Also write the vectors of the genes.
    min_genes
        Fewest genes that must be found in the vocabulary.
    max_tokens
        Most tokens of a batch; lower it when memory is short. Does not change the result.
    device
        `"auto"` (CUDA, MPS, CPU), a torch device (`"cuda"`: every GPU), or a list of devices that share the cells.
    precision
        `"fp32"`, `"bf16"`, or `"auto"`: bf16 where a GPU has it, else fp32.
    backend
        `"torch"`, `"openvino"` (CPU; needs the package), or `"auto"`.
    key_added
        Name in `.obsm` in place of `X_scgpt`; the record then stands in `.uns["scgpt"]["embed_<key_added>"]`.
    rng
        Seed of random ties and of the choice of genes; the draws depend on the names of cell and gene.
    out
        Of files: where the vectors go, a name that ends in `.zarr` or `.h5ad`. Until all are there, `<out>.part`
        beside it keeps what is done.
    overwrite
        Of files: replace what stands at `out`, once the new result is complete.
    shard
        Of files: which share of the cells this call embeds, `(which, of how many)`, for several processes or machines
        that see the same folder. The call that finds all shares done puts the result in place.
    copy
        Return a copy instead of writing to `data`.

    Returns
    -------
    `None`, or the copy if `copy=True`, or for files the path `out` of an AnnData file without `X` that has the columns
    of `.obs`. Sets the fields

    `.obsm["X_scgpt"]` : :class:`numpy.ndarray` of float32, shape `(n_obs, d_model)`
        Vector of each cell. A cell without any gene of the vocabulary gets the vector of an empty cell.
    `.obs["scgpt_qc"]` : :class:`pandas.Categorical`, shape `(n_obs,)`
        `ok` or `empty`; written only when there are empty cells (or the column exists).
    `.obs["scgpt_modalities"]` : :class:`pandas.Categorical`, shape `(n_obs,)`
        Of a MuData: the modalities that a cell has, such as `rna+protein`, known to the checkpoint or not.
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
    FileExistsError
        When `out` is something else than the result of this call, and `overwrite` is not given.
    OSError
        When a file is damaged, or the disk is full (what is done stays).

    Examples
    --------
    >>> import scanpy as sc
    >>> import scanpy_scgpt as scgpt
    >>> adata = sc.datasets.pbmc68k_reduced()
    >>> scgpt.tl.embed(adata, use_raw=True)
    >>> sc.pp.neighbors(adata, use_rep="X_scgpt")
    """
    paths = file_paths(data)
    check_places(paths, out, shard, verb="tl.embed")
    modal = paths is None and is_mudata(data)
    if modal and use_raw is not None:
        msg = f"use_raw={use_raw!r}: of a MuData say a layer of the modality: layer={{'rna': 'counts'}}."
        raise ValueError(msg)
    _check(data, paths, gene_embeddings=gene_embeddings, copy=copy, key_added=key_added)
    seed, keys = seed_of(rng), EmbedKeys.named(key_added)
    checkpoint = models.load(model)
    if checkpoint.info.get("domain_norm"):
        msg = (
            f"{checkpoint.label} normalises what enters batch by batch, and tl.embed knows no batches. Call "
            "scgpt.tl.integrate(adata, batch_key, model=...) with its folder."
        )
        raise CheckpointError(msg)
    pooling = checkpoint.info.get("pooling", "cls") if pooling is None else pooling
    check_one_of(pooling, get_args(Pooling), name="pooling")
    config = checkpoint.tokenizer.updated(max_length=max_length, select=select, ties=ties)
    where = {"layer": layer, "use_raw": use_raw, "gene_symbols": gene_symbols, "gene_table": gene_table}
    engine = {"device": device, "max_tokens": max_tokens, "precision": precision, "backend": backend}
    if modal:
        settings = {"layer": layer, "gene_symbols": gene_symbols, "min_genes": min_genes, "normalize": normalize}
        known, embedder = replace(checkpoint, tokenizer=config), Embedder(checkpoint, pooling=pooling, **engine)
        return embed_mudata(data, known, embedder, keys=keys, copy=copy, seed=seed, **settings)
    make = CellTokens if paths is None else CellFiles
    cells = make(data if paths is None else paths, checkpoint, config, **where, min_genes=min_genes, seed=seed)
    embedder = Embedder(checkpoint, pooling=pooling, **engine)
    if paths is not None:
        return embed_to_file(
            cells, embedder, Path(out), keys=keys, normalize=normalize, overwrite=overwrite, shard=shard
        )
    record, vectors = embedded(cells, embedder, {**engine, "pooling": pooling}, normalize=normalize)
    record["key"] = keys.obsm
    adata = copied(data) if copy else data
    adata.obsm[keys.obsm] = vectors
    if cells.empty.any() or keys.quality in adata.obs:
        adata.obs[keys.quality] = pd.Categorical(np.where(cells.empty, "empty", "ok"), categories=["ok", "empty"])
    if gene_embeddings:
        adata.varm[keys.varm] = embedder.gene_vectors(cells.match.among(adata.var_names).ids)
    adata.uns[UNS] = {**adata.uns.get(UNS, {}), keys.uns: record}
    _receipt(record, cells, model_given=model is not None)
    if model is None and (better := models.better_than_default(data)):
        logger.info("embed: %s", better)
    return adata if copy else None


def _check(data: Any, paths: Any, *, gene_embeddings: bool, copy: bool, key_added: str | None) -> None:
    """What can be refused before a model is loaded."""
    if paths is not None:
        if gene_embeddings or copy:
            msg = "tl.embed of files writes neither gene_embeddings nor a copy. Leave both out."
            raise ValueError(msg)
    elif not is_mudata(data):
        check_anndata(data, function="tl.embed", copy=copy)
    elif gene_embeddings:
        msg = "tl.embed of a MuData writes no gene vectors. Take its RNA: tl.embed(mdata['rna'], gene_embeddings=True)."
        raise ValueError(msg)
    if key_added is not None and "/" in key_added:
        msg = f"key_added={key_added!r}: a name with a slash cannot be written to a file. Leave the slash out."
        raise ValueError(msg)


def embedded(
    cells: CellTokens, embedder: Embedder, engine: dict[str, Any], *, normalize: bool
) -> tuple[dict[str, Any], np.ndarray]:
    """The record of `.uns` and the vectors, made here or on the workers of an active dask cluster."""
    started, client = time.perf_counter(), active_client()
    if client is not None:
        vectors = embed_on_workers(client, cells, engine, normalize=normalize)
    else:
        vectors = embedder.embed_blocks(cells, n_obs=cells.source.n_obs, normalize=normalize)
    record = {
        **cells.record(),
        **embedder.record(),
        "normalize": normalize,
        "n_cells": cells.source.n_obs,
        "n_empty_cells": int(cells.empty.sum()),
        "n_cut_cells": cells.n_cut,
        "cells_per_second": cells.source.n_obs / max(time.perf_counter() - started, 1e-9),
        "workers": 0 if client is None else len(client.nthreads()),
        "version": __version__,
    }
    return record, vectors


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
