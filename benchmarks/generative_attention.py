"""Attention of generative pretraining, forward and backward: the split form beside a dense mask.

Half of the tokens are unknown: known tokens see known tokens, an unknown token sees those and itself. The rivals are
calls of `scaled_dot_product_attention` with a mask `(batch, 1, length, length)`, as numbers that are added (the form of
the original) and as bool. One layer's attention without its projections; gradients for queries, keys and values.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import _harness as harness
from scanpy_scgpt.nn import generative_attention

SPEED, CLOSE = 1.9, 1e-5
RIVAL, BOOL, OURS = "dense, added mask", "dense, bool mask", "split"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def allowed_pairs(batch: int, length: int, n_known: int) -> Tensor:
    """Who sees whom, (batch, 1, length, length) bool."""
    known = torch.arange(length) < n_known
    return (known[None, :] | torch.eye(length, dtype=torch.bool)).expand(batch, 1, -1, -1).contiguous()


def variants_of(allowed: Tensor, n_known: int, dtype: torch.dtype) -> dict[str, Callable[..., Tensor]]:
    """Functions of queries, keys and values."""
    added = torch.zeros(allowed.shape, dtype=dtype).masked_fill(~allowed, -1e9)
    return {
        RIVAL: lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=added),
        BOOL: lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=allowed),
        OURS: lambda q, k, v: generative_attention(q, k, v, n_known=n_known),
    }


def run(attend: Callable[..., Tensor], tensors: list[Tensor]) -> list[Tensor]:
    """Output and gradients of one pass."""
    for tensor in tensors:
        tensor.grad = None
    out = attend(*tensors)
    (out * torch.linspace(0, 1, out.shape[-1], dtype=out.dtype)).sum().backward()
    return [out.detach(), *(tensor.grad for tensor in tensors)]


def measure(length: int, kind: str, args: argparse.Namespace) -> dict:
    """One length in one precision."""
    dtype, n_known = DTYPES[kind], length // 2
    shape = (args.batch, args.heads, length, args.d_model // args.heads)
    generator = torch.Generator().manual_seed(args.seed)
    tensors = [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for _ in range(3)]
    variants = variants_of(allowed_pairs(args.batch, length, n_known), n_known, dtype)
    results = {name: run(attend, tensors) for name, attend in variants.items()}  # warms up too
    timings = harness.interleave(
        {name: lambda attend=attend: run(attend, tensors) for name, attend in variants.items()}, rounds=args.rounds
    )
    errors = [(a - b).abs().max() / b.abs().max() for a, b in zip(results[OURS], results[RIVAL], strict=True)]
    return {
        "length": length,
        "precision": kind,
        "seconds": {name: timing.median for name, timing in timings.items()},
        "ratio": timings[OURS].times_faster(timings[RIVAL]),
        "ratio_bool": timings[OURS].times_faster(timings[BOOL]),
        "worst_error": max(error.item() for error in errors),
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.generative_attention", description=__doc__)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--d-model", type=int, default=512)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, two lengths")
    return parser.parse_args()


def main() -> int:
    args = parse()
    harness.single_thread()
    lengths = [300, 1200] if args.quick else [300, 600, 1200, 2400]
    args.rounds = min(args.rounds, 5) if args.quick else args.rounds
    found = [measure(length, kind, args) for kind in DTYPES for length in lengths]
    rows = [
        (f"{row['precision']}, {row['length']} tokens", *(1e3 * x for x in row["seconds"].values()),
         f"{row['ratio']:.2f}", f"{row['ratio_bool']:.2f}", f"{row['worst_error']:.1e}")
        for row in found
    ]  # fmt: skip
    header = ("half of them unknown", *(f"{name}, ms" for name in (RIVAL, BOOL, OURS)), "ratio", "to bool", "error")
    harness.print_table(f"forward and backward, {args.batch} cells, {args.heads} heads", header, rows)
    (main_row,) = [row for row in found if (row["length"], row["precision"]) == (1200, "fp32")]
    bars = [
        harness.Bar("times the dense added mask, 1200 tokens, fp32", main_row["ratio"], SPEED),
        harness.Bar("worst error of output and gradients, fp32", main_row["worst_error"], CLOSE, at_least=False),
    ]
    return harness.conclude("generative_attention", {"options": vars(args), "rows": found}, bars)


if __name__ == "__main__":
    sys.exit(main())
