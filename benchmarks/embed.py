"""Cells to vectors on CPU: `Embedder` beside a plain `torch.nn.TransformerEncoder` with the same weights.

The rival works as the original does: evaluation mode, no gradients, cells in the order of the data, every batch padded
to its longest cell, key padding mask. It runs with and without PyTorch's fused evaluation path; the bars are against
the faster of the two. Its batches are collated beforehand, ours inside the timing; compiling for OpenVINO is not in it.
Blocks: lengths drawn from a lognormal fitted to PBMC (10x v1 chemistry: median 820 genes), and cells of one length.
Projections of queries and keys are enlarged so that attention is peaked, as a flat softmax would hide errors. The share
of the machine is that of the fastest float32 matrix product found here, by MKL or oneDNN, at 1024 and 2048.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import sys
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import _harness as harness
from scanpy_scgpt.data import collate_digits
from scanpy_scgpt.io import Checkpoint
from scanpy_scgpt.model import Embedder
from scanpy_scgpt.nn import TransformerConfig
from scanpy_scgpt.tokenizer import GeneVocab, TokenizerConfig, Tokens

N_BINS, CLS_VALUE, PAD_VALUE = 51, -2.0, -2.0
SHARPEN = 3.0
SPEED, COSINE, SHARE = 2.5, 0.99999, 0.65  # of the exact mode
FASTEST, NEAR = 4.0, 0.999  # of the fastest mode
EXACT = "scanpy_scgpt fp32"


class PlainEncoder(nn.Module):
    """Gene and value encoders and `nn.TransformerEncoder`, put together as in the original."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        d = config.d_model
        self.genes, self.gene_norm = nn.Embedding(config.n_tokens, d), nn.LayerNorm(d)
        self.linear1, self.linear2, self.value_norm = nn.Linear(1, d), nn.Linear(d, d), nn.LayerNorm(d)
        layer = nn.TransformerEncoderLayer(d, config.n_heads, config.d_ff, config.dropout, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, config.n_layers)

    def forward(self, gene_ids: Tensor, values: Tensor, padding: Tensor) -> Tensor:
        hidden = F.relu(self.linear1(values.unsqueeze(-1).clamp(max=512)))
        x = self.gene_norm(self.genes(gene_ids)) + self.value_norm(self.linear2(hidden))
        return self.layers(x, src_key_padding_mask=padding)[:, 0]

    @torch.no_grad()
    def randomise(self, seed: int) -> PlainEncoder:
        """Weights that differ between layers, norms off one, attention peaked."""
        torch.manual_seed(seed)
        nn.init.uniform_(self.genes.weight, -0.1, 0.1)
        for layer in self.layers.layers:
            attention = layer.self_attn
            nn.init.xavier_uniform_(attention.in_proj_weight)
            nn.init.xavier_uniform_(attention.out_proj.weight)
            attention.in_proj_weight[: 2 * attention.embed_dim] *= SHARPEN
            for bias in (attention.in_proj_bias, attention.out_proj.bias):
                nn.init.uniform_(bias, -0.1, 0.1)
            for linear in (layer.linear1, layer.linear2):
                nn.init.kaiming_uniform_(linear.weight, a=math.sqrt(5))
            for norm in (layer.norm1, layer.norm2):
                nn.init.uniform_(norm.weight, 0.6, 1.4)
                nn.init.uniform_(norm.bias, -0.2, 0.2)
        return self.eval()


OUR_NAMES = {
    "genes.": "encoder.genes.embedding.",
    "gene_norm.": "encoder.genes.norm.",
    "linear1.": "encoder.values.linear1.",
    "linear2.": "encoder.values.linear2.",
    "value_norm.": "encoder.values.norm.",
}
OUR_NAMES_IN_LAYER = {
    "self_attn.in_proj_": "attention.in_proj.",
    "self_attn.out_proj.": "attention.out_proj.",
    "linear": "feed_forward.linear",
    "norm": "norm",
}


def our_name(name: str) -> str:
    """Name in our checkpoints of a tensor of :class:`PlainEncoder`."""
    if not name.startswith("layers."):
        return next(
            f"transformer.{new}{name.removeprefix(old)}" for old, new in OUR_NAMES.items() if name.startswith(old)
        )
    number, rest = name.removeprefix("layers.layers.").split(".", maxsplit=1)
    old, new = next(pair for pair in OUR_NAMES_IN_LAYER.items() if rest.startswith(pair[0]))
    return f"transformer.layers.{number}.{new}{rest.removeprefix(old)}"


def checkpoint_of(rival: PlainEncoder, config: TransformerConfig, vocab: GeneVocab) -> Checkpoint:
    """The rival's weights as a checkpoint of ours."""
    return Checkpoint(
        name="random",
        transformer=config,
        tokenizer=TokenizerConfig(n_bins=N_BINS, cls_value=CLS_VALUE),
        vocab=vocab,
        weights={our_name(name): tensor for name, tensor in rival.state_dict().items()},
    )


