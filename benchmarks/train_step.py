"""One step of generative pretraining on CPU: forward, backward, clipping, AdamW.

The rival has the same encoders, heads and losses around `torch.nn.TransformerEncoder` with the same weights: a mask
`(length, length)` beside the key padding mask, one padded batch. Ours is what a run does:
split attention, micro-batches of cells of similar length, fused AdamW. Like for like means the same cells, split in the
same way, the same precision, and dropout 0: the bars are of these steps, against the faster of the rival's default and
its fused AdamW. With the dropout of a run the rival also drops attention weights, as the original does, which ours
never does; that ratio is printed and no bar. Losses: expression of the unknown genes from the known ones and from the
cell vector; without the pass of the cell prompt, which is the same work once more for both.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import _harness as harness
from benchmarks.embed import gemm_rates, our_name, random_tokens
from scanpy_scgpt._batch import GenerativeStep
from scanpy_scgpt.data import GenerativeBatches, split_sizes
from scanpy_scgpt.module import PretrainModule, initial_weights
from scanpy_scgpt.nn import TransformerConfig
from scanpy_scgpt.tokenizer import Tokens

SPEED, CLOSE = 2.0, 1e-4
N_GENES, MAX_LENGTH, RATIO = 4997, 1200, 0.5
PLAIN, FUSED, OURS = "plain", "plain, fused AdamW", "scanpy_scgpt"  # dropout 0: like for like
PLAIN_DROPPING, OURS_DROPPING = "plain, fused AdamW, dropout", "scanpy_scgpt, dropout"


class PlainStack(nn.Module):
    """`nn.TransformerEncoder` in the place of our layers."""

    def __init__(self, config: TransformerConfig, encoder: nn.Module) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            config.d_model, config.n_heads, config.d_ff, config.dropout, batch_first=True
        )
        self.encoder, self.layers = encoder, nn.TransformerEncoder(layer, config.n_layers, enable_nested_tensor=False)

    def encode_generative(
        self, known: Tensor, unknown: Tensor, known_padding: Tensor | None, *, legacy: bool
    ) -> tuple[Tensor, Tensor]:
        n_known, length = known.shape[1], known.shape[1] + unknown.shape[1]
        hidden = (torch.arange(length) >= n_known).expand(length, -1) & ~torch.eye(length, dtype=torch.bool)
        padding = torch.zeros(len(known), length, dtype=torch.bool)
        if known_padding is not None:
            padding[:, :n_known] = known_padding
        x = self.layers(torch.cat([known, unknown], dim=1), mask=hidden, src_key_padding_mask=padding)
        return x[:, :n_known], x[:, n_known:]


def make_module(config: TransformerConfig, *, plain: bool) -> PretrainModule:
    """Module with the same weights, ours or with the plain stack."""
    weights = initial_weights(config, seed=0)
    module = PretrainModule(config)
    module.load_state_dict(weights)
    if plain:
        stack = PlainStack(config, module.transformer.encoder)
        stack.layers.load_state_dict({name: weights[our_name(f"layers.{name}")] for name in stack.layers.state_dict()})
        module.transformer = stack
    module.prompting = False
    return module.train()


def make_step(module: PretrainModule, step: GenerativeStep, *, bf16: bool, fused: bool) -> Callable[[], float]:
    """Function that takes one step and returns the loss."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-6, fused=True if fused else None)

    def run() -> float:
        total = 0.0
        for batch, shares in zip(*step, strict=True):
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = module(batch).shared(shares)
            loss.total.backward()
            total += loss.total.item()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return total

    return run


def steps_of(tokens: Tokens, *, max_tokens: int | None, seed: int) -> GenerativeStep:
    """The cells as one step."""
    return GenerativeBatches(
        tokens, np.arange(len(tokens)), batch_size=len(tokens), max_length=MAX_LENGTH, ratios=(RATIO,), pad_id=N_GENES,
        cls_id=N_GENES + 1, cls_value=-2.0, max_tokens=max_tokens, seed=seed,
    )[0]  # fmt: skip


def work(lengths: np.ndarray, config: TransformerConfig) -> float:
    """Floating point operations that the layers need, forward and backward: no padding, no masked pair."""
    d = config.d_model
    unknown, known = split_sizes(lengths, ratio=RATIO, max_length=MAX_LENGTH)
    n, keys = known + unknown + 1.0, known + 1.0
    layer = n * (8 * d * d + 4 * d * config.d_ff) + 4 * n * keys * d
    return float(3 * config.n_layers * layer.sum())


