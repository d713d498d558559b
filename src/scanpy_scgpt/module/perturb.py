"""The network of perturbation: a flag on each gene, values as they are, an affine map to what comes after."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scanpy_scgpt.nn import AffineHead, CellTransformer, Expression, TransformerConfig

N_FLAGS = 3  # not perturbed, perturbed, and one that the original keeps for padding


class PerturbModule(nn.Module):
    """A cell transformer that is told which genes are perturbed :cite:p:`Cui2024`.

    Token vectors are gene + value + flag. There is no `<cls>` and nothing is padded: all cells of a batch show the
    same genes. Values are log-normalised expression, not bins. The head gives `A * x + b` for each gene.

    Parameters
    ----------
    config
        Shape of the network; its values must be continuous.
    legacy
        Predict expression, as the original does, from a head with random weights. Otherwise the last maps of the head
        start at zero, so that an untrained network changes nothing, and it predicts a change.
    explicit_zeros, adaptive_bias, positive
        As in :class:`~scanpy_scgpt.nn.AffineHead`.
    """

    def __init__(
        self,
        config: TransformerConfig,
        *,
        legacy: bool = False,
        explicit_zeros: bool = False,
        adaptive_bias: bool = False,
        positive: bool = False,
    ) -> None:
        super().__init__()
        self.legacy = legacy
        self.transformer = CellTransformer(config)
        self.flags = nn.Embedding(N_FLAGS, config.d_model, padding_idx=0)
        self.head = AffineHead(
            d_model=config.d_model, explicit_zeros=explicit_zeros, adaptive_bias=adaptive_bias, positive=positive
        )
        if not legacy:
            with torch.no_grad():
                for network in (self.head.scale.network, self.head.shift):
                    network[-1].weight.mul_(0.01)
                    network[-1].bias.zero_()

    def encode(self, gene_ids: Tensor, values: Tensor, flags: Tensor) -> Tensor:
        """Token vectors (batch, length, d_model) of `gene_ids` (length,), `values` and `flags` (batch, length)."""
        ids = gene_ids.expand(len(values), -1)
        return self.transformer.encode(self.transformer.encoder(ids, values) + self.flags(flags))

    def forward(self, gene_ids: Tensor, values: Tensor, flags: Tensor) -> Expression:
        """What each gene becomes.

        Parameters
        ----------
        gene_ids
            (length,) int64, the same for all cells.
        values
            (batch, length) log-normalised expression of control cells.
        flags
            (batch, length) int64, 1 where the gene is perturbed.

        Returns
        -------
        Values of (batch, length): expression with `legacy`, else its change.
        """
        return self.head(self.encode(gene_ids, values, flags), values)

    @torch.inference_mode()
    def predict(self, gene_ids: Tensor, values: Tensor, flags: Tensor, *, expressed_only: bool = False) -> Tensor:
        """Predictions of (batch, length); with explicit zeros a draw decides which values are zero, as in the original.

        Parameters
        ----------
        gene_ids, values, flags
            As in :meth:`forward`.
        expressed_only
            Show only genes that a cell of the batch expresses; 0 for the others.
        """
        shown = (values != 0).any(dim=0) if expressed_only else torch.ones(values.shape[1], dtype=torch.bool)
        found = self(gene_ids[shown], values[:, shown], flags[:, shown])
        known = found.values if found.nonzero is None else found.values * torch.bernoulli(found.nonzero)
        out = torch.zeros_like(values)
        out[:, shown] = known
        return out
