"""Generative pretraining: which heads, which terms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor, nn

from scanpy_scgpt._types import Pooling
from scanpy_scgpt.nn import (
    CellPool,
    CellToGeneHead,
    CellTransformer,
    ExpressionHead,
    TransformerConfig,
    ValueDistributionHead,
    watch_nothing,
)
from scanpy_scgpt.objectives import (
    Loss,
    combine,
    contrastive_cells,
    masked_cross_entropy,
    masked_mse,
    similar_cells,
)

if TYPE_CHECKING:
    from scanpy_scgpt._batch import GenerativeBatch

Task = Literal["gen", "pcpt", "both"]
Positives = Literal["self", "similar"]
TERMS = ("gep", "gepc", "prompt", "masked_gep", "masked_gepc", "distribution", "contrast")
_TEMPERATURE = 0.1  # of the contrastive term
_SHARPNESS = 0.05  # of its targets, for similar cells
_MASKED = -1.0  # value of a gene that is hidden in its place
_QUIET_LAYERS, _QUIET_VALUES = 0.1, 0.05  # factors on what layers and values add, for a quiet start


class Generated(NamedTuple):
    """Predictions of one pass.

    `known` (batch, n_known) and `unknown` (batch, n_unknown) on the scale of the bins, `cell` (batch, d_model), and
    `logits` of the digits (batch, n_unknown, n_bins), or None where the model has no such head.
    """

    known: Tensor
    unknown: Tensor
    cell: Tensor
    logits: Tensor | None = None


class PretrainModule(nn.Module):
    """Transformer with the expression head (GEP) and the cell-to-gene head (GEPC).

    Parameters
    ----------
    config
        Shape of the network.
    task
        `"gen"`: unknown genes see the known genes and themselves (`gep`, `gepc`, `prompt`). `"pcpt"`: they stay in the
        sequence with the mask value -1 and every token sees every token (`masked_gep`, `masked_gepc`). `"both"`: the
        sum of the two.
    contrast
        Add the contrastive term between the cell vectors of two disjoint sets of genes of a cell.
    positives
        What belongs together there: `"self"`, the two sets of one cell; `"similar"`, those of cells that are alike by
        the gene vectors of all their genes, weighted by the bins.
    pooling
        How token vectors become the cell vector of that term; the other terms take `<cls>`.
    distribution
        Add the head of the value distribution, and the term that trains it.
    weights
        Weight of the terms :data:`TERMS`; 1 where none is given.
    legacy_generation
        Leave the output projection of attention out for unknown genes, as the original does.
    """

    def __init__(
        self,
        config: TransformerConfig,
        *,
        task: Task = "gen",
        contrast: bool = False,
        positives: Positives = "self",
        pooling: Pooling = "cls",
        distribution: bool = False,
        weights: Mapping[str, float] | None = None,
        legacy_generation: bool = False,
    ) -> None:
        super().__init__()
        self.transformer = CellTransformer(config)
        self.expression_head = ExpressionHead(d_model=config.d_model)
        self.cell_to_gene_head = CellToGeneHead(d_model=config.d_model)
        self.distribution_head = ValueDistributionHead(config.d_model, config.n_bins) if distribution else None
        self.transformer.encoder.unknown.requires_grad_(task != "pcpt")  # no term of that task depends on it
        self.task, self.contrast, self.weights = task, contrast, dict(weights or {})
        self.pooling, self.positives = pooling, positives
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
        logits = None if self.distribution_head is None else self.distribution_head(unknown)
        return Generated(self.expression_head(known).values, self.expression_head(unknown).values, known[:, 0], logits)

    def _streams(
        self, batch: GenerativeBatch, cell: Tensor | None = None, *, view: CellPool | None = None
    ) -> tuple[Tensor, Tensor]:
        """Vectors of the known tokens and of the unknown genes, (batch, n, d_model) each; `view` pools the known."""
        encoder = self.transformer.encoder
        known = encoder(batch.known.gene_ids, batch.known.values)
        if cell is not None:
            known = torch.cat([cell.unsqueeze(1), known[:, 1:]], dim=1)
        return self.transformer.encode_generative(
            known,
            encoder.without_value(batch.unknown_ids),
            batch.known.padding,
            legacy=self.legacy_generation,
            watch=view or watch_nothing,
        )

    def _masked(self, batch: GenerativeBatch, *, view: CellPool | None = None) -> tuple[Tensor, Tensor]:
        """:meth:`_streams` where every token sees every token."""
        known = batch.known
        n_known = known.gene_ids.shape[1]
        shown = torch.zeros_like(known.gene_ids, dtype=torch.bool) if known.padding is None else known.padding
        hidden = self.transformer(
            torch.cat([known.gene_ids, batch.unknown_ids], dim=1),
            torch.cat([known.values, torch.full_like(batch.targets, _MASKED)], dim=1),
            torch.cat([shown, batch.unknown_padding], dim=1),
            watch=watch_nothing if view is None else lambda x: view(x[:, :n_known]),
        )
        return hidden[:, :n_known], hidden[:, n_known:]

    def from_cell(self, cell: Tensor, gene_ids: Tensor) -> Tensor:
        """Expression of genes `gene_ids` (batch, length) from cell vectors (batch, d_model) -> (batch, length)."""
        return self.cell_to_gene_head(cell, self.transformer.encoder.genes(gene_ids)).values

    @torch.no_grad()
    def start_from(self, gene_table: Tensor, *, mean_digit: float, quiet: bool = False) -> None:
        """Start the gene table (n_tokens, d_model) from known vectors and the predictions from the mean digit.

        `quiet`: layers and values add little at first, so that pooled tokens are close to the pooled gene vectors.
        """
        self.transformer.encoder.genes.embedding.weight.copy_(gene_table)
        self.expression_head.network[-1].bias.fill_(mean_digit)
        if quiet:
            for layer in self.transformer.layers:
                layer.attention.out_proj.weight.mul_(_QUIET_LAYERS)
                layer.feed_forward.linear2.weight.mul_(_QUIET_LAYERS)
            self.transformer.encoder.values.norm.weight.mul_(_QUIET_VALUES)

    def forward(self, batch: GenerativeBatch) -> Loss:
        """Weighted loss of a batch; while `prompting`, with the pass from the cell vector.

        `contrast` is a mean over cells, its negatives are the other cells of this very batch; the other terms are means
        over the unknown genes, `distribution` besides over the passes.
        """
        counted = ~batch.unknown_padding
        terms: dict[str, Tensor] = {}
        answers: list[Tensor] = []  # vectors of the unknown genes of each pass
        view = self._view(batch) if self.contrast else None
        if self.task != "pcpt":
            shown, unknown = self._streams(batch, view=view)
            cell = shown[:, 0]
            answers.append(unknown)
            terms["gep"] = masked_mse(self.expression_head(unknown).values, batch.targets, counted)
            terms["gepc"] = masked_mse(self.from_cell(cell, batch.unknown_ids), batch.targets, counted)
            if self.prompting:
                _, prompted = self._streams(batch, cell.detach())
                answers.append(prompted)
                terms["prompt"] = masked_mse(self.expression_head(prompted).values, batch.targets, counted)
        if self.task != "gen":
            known, hidden = self._masked(batch, view=view if self.task == "pcpt" else None)
            answers.append(hidden)
            terms["masked_gep"] = masked_mse(self.expression_head(hidden).values, batch.targets, counted)
            terms["masked_gepc"] = masked_mse(self.from_cell(known[:, 0], batch.unknown_ids), batch.targets, counted)
        if self.distribution_head is not None:
            losses = [masked_cross_entropy(self.distribution_head(x), batch.targets, counted) for x in answers]
            terms["distribution"] = torch.stack(losses).mean()
        if self.contrast:
            terms["contrast"] = self._contrast(batch, view.result())
        weights = {name: self.weights.get(name, 1.0) for name in terms}
        return combine(terms, weights, over={"contrast": "cells"})

    def _view(self, batch: GenerativeBatch) -> CellPool:
        return CellPool(self.pooling, padding=batch.known.padding, values=batch.known.values)

    def _contrast(self, batch: GenerativeBatch, first: Tensor) -> Tensor:
        """The term between the two views; `first` (batch, d_model) are the cell vectors of the known genes."""
        second = self._other_view(batch)
        if self.positives == "self":
            return contrastive_cells(first, second, temperature=_TEMPERATURE)
        whole = self._gene_sum(batch)
        return similar_cells(first, second, whole, temperature=_TEMPERATURE, sharpness=_SHARPNESS)

    @torch.no_grad()
    def _gene_sum(self, batch: GenerativeBatch) -> Tensor:
        """Vectors of all genes of each cell, weighted by their bins, (batch, d_model)."""
        ids = torch.cat([batch.known.gene_ids[:, 1:], batch.unknown_ids], dim=1)
        bins = torch.cat([batch.known.values[:, 1:], batch.targets], dim=1).clamp(min=0)  # padding is below 0
        with torch.autocast(bins.device.type, enabled=False):
            return torch.einsum("bl,bld->bd", bins.float(), self.transformer.encoder.genes(ids).float())

    def _other_view(self, batch: GenerativeBatch) -> Tensor:
        """Cell vectors from the genes that were unknown to the first view, (batch, d_model)."""
        cls_id, cls_value = batch.known.gene_ids[:, :1], batch.known.values[:, :1]
        gene_ids = torch.cat([cls_id, batch.unknown_ids], dim=1)
        values = torch.cat([cls_value, batch.targets], dim=1)
        padding = torch.cat([torch.zeros_like(cls_id, dtype=torch.bool), batch.unknown_padding], dim=1)
        pool = CellPool(self.pooling, padding=padding, values=values)
        self.transformer(gene_ids, values, padding, watch=pool)
        return pool.result()


def initial_weights(config: TransformerConfig, *, seed: int, distribution: bool = False) -> dict[str, Tensor]:
    """Random weights of a network, by the names of a checkpoint; global random state is left as it was.

    `distribution`: with the head of the value distribution; the other weights are the same with it and without.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also queue a seed for CUDA
        return PretrainModule(config, distribution=distribution).state_dict()
