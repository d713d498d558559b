"""Affine maps through the fastest matrix product of the processor, forward and backward."""

from __future__ import annotations

import platform
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# PyTorch's default product on x86 is MKL, which leaves the wide vector units of AMD processors unused; oneDNN, which
# PyTorch also carries, uses them (and is as fast as MKL on Intel). No public name of it takes plain tensors.
_onednn = None
if (
    platform.machine().lower() in ("x86_64", "amd64")
    and torch.backends.mkldnn.is_available()
    and torch.backends.cpu.get_cpu_capability().startswith("AVX")
):
    _onednn = getattr(torch.ops.mkldnn, "_linear_pointwise", None)

_TYPES = [torch.float32]
if _onednn is not None and torch.ops.mkldnn._is_mkldnn_bf16_supported():
    _TYPES.append(torch.bfloat16)

_SMALL = 2**21  # products of fewer multiplications are over before oneDNN has looked up its kernel


def has_fast_product(x: Tensor, weight: Tensor) -> bool:
    """True when :func:`product` is there for these.

    That is plain float32 (bfloat16 too where the processor has it) on an x86 CPU, no autocast, no tracing.
    """
    return (
        _onednn is not None
        and torch.backends.mkldnn.enabled
        and type(x) in (Tensor, nn.Parameter)
        and type(weight) in (Tensor, nn.Parameter)
        and x.device.type == weight.device.type == "cpu"
        and x.dtype == weight.dtype
        and x.dtype in _TYPES
        and not torch.is_autocast_enabled("cpu")
        and not torch.jit.is_tracing()
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
    )


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x @ weight.T + bias`, forward only; ask :func:`has_fast_product` before.

    `x` (..., n_in), `weight` (n_out, n_in), `bias` (n_out,) -> (..., n_out); `x` and `weight` in any strides.
    """
    return _onednn(x, weight, None if bias is None else bias.contiguous(), "none", [], "")  # a stride is ignored there


def scores(q: Tensor, k: Tensor) -> Tensor:
    """Products of queries and keys through the fastest product: (n, d) and (m, d) -> (n, m); forward only."""
    return product(q, k) if has_fast_product(q, k) else q @ k.T


class _Affine(torch.autograd.Function):
    """`x @ weight.T + bias`, whose backward is two more of them. Shapes: `x` (n, n_in), `weight` (n_out, n_in)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            _Affine.apply(grad, weight.t(), None) if of_x else None,
            _Affine.apply(grad.t(), x.t(), None) if of_weight else None,
            grad.sum(dim=0) if of_bias else None,
        )


class Linear(nn.Linear):
    """:class:`torch.nn.Linear` that takes oneDNN's product where that is the faster one; the same to rounding.

    That is float32 on an x86 CPU, forward and backward; everything else, autocast to half precision included, is
    :func:`torch.nn.functional.linear`. Shapes: (..., n_in) -> (..., n_out).
    """

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias
        fast = x.dtype == torch.float32 and has_fast_product(x, weight)
        if not fast or x.numel() == 0 or x.numel() * weight.shape[0] < _SMALL:
            return F.linear(x, weight, bias)
        rows = x.reshape(-1, x.shape[-1])
        differentiated = x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
        if torch.is_grad_enabled() and differentiated:
            out = _Affine.apply(rows, weight, bias)
        else:
            out = product(rows, weight, bias)
        return out.view(*x.shape[:-1], weight.shape[0])