def measure(title: str, tokens: Tokens, config: TransformerConfig, args: argparse.Namespace, *, bf16: bool) -> dict:
    """One block of cells in one precision."""
    whole = steps_of(tokens, max_tokens=None, seed=args.seed)
    cut = steps_of(tokens, max_tokens=args.max_tokens, seed=args.seed)
    without = replace(config, dropout=0.0)
    steps = {
        PLAIN: make_step(make_module(without, plain=True), whole, bf16=bf16, fused=False),
        FUSED: make_step(make_module(without, plain=True), whole, bf16=bf16, fused=True),
        OURS: make_step(make_module(without, plain=False), cut, bf16=bf16, fused=True),
        PLAIN_DROPPING: make_step(make_module(config, plain=True), whole, bf16=bf16, fused=True),
        OURS_DROPPING: make_step(make_module(config, plain=False), cut, bf16=bf16, fused=True),
    }
    losses: dict[str, float] = {}  # of the first step, at the same weights

    def take(name: str) -> None:
        loss = steps[name]()
        losses.setdefault(name, loss)

    timings = harness.interleave({name: lambda name=name: take(name) for name in steps}, rounds=args.rounds)
    rival = min((PLAIN, FUSED), key=lambda name: timings[name].median)
    real, rate = work(tokens.lengths, config), max(gemm_rates().values())
    longest = whole.batches[0].known.gene_ids.shape[1] + whole.batches[0].unknown_ids.shape[1]
    return {
        "title": f"{title}, {'bf16' if bf16 else 'fp32'}",
        "padding_of_plain": 1 - float((np.minimum(tokens.lengths, MAX_LENGTH - 1) + 1).sum() / longest / len(tokens)),
        "micro_batches": len(cut.batches),
        "seconds": {name: timing.seconds for name, timing in timings.items()},
        "rival": rival,
        "ratio": timings[OURS].times_faster(timings[rival]),
        "ratio_with_dropout": timings[OURS_DROPPING].times_faster(timings[PLAIN_DROPPING]),
        "dropout": config.dropout,
        "loss_error": abs(losses[OURS] / losses[rival] - 1),
        "gflops_real": {name: real / timing.median / 1e9 for name, timing in timings.items()},
        "gflops_gemm": rate,
    }


def report(found: list[dict]) -> None:
    """Print all blocks."""
    for block in found:
        rows = [
            (name, min(seconds), block["gflops_real"][name], block["gflops_real"][name] / block["gflops_gemm"])
            for name, seconds in block["seconds"].items()
        ]
        padded = f"{block['padding_of_plain']:.0%} of the plain batch is padding"
        header = ("variant", "CPU-s a step", "GFLOP/s real", "of GEMM")
        harness.print_table(f"{block['title']}: {padded}, {block['micro_batches']} micro-batches", header, rows)
        print(
            f"dropout 0: {block['ratio']:.2f} times {block['rival']!r}, losses differ by {block['loss_error']:.1e}; "
            f"dropout {block['dropout']}, which drops attention weights of the rival alone: "
            f"{block['ratio_with_dropout']:.2f} times"
        )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train_step", description=__doc__)
    parser.add_argument("--cells", type=int, default=12, help="cells of a step")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-tokens", type=int, default=2400, help="of our micro-batches")
    parser.add_argument("--median-genes", type=float, default=820.0, help="of the lognormal of the second block")
    parser.add_argument("--spread", type=float, default=0.31, help="standard deviation of the log")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="2 layers, 12 cells, one round")
    args = parser.parse_args()
    if args.quick:
        args.layers, args.cells, args.rounds = 2, 12, 1
    return args


def main() -> int:
    args = parse()
    harness.single_thread()
    rng = np.random.default_rng(args.seed)
    config = TransformerConfig(n_tokens=N_GENES + 3, pad_id=N_GENES, n_layers=args.layers)
    drawn = rng.lognormal(math.log(args.median_genes), args.spread, size=args.cells)
    blocks = {
        "full length": np.full(args.cells, MAX_LENGTH - 1),
        "lengths as in PBMC": np.clip(drawn.astype(np.int64), 200, MAX_LENGTH - 1),
    }
    small = random_tokens(np.array([40, 50]), n_genes=N_GENES, rng=rng)
    measure("warm-up", small, config, argparse.Namespace(**{**vars(args), "rounds": 1}), bf16=True)
    found = [
        measure(title, random_tokens(lengths, n_genes=N_GENES, rng=rng), config, args, bf16=bf16)
        for bf16 in (False, True)
        for title, lengths in blocks.items()
    ]
    report(found)
    bars = [
        harness.Bar(f"times the faster rival, dropout 0, {block['title']}", block["ratio"], SPEED) for block in found
    ]
    bars += [
        harness.Bar(f"difference of the loss, {block['title']}", block["loss_error"], CLOSE, at_least=False)
        for block in found
        if "fp32" in block["title"]
    ]
    return harness.conclude("train_step", {"options": vars(args), "blocks": found}, bars)


if __name__ == "__main__":
    sys.exit(main())
