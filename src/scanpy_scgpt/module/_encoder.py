"""Forward-only encoder: the transformer rewritten for inference, with the same result.

Exact rewrites: the normalised gene table and the value network over its few digits are looked up; the last layer is
computed for the `<cls>` query alone, without forming keys and values (`q . (W_k x) = (W_k^T q) . x` and
`sum a_j W_v x_j = W_v sum a_j x_j`; the key bias shifts all scores of a head alike, so softmax does not see it).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scanpy_scgpt._types import Pooling
from scanpy_scgpt.nn import (
    CategoryValueEncoder,
    CellPool,
    CellTransformer,
    EncoderLayer,
    Segments,
    TransformerConfig,
)


class CellEncoder(nn.Module):
    """Cells to vectors, forward only. Fill `transformer` with weights, then call :meth:`prepare`.

    Parameters
    ----------
    config
        Shape of the network.
    n_bins
        Number of digits that can occur, the one for zero included.
    cls_value
        Value of the `<cls>` token.
    pooling
        How token vectors become a cell vector.
    """

    def __init__(self, config: TransformerConfig, *, n_bins: int, cls_value: float, pooling: Pooling = "cls") -> None:
        super().__init__()
        self.transformer = CellTransformer(config)
        self.n_bins, self.cls_value, self.pooling = n_bins, cls_value, pooling
        self.cls_only = pooling == "cls" and config.norm_scheme == "post"

    @torch.no_grad()
    def prepare(self, dtype: torch.dtype = torch.float32) -> CellEncoder:
        """Make the lookup tables from the weights as they are now, and switch to evaluation.

        Parameters
        ----------
        dtype
            Type of the layers and tables. Tables are computed before they are rounded; norms, softmax and pooling
            accumulate in float32 whatever the type.
        """
        self.eval()
        encoder = self.transformer.encoder
        digits = torch.arange(self.n_bins + 1, dtype=torch.float32)
        digits[-1] = self.cls_value  # the last row is <cls>
        rows = digits.clone()
        if isinstance(encoder.values, CategoryValueEncoder) and self.cls_value < 0:
            rows[-1] = self.n_bins  # negative marks have their own rows there
        value_table = None if encoder.values is None else encoder.values(rows).to(dtype)
        self.register_buffer("digits", digits, persistent=False)
        self.register_buffer("gene_table", encoder.genes.table().to(dtype), persistent=False)
        self.register_buffer("value_table", value_table, persistent=False)
        self.transformer.layers.to(dtype)
        return self

    @torch.inference_mode()
    def forward(self, gene_ids: Tensor, digits: Tensor, padding: Tensor | None) -> Tensor:
        """Encode padded cells.

        Parameters
        ----------
        gene_ids
            (batch, length) int32 or int64, `<cls>` first.
        digits
            (batch, length) int32 or int64; the first column holds `n_bins`, the row of `<cls>`.
        padding
            (batch, length) bool, True where padded, or None.

        Returns
        -------
        (batch, d_model) float32, not scaled.
        """
        return self.trace(gene_ids, digits, padding)

    def trace(self, gene_ids: Tensor, digits: Tensor, padding: Tensor | None = None) -> Tensor:
        """:meth:`forward` in the mode of the caller, so that it can be traced."""
        pool = CellPool(self.pooling, padding=padding, values=self.digits[digits])
        x = self._run(self._enter(gene_ids, digits), lambda layer, x: layer(x, padding), lambda x: pool(x.float()))
        return self._leave(x, pool)

    @torch.inference_mode()
    def packed(self, gene_ids: Tensor, digits: Tensor, starts: Tensor, longest: int) -> Tensor:
        """Encode cells that stand one after another, nothing padded.

        Parameters
        ----------
        gene_ids, digits
            (n_tokens,) int32 or int64, `<cls>` first in each cell; its digit is `n_bins`.
        starts
            (n_cells + 1,) int32: cell `i` has the tokens `starts[i]:starts[i + 1]`.
        longest
            The largest length.

        Returns
        -------
        (n_cells, d_model) float32, not scaled.
        """
        cells = Segments(starts, longest)
        attend = {layer: partial(layer.attention.packed, cells=cells) for layer in self.transformer.layers}
        padded, padding = cells.pad(digits)
        pool = CellPool(self.pooling, padding=padding, values=self.digits[padded])
        x = self._run(
            self._enter(gene_ids, digits),
            lambda layer, x: layer.mix(x, attend[layer]),
            lambda x: pool(cells.pad(x)[0].float()),
        )
        return self._leave(cells.pad(x)[0] if self.cls_only else x, pool)

    @torch.inference_mode()
    def queries_and_keys(self, gene_ids: Tensor, digits: Tensor, *, layer: int) -> tuple[Tensor, Tensor]:
        """What the heads of a layer compare, of cells of one length; later layers are not run.

        Parameters
        ----------
        gene_ids, digits
            As of :meth:`forward`, nothing padded.
        layer
            Number of the layer, from 0.

        Returns
        -------
        Queries and keys, (batch, heads, length, d_head).
        """
        n_cells, length = gene_ids.shape
        x = self._enter(gene_ids, digits).flatten(0, 1)
        starts = torch.arange(n_cells + 1, dtype=torch.int32, device=x.device) * length
        cells = Segments(starts, length)
        for before in self.transformer.layers[:layer]:
            if x.device.type == "cpu":
                x = before.mix(x, partial(before.attention.packed, cells=cells))
            else:
                x = before(x.unflatten(0, (n_cells, length)), None).flatten(0, 1)
        last = self.transformer.layers[layer]
        x = (x if last.scheme == "post" else last.norm1(x)).unflatten(0, (n_cells, length))
        return last.attention.queries_and_keys(x)

    @torch.inference_mode()
    def tokens(self, gene_ids: Tensor, digits: Tensor, padding: Tensor | None) -> Tensor:
        """As :meth:`forward`, but what the last layer gives for each token: (batch, length, d_model) float32."""
        x = self._enter(gene_ids, digits)
        for layer in self.transformer.layers:
            x = layer(x, padding)
        return x.float()

    @torch.inference_mode()
    def packed_tokens(self, gene_ids: Tensor, digits: Tensor, starts: Tensor, longest: int) -> Tensor:
        """As :meth:`packed`, but what the last layer gives for each token: (n_tokens, d_model) float32."""
        x, cells = self._enter(gene_ids, digits), Segments(starts, longest)
        for layer in self.transformer.layers:
            x = layer.mix(x, partial(layer.attention.packed, cells=cells))
        return x.float()

    def _enter(self, gene_ids: Tensor, digits: Tensor) -> Tensor:
        """Vectors of tokens, (..., d_model)."""
        x = F.embedding(gene_ids, self.gene_table)
        if self.value_table is None:
            return (x * self.digits[digits].unsqueeze(-1)).to(x.dtype)
        return x + F.embedding(digits, self.value_table)

    def _run(
        self, x: Tensor, step: Callable[[EncoderLayer, Tensor], Tensor], watch: Callable[[Tensor], None]
    ) -> Tensor:
        """All layers, or all but the last when that one is done for `<cls>` alone; `watch` sees what is pooled."""
        layers = self.transformer.layers
        every = self.pooling == "layers"
        for layer in layers[:-1] if self.cls_only else layers:
            if every:
                watch(x)
            x = step(layer, x)
        if not self.cls_only:
            watch(x)
        return x

    def _leave(self, x: Tensor, pool: CellPool) -> Tensor:
        """Cell vectors (batch, d_model) float32; `x` (batch, length, d_model) is looked at for `<cls>` alone."""
        if self.cls_only:
            return _cls_of_layer(self.transformer.layers[-1], x, pool.padding).float()
        return pool.result()


def _cls_of_layer(layer: EncoderLayer, x: Tensor, padding: Tensor | None) -> Tensor:
    """The `<cls>` row (batch, d_model) of one post-norm layer over `x` (batch, length, d_model)."""
    attention = layer.attention
    d, heads = x.shape[-1], attention.n_heads
    weight, bias = attention.in_proj.weight, attention.in_proj.bias
    cls = x[:, 0]
    query = F.linear(cls, weight[:d], bias[:d]).view(-1, heads, d // heads)
    toward_keys = torch.einsum("bhd,hdk->bhk", query, weight[d : 2 * d].view(heads, d // heads, d))
    scores = toward_keys @ x.transpose(1, 2) / math.sqrt(d // heads)
    if padding is not None:
        scores = scores.masked_fill(padding[:, None, :], -torch.inf)
    mixed = torch.softmax(scores.float(), dim=-1).to(x.dtype) @ x
    out = torch.einsum("bhk,hdk->bhd", mixed, weight[2 * d :].view(heads, d // heads, d)).flatten(1) + bias[2 * d :]
    return layer.mix(cls, lambda _: attention.out_proj(out))
