"""Integration of batches: domain norms, batch vectors for the decoders, explicit zeros. Loads scvi-tools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scvi.module.base import LossOutput, auto_move_data
from torch import Tensor

from scanpy_scgpt.nn import CategoryEncoder, CellPool, CellToGeneHead, DomainNorm, ExpressionHead, TransformerConfig
from scanpy_scgpt.objectives import combine, masked_nonzero_nll

from .finetune import FineTuneModule


class IntegrationModule(FineTuneModule):
    """The network of fine-tuning that is told the batch of a cell where that frees the cell vector of it.

    Decoders get the vector of the batch beside that of the token or cell, so that these need not carry it; token
    vectors may be normalised batch by batch before they enter (:cite:t:`Cui2024`). With several modalities the decoders
    of tokens get the vector of the modality too, and whole modalities are hidden while training.

    Parameters
    ----------
    config
        Shape of the network.
    n_batch
        Number of batches.
    batch_vectors
        Give the decoders the batch.
    domain_norm
        Normalise what enters the layers with the statistics of its batch (DSBN).
    explicit_zeros
        Predict whether a value is zero, too.
    token_kinds
        Modality of each token of the vocabulary, int64, shape `(n_tokens,)`, or None where there is one modality:
        decoders of tokens get the vector of the modality too.
    hide_modality
        Share of the cells with several modalities of which one whole modality is hidden while training.
    **settings
        Of :class:`~scanpy_scgpt.module.finetune.FineTuneModule`.
    """

    def __init__(
        self,
        config: TransformerConfig,
        *,
        objectives: Sequence[str],
        n_batch: int = 0,
        batch_vectors: bool = True,
        domain_norm: bool = False,
        explicit_zeros: bool = False,
        token_kinds: np.ndarray | None = None,
        hide_modality: float = 0.3,
        **settings: Any,
    ) -> None:
        super().__init__(config, objectives=objectives, n_batch=n_batch, **settings)
        modal = token_kinds is not None
        d, told = config.d_model, modal or (batch_vectors and n_batch > 1)
        self.batch_encoder = CategoryEncoder(n_batch, d) if batch_vectors and n_batch > 1 else None
        self.modality_encoder = CategoryEncoder(int(token_kinds.max()) + 1, d) if modal else None
        self.register_buffer("token_kinds", torch.from_numpy(token_kinds) if modal else None, persistent=False)
        self.hide_modality = hide_modality
        self.domain_norm = DomainNorm(n_batch, d) if domain_norm and n_batch > 1 else None
        width = 2 * d if told else d
        self.expression_head = ExpressionHead(d_model=d, d_in=width, explicit_zeros=explicit_zeros)
        self.cell_to_gene_head = CellToGeneHead(d_model=d, d_cell=width, explicit_zeros=explicit_zeros)
        self.explicit_zeros = explicit_zeros
        self._rest_unused()

    def _get_inference_input(self, tensors: Mapping[str, Tensor], **kwargs: object) -> dict[str, Tensor | None]:
        batch = tensors.get("batch")
        given = super()._get_inference_input(tensors, **kwargs)
        if self.token_kinds is not None and self.hides and self.training and self.hide_modality:
            given["hidden"] = given["hidden"] | self._hidden_modality(given["gene_ids"], given["padding"])
        return {**given, "domains": None if batch is None else batch.flatten()}

    def _hidden_modality(self, gene_ids: Tensor, padding: Tensor | None) -> Tensor:
        """Tokens of the modality that is hidden, (batch, length) bool: of some of the cells that have several."""
        kinds = self.token_kinds.to(gene_ids.device)[gene_ids]
        counted = torch.ones_like(gene_ids, dtype=torch.bool) if padding is None else ~padding
        counted[:, 0] = False
        n = int(self.token_kinds.max()) + 1
        there = torch.stack([((kinds == kind) & counted).any(dim=1) for kind in range(n)], dim=1)
        drawn = torch.where(there, torch.rand(there.shape, device=there.device), -1).argmax(dim=1)
        chosen = (there.sum(dim=1) > 1) & (torch.rand(len(there), device=there.device) < self.hide_modality)
        return (kinds == drawn[:, None]) & counted & chosen[:, None]

    @auto_move_data
    def inference(
        self,
        gene_ids: Tensor,
        values: Tensor,
        padding: Tensor | None = None,
        hidden: Tensor | None = None,
        domains: Tensor | None = None,
    ) -> dict[str, Tensor | None]:
        """Token vectors and cell vectors; `domains` (batch,) int64 says the batch of each cell."""
        if self.domain_norm is None:
            return {**super().inference(gene_ids, values, padding, hidden), "domains": domains}
        weights = values if hidden is None else values.masked_fill(hidden, 0)
        pool = CellPool(self.pooling, padding=padding, values=weights)
        shown = self._marks(values if hidden is None else values.masked_fill(hidden, -1.0))
        entered = self.transformer.encoder(gene_ids, shown)
        if domains is None:
            domains = torch.full((len(gene_ids),), -1, device=gene_ids.device)
        tokens = self.transformer.encode(self.domain_norm(entered, domains, padding), padding, watch=pool)
        return {"tokens": tokens, "cell": pool.result(), "hidden": hidden, "domains": domains}

    def _get_generative_input(
        self, tensors: Mapping[str, Tensor], inference_outputs: Mapping[str, Tensor], **kwargs: object
    ) -> dict[str, Tensor | None]:
        given = super()._get_generative_input(tensors, inference_outputs, **kwargs)
        return {**given, "domains": inference_outputs["domains"]}

    @auto_move_data
    def generative(
        self, tokens: Tensor, cell: Tensor, gene_ids: Tensor, domains: Tensor | None = None
    ) -> dict[str, Tensor | None]:
        """What each head makes of them; `values` and `from_cell` with the probability of being more than zero."""
        out = self._of_cells(cell)
        told, of_cell = tokens, cell
        if self.batch_encoder is not None or self.modality_encoder is not None:
            of_batch = self._of_batch(cell, domains)
            vectors = of_batch[:, None].expand(-1, tokens.shape[1], -1)
            if self.modality_encoder is not None:
                vectors = vectors + self.modality_encoder(self.token_kinds[gene_ids]).to(cell.dtype)
            told, of_cell = torch.cat([tokens, vectors], dim=-1), torch.cat([cell, of_batch], dim=-1)
        if "gep" in self.objectives:
            out["values"], out["values_nonzero"] = self.expression_head(told)
        if "gepc" in self.objectives:
            genes = self.transformer.encoder.genes(gene_ids)
            out["from_cell"], out["from_cell_nonzero"] = self.cell_to_gene_head(of_cell, genes)
        return out

    def _of_batch(self, cell: Tensor, domains: Tensor | None) -> Tensor:
        """Vector of the batch of each cell, (batch, d_model); zero when batches are not told."""
        if self.batch_encoder is None:
            return torch.zeros_like(cell)
        codes = torch.full((len(cell),), -1, device=cell.device) if domains is None else domains
        return self.batch_encoder(codes).to(cell.dtype)

    def loss(
        self,
        tensors: Mapping[str, Tensor],
        inference_outputs: Mapping[str, Tensor],
        generative_outputs: Mapping[str, Tensor],
    ) -> LossOutput:
        """Weighted sum of the terms, those of zeros included."""
        plain = super().loss(tensors, inference_outputs, generative_outputs)
        if not self.explicit_zeros:
            return plain
        hidden, values = inference_outputs["hidden"], tensors["values"]
        zeros = {
            f"{name}_zeros": masked_nonzero_nll(generative_outputs[f"{key}_nonzero"], values, hidden)
            for name, key in (("gep", "values"), ("gepc", "from_cell"))
            if name in self.objectives
        }
        loss = combine(zeros, {name: self.weights.get(name, 1.0) for name in zeros})
        return LossOutput(
            loss=plain.loss + loss.total,
            n_obs_minibatch=len(values),
            extra_metrics={**plain.extra_metrics, **loss.terms},
        )