def random_tokens(lengths: np.ndarray, *, n_genes: int, rng: np.random.Generator) -> Tokens:
    """Cells of these lengths with random genes and digits."""
    genes = [np.sort(rng.choice(n_genes, size=n, replace=False)) for n in lengths]
    digits = rng.integers(1, N_BINS, size=int(lengths.sum()))
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    return Tokens(indptr, np.concatenate(genes).astype(np.int32), digits.astype(np.uint8))


class Batch(NamedTuple):
    """A batch of the rival."""

    gene_ids: Tensor
    values: Tensor
    padding: Tensor


def plain_batches(tokens: Tokens, vocab: GeneVocab, *, size: int) -> list[Batch]:
    """Batches of consecutive cells, each padded to its longest."""
    batches = []
    for start in range(0, len(tokens), size):
        cells = np.arange(start, min(start + size, len(tokens)))
        ids, digits, _ = collate_digits(tokens, cells, pad_id=vocab.pad_id, cls_id=vocab.cls_id, cls_digit=0)
        padding = ids == vocab.pad_id
        values = digits.float().masked_fill(padding, PAD_VALUE)
        values[:, 0] = CLS_VALUE
        batches.append(Batch(ids, values, padding))
    return batches


@torch.no_grad()
def embed_plain(rival: PlainEncoder, batches: list[Batch], *, fast_path: bool) -> np.ndarray:
    """Vectors of the rival, `(n_cells, d_model)`."""
    torch.backends.mha.set_fastpath_enabled(fast_path)
    return torch.cat([rival(*batch) for batch in batches]).numpy()


def work(lengths: np.ndarray, config: TransformerConfig) -> float:
    """Floating point operations that the result needs: no padding; the last layer for `<cls>` alone."""
    n, d = lengths + 1.0, config.d_model
    projections = 2 * d * 3 * d + 2 * d * d + 4 * d * config.d_ff
    layer = n * projections + 4 * n**2 * d
    last = 4 * n * config.n_heads * d + projections
    return float(((config.n_layers - 1) * layer + last).sum())


def gemm_rates() -> dict[str, float]:
    """GFLOP/s of large square float32 products by the libraries that PyTorch carries; the best of two sizes."""
    onednn = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    rates: dict[str, float] = {}
    for n in (1024, 2048):
        x, y = torch.randn(n, n), torch.randn(n, n)
        found = {"MKL": harness.fastest(lambda x=x, y=y: torch.mm(x, y), repeats=5)}
        if onednn is not None and torch.backends.mkldnn.is_available():
            found["oneDNN"] = harness.fastest(lambda x=x, y=y: onednn(x, y, None, "none", [], ""), repeats=5)
        for name, seconds in found.items():
            rates[name] = max(rates.get(name, 0.0), 2 * n**3 / seconds / 1e9)
    return rates


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine of each pair of rows, in double precision."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def measure(
    title: str, tokens: Tokens, rival: PlainEncoder, ours: dict[str, Embedder], args: argparse.Namespace
) -> dict:
    """Time one block of cells and compare the vectors."""
    checkpoint = ours[EXACT].checkpoint
    batches = plain_batches(tokens, checkpoint.vocab, size=args.batch)
    vectors: dict[str, np.ndarray] = {}
    variants = {
        name: lambda name=name, on=on: vectors.update({name: embed_plain(rival, batches, fast_path=on)})
        for name, on in (("plain, fast path", True), ("plain, fast path off", False))
    }
    plain = list(variants)
    for name, embedder in ours.items():
        variants[name] = lambda name=name, embedder=embedder: vectors.update({name: embedder.embed_tokens(tokens)})
    few = tokens.take(np.arange(min(2, len(tokens))))
    for embedder in ours.values():
        embedder.embed_tokens(few)  # warm up
    gemm = gemm_rates()
    timings = harness.interleave(variants, rounds=args.rounds)
    gemm = {name: max(rate, gemm[name]) for name, rate in gemm_rates().items()}
    best = min(plain, key=lambda name: timings[name].median)
    real = work(tokens.lengths, checkpoint.transformer)
    found = {
        "cells": len(tokens),
        "mean_length": float(tokens.lengths.mean()),
        "padding_of_plain": 1 - float((tokens.lengths + 1).sum() / sum(b.padding.numel() for b in batches)),
        "seconds": {name: timing.seconds for name, timing in timings.items()},
        "rival": best,
        "ratio": {name: timing.times_faster(timings[best]) for name, timing in timings.items()},
        "cosine": {
            name: float(min(cosines(vectors[name], vectors[x]).min() for x in plain)) for name in (*plain, *ours)
        },
        "gflops_real": {name: real / timing.median / 1e9 for name, timing in timings.items()},
        "gflops_gemm": gemm,
    }
    found["share"] = {name: rate / max(gemm.values()) for name, rate in found["gflops_real"].items()}
    report(title, found, timings)
    return found


