"""Cells of an AnnData as tokens for a checkpoint: counts found, genes matched, blocks of rows encoded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scanpy_scgpt._counts import choose_counts
from scanpy_scgpt.io import Checkpoint
from scanpy_scgpt.tokenizer import GeneTable, Tokenizer, TokenizerConfig, Tokens, match_genes, require_enough

if TYPE_CHECKING:
    from anndata import AnnData

BLOCK = 2048  # cells read, tokenised and sorted by length at a time


class CellTokens:
    """The tokens of all cells, made block by block; iterating gives the blocks in order.

    Parameters
    ----------
    adata
        Cells, shape `(n_obs, n_vars)`; not changed.
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
    empty
        True for a cell without any gene of the vocabulary, shape `(n_obs,)`; filled while iterating.
    n_cut
        Number of cells that lost genes to `max_length`; counted while iterating.
    """

    def __init__(
        self,
        adata: AnnData,
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
        self.names = adata.obs_names.to_numpy()
        self.source = choose_counts(adata, layer=layer, use_raw=use_raw)
        table = None if gene_table is None else GeneTable(gene_table)
        columns = self.source.gene_columns(gene_symbols)
        self.match = match_genes(self.source.var.index, checkpoint.vocab, columns=columns, gene_table=table)
        require_enough(self.match, checkpoint.vocab, min_genes=min_genes)
        self.tokenizer = Tokenizer(checkpoint.vocab, config)
        self.empty = np.zeros(self.source.n_obs, dtype=bool)
        self.n_cut = 0

    def block(self, start: int, stop: int) -> Tokens:
        """Tokens of the rows `start:stop`."""
        names = self.names[start:stop]
        counts = self.source.rows(start, stop)
        tokens, whole = self.tokenizer.encode_counted(counts, self.match.ids, names, seed=self.seed)
        self.empty[start:stop] = tokens.lengths == 0
        self.n_cut += int((tokens.lengths < whole).sum())
        return tokens

    def __iter__(self) -> Iterator[Tokens]:
        for start in range(0, self.source.n_obs, BLOCK):
            yield self.block(start, min(start + BLOCK, self.source.n_obs))

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
