"""The genes that a model knows: those that enough cells of a corpus express."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import sparse

from scanpy_scgpt._counts import SYMBOL_COLUMNS
from scanpy_scgpt._logging import get_logger
from scanpy_scgpt.tokenizer import SPECIAL_TOKENS, GeneVocab, match_genes

from ._sources import Data, Place, Source, places_of, readable, reading

logger = get_logger(__name__)
_BLOCK = 4096  # cells looked at together
_ENSEMBL = r"ENS[A-Z]*G\d{6,}"  # of any species
_NO_NAMES = ("", "nan", "None", "NaN", "<NA>", *SPECIAL_TOKENS)
_MIXED = 0.05  # share of names of the rarer kind from which the names are said to be mixed


def build_vocab(
    files: Data,
    names: Sequence[str] | None = None,
    *,
    min_cells: int = 20,
    extend: GeneVocab | None = None,
    layer: str | None = None,
    gene_symbols: str | None = None,
) -> GeneVocab:
    """Vocabulary of the genes that enough cells of a corpus express, of any species.

    Parameters
    ----------
    files
        Files of raw counts (`.h5ad`, `.zarr`, `.h5mu`), annbatch collections or a :class:`CensusQuery`; read in blocks.
    names
        Names that may enter, in the order of their ids. By default all names of genes in the files, sorted: those of
        the index of `var`, or where that holds Ensembl ids the symbols beside them.
    min_cells
        Fewest cells with a count above zero; a cell counts once for a gene, however many columns the gene has.
    extend
        A vocabulary to extend: its tokens keep their ids, whatever the cells express, and new genes come after them.
    layer
        Layer with the counts; by default they are found as in :func:`scanpy_scgpt.pp.tokenize`.
    gene_symbols
        Column of `var` with the names of the genes.

    Returns
    -------
    The genes, with special tokens.

    Raises
    ------
    FileNotFoundError
        When a file is not there.
    OSError
        When a file is damaged.
    KeyError
        When a file has no such layer or column.
    ValueError
        When a file does not hold raw counts, or `min_cells` is below 1.
    """
    return vocabulary_of(
        places_of(files), names, min_cells=min_cells, extend=extend, layer=layer, gene_symbols=gene_symbols
    )


def vocabulary_of(
    places: Sequence[Place],
    names: Sequence[str] | None = None,
    *,
    min_cells: int,
    extend: GeneVocab | None = None,
    layer: str | None = None,
    gene_symbols: str | None = None,
    skipped: dict[str, str] | None = None,
) -> GeneVocab:
    """As :func:`build_vocab`; files that cannot be read are noted in `skipped`, when it is given."""
    if min_cells < 1:
        msg = f"min_cells={min_cells}: use 1 or more cells (20 is a good start)."
        raise ValueError(msg)
    if names is None:
        names = _names_in(places, extend, layer, gene_symbols, skipped)
    listed = () if extend is None else extend.tokens
    everything = GeneVocab(dict.fromkeys([*listed, *names]))
    expressed = np.zeros(len(everything), dtype=np.int64)
    for place in readable(places, skipped):
        with reading(place, skipped):
            source = place.open(layer)
            expressed += _expressed(source, everything, gene_symbols)
            source.close()
    genes = [
        gene for gene in everything.genes if gene not in (extend or ()) and expressed[everything[gene]] >= min_cells
    ]
    kind = "genes" if extend is None else "new genes"
    logger.info("vocabulary: %s %s are expressed in %s or more cells.", f"{len(genes):,}", kind, f"{min_cells:,}")
    return GeneVocab([*listed, *genes])


def _expressed(source: Source, vocab: GeneVocab, gene_symbols: str | None) -> np.ndarray:
    """Number of cells that express each token, shape `(n_tokens,)`, int64."""
    columns = source.gene_columns(gene_symbols)
    ids = match_genes(source.counts.var.index, vocab, columns=columns).ids
    expressed = np.zeros(len(vocab), dtype=np.int64)
    for start in range(0, source.counts.n_obs, _BLOCK):
        cells, genes = source.rows(start, min(start + _BLOCK, source.counts.n_obs)).nonzero()
        known = ids[genes] >= 0
        where = cells[known], ids[genes[known]]
        seen = sparse.csr_matrix((np.ones(known.sum(), bool), where), shape=(_BLOCK, len(vocab)))
        expressed += np.bincount(seen.indices, minlength=len(vocab))
    return expressed


def _names_in(
    places: Sequence[Place],
    extend: GeneVocab | None,
    layer: str | None,
    gene_symbols: str | None,
    skipped: dict[str, str] | None,
) -> list[str]:
    """Names of all genes of the files that a vocabulary to extend does not have, sorted."""
    found: set[str] = set()
    for place in readable(places, skipped):
        with reading(place, skipped):
            source = place.open(layer)
            names = _own_names(source, gene_symbols)
            if extend is not None:
                columns = source.gene_columns(gene_symbols)
                names = names[match_genes(source.counts.var.index, extend, columns=columns).ids < 0]
            found.update(names)
    listed = sorted(found.difference(_NO_NAMES))
    share = float(pd.Series(listed, dtype=str).str.fullmatch(_ENSEMBL).mean()) if listed else 0.0
    if _MIXED < share < 1 - _MIXED:
        logger.warning(
            "vocabulary: %.0f %% of the names are Ensembl ids and the others are not: a gene may stand under both. "
            "Name the column of var with symbols (gene_symbols=), or give the names that may enter (names=).",
            100 * share,
        )
    return listed


def _own_names(source: Source, gene_symbols: str | None) -> np.ndarray:
    """What the file calls its genes, shape `(n_genes,)`, str: the index, or the symbols beside Ensembl ids."""
    index = source.counts.var.index.astype(str).to_numpy()
    columns = source.gene_columns(gene_symbols)
    symbols = [gene_symbols] if gene_symbols else [name for name in SYMBOL_COLUMNS if name in columns]
    is_ensembl = pd.Series(index, dtype=str).str.match(_ENSEMBL).mean() > 1 / 2
    if not symbols or not (gene_symbols or is_ensembl):
        return index
    names = columns[symbols[0]].to_numpy(dtype=object).astype(str)
    return np.where(np.isin(names, _NO_NAMES), index, names)
