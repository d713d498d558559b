"""Bidirectional attention over cells that stand one after another in one row of tokens: nothing is padded.

On CUDA one kernel does all cells; on CPU it is done cell by cell. Forward only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ._linear import has_fast_product, product

_LONG = 256  # from this length on, cell by cell and head by head through oneDNN is faster than PyTorch's kernel
_NARROW = 32  # with narrower heads it is not
_QUERIES = 512  # most queries at a time, so that their weights stay in the cache
_FLASH = (torch.float16, torch.bfloat16)  # what the kernel for CUDA takes: these types, and heads up to this width
_WIDEST = 256


class Segments(NamedTuple):
    """Where the cells of a row of tokens are.

    Cell `i` has the tokens `starts[i]:starts[i + 1]`; `starts` (n_cells + 1,) int32, `longest` the largest length.
    """

    starts: Tensor
    longest: int

    def pad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`x` (n_tokens, ...) -> (n_cells, longest, ...) with zeros, and the padding (n_cells, longest) bool."""
        lengths = self.starts.diff()
        n_cells, n_tokens = lengths.shape[0], x.shape[0]
        rows = torch.arange(n_cells, device=x.device).repeat_interleave(lengths, output_size=n_tokens)
        slots = torch.arange(n_tokens, device=x.device) - self.starts[rows] + rows * self.longest
        padded = x.new_zeros(n_cells * self.longest, *x.shape[1:])
        padded[slots] = x
        padding = torch.arange(self.longest, device=x.device) >= lengths[:, None]
        return padded.unflatten(0, (n_cells, self.longest)), padding

    def runs(self) -> Iterator[tuple[int, int, int]]:
        """Neighbours of the same length: first token, number of cells, length."""
        start = 0
        for length, cells in groupby(self.starts.diff().tolist()):
            n_cells = sum(1 for _ in cells)
            yield start, n_cells, length
            start += n_cells * length


def has_packed_kernel(device: torch.device, dtype: torch.dtype, d_head: int) -> bool:
    """True when :func:`packed_attention` is one kernel: half precision on a CUDA device of 2020 or later."""
    if device.type != "cuda" or dtype not in _FLASH or d_head % 8 or d_head > _WIDEST:
        return False
    return torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)


def packed_attention(q: Tensor, k: Tensor, v: Tensor, cells: Segments) -> Tensor:
    """Every token sees the tokens of its own cell.

    Parameters
    ----------
    q, k, v
        (n_tokens, heads, d_head); half precision on CUDA, any floating type on CPU.
    cells
        Where the cells are; `starts` on the device of `q`.

    Returns
    -------
    (n_tokens, heads, d_head).
    """
    if q.device.type == "cpu":
        return _one_by_one(q, k, v, cells)
    return _kernel()(q, k, v, cells.starts, cells.starts, cells.longest, cells.longest)


def _one_by_one(q: Tensor, k: Tensor, v: Tensor, cells: Segments) -> Tensor:
    """The definition, a call for all neighbours of the same length."""
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    for start, n_cells, length in cells.runs():
        here = slice(start, start + n_cells * length)
        split = (x[here].unflatten(0, (n_cells, length)).transpose(1, 2) for x in (q, k, v))
        out[here] = F.scaled_dot_product_attention(*split).transpose(1, 2).flatten(0, 1)
    return out


def _kernel() -> Any:
    """The kernel for CUDA: public from torch 2.10 on, the operator below it before."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return _flash_forward
    return varlen_attn


def _flash_forward(q: Tensor, k: Tensor, v: Tensor, *where: Tensor | int) -> Tensor:
    """The operator that :func:`torch.nn.attention.varlen.varlen_attn` calls; `where`: starts and longest lengths."""
    flash = torch.ops.aten._flash_attention_forward
    return flash(q, k, v, *where, 0.0, is_causal=False, return_debug_mask=False)[0]


def attend_cells(x: Tensor, in_proj: nn.Linear, n_heads: int, cells: Segments) -> Tensor:
    """Projection to q, k, v and attention on CPU, without the projection of the result.

    `x` (n_tokens, d_model), `in_proj` to `3 * d_model` -> (n_tokens, d_model).
    """
    fast = has_fast_product(x, in_proj.weight) and x.shape[1] // n_heads >= _NARROW
    if not fast or cells.longest < _LONG:
        qkv = in_proj(x).unflatten(-1, (3, n_heads, -1)).unbind(1)
        return _one_by_one(*qkv, cells).flatten(1)
    out = torch.empty_like(x)
    for start, n_cells, length in cells.runs():
        for first in range(start, start + n_cells * length, length):
            _attend_cell(x[first : first + length], in_proj, n_heads, out[first : first + length])
    return out


def _attend_cell(x: Tensor, in_proj: nn.Linear, n_heads: int, out: Tensor) -> None:
    """One cell through oneDNN; fills `out`. `x`, `out` (length, d_model).

    Values are projected transposed, as the second product wants them; their bias is added at the end, as the weights
    of a softmax sum to 1.
    """
    length, d = x.shape
    d_head = d // n_heads
    weight, bias = in_proj.weight, in_proj.bias
    q, k = product(x, weight[: 2 * d], bias[: 2 * d]).view(length, 2, n_heads, d_head).unbind(1)
    keys = torch.mul(k.transpose(0, 1), 1 / math.sqrt(d_head), out=x.new_empty(n_heads, length, d_head))
    values = product(weight[2 * d :], x).view(n_heads, d_head, length)
    out = out.view(length, n_heads, d_head)
    step = math.ceil(length / math.ceil(length / _QUERIES))
    for head in range(n_heads):
        for start in range(0, length, step):
            weights = torch.softmax(product(q[start : start + step, head], keys[head]), dim=-1)
            out[start : start + step, head] = product(weights, values[head])
    out += bias[2 * d :].view(n_heads, d_head)
