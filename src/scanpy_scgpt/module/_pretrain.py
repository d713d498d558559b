"""Generative pretraining: which heads, which terms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from scanpy_scgpt.nn import CellToGeneHead, CellTransformer, ExpressionHead, TransformerConfig
from scanpy_scgpt.objectives import Loss, combine, contrastive_cells, masked_mse

if TYPE_CHECKING:
    from scanpy_scgpt._batch import GenerativeBatch

_TEMPERATURE = 0.1  # of the contrastive term


class Generated(NamedTuple):
    """Predictions of one pass: `known` (batch, n_known), `unknown` (batch, n_unknown), `cell` (batch, d_model)."""

    known: Tensor
    unknown: Tensor
    cell: Tensor


class PretrainModule(nn.Module):
    """Transformer with the expression head (GEP) and the cell-to-gene head (GEPC), trained generatively.

    Parameters
    ----------
    config
        Shape of the network.
    contrast
        Add the contrastive term between the cell vectors of two disjoint sets of genes of a cell.
    weights
        Weight of the terms `gep`, `gepc`, `prompt`, `contrast`; 1 where none is given.
    legacy_generation
        Leave the output projection of attention out for unknown genes, as the original does.
    """

    def __init__(
        self,
        config: TransformerConfig,
        *,
        contrast: bool = False,
        weights: Mapping[str, float] | None = None,
        legacy_generation: bool = False,
    ) -> None:
        super().__init__()
        self.transformer = CellTransformer(config)
        self.expression_head = ExpressionHead(d_model=config.d_model)
        self.cell_to_gene_head = CellToGeneHead(d_model=config.d_model)
        self.contrast, self.weights = contrast, dict(weights or {})
        self.prompting = True
        self.legacy_generation = legacy_generation

    def generate(self, batch: GenerativeBatch, *, cell: Tensor | None = None) -> Generated:
        """Predict the unknown genes of each cell.

        Parameters
        ----------
        batch
            Known and unknown genes.
        cell
            (batch, d_model) vectors that take the place of the `<cls>` input (cell prompt), or None.
        """
        known, unknown = self._streams(batch, cell)
        return Generated(self.expression_head(known).values, self.expression_head(unknown).values, known[:, 0])

    def _streams(self, batch: GenerativeBatch, cell: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Vectors of the known tokens and of the unknown genes, (batch, n, d_model) each."""
        encoder = self.transformer.encoder
        known = encoder(batch.known.gene_ids, batch.known.values)
        if cell is not None:
            known = torch.cat([cell.unsqueeze(1), known[:, 1:]], dim=1)
        return self.transformer.encode_generative(
            known, encoder.without_value(batch.unknown_ids), batch.known.padding, legacy=self.legacy_generation
        )

    def from_cell(self, cell: Tensor, gene_ids: Tensor) -> Tensor:
        """Expression of genes `gene_ids` (batch, length) from cell vectors (batch, d_model) -> (batch, length)."""
        return self.cell_to_gene_head(cell, self.transformer.encoder.genes(gene_ids)).values

    @torch.no_grad()
    def start_from(self, gene_table: Tensor, *, mean_digit: float) -> None:
        """Start the gene table (n_tokens, d_model) from known vectors and the predictions from the mean digit."""
        self.transformer.encoder.genes.embedding.weight.copy_(gene_table)
        self.expression_head.network[-1].bias.fill_(mean_digit)

    def forward(self, batch: GenerativeBatch) -> Loss:
        """Weighted loss of a batch; while `prompting`, with the pass from the cell vector.

        `contrast` is a mean over cells, its negatives are the other cells of this very batch; the other terms are means
        over the unknown genes.
        """
        counted = ~batch.unknown_padding
        known, unknown = self._streams(batch)
        cell = known[:, 0]
        terms = {
            "gep": masked_mse(self.expression_head(unknown).values, batch.targets, counted),
            "gepc": masked_mse(self.from_cell(cell, batch.unknown_ids), batch.targets, counted),
        }
        if self.prompting:
            _, prompted = self._streams(batch, cell.detach())
            terms["prompt"] = masked_mse(self.expression_head(prompted).values, batch.targets, counted)
        if self.contrast:
            terms["contrast"] = contrastive_cells(cell, self._other_view(batch), temperature=_TEMPERATURE)
        weights = {name: self.weights.get(name, 1.0) for name in terms}
        return combine(terms, weights, over={"contrast": "cells"})

    def _other_view(self, batch: GenerativeBatch) -> Tensor:
        """Cell vectors from the genes that were unknown to the first view, (batch, d_model)."""
        cls_id, cls_value = batch.known.gene_ids[:, :1], batch.known.values[:, :1]
        gene_ids = torch.cat([cls_id, batch.unknown_ids], dim=1)
        values = torch.cat([cls_value, batch.targets], dim=1)
        padding = torch.cat([torch.zeros_like(cls_id, dtype=torch.bool), batch.unknown_padding], dim=1)
        return self.transformer(gene_ids, values, padding)[:, 0]


def initial_weights(config: TransformerConfig, *, seed: int) -> dict[str, Tensor]:
    """Random weights of a network, by the names of a checkpoint; global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also queue a seed for CUDA
        return PretrainModule(config).state_dict()
