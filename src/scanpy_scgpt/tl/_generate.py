"""`tl.generate`: expression of genes from the other genes of a cell, or from its vector."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from scanpy_scgpt._keys import GENERATE, UNS
from scanpy_scgpt._logging import get_logger
from scanpy_scgpt._types import Precision, Ties
from scanpy_scgpt._validate import check_one_of
from scanpy_scgpt.io import Checkpoint
from scanpy_scgpt.model import Embedder, GeneLists, Order
from scanpy_scgpt.tokenizer import cell_keys

from ._layers import LayerRun, gene_ids, listed

if TYPE_CHECKING:
    from anndata import AnnData

Prompt = Literal["genes", "cell", "both"]
_NEAR = 1e-3
logger = get_logger(__name__)


def generate(
    adata: AnnData,
    model: str | os.PathLike[str] | Checkpoint | None = None,
    *,
    genes: Sequence[str],
    prompt: Prompt = "genes",
    known: Sequence[str] | None = None,
    embedding: str | None = None,
    n_steps: int = 3,
    order: Order = "confidence",
    draw: bool = False,
    layer: str | None = None,
    use_raw: bool | None = None,
    gene_symbols: str | None = None,
    gene_table: pd.DataFrame | None = None,
    ties: Ties | None = None,
    min_genes: int = 200,
    max_tokens: int | None = None,
    device: str = "auto",
    precision: Precision = "auto",
    key_added: str | None = None,
    rng: int | np.random.Generator | None = 0,
    copy: bool = False,
) -> AnnData | None:
    """Generate the expression of genes from the other genes of each cell, or from its vector :cite:p:`Cui2024`.

    In each of `n_steps` steps all genes that are asked for are predicted, and a share of them, those with the narrowest
    predicted distribution, become known with their predicted values (:class:`scanpy_scgpt.model.Generator`). What the
    cells hold of the genes that are asked for is not looked at, and bins are taken among the genes that may be seen.
    Vectors that are given in `embedding` are taken as they are: if they were made from the genes that are asked for,
    the values have seen them.

    The network was trained on expressed genes alone. A value therefore means "the bin of this gene, if the cell
    expresses it", from 1 to `n_bins - 1`, and never says that a gene is off. The same cell gets the same values (to
    rounding) whatever the order, subset or batch.

    Parameters
    ----------
    adata
        Cells, shape `(n_obs, n_vars)`: in memory, backed or with dask arrays, dense or sparse (MuData: pass one
        modality).
    model
        Name out of `models.available()`, folder of a checkpoint, a checkpoint, or `None` for `settings.model`.
    genes
        Names of the genes to generate; each needs a column of `adata`.
    prompt
        `"genes"`: from the genes that may be seen. `"cell"`: from the cell vector alone. `"both"`: the vector stands
        beside the genes, as in pretraining; a model whose pretraining had no such pass is used with a warning.
    known
        Names of the genes that may be seen; all expressed genes that are not asked for by default.
    embedding
        Key in `.obsm` of the cell vectors, made by :func:`scanpy_scgpt.tl.embed` with the same model, `pooling="cls"`
        and `normalize=False`, from cells without the genes that are asked for. By default they are computed from the
        genes that may be seen.
    n_steps
        Number of steps.
    order
        Which genes become known first: `"confidence"`, or `"random"` ones.
    draw
        Draw values from the predicted distributions (whole digits) in place of taking their means.
    layer, use_raw, gene_symbols, gene_table
        Where counts and gene names are; see :func:`scanpy_scgpt.pp.tokenize`.
    ties
        Bin of tied values: `"random"`, `"low"`, `"mid"`, `"high"`; the checkpoint's own by default.
    min_genes
        Fewest genes that must be found in the vocabulary.
    max_tokens
        Most tokens of a batch; lower it when memory is short. Does not change the result.
    device
        `"auto"` (CUDA, MPS, CPU) or a torch device.
    precision
        `"fp32"`, `"bf16"`, or `"auto"`: bf16 where a GPU has it, else fp32.
    key_added
        Name of the layer in place of `scgpt_generated`; the standard deviations then go to `<key_added>_sd` and the
        record to `.uns["scgpt"]["generate_<key_added>"]`.
    rng
        Seed of random ties, order and draws; they depend on the names of cell and gene.
    copy
        Return a copy instead of writing to `adata`.

    Returns
    -------
    `None`, or the copy if `copy=True`. Sets the fields

    `.layers["scgpt_generated"]` : CSR :class:`numpy.float32`, shape `(n_obs, n_vars)`
        Generated bins of the genes that were asked for, in every cell; nothing is stored elsewhere. Of several columns
        of one gene the first holds it.
    `.layers["scgpt_generated_sd"]` : CSR :class:`numpy.float32`, shape `(n_obs, n_vars)`
        Standard deviation of the predicted distribution, in bins; only where the model has one.
    `.uns["scgpt"]["generate"]` : :class:`dict`
        Model and its hash, settings, report of the genes, speed.

    Raises
    ------
    GeneMatchError
        When fewer than `min_genes` genes are in the vocabulary.
    ValueError
        When a gene is unknown, or both known and asked for; the vectors are not what the model made; the model was not
        pretrained generatively, or has no value distribution and `order="confidence"` or `draw=True` need one.
    KeyError
        When `embedding`, `layer` or `gene_symbols` does not exist.

    Examples
    --------
    >>> import scanpy as sc
    >>> import scanpy_scgpt as scgpt
    >>> adata = sc.datasets.pbmc68k_reduced()
    >>> scgpt.tl.generate(adata, genes=["CD3D", "CD79A"], use_raw=True, n_steps=1)
    """
    check_one_of(prompt, ("genes", "cell", "both"), name="prompt")
    where = {"layer": layer, "use_raw": use_raw, "gene_symbols": gene_symbols, "gene_table": gene_table}
    engine = {"device": device, "max_tokens": max_tokens, "precision": precision}
    given = {"key_added": key_added, "ties": ties, "min_genes": min_genes, "rng": rng, "copy": copy}
    run = LayerRun(adata, model, verb="generate", keys=GENERATE, where=where, engine=engine, **given)
    steps = {"n_steps": n_steps, "order": order, "draw": draw}
    run.generator.check(**steps)
    if prompt != "genes":
        _warn_if_unprompted(run.checkpoint, prompt)
    vectors = _vectors(run, embedding, prompt=prompt)
    asked, columns = _asked_and_seen(run, genes, known, gene_table=gene_table, may_be_empty=vectors is not None)
    embedder = Embedder(run.checkpoint, **engine, backend="torch") if prompt != "genes" and vectors is None else None
    start, n_blind = 0, 0
    for names, counts in run.blocks(len(asked)):
        stop = start + len(names)
        tokens = run.cells.tokenizer.encode(counts, columns, names, seed=run.seed)
        cell = vectors[start:stop] if vectors is not None else embedder and embedder.embed_tokens(tokens)
        n_blind += 0 if vectors is not None else int((tokens.lengths == 0).sum())
        if prompt == "cell":
            tokens = tokens.masked(np.zeros(len(tokens.gene_ids), dtype=bool))
        lists = GeneLists.repeated(asked, len(names))
        keys = cell_keys(names, seed=run.seed, purpose="generate")
        run.add(lists, run.generator.generate(tokens, lists, keys=keys, cell=cell, **steps))
        start = stop
    if n_blind:
        logger.warning(
            "generate: %s cells show no gene that may be seen; they all got the same values, those of an empty cell.",
            f"{n_blind:,}",
        )
    settings = {"prompt": prompt, "embedding": embedding or "", "n_generated": len(asked), "n_empty_cells": n_blind}
    said = [] if embedding is None else [f"obsm[{embedding!r}] may have seen these genes: it was taken as it is"]
    return run.finish({**steps, **settings}, said=[_how(prompt, n_genes=len(asked), **steps), *said])


def _warn_if_unprompted(checkpoint: Checkpoint, prompt: Prompt) -> None:
    """Say so when a model was pretrained with steps, but none of them went from the cell vector."""
    settings = checkpoint.info.get("settings", {})
    after, n_steps = settings.get("prompt_after"), settings.get("max_steps", math.inf)
    if "prompt_after" in settings and (after is None or after >= n_steps):
        logger.warning(
            "generate: %s was never trained to predict from cell vectors (prompt_after=%s, max_steps=%s), so "
            "prompt=%r gives values that mean little. Pass prompt='genes'.",
            checkpoint.label,
            after,
            settings.get("max_steps"),
            prompt,
        )


def _how(prompt: Prompt, *, n_genes: int, n_steps: int, order: Order, draw: bool) -> str:
    """How the values came about, for the receipt."""
    source = {"genes": "known genes", "cell": "cell vectors", "both": "cell vectors and known genes"}[prompt]
    steps = f"{n_steps} steps by {order}" if n_steps > 1 else "1 step"
    return f"{n_genes:,} genes from {source} in {steps}{', drawn' if draw else ''}"


def _asked_and_seen(
    run: LayerRun,
    genes: Sequence[str],
    known: Sequence[str] | None,
    *,
    gene_table: pd.DataFrame | None,
    may_be_empty: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Ids of the genes to generate, and the id of each column of the counts that may be seen (-1 for the others)."""
    cells = run.cells
    asked = gene_ids(genes, cells, argument="genes", gene_table=gene_table)
    lost = [run.checkpoint.vocab.tokens[i] for i in asked[~run.has_column(asked)]]
    if lost:
        msg = (
            f"adata has no column for {len(lost):,} genes of genes= ({cells.source.where} has): {listed(lost)}. "
            "Leave them out, or take adata.raw.to_adata()."
        )
        raise ValueError(msg)
    may = ~np.isin(cells.match.ids, asked)
    if known is not None:
        shown = gene_ids(known, cells, argument="known", gene_table=gene_table)
        both = [run.checkpoint.vocab.tokens[i] for i in np.intersect1d(asked, shown)]
        if both:
            msg = f"{len(both):,} genes are in genes= and in known=: {listed(both)}. Take them out of one of the two."
            raise ValueError(msg)
        may &= np.isin(cells.match.ids, shown)
    seen = np.where(may, cells.match.ids, -1)
    if (seen < 0).all() and not may_be_empty:
        msg = (
            f"genes= names all {len(asked):,} genes that the cells have in the vocabulary, so none is left to be seen. "
            "Ask for fewer, or give vectors: prompt='cell', embedding='<key of obsm>'."
        )
        raise ValueError(msg)
    return asked, seen


