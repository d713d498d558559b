"""Cells to vectors on CPU: `Embedder` beside a plain `torch.nn.TransformerEncoder` with the same weights.

The rival works as the original does: evaluation mode, no gradients, cells in the order of the data, every batch padded
to its longest cell, key padding mask. The bars are against PyTorch's default (its fused
evaluation path), which the original takes; the table also shows the rival with that path switched off, which is faster.
Its batches are collated beforehand, ours inside the timing. Two blocks: lengths drawn from a lognormal fitted to PBMC
(10x v1 chemistry: median 820 genes), and cells that all have the full length. Projections of queries and keys are
enlarged so that attention is peaked, as a flat softmax would hide errors.
"""

from __future__ import annotations

import argparse
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
SPEED, COSINE = 2.5, 0.99999


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


def gemm_rate(config: TransformerConfig) -> float:
    """GFLOP/s of one large matrix product of the shape of the first projection."""
    x, weight = torch.randn(4096, config.d_model), torch.randn(3 * config.d_model, config.d_model)
    seconds = harness.fastest(lambda: F.linear(x, weight), repeats=7)
    return 2 * x.shape[0] * weight.numel() / seconds / 1e9


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine of each pair of rows, in double precision."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def measure(title: str, tokens: Tokens, rival: PlainEncoder, embedder: Embedder, args: argparse.Namespace) -> dict:
    """Time one block of cells and compare the vectors."""
    vocab, config = embedder.checkpoint.vocab, embedder.checkpoint.transformer
    batches = plain_batches(tokens, vocab, size=args.batch)
    vectors: dict[str, np.ndarray] = {}
    variants = {
        "plain, fast path": lambda: vectors.update(fast=embed_plain(rival, batches, fast_path=True)),
        "plain, fast path off": lambda: vectors.update(off=embed_plain(rival, batches, fast_path=False)),
        "scanpy_scgpt": lambda: vectors.update(ours=embedder.embed_tokens(tokens)),
    }
    timings = harness.interleave(variants, rounds=args.rounds)
    *plain, ours = timings
    rival_name = plain[0]  # what PyTorch takes by itself, and so the original
    real, rate = work(tokens.lengths, config), gemm_rate(config)
    found = {
        "cells": len(tokens),
        "mean_length": float(tokens.lengths.mean()),
        "padding_of_plain": 1 - float((tokens.lengths + 1).sum() / sum(b.padding.numel() for b in batches)),
        "seconds": {name: timing.seconds for name, timing in timings.items()},
        "rival": rival_name,
        "ratio": timings[ours].times_faster(timings[rival_name]),
        "ratio_fast_path_off": timings[ours].times_faster(timings[plain[1]]),
        "worst_cosine": float(min(cosines(vectors["ours"], vectors[x]).min() for x in ("fast", "off"))),
        "gflops_real": {name: real / timing.median / 1e9 for name, timing in timings.items()},
        "gflops_gemm": rate,
    }
    report(title, found, timings)
    return found


def report(title: str, found: dict, timings: dict[str, harness.Timing]) -> None:
    """Print one block."""
    rows = []
    for name, timing in timings.items():
        ratios = timing.ratios(timings[found["rival"]])
        spread = f"{min(ratios):.2f}-{max(ratios):.2f}"
        rate = found["gflops_real"][name]
        ratio = timing.times_faster(timings[found["rival"]])
        rows.append((name, found["cells"] / timing.median, f"{ratio:.2f}", spread, rate, rate / found["gflops_gemm"]))
    header = ("variant", "cells/CPU-s", "ratio", "over rounds", "GFLOP/s real", "of GEMM")
    padded = f"{found['padding_of_plain']:.0%} of the plain batches is padding"
    harness.print_table(
        f"{title}: {found['cells']} cells, mean {found['mean_length']:.0f} genes; {padded}", header, rows
    )
    print(f"one large GEMM (F.linear): {found['gflops_gemm']:.0f} GFLOP/s; worst cosine {found['worst_cosine']:.9f}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.embed", description=__doc__)
    parser.add_argument("--cells", type=int, default=64, help="cells of the first block")
    parser.add_argument("--long-cells", type=int, default=16, help="cells of the block with full lengths")
    parser.add_argument("--batch", type=int, default=64, help="batch of the rival (the original: 64)")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--median-genes", type=float, default=820.0, help="of the lognormal")
    parser.add_argument("--spread", type=float, default=0.31, help="standard deviation of the log")
    parser.add_argument("--max-tokens", type=int, default=None, help="of our batches; the package's own by default")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> int:
    args = parse()
    harness.single_thread()
    rng = np.random.default_rng(args.seed)
    vocab = GeneVocab(f"G{i}" for i in range(4997))
    config = TransformerConfig(n_tokens=len(vocab), pad_id=vocab.pad_id, n_layers=args.layers)
    rival = PlainEncoder(config).randomise(args.seed)
    embedder = Embedder(checkpoint_of(rival, config, vocab), device="cpu", max_tokens=args.max_tokens)
    longest = embedder.checkpoint.tokenizer.max_length - 1
    drawn = rng.lognormal(math.log(args.median_genes), args.spread, size=args.cells)
    blocks = {
        "lengths as in PBMC": np.clip(drawn.astype(np.int64), 200, longest),
        "full length": np.full(args.long_cells, longest),
    }
    embedder.embed_tokens(random_tokens(np.array([20, 30]), n_genes=4997, rng=rng))  # warm up
    found = {
        title: measure(title, random_tokens(lengths, n_genes=4997, rng=rng), rival, embedder, args)
        for title, lengths in blocks.items()
    }
    bars = [harness.Bar(f"times the rival, {title}", block["ratio"], SPEED) for title, block in found.items()]
    bars += [harness.Bar(f"worst cosine, {title}", block["worst_cosine"], COSINE) for title, block in found.items()]
    return harness.conclude("embed", {"options": vars(args), "blocks": found}, bars)


if __name__ == "__main__":
    sys.exit(main())
