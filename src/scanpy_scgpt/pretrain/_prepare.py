"""Cells of any source to one token store: filtered, without repeats, in blocks; a killed call goes on."""

from __future__ import annotations

import os
from pathlib import Path

from scanpy_scgpt._logging import get_logger
from scanpy_scgpt._validate import check_one_of
from scanpy_scgpt.disk import TokenStore, alone_with
from scanpy_scgpt.tokenizer import GeneVocab, TokenizerConfig

from ._arguments import check_kinds
from ._filters import QualityFilters
from ._preparation import Duplicates, OnError, Preparation
from ._sources import Data, places_of

logger = get_logger(__name__)


def prepare(
    data: Data,
    out: str | os.PathLike[str],
    *,
    vocab: GeneVocab | None = None,
    min_cells: int = 20,
    tokenizer: TokenizerConfig | None = None,
    layer: str | None = None,
    gene_symbols: str | None = None,
    filters: QualityFilters | None = None,
    study_key: str = "study",
    tissue_key: str = "tissue",
    duplicates: Duplicates = "report",
    on_error: OnError = "raise",
    overwrite: bool = False,
    rng: int = 0,
) -> TokenStore:
    """Make the token store that pretraining reads, from files with different genes, collections or an atlas query.

    The cells are read in blocks; in memory stay 12 bytes of each, to find repeats. A killed call goes on when it is
    repeated, and a finished one opens its store. Processes that make the same call at once wait for the first of them.

    Parameters
    ----------
    data
        Files of raw counts (`.h5ad`, `.zarr`, the modality `rna` of `.h5mu`), annbatch collections (their folder) or a
        :class:`CensusQuery`; one or a list.
    out
        Folder of the store.
    vocab
        Genes of the model. None takes all that `min_cells` cells express, see :func:`build_vocab`; that reads the
        cells once more.
    min_cells
        For `vocab=None`: fewest cells that express a gene.
    tokenizer
        How counts become bins; by default the middle of tied bins, which keeps all signal and no noise.
    layer, gene_symbols
        Layer with the counts and column of `var` with the names of the genes; both are found by default.
    filters
        Limits that a cell must keep; none by default.
    study_key, tissue_key
        Columns of `obs` with the study and the tissue of a cell. Without them the study is the name of the file, or of
        the collection that it is a part of, and the tissue is `"unknown"`. A query names its own.
    duplicates
        Cells whose counts equal those of an earlier cell: `"report"` logs their number for each pair of files, `"drop"`
        also leaves them out. Cells of fewer than 10 genes may be equal by chance and stay.
    on_error
        What a damaged file, or one without counts, does: `"raise"`, or `"skip"`, which leaves it out and says so.
    overwrite
        Replace the store of another call at `out`.
    rng
        Seed of random ties.

    Returns
    -------
    The store, with the columns `file`, `study` and `tissue`; :func:`corpus_report` says what became of each file.

    Raises
    ------
    FileNotFoundError
        When a file is not there.
    OSError
        When a file is damaged, a Census cannot be reached, or the disk is full.
    KeyError
        When a file has no such layer or column.
    ValueError
        When a file does not hold raw counts or none of its genes is in the vocabulary, when no cell is left, or when
        `out` holds the store of another call; the text says what differs.
    TypeError
        When `data` is something else.
    """
    check_one_of(duplicates, ("report", "drop"), name="duplicates")
    check_one_of(on_error, ("raise", "skip"), name="on_error")
    check_kinds(vocab=vocab, filters=filters, overwrite=overwrite)
    call = Preparation(
        places_of(data),
        Path(out).expanduser(),
        vocab,
        min_cells=min_cells,
        tokenizer=tokenizer or TokenizerConfig(ties="mid"),
        layer=layer,
        gene_symbols=gene_symbols,
        filters=filters or QualityFilters(),
        study_key=study_key,
        tissue_key=tissue_key,
        duplicates=duplicates,
        on_error=on_error,
        overwrite=overwrite,
        seed=rng,
    )
    store = call.finished()
    if store is not None:
        return store
    call.out.parent.mkdir(parents=True, exist_ok=True)
    lock = call.out.with_name(f".{call.out.name}.lock")
    with alone_with(lock, wait=False) as mine:
        if mine:
            return call.finished() or call.write()
    logger.info("corpus: another process makes %s; waiting for it.", call.out)
    with alone_with(lock, wait=True):
        return call.finished() or call.write()