def _vectors(run: LayerRun, key: str | None, *, prompt: Prompt) -> np.ndarray | None:
    """Vectors of the cells as the network makes them at `<cls>`, from `.obsm`; None where none are named."""
    if key is None:
        return None
    if prompt == "genes":
        msg = f"embedding={key!r} is not used with prompt='genes'. Pass prompt='cell' or 'both', or leave it out."
        raise ValueError(msg)
    if key not in run.adata.obsm:
        listed_keys = ", ".join(map(repr, run.adata.obsm)) or "none"
        msg = (
            f"There is no obsm[{key!r}] (embedding=). Keys: {listed_keys}. Leave embedding out to compute the vectors."
        )
        raise KeyError(msg)
    vectors = np.asarray(run.adata.obsm[key], dtype=np.float32)
    fault = _fault_of(vectors, key, run)
    if fault:
        msg = (
            f"obsm[{key!r}] {fault}. Leave embedding out, or make them: scgpt.tl.embed(adata, model, pooling='cls', "
            f"normalize=False, key_added={key!r})."
        )
        raise ValueError(msg)
    return vectors


def _fault_of(vectors: np.ndarray, key: str, run: LayerRun) -> str | None:
    """Why vectors cannot be a prompt, None when they can."""
    label, width = run.checkpoint.label, run.checkpoint.transformer.d_model
    if vectors.ndim == 1 or vectors.shape[1] != width:
        return f"has shape {vectors.shape}, vectors of {label} have {width} numbers"
    if not np.isfinite(vectors).all():
        return "has NaN or infinite numbers"
    record = _record_of(run.adata, key)
    if record.get("model_hash", run.checkpoint.digest) != run.checkpoint.digest:
        return f"was made by {record['model']}@{record['model_hash']}, not by {label}"
    if record.get("pooling", "cls") != "cls":
        return f"was made with pooling={record['pooling']!r}, and the prompt is the vector at <cls>"
    if (np.abs(np.linalg.norm(vectors, axis=1) - 1) < _NEAR).all():
        return "holds vectors of length 1 (normalize=True), and the network was trained on unscaled ones"
    return None


def _record_of(adata: AnnData, key: str) -> Mapping[str, Any]:
    """The record of the call that made vectors, empty where there is none."""
    records = [record for record in adata.uns.get(UNS, {}).values() if isinstance(record, Mapping)]
    return next((record for record in records if record.get("key") == key and "pooling" in record), {})
