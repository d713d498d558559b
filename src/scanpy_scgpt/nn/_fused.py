"""Fused attention that also gives the log-sum-exp `L` of each softmax, and its backward for an `L` of the caller.

Shapes: `q` (batch, heads, length, d_head), `k` and `v` (batch, heads, n_keys, d_head), `bias` (batch, 1, length,
n_keys) additive or None, `L` (batch, heads, at least length) float32 for half precision.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

_ALIGNED = 16  # elements to which the rows of a bias are laid out on CUDA
_WIDEST = 256  # d_head

_ops = torch.ops.aten
# Private operators: a release of torch may lack them.
_on_cpu = getattr(_ops, "_scaled_dot_product_flash_attention_for_cpu", None)
_on_cpu_backward = getattr(_ops, "_scaled_dot_product_flash_attention_for_cpu_backward", None)
_flash = getattr(_ops, "_scaled_dot_product_flash_attention", None)
_flash_backward = getattr(_ops, "_scaled_dot_product_flash_attention_backward", None)
_biased = getattr(_ops, "_scaled_dot_product_efficient_attention", None)
_biased_backward = getattr(_ops, "_scaled_dot_product_efficient_attention_backward", None)


class Fused(NamedTuple):
    """A kernel.

    `forward(q, k, v, bias)` gives the attended values, `L` and what the backward needs besides;
    `backward(grad, q, k, v, bias, out, L, rest)` the gradients of `q`, `k`, `v` as if `out` and `L` were its own.
    """

    forward: Callable[[Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor, tuple[Any, ...]]]
    backward: Callable[..., tuple[Tensor, Tensor, Tensor]]


def find_fused(q: Tensor, bias: Tensor | None) -> Fused | None:
    """The kernel for these, or None: on CPU, and on a CUDA device of 2020 or later for heads whose width it takes."""
    if q.device.type == "cpu":
        return None if _on_cpu is None or _on_cpu_backward is None else _CPU
    if q.device.type != "cuda" or torch.version.hip is not None or q.shape[-1] % 8 or q.shape[-1] > _WIDEST:
        return None
    half = q.dtype in {torch.float16, torch.bfloat16}
    if not (half or q.dtype == torch.float32) or torch.cuda.get_device_capability(q.device) < (8, 0):
        return None
    if half and bias is None and _flash is not None and _flash_backward is not None:
        return _FLASH
    return None if _biased is None or _biased_backward is None else _BIASED


def _cpu_forward(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, tuple[Any, ...]]:
    out, lse = _on_cpu(q, k, v, 0.0, False, attn_mask=bias)  # noqa: FBT003
    swapped = lse.shape[1] != q.shape[1]  # (batch, length, heads) in some releases
    return out, lse.transpose(1, 2) if swapped else lse, (swapped,)


def _cpu_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    out: Tensor,
    lse: Tensor,
    rest: tuple[Any, ...],
) -> tuple[Tensor, Tensor, Tensor]:
    lse = lse.transpose(1, 2).contiguous() if rest[0] else lse
    return _on_cpu_backward(grad.contiguous(), q, k, v, out, lse, 0.0, is_causal=False, attn_mask=bias)


def _flash_forward(q: Tensor, k: Tensor, v: Tensor, _bias: None) -> tuple[Tensor, Tensor, tuple[Any, ...]]:
    out, lse, *rest = _flash(q, k, v, 0.0, is_causal=False, return_debug_mask=False)
    return out, lse, tuple(rest[:6])


def _flash_back(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, _bias: None, out: Tensor, lse: Tensor, rest: tuple[Any, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    starts_and_sizes, draws = rest[:4], rest[4:]
    return _flash_backward(_rows(grad), q, k, v, out, lse, *starts_and_sizes, 0.0, False, *draws)  # noqa: FBT003


def _biased_forward(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, tuple[Any, ...]]:
    laid = _laid_out(bias, q.shape[1])
    out, lse, *draws = _biased(q, k, v, laid, True, 0.0, is_causal=False)  # noqa: FBT003
    return out, lse, tuple(draws)


def _biased_back(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    out: Tensor,
    lse: Tensor,
    rest: tuple[Any, ...],
) -> tuple[Tensor, Tensor, Tensor]:
    wanted = [True, True, True, False]
    laid = _laid_out(bias, q.shape[1])
    return _biased_backward(_rows(grad), q, k, v, laid, out, lse, *rest, 0.0, wanted, is_causal=False)[:3]


def _rows(x: Tensor) -> Tensor:
    """`x` (batch, heads, length, d_head) laid out token by token, as the kernels give their results."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def _laid_out(bias: Tensor | None, n_heads: int) -> Tensor | None:
    """A bias that is the same for all queries, in memory as the kernel wants it; (batch, heads, length, n_keys)."""
    if bias is None:
        return None
    batch, _, length, n_keys = bias.shape
    wide = bias.new_zeros(batch, 1, 1, -(-n_keys // _ALIGNED) * _ALIGNED)
    wide[..., :n_keys] = bias[:, :, :1]
    return wide[..., :n_keys].expand(batch, n_heads, length, n_keys)


_CPU = Fused(_cpu_forward, _cpu_backward)
_FLASH = Fused(_flash_forward, _flash_back)
_BIASED = Fused(_biased_forward, _biased_back)
