"""Attention: one module, a plain form, a packed form for cells in one row, and a generative form.

Generative form: `known` tokens come first. Every query sees the known keys; an unknown token sees its own key besides.
It is computed without a `length x length` mask: one call for all queries on the known keys returns the log-sum-exp
`L` of each softmax, and the own key enters in closed form, `out = w * out + (1 - w) * v_own` with
`w = sigmoid(L - q . k_own)`.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from ._fused import Fused, find_fused
from ._linear import Linear, scores
from ._packed import Segments, attend_cells, packed_attention

_SHORT = 512  # tokens up to which training in bfloat16 on a CPU is faster when attention alone is in float32
_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class _KnownPlusSelf(torch.autograd.Function):
    """Generative attention through a fused kernel, with its own backward.

    Shapes: `q`, `k`, `v` (batch, heads, length, d_head); `bias` (batch, 1, length, n_known) additive, or None.
    """

    @staticmethod
    def forward(ctx: Any, fused: Fused, q: Tensor, k: Tensor, v: Tensor, n: int, bias: Tensor | None) -> Tensor:
        out, lse, rest = fused.forward(q, k[:, :, :n], v[:, :, :n], bias)
        merged = lse[:, :, n : q.shape[2]]  # float32 for half precision, else the dtype of q
        own = (q[:, :, n:] * k[:, :, n:]).sum(-1).to(lse.dtype) / math.sqrt(q.shape[-1])
        own_weight = torch.sigmoid(own - merged).unsqueeze(-1).to(q.dtype)
        out[:, :, n:].lerp_(v[:, :, n:], own_weight)
        merged.copy_(torch.logaddexp(merged, own))
        ctx.save_for_backward(q, k, v, out, lse, own_weight, bias)
        ctx.fused, ctx.n_known, ctx.rest = fused, n, rest
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, Tensor, Tensor, None, None]:
        q, k, v, out, lse, own_weight, bias = ctx.saved_tensors
        n = ctx.n_known
        # With the log-sum-exp of the merged softmax the kernel's gradients on the known keys are exact.
        dq, dk, dv = ctx.fused.backward(grad, q, k[:, :, :n], v[:, :, :n], bias, out, lse, ctx.rest)
        g = grad[:, :, n:]
        ds = own_weight * (g * (v[:, :, n:] - out[:, :, n:])).sum(-1, keepdim=True) / math.sqrt(q.shape[-1])
        dq[:, :, n:].addcmul_(ds, k[:, :, n:])
        return None, dq, torch.cat([dk, ds * q[:, :, n:]], dim=2), torch.cat([dv, own_weight * g], dim=2), None, None


def _known_plus_self_portable(q: Tensor, k: Tensor, v: Tensor, n_known: int, bias: Tensor | None) -> Tensor:
    """The same through plain operations, for devices and releases of torch without such a kernel."""
    known_k, known_v = k[:, :, :n_known], v[:, :, :n_known]
    scale = 1 / math.sqrt(q.shape[-1])
    scores = (q @ known_k.transpose(-1, -2)) * scale
    scores = scores if bias is None else scores + bias
    seen = F.softmax(scores[:, :, :n_known], dim=-1) @ known_v
    own = (q[:, :, n_known:] * k[:, :, n_known:]).sum(-1, keepdim=True) * scale
    weights = F.softmax(torch.cat([scores[:, :, n_known:], own], dim=-1), dim=-1)
    generated = weights[..., :n_known] @ known_v + weights[..., n_known:] * v[:, :, n_known:]
    return torch.cat([seen, generated], dim=2)


def generative_attention(
    q: Tensor, k: Tensor, v: Tensor, *, n_known: int, known_padding: Tensor | None = None
) -> Tensor:
    """Known tokens see known tokens; an unknown token sees known tokens and itself.

    Parameters
    ----------
    q, k, v
        (batch, heads, length, d_head), the known tokens first.
    n_known
        Number of known positions.
    known_padding
        (batch, n_known) bool, True where padded, or None.

    Returns
    -------
    (batch, heads, length, d_head); softmax of scaled products over the allowed keys, times `v`.
    """
    bias = None
    if known_padding is not None:
        bias = torch.zeros(known_padding.shape, dtype=q.dtype, device=q.device)
        bias = bias.masked_fill(known_padding, -torch.inf)[:, None, None, :].expand(-1, 1, q.shape[2], -1)
    fused = find_fused(q, bias)
    if fused is not None:
        return _KnownPlusSelf.apply(fused, q, k, v, n_known, bias)
    return _known_plus_self_portable(q, k, v, n_known, bias)


def _widened(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values in float32 where the kernels are faster so: training on short cells on a CPU."""
    half = q.dtype == torch.bfloat16 and q.device.type == "cpu"
    if half and torch.is_grad_enabled() and q.shape[2] <= _SHORT:
        return q.float(), k.float(), v.float()
    return q, k, v


