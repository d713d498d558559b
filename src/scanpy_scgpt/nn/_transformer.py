"""CellTransformer: encoders and layers. No head, no pooling, no loss."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ._attention import SelfAttention
from ._config import TransformerConfig
from ._embeddings import CategoryValueEncoder, ContinuousValueEncoder, GeneEncoder, InputEncoder
from ._layers import EncoderLayer, FeedForward


def watch_nothing(_hidden: Tensor) -> None:
    """What is shown to nobody: the default of `watch`."""


def _value_encoder(config: TransformerConfig) -> nn.Module | None:
    if config.value_encoding == "continuous":
        return ContinuousValueEncoder(d_model=config.d_model, dropout=config.dropout)
    if config.value_encoding == "category":
        return CategoryValueEncoder(n_bins=config.n_bins, d_model=config.d_model)
    return None


class CellTransformer(nn.Module):
    """The transformer over the expressed genes of a cell (:cite:t:`Cui2024`); there are no positions.

    Parameters
    ----------
    config
        Shape of the network.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        genes = GeneEncoder(n_tokens=config.n_tokens, d_model=config.d_model, pad_id=config.pad_id)
        self.encoder = InputEncoder(genes=genes, values=_value_encoder(config))
        self.layers = nn.ModuleList(
            EncoderLayer(
                attention=SelfAttention(
                    d_model=config.d_model, n_heads=config.n_heads, dropout=config.attention_dropout
                ),
                feed_forward=FeedForward(d_model=config.d_model, d_ff=config.d_ff, dropout=config.dropout),
                d_model=config.d_model,
                dropout=config.dropout,
                scheme=config.norm_scheme,
            )
            for _ in range(config.n_layers)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initial weights of the original: gene table uniform in +-0.1, fused projection Xavier with zero bias."""
        nn.init.uniform_(self.encoder.genes.embedding.weight, -0.1, 0.1)
        nn.init.normal_(self.encoder.unknown)
        for layer in self.layers:
            nn.init.xavier_uniform_(layer.attention.in_proj.weight)
            nn.init.zeros_(layer.attention.in_proj.bias)
            nn.init.zeros_(layer.attention.out_proj.bias)

    def forward(
        self,
        gene_ids: Tensor,
        values: Tensor,
        padding: Tensor | None = None,
        *,
        watch: Callable[[Tensor], None] = watch_nothing,
    ) -> Tensor:
        """Encode cells.

        Parameters
        ----------
        gene_ids
            (batch, length) int64.
        values
            (batch, length) float.
        padding
            (batch, length) bool, True where padded, or None.
        watch
            Is shown what enters the layers and what each of them gives, (batch, length, d_model).

        Returns
        -------
        (batch, length, d_model); undefined where padded.
        """
        return self.encode(self.encoder(gene_ids, values), padding, watch=watch)

    def encode(
        self, x: Tensor, padding: Tensor | None = None, *, watch: Callable[[Tensor], None] = watch_nothing
    ) -> Tensor:
        """Run the layers over token vectors (batch, length, d_model)."""
        watch(x)
        for layer in self.layers:
            x = layer(x, padding)
            watch(x)
        return x

    def encode_generative(
        self,
        known: Tensor,
        unknown: Tensor,
        known_padding: Tensor | None = None,
        *,
        legacy: bool = False,
        watch: Callable[[Tensor], None] = watch_nothing,
    ) -> tuple[Tensor, Tensor]:
        """Run both streams: known tokens see known tokens, an unknown token sees known tokens and itself.

        Parameters
        ----------
        known, unknown
            Token vectors, (batch, n_known, d_model) and (batch, n_unknown, d_model).
        known_padding
            (batch, n_known) bool, True where padded, or None.
        legacy
            Leave the output projection of attention out for unknown tokens, as the original does.
        watch
            Is shown the known tokens as they enter the layers and as each of them gives them.

        Returns
        -------
        Encoded vectors of both streams, in the shapes of the input.
        """
        n_known = known.shape[1]
        x = torch.cat([known, unknown], dim=1)
        watch(known)
        for layer in self.layers:
            attention = layer.attention
            x = layer.mix(
                x,
                lambda tokens, attention=attention: attention.generative(
                    tokens, n_known, known_padding, project_unknown=not legacy
                ),
            )
            watch(x[:, :n_known])
        return x[:, :n_known], x[:, n_known:]
