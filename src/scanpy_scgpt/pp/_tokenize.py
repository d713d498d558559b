"""`pp.tokenize`: counts of an AnnData to tokens, in place."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from scanpy_scgpt._counts import CountSource, choose_counts
from scanpy_scgpt._keys import TOKENIZE, UNS
from scanpy_scgpt._logging import get_logger
from scanpy_scgpt._progress import track
from scanpy_scgpt._types import Ties
from scanpy_scgpt._validate import check_anndata, copied, seed_of
from scanpy_scgpt._version import __version__
from scanpy_scgpt.tokenizer import (
    GeneMatch,
    GeneTable,
    GeneVocab,
    Tokenizer,
    TokenizerConfig,
    match_genes,
    require_enough,
)

if TYPE_CHECKING:
    import os

    from anndata import AnnData

logger = get_logger(__name__)
_BLOCK = 4096  # cells binned at a time


def tokenize(
    adata: AnnData,
    model: str | os.PathLike[str] | GeneVocab | None = None,
    *,
    layer: str | None = None,
    use_raw: bool | None = None,
    gene_symbols: str | None = None,
    gene_table: pd.DataFrame | None = None,
    n_bins: int | None = None,
    ties: Ties | None = None,
    min_genes: int = 200,
    rng: int | np.random.Generator | None = 0,
    copy: bool = False,
) -> AnnData | None:
    """Turn counts into scGPT tokens: a vocabulary id per gene, a value bin per non-zero count :cite:p:`Cui2024`.

    The tokens of a cell are the non-zeros of its row in the new layer. Bins are per-cell quantiles over the genes of
    the vocabulary. Random ties depend on the seed, the name of the cell and the gene alone, so a cell has the same
    tokens in any order, subset or chunk.

    Parameters
    ----------
    adata
        Cells, shape `(n_obs, n_vars)`; in memory or backed, dense or sparse, any number type. MuData: pass one
        modality.
    model
        Whose vocabulary and bins to use: a name out of `models.available()`, a checkpoint folder, a vocabulary, or
        `None` for `settings.model`.
    layer
        Layer with the counts. By default `layers["counts"]`, else `X` if it looks like counts, else `raw.X` if that
        does, else `X`; what was taken is logged.
    use_raw
        True takes `raw.X`, False never does.
    gene_symbols
        Column of `var` with the gene names, when `var_names` are something else. Usual columns are found without it.
    gene_table
        Columns `ensembl`, `symbol` and perhaps `aliases`, in place of the human table of the package.
    n_bins
        Number of bins with the one for zero, in place of the model's.
    ties
        Digit of tied values, in place of the model's: `"random"`, `"low"`, `"mid"` or `"high"`.
    min_genes
        Fewest genes that must be found.
    rng
        Seed of the random ties.
    copy
        Return a copy instead of writing to `adata`.

    Returns
    -------
    `None`, or the copy if `copy=True`. Sets the fields

    `.var["scgpt_token"]` : :class:`numpy.int64`, shape `(n_vars,)`
        Vocabulary id, -1 where a gene was not found.
    `.var["scgpt_match"]` : :class:`pandas.Categorical`, shape `(n_vars,)`
        How it was found: `symbol`, `column`, `ensembl`, `alias`, `none`.
    `.layers["scgpt_bins"]` : CSR :class:`numpy.uint8`, shape `(n_obs, n_vars)`
        Value bins, 1 to `n_bins - 1`. Columns of one gene are summed and stand in the first of them.
    `.uns["scgpt"]["tokenize"]` : :class:`dict`
        Model, settings and the report of the genes.

    Raises
    ------
    GeneMatchError
        When fewer than `min_genes` genes are in the vocabulary.
    ValueError
        When the matrix has NaN or negative values.
    KeyError
        When `layer` or `gene_symbols` does not exist.
    TypeError
        For a MuData or anything else that is no AnnData.

    Examples
    --------
    >>> import scanpy as sc
    >>> import scanpy_scgpt as scgpt
    >>> adata = sc.datasets.pbmc68k_reduced()
    >>> scgpt.pp.tokenize(adata, use_raw=True)
    >>> adata.layers["scgpt_bins"].max()
    np.uint8(50)
    """
    started = time.perf_counter()
    check_anndata(adata, function="pp.tokenize", copy=copy)
    seed = seed_of(rng)
    vocab, config, label = _vocabulary(model)
    tokenizer = Tokenizer(vocab, config.updated(n_bins=n_bins, ties=ties))
    source = choose_counts(adata, layer=layer, use_raw=use_raw)
    table = None if gene_table is None else GeneTable(gene_table)
    found = match_genes(source.var.index, vocab, columns=source.gene_columns(gene_symbols), gene_table=table)
    require_enough(found, vocab, min_genes=min_genes)
    match = found.among(adata.var_names)
    bins = _binned(source, tokenizer, found, match, adata.obs_names.to_numpy(), seed=seed)
    adata = copied(adata) if copy else adata
    adata.var[TOKENIZE.token] = match.ids
    adata.var[TOKENIZE.match] = pd.Categorical(match.how)
    adata.layers[TOKENIZE.layer] = bins
    adata.uns[UNS] = {
        **adata.uns.get(UNS, {}),
        TOKENIZE.uns: _record(label, vocab, tokenizer.config, source, match, seed=seed),
    }
    seconds = time.perf_counter() - started
    logger.info(
        "tokenize: %s cells · %s · %s (%s) · %s · %s cells/s → layers[%r]",
        f"{adata.n_obs:,}",
        match.summary(),
        source.where,
        source.kind(),
        label,
        f"{adata.n_obs / seconds:,.0f}",
        TOKENIZE.layer,
    )
    if warning := match.warning():
        logger.warning("tokenize: %s", warning)
    if match.n_matched < found.n_matched:
        logger.warning(
            "tokenize: %s has %s genes of the vocabulary, the layer has room for the %s of them in var; "
            "tl.embed uses them all.",
            source.where,
            f"{found.n_matched:,}",
            f"{match.n_matched:,}",
        )
    return adata if copy else None


def _vocabulary(model: object) -> tuple[GeneVocab, TokenizerConfig, str]:
    if isinstance(model, GeneVocab):
        return model, TokenizerConfig(), f"vocabulary {model.digest}"
    from scanpy_scgpt import models  # torch is loaded here, at first use

    checkpoint = models.load(model)
    return checkpoint.vocab, checkpoint.tokenizer, checkpoint.label


def _binned(
    source: CountSource, tokenizer: Tokenizer, found: GeneMatch, match: GeneMatch, names: np.ndarray, *, seed: int
) -> sparse.csr_matrix:
    """Bins of the genes that were found in the matrix, in the first column of `match` that means the gene."""
    column_of_gene = np.full(len(tokenizer.vocab), -1, dtype=np.int32)
    known = np.flatnonzero(match.ids >= 0)[::-1]
    column_of_gene[match.ids[known]] = known  # of several columns the first is written last
    blocks = [sparse.csr_matrix((0, len(match.ids)), dtype=np.uint8)]
    with track("tokenize", total=source.n_obs) as advance:
        for start in range(0, source.n_obs, _BLOCK):
            counts = source.rows(start, start + _BLOCK)
            tokens = tokenizer.bins(counts, found.ids, names[start : start + _BLOCK], seed=seed)
            tokens = tokens.masked(column_of_gene[tokens.gene_ids] >= 0)
            shape = (len(tokens), len(match.ids))
            block = sparse.csr_matrix((tokens.values, column_of_gene[tokens.gene_ids], tokens.indptr), shape=shape)
            blocks.append(block.sorted_indices())
            advance(len(tokens))
    return sparse.vstack(blocks, format="csr", dtype=np.uint8)


def _record(
    label: str, vocab: GeneVocab, config: TokenizerConfig, source: CountSource, match: GeneMatch, *, seed: int
) -> dict[str, Any]:
    return {
        "model": label.split("@", maxsplit=1)[0],
        "model_hash": label.partition("@")[2],
        "vocab_hash": vocab.digest,
        "n_bins": config.n_bins,
        "ties": config.ties,
        "seed": str(seed),
        "source": source.where,
        "values": source.kind(),
        "genes": match.report(),
        "version": __version__,
    }
