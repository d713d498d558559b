"""`pp.tokenize`: counts of an AnnData to tokens, in place."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from scanpy_scgpt._counts import CountSource, choose_counts
from scanpy_scgpt._keys import TOKENIZE, UNS
from scanpy_scgpt._logging import get_logger
from scanpy_scgpt._modalities import own_columns
from scanpy_scgpt._progress import track
from scanpy_scgpt._types import Ties
from scanpy_scgpt._validate import check_anndata, copied, file_paths, seed_of
from scanpy_scgpt._version import __version__
from scanpy_scgpt.disk import as_cells
from scanpy_scgpt.tokenizer import (
    GeneMatch,
    GeneTable,
    GeneVocab,
    Tokenizer,
    TokenizerConfig,
    match_genes,
    require_enough,
)

from ._tokenize_files import check_place, open_files, tokenize_to_file

if TYPE_CHECKING:
    from anndata import AnnData

logger = get_logger(__name__)
_BLOCK = 4096  # cells binned at a time


def tokenize(
    data: AnnData | str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
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
    out: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    copy: bool = False,
) -> AnnData | Path | None:
    """Turn counts into scGPT tokens: a vocabulary id per gene, a value bin per non-zero count :cite:p:`Cui2024`.

    The tokens of a cell are the non-zeros of its row in the new layer. Bins are per-cell quantiles over the genes of
    the vocabulary. Random ties depend on the seed, the name of the cell and the gene alone, so a cell has the same
    tokens in any order, subset or chunk.

    Files go to a file, block by block: `scgpt.pp.tokenize("cells.h5ad", out="cells.zarr")` writes an AnnData file with
    the layer, `out="cells.tokens"` a token store for training. A call that was killed goes on when it is repeated.

    Parameters
    ----------
    data
        Cells, shape `(n_obs, n_vars)`: an AnnData in memory, backed or with dask arrays, dense or sparse, any number
        type (MuData: pass one modality); or the path of an `.h5ad`, `.zarr` or `.h5mu` file (its modality `rna`), or a
        list of paths, whose genes may differ. Columns that are antibodies, guides or peaks by `var["feature_types"]`
        match nothing.
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
    out
        Of files: where the tokens go, a name that ends in `.zarr`, `.h5ad` or `.tokens`.
    overwrite
        Of files: replace what stands at `out`, once the new result is complete.
    copy
        Return a copy instead of writing to `data`.

    Returns
    -------
    `None`, or the copy if `copy=True`, or for files the path `out` (of an AnnData file without `X`; of several files
    `var` holds the genes of the vocabulary that any of them has). Sets the fields

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
    paths = file_paths(data)
    if paths is None:
        check_anndata(data, function="pp.tokenize", copy=copy)
        if out is not None:
            msg = "pp.tokenize: out= is for files. Give the path of a file, or leave it out."
            raise ValueError(msg)
    seed = seed_of(rng)
    vocab, config, label = _vocabulary(model)
    tokenizer = Tokenizer(vocab, config.updated(n_bins=n_bins, ties=ties))
    where = {"layer": layer, "use_raw": use_raw, "gene_symbols": gene_symbols, "gene_table": gene_table}
    if paths is not None:
        return _to_file(paths, tokenizer, label, out, where, min_genes=min_genes, seed=seed, overwrite=overwrite)
    source = choose_counts(as_cells(adata := data), layer=layer, use_raw=use_raw)
    table = None if gene_table is None else GeneTable(gene_table)
    columns = {"columns": source.gene_columns(gene_symbols), "among": own_columns(source.var, "rna")}
    found = match_genes(source.var.index, vocab, gene_table=table, **columns)
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


def _to_file(
    paths: list[Path],
    tokenizer: Tokenizer,
    label: str,
    out: str | os.PathLike[str] | None,
    where: dict[str, Any],
    *,
    min_genes: int,
    seed: int,
    overwrite: bool,
) -> Path:
    out = check_place(out, paths)
    started = time.perf_counter()
    files = open_files(paths, tokenizer, **where, min_genes=min_genes)
    first = files[0]
    record = _record(label, tokenizer.vocab, tokenizer.config, first.source, first.match, seed=seed)
    record["files"] = [path.name for path in paths]
    if not tokenize_to_file(files, tokenizer, out, record, seed=seed, overwrite=overwrite):
        logger.info("tokenize: %s is the result of this very call; nothing to do.", out)
        return out
    n_cells = sum(x.source.n_obs for x in files)
    logger.info(
        "tokenize: %s cells of %s file%s · %s · %s · %s cells/s → %s",
        f"{n_cells:,}",
        len(paths),
        "s" if len(paths) > 1 else "",
        first.match.summary() if len(files) == 1 else f"{len(files)} gene sets",
        label,
        f"{n_cells / (time.perf_counter() - started):,.0f}",
        out,
    )
    for x in files:
        if len(files) > 1:
            logger.info("tokenize: %s: %s", x.file.path.name, x.match.summary())
        if warning := x.match.warning():
            logger.warning("tokenize: %s: %s", x.file.path.name, warning)
    return out


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
