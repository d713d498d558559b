"""Cells of an AnnData as tokens for a checkpoint: counts found, genes matched, blocks of rows encoded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scanpy_scgpt._counts import choose_counts
from scanpy_scgpt._modalities import own_columns
from scanpy_scgpt.disk import as_cells
from scanpy_scgpt.io import Checkpoint
from scanpy_scgpt.tokenizer import (
    GeneTable,
    Tokenizer,
    TokenizerConfig,
    Tokens,
    match_genes,
    require_enough,
)

if TYPE_CHECKING:
    from anndata import AnnData

    from scanpy_scgpt.disk import CellFile

BLOCK = 2048  # cells read, tokenised and sorted by length at a time


class CellNames:
    """Names of cells, read by ranges: `names[start:stop]`; those of a file are not held."""

    def __init__(self, cells: AnnData | CellFile) -> None:
        self._cells = cells

    def __len__(self) -> int:
        return self._cells.n_obs

    def __getitem__(self, rows: slice) -> np.ndarray:
        if hasattr(self._cells, "names"):
            start, stop, _ = rows.indices(len(self))
            return self._cells.names(start, stop)
        return np.asarray(self._cells.obs_names[rows])


class CellTokens:
    """The tokens of all cells, made block by block; iterating gives the blocks in order.

    Parameters
    ----------
    adata
        Cells, shape `(n_obs, n_vars)`, or a file of them (:class:`scanpy_scgpt.disk.CellFile`); not changed.
    checkpoint
        Whose vocabulary to use.
    config
        How counts become tokens.
    layer, use_raw, gene_symbols, gene_table, min_genes
        As in :func:`scanpy_scgpt.pp.tokenize`.
    seed
        Seed of every draw.

    Attributes
    ----------
    source
        The matrix that is read.
    match
        What each gene became.
    names
        Names of the cells, read by ranges.
    empty
        True for a cell without any gene of the vocabulary, shape `(n_obs,)`; filled while iterating.
    n_cut
        Number of cells that lost genes to `max_length`; counted while iterating.
    """

    def __init__(
        self,
        adata: AnnData | CellFile,
        checkpoint: Checkpoint,
        config: TokenizerConfig,
        *,
        layer: str | None = None,
        use_raw: bool | None = None,
        gene_symbols: str | None = None,
        gene_table: pd.DataFrame | None = None,
        min_genes: int = 1,
        seed: int = 0,
    ) -> None:
        self.checkpoint, self.config, self.seed = checkpoint, config, seed
        self.names = CellNames(adata)
        self.source = choose_counts(as_cells(adata), layer=layer, use_raw=use_raw)
        table = None if gene_table is None else GeneTable(gene_table)
        columns, genes = self.source.gene_columns(gene_symbols), own_columns(self.source.var, "rna")
        self.match = match_genes(
            self.source.var.index, checkpoint.vocab, columns=columns, gene_table=table, among=genes
        )
        require_enough(self.match, checkpoint.vocab, min_genes=min_genes)
        self.tokenizer = Tokenizer(checkpoint.vocab, config)
        self.empty = np.zeros(self.source.n_obs, dtype=bool)
        self.n_cut = 0

    def encode(self, start: int, stop: int) -> tuple[Tokens, np.ndarray]:
        """Tokens of the rows `start:stop`, and the number of genes of each before the cut."""
        counts = self.source.rows(start, stop)
        return self.tokenizer.encode_counted(counts, self.match.ids, self.names[start:stop], seed=self.seed)

    def block(self, start: int, stop: int) -> Tokens:
        """Tokens of the rows `start:stop`; counts empty and cut cells."""
        tokens, whole = self.encode(start, stop)
        self.empty[start:stop] = tokens.lengths == 0
        self.n_cut += int((tokens.lengths < whole).sum())
        return tokens

    def row_blocks(self, size: int = BLOCK) -> Iterator[tuple[int, int]]:
        """Bounds of blocks of `size` rows; of a dask array its own blocks, so that each is computed once."""
        chunks = getattr(self.source.matrix, "chunks", None)
        own = chunks[0] if hasattr(self.source.matrix, "dask") else None
        ends = np.cumsum(own) if own else np.arange(size, self.source.n_obs + size, size)
        start = 0
        for stop in np.minimum(ends, self.source.n_obs).tolist():
            yield start, stop
            start = stop

    def __iter__(self) -> Iterator[Tokens]:
        for start, stop in self.row_blocks():
            yield self.block(start, stop)

    def record(self) -> dict[str, Any]:
        """Where the tokens come from, as kept in `.uns`."""
        return {
            "model": self.checkpoint.name,
            "model_hash": self.checkpoint.digest,
            "vocab_hash": self.checkpoint.vocab.digest,
            "source": self.source.where,
            "values": self.source.kind(),
            "genes": self.match.report(),
            "seed": str(self.seed),
            **{f"tokens_{name}": value for name, value in self.config.to_dict().items()},
        }