def report(title: str, found: dict, timings: dict[str, harness.Timing]) -> None:
    """Print one block."""
    rows = []
    for name, timing in timings.items():
        ratios = timing.ratios(timings[found["rival"]])
        spread = f"{min(ratios):.2f}-{max(ratios):.2f}"
        numbers = (f"{found['ratio'][name]:.2f}", spread, found["gflops_real"][name], found["share"][name])
        rows.append((name, found["cells"] / timing.median, *numbers, f"{found['cosine'][name]:.7f}"))
    header = ("variant", "cells/CPU-s", "ratio", "over rounds", "GFLOP/s real", "of GEMM", "worst cosine")
    padded = f"{found['padding_of_plain']:.0%} of the plain batches is padding"
    harness.print_table(
        f"{title}: {found['cells']} cells, mean {found['mean_length']:.0f} genes; {padded}", header, rows
    )
    rates = ", ".join(f"{name} {rate:.0f}" for name, rate in found["gflops_gemm"].items())
    print(f"float32 GEMM, GFLOP/s: {rates}; the faster rival: {found['rival']}")


def bars_of(title: str, found: dict, ours: dict[str, Embedder]) -> list[harness.Bar]:
    """What must hold of one block."""
    near = [name for name in ours if found["cosine"][name] >= NEAR]
    return [
        harness.Bar(f"times the rival in float32, {title}", found["ratio"][EXACT], SPEED),
        harness.Bar(f"worst cosine in float32, {title}", found["cosine"][EXACT], COSINE),
        harness.Bar(f"share of the GEMM rate in float32, {title}", found["share"][EXACT], SHARE),
        harness.Bar(
            f"times the rival in the fastest mode with cosine >= {NEAR}, {title}",
            max((found["ratio"][name] for name in near), default=0.0),
            FASTEST,
        ),
    ]


def embedders(checkpoint: Checkpoint, *, max_tokens: int | None) -> dict[str, Embedder]:
    """One per mode."""
    modes = {EXACT: ("torch", "fp32"), "scanpy_scgpt bf16": ("torch", "bf16")}
    if importlib.util.find_spec("openvino") is not None:
        modes |= {"openvino fp32": ("openvino", "fp32"), "openvino bf16": ("openvino", "bf16")}
    return {
        name: Embedder(checkpoint, device="cpu", max_tokens=max_tokens, backend=backend, precision=precision)
        for name, (backend, precision) in modes.items()
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.embed", description=__doc__)
    parser.add_argument("--cells", type=int, default=64, help="cells of the first block")
    parser.add_argument("--long-cells", type=int, default=16, help="cells of the blocks with one length")
    parser.add_argument("--lengths", type=int, nargs="*", default=[300, 600, 1200], help="tokens of these blocks")
    parser.add_argument("--batch", type=int, default=64, help="batch of the rival (the original: 64)")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--median-genes", type=float, default=820.0, help="of the lognormal")
    parser.add_argument("--spread", type=float, default=0.31, help="standard deviation of the log")
    parser.add_argument("--max-tokens", type=int, default=None, help="of our batches; the package's own by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="4 layers, fewer cells and lengths")
    args = parser.parse_args()
    if args.quick:
        args.cells, args.long_cells, args.layers, args.lengths = 16, 6, 4, [300, 1200]
        args.batch = 16
    return args


def main() -> int:
    args = parse()
    harness.single_thread()
    rng = np.random.default_rng(args.seed)
    vocab = GeneVocab(f"G{i}" for i in range(4997))
    config = TransformerConfig(n_tokens=len(vocab), pad_id=vocab.pad_id, n_layers=args.layers)
    rival = PlainEncoder(config).randomise(args.seed)
    ours = embedders(checkpoint_of(rival, config, vocab), max_tokens=args.max_tokens)
    longest = ours[EXACT].checkpoint.tokenizer.max_length - 1
    drawn = rng.lognormal(math.log(args.median_genes), args.spread, size=args.cells)
    blocks = {"lengths as in PBMC": np.clip(drawn.astype(np.int64), 200, longest)}
    blocks |= {f"{n} tokens": np.full(args.long_cells, n - 1) for n in args.lengths}
    found = {
        title: measure(title, random_tokens(lengths, n_genes=4997, rng=rng), rival, ours, args)
        for title, lengths in blocks.items()
    }
    bars = [bar for title, block in found.items() for bar in bars_of(title, block, ours)]
    return harness.conclude("embed", {"options": vars(args), "blocks": found}, bars)


if __name__ == "__main__":
    sys.exit(main())