def _kernels_for(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[None]:
    """Leaves out cuDNN's attention, which PyTorch prefers on some GPUs: it plans anew for each shape of a batch."""
    half = dtype in {torch.float16, torch.bfloat16}
    return sdpa_kernel(_KERNELS) if device.type == "cuda" and half else nullcontext()


class SelfAttention(nn.Module):
    """Multi-head self-attention with one fused projection (rows: q, k, v; heads contiguous inside each)."""

    def __init__(self, *, d_model: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.n_heads, self.dropout = n_heads, dropout
        self.in_proj = Linear(d_model, 3 * d_model)
        self.out_proj = Linear(d_model, d_model)

    def _qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`x` (batch, length, d_model) -> three times (batch, heads, length, d_head)."""
        return self.in_proj(x).unflatten(-1, (3, self.n_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)

    def queries_and_keys(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`x` (batch, length, d_model) -> twice (batch, heads, length, d_head); values are not formed."""
        d = x.shape[-1]
        both = scores(x.flatten(0, 1), self.in_proj.weight[: 2 * d]) + self.in_proj.bias[: 2 * d]
        return both.view(*x.shape[:2], 2, self.n_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)

    def forward(self, x: Tensor, padding: Tensor | None) -> Tensor:
        """`x` (batch, length, d_model), `padding` (batch, length) bool or None -> (batch, length, d_model)."""
        mask = None if padding is None else ~padding[:, None, None, :]
        dropout = self.dropout if self.training else 0.0
        q, k, v = _widened(*self._qkv(x))
        autocast = torch.autocast(q.device.type, enabled=False)  # it would take the products back to half precision
        with autocast, _kernels_for(q.device, q.dtype):
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        return self.out_proj(out.transpose(1, 2).flatten(-2))

    def packed(self, x: Tensor, cells: Segments) -> Tensor:
        """Forward only, no padding: `x` (n_tokens, d_model), cell after cell -> (n_tokens, d_model)."""
        if x.device.type == "cpu":
            return self.out_proj(attend_cells(x, self.in_proj, self.n_heads, cells))
        qkv = self.in_proj(x).unflatten(-1, (3, self.n_heads, -1)).unbind(1)
        return self.out_proj(packed_attention(*qkv, cells).flatten(1))

    def generative(self, x: Tensor, n_known: int, known_padding: Tensor | None, *, project_unknown: bool) -> Tensor:
        """Generative form.

        `x` (batch, length, d_model) with the known tokens first -> (batch, length, d_model).
        `project_unknown=False` leaves the output projection out for unknown tokens, as the original does.
        """
        out = generative_attention(*_widened(*self._qkv(x)), n_known=n_known, known_padding=known_padding)
        out = out.transpose(1, 2).flatten(-2)
        if project_unknown:
            return self.out_proj(out)
        return torch.cat([self.out_proj(out[:, :n_known]), out[:, n_known:]], dim=1)
