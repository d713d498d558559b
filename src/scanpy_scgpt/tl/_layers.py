"""What `tl.generate` and `tl.denoise` share: cells and model made ready, genes by name, predictions to layers."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from scanpy_scgpt import models
from scanpy_scgpt._keys import UNS, LayerKeys
from scanpy_scgpt._logging import get_logger
from scanpy_scgpt._progress import track
from scanpy_scgpt._types import Ties
from scanpy_scgpt._validate import check_anndata, copied, seed_of
from scanpy_scgpt._version import __version__
from scanpy_scgpt.io import Checkpoint
from scanpy_scgpt.model import CellTokens, GeneLists, Generator, Predicted
from scanpy_scgpt.tokenizer import GeneTable, match_genes

if TYPE_CHECKING:
    from anndata import AnnData

logger = get_logger(__name__)
_LISTED = 5  # names in a text
_BLOCK, _ENTRIES = 2048, 2**22  # cells at a time, at most; values generated at a time


def listed(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - _LISTED:,} more" if len(names) > _LISTED else ""
    return ", ".join(map(repr, map(str, names[:_LISTED]))) + more


def gene_ids(
    names: Sequence[str], cells: CellTokens, *, argument: str, gene_table: pd.DataFrame | None = None
) -> np.ndarray:
    """Vocabulary ids of genes by name: as the cells name them, or any name that the vocabulary is matched by.

    Parameters
    ----------
    names
        Names of genes.
    cells
        Whose genes are meant.
    argument
        Where the names were given, for messages.
    gene_table
        As in :func:`scanpy_scgpt.tl.embed`.

    Returns
    -------
    Array of int64, shape `(n,)`, in the order of the names; a gene that is named twice is there once.

    Raises
    ------
    ValueError
        When no name is given, or a gene is not in the vocabulary or not in the data.
    """
    names = [names] if isinstance(names, str) else list(names)
    if not names:
        msg = f"{argument} is empty: give names of genes, such as {argument}=[{cells.match.names[0]!r}]."
        raise ValueError(msg)
    vocab = cells.checkpoint.vocab
    own = pd.Series(cells.match.ids, index=cells.match.names)
    ids = own[~own.index.duplicated()].reindex(names, fill_value=-1).to_numpy()
    other = np.flatnonzero(ids < 0)
    table = None if gene_table is None else GeneTable(gene_table)
    ids[other] = match_genes([names[i] for i in other], vocab, gene_table=table).ids
    for bad, why in (
        (ids < 0, f"not in the vocabulary of {cells.checkpoint.label}"),
        (~np.isin(ids, cells.match.ids), f"not among the genes of {cells.source.where}"),
    ):
        if bad.any():
            lost = [names[i] for i in np.flatnonzero(bad)]
            msg = f"{len(lost):,} of the {len(names):,} genes of {argument}= are {why}: {listed(lost)}. Leave them out."
            raise ValueError(msg)
    return pd.unique(ids)


class LayerRun:
    """A call that predicts genes of all cells and writes them as layers.

    Parameters
    ----------
    adata, model, copy, ties, min_genes
        As in :func:`scanpy_scgpt.tl.generate`.
    verb
        Name of the function in `tl`.
    keys
        Slots without `key_added`.
    key_added
        As in :func:`scanpy_scgpt.tl.generate`.
    where
        Where counts and gene names are: `layer`, `use_raw`, `gene_symbols`, `gene_table`.
    engine
        `device`, `max_tokens`, `precision`.
    rng
        Seed.
    """

    def __init__(
        self,
        adata: AnnData,
        model: str | os.PathLike[str] | Checkpoint | None,
        *,
        verb: str,
        keys: LayerKeys,
        key_added: str | None,
        where: Mapping[str, Any],
        engine: Mapping[str, Any],
        ties: Ties | None,
        min_genes: int,
        rng: int | np.random.Generator | None,
        copy: bool,
    ) -> None:
        check_anndata(adata, function=f"tl.{verb}", copy=copy)
        if key_added is not None and "/" in key_added:
            msg = f"key_added={key_added!r}: a name with a slash cannot be written to a file. Leave the slash out."
            raise ValueError(msg)
        self.adata, self.copy, self.verb, self.model_given = adata, copy, verb, model is not None
        self.started, self.keys, self.seed = time.perf_counter(), keys.named(key_added), seed_of(rng)
        self.checkpoint = models.load(model)
        self.generator = Generator(self.checkpoint, **engine)
        config = self.checkpoint.tokenizer.updated(ties=ties)
        self.cells = CellTokens(adata, self.checkpoint, config, **where, min_genes=min_genes, seed=self.seed)
        self._columns = self._columns_of_genes()
        empty = sparse.csr_matrix((0, adata.n_vars), dtype=np.float32)
        self._values, self._spread = [empty], [empty]

    def _columns_of_genes(self) -> np.ndarray:
        """Column in which each gene of the vocabulary first stands, -1 for none; int64, shape `(n_tokens,)`."""
        ids = self.cells.match.among(self.adata.var_names).ids
        columns = np.full(len(self.checkpoint.vocab), -1, dtype=np.int64)
        known = np.flatnonzero(ids >= 0)[::-1]
        columns[ids[known]] = known  # of several columns the first is written last
        return columns

    def has_column(self, genes: np.ndarray) -> np.ndarray:
        """Whether the layers have room for these vocabulary ids; bool, shape `(n,)`."""
        return self._columns[genes] >= 0

    def blocks(self, genes_per_cell: int = 1) -> Iterator[tuple[np.ndarray, sparse.csr_matrix]]:
        """Names and counts of blocks of cells, smaller ones where many genes of each are predicted."""
        size = min(_BLOCK, max(_ENTRIES // genes_per_cell, 1))
        with track(self.verb, total=self.cells.source.n_obs) as advance:
            for start, stop in self.cells.row_blocks(size):
                yield self.cells.names[start:stop], self.cells.source.rows(start, stop)
                advance(stop - start)

    def add(self, genes: GeneLists, found: Predicted) -> None:
        """Append cells; genes without a column are left out."""
        there = self.has_column(genes.gene_ids)
        kept = genes.masked(there)
        shape, columns = (len(kept.indptr) - 1, self.adata.n_vars), self._columns[kept.gene_ids]
        for parts, values in zip((self._values, self._spread), found, strict=True):
            parts.append(sparse.csr_matrix((values[there], columns, kept.indptr), shape=shape).sorted_indices())

    def finish(self, record: Mapping[str, Any], *, said: Sequence[str]) -> AnnData | None:
        """Write layers and record, log the receipt, and return the copy if one was asked for.

        Parameters
        ----------
        record
            What `.uns` keeps besides model, tokens and speed.
        said
            Parts of the receipt between those about the cells and those about the model.
        """
        cells, keys = self.cells, self.keys
        adata = copied(self.adata) if self.copy else self.adata
        adata.layers[keys.layer] = sparse.vstack(self._values, format="csr")
        slots = [f"layers[{keys.layer!r}]"]
        if self.generator.knows_spread:
            adata.layers[keys.spread] = sparse.vstack(self._spread, format="csr")
            slots.append(f"layers[{keys.spread!r}]")
        elif keys.spread in adata.layers:
            del adata.layers[keys.spread]  # of a former call with another model
        n_obs = cells.source.n_obs
        speed = n_obs / max(time.perf_counter() - self.started, 1e-9)
        engine = self.generator.record()
        record = {**cells.record(), **engine, **record, "n_cells": n_obs, "cells_per_second": speed}
        record |= {"key": keys.layer, "version": __version__}
        adata.uns[UNS] = {**adata.uns.get(UNS, {}), keys.uns: record}
        parts = [
            f"{n_obs:,} cells",
            cells.match.summary(),
            f"{cells.source.where} ({cells.source.kind()})",
            *said,
            self.checkpoint.label + ("" if self.model_given else " (default model)"),
            f"{engine['device']} {engine['precision']}",
            f"{speed:,.0f} cells/s",
        ]
        logger.info("%s: %s → %s", self.verb, " · ".join(parts), ", ".join(slots))
        if warning := cells.match.warning():
            logger.warning("%s: %s", self.verb, warning)
        return adata if self.copy else None
