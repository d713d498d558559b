"""Generated expression beside the mean digit of the gene: how much is hidden, how many steps, in which order.

    python -m benchmarks.generation [--model NAME] [--data FOLDER] [--files A.h5ad B.h5ad]

Of each cell 25, 50 or 75 % of the expressed genes are hidden and generated from the others (gene prompt), from the
vector at `<cls>` that the others give (cell prompt), or from both; in 1, 3 or 5 steps; the most confident genes first,
or random ones. The figure is the mean squared error against the hidden digits. `mean digit of the gene` is taken over
the other cells of the same file, which the network may never have seen. Every seed draws its own cells and its own
genes; intervals are 95 % (Student) over the seeds, and differences are formed inside a seed.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import anndata as ad
import numpy as np
from scipy import stats

from benchmarks import _harness as harness
from scanpy_scgpt import models, settings
from scanpy_scgpt.io import Checkpoint
from scanpy_scgpt.model import CellTokens, Embedder, GeneLists, Generator, Predicted
from scanpy_scgpt.tokenizer import Tokens, cell_keys, gene_draws

FILES = ("pbmc3k_10x.h5ad", "pbmc_kang2018_ctrl_8donors.h5ad", "pancreas_panc8_5tech_500.h5ad")
MEAN, HEAD = "mean digit of the gene", "genes, 1 step, expression head"
PLAIN = "genes, 1 step"


@dataclass(frozen=True)
class Variant:
    """One way to generate."""

    prompt: str
    n_steps: int
    order: str

    @property
    def name(self) -> str:
        steps = "1 step" if self.n_steps == 1 else f"{self.n_steps} steps by {self.order}"
        return f"{self.prompt}, {steps}"


@dataclass(frozen=True)
class Hidden:
    """Cells of which a part of the genes is hidden: what is seen, what is asked for, and its digits."""

    known: Tokens
    asked: GeneLists
    digits: np.ndarray
    keys: np.ndarray


def variants(steps: list[int], *, with_confidence: bool) -> list[Variant]:
    """All prompts, numbers of steps and orders that the model can follow."""
    orders = ["confidence", "random"] if with_confidence else ["random"]
    several = [(n, order) for n in steps if n > 1 for order in orders]
    return [
        Variant(prompt, n, order) for prompt in ("genes", "cell", "both") for n, order in [(1, orders[0]), *several]
    ]


def digits_of(path: Path, checkpoint: Checkpoint) -> tuple[Tokens, np.ndarray]:
    """Tokens of all cells of a file with all their genes, and the names of the cells."""
    adata = ad.read_h5ad(path)
    cells = CellTokens(adata, checkpoint, checkpoint.tokenizer)
    names = adata.obs_names.to_numpy()
    parts = [
        cells.tokenizer.bins(cells.source.rows(a, b), cells.match.ids, names[a:b], seed=0)
        for a, b in cells.row_blocks()
    ]
    return Tokens.concatenate(parts), names


def hide(tokens: Tokens, names: np.ndarray, *, ratio: float, seed: int) -> Hidden:
    """Hide a share of the genes of each cell, drawn from the names of cell and gene."""
    keys = cell_keys(names, seed=seed, purpose="hidden")
    hidden = gene_draws(tokens.indptr, tokens.gene_ids, keys) < ratio * 2**32
    asked = tokens.masked(hidden)
    return Hidden(tokens.masked(~hidden), GeneLists(asked.indptr, asked.gene_ids), asked.values.astype(float), keys)


def gene_means(tokens: Tokens, n_tokens: int) -> np.ndarray:
    """Mean digit of each gene; that of all where it never occurs."""
    n = np.bincount(tokens.gene_ids, minlength=n_tokens)
    total = np.bincount(tokens.gene_ids, weights=tokens.values, minlength=n_tokens)
    return np.where(n > 0, total / np.maximum(n, 1), tokens.values.mean())


def answers(
    hidden: Hidden, generator: Generator, embedder: Embedder, wanted: list[Variant]
) -> Iterator[tuple[Variant, Predicted]]:
    """What each variant says."""
    vectors = embedder.embed_tokens(hidden.known)
    nothing = hidden.known.masked(np.zeros(len(hidden.known.gene_ids), dtype=bool))
    for variant in wanted:
        known = nothing if variant.prompt == "cell" else hidden.known
        cell = None if variant.prompt == "genes" else vectors
        yield (
            variant,
            generator.generate(
                known, hidden.asked, keys=hidden.keys, cell=cell, n_steps=variant.n_steps, order=variant.order
            ),
        )


def one_seed(
    tokens: Tokens, names: np.ndarray, model: dict, wanted: list[Variant], *, ratio: float, n_cells: int, seed: int
) -> dict[str, float]:
    """Errors of one draw of cells and genes, and the calibration of the spread."""
    rows = np.random.default_rng(seed).permutation(len(tokens))
    drawn, others = rows[:n_cells], rows[n_cells:]
    hidden = hide(tokens.take(drawn), names[drawn], ratio=ratio, seed=seed)
    means = gene_means(tokens.take(others), model["checkpoint"].transformer.n_tokens)
    found = {MEAN: np.square(hidden.digits - means[hidden.asked.gene_ids]).mean()}
    for variant, said in answers(hidden, model["generator"], model["embedder"], wanted):
        found[variant.name] = np.square(hidden.digits - said.values).mean()
        if variant.name == PLAIN and model["generator"].knows_spread:
            missed = np.abs(hidden.digits - said.values)
            found["within one sd"] = np.mean(missed < said.spread)
            found["within two sd"] = np.mean(missed < 2 * said.spread)
            found["correlation of sd and |error|"] = np.corrcoef(missed, said.spread)[0, 1]
            sure = said.spread <= np.quantile(said.spread, 0.2)
            found["error of the surest fifth"] = np.square(missed[sure]).mean()
    if model["generator"].knows_spread:
        said = model["head"].generate(hidden.known, hidden.asked, keys=hidden.keys, n_steps=1)
        found[HEAD] = np.square(hidden.digits - said.values).mean()
    return {name: float(value) for name, value in found.items()}


def interval(values: list[float]) -> dict[str, float]:
    """Mean and half the width of its 95 % interval (Student)."""
    n = len(values)
    half = stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n) if n > 1 else float("nan")
    return {"mean": float(np.mean(values)), "half": float(half), "values": values}


def summary(per_seed: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Each figure over the seeds; confident against random order as differences inside a seed."""
    found = {name: interval([seed[name] for seed in per_seed]) for name in per_seed[0]}
    for name in list(found):
        other = name.replace("by confidence", "by random")
        if other != name and other in found:
            found[f"{name}, less random"] = interval([seed[name] - seed[other] for seed in per_seed])
    return found


def made_ready(args: argparse.Namespace) -> dict:
    """The model with all that generates from it."""
    checkpoint = models.load(args.model)
    engine = {"device": args.device, "max_tokens": args.max_tokens}
    weights = {name: x for name, x in checkpoint.weights.items() if not name.startswith("distribution_head.")}
    return {
        "checkpoint": checkpoint,
        "generator": Generator(checkpoint, **engine),
        "head": Generator(replace(checkpoint, weights=weights), **engine),
        "embedder": Embedder(checkpoint, **engine, backend="torch"),
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.generation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default="mini")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("SCANPY_SCGPT_DATA", "../shared/data")))
    parser.add_argument("--files", nargs="+", default=list(FILES))
    parser.add_argument("--cells", type=int, default=64, help="of a file, for each seed")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 3, 5])
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.25, 0.5, 0.75])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--max-tokens", type=int, default=None)
    parser.add_argument("--quick", action="store_true", help="12 cells, 2 seeds, 1 and 3 steps, half of the genes")
    args = parser.parse_args()
    if args.quick:
        args.cells, args.seeds, args.steps, args.ratios = 12, 2, [1, 3], [0.5]
    return args


def main() -> int:
    args = parse()
    report, bars = {}, []
    with settings.override(verbosity="error"):
        model = made_ready(args)
        wanted = variants(args.steps, with_confidence=model["generator"].knows_spread)
        for file in args.files:
            tokens, names = digits_of(args.data / file, model["checkpoint"])
            for ratio in args.ratios:
                seeds = range(args.seeds)
                draw = {"ratio": ratio, "n_cells": args.cells}
                found = summary([one_seed(tokens, names, model, wanted, **draw, seed=seed) for seed in seeds])
                report[f"{file}, {ratio:.0%} hidden"] = found
                rows = [(name, x["mean"], f"± {x['half']:.2g}") for name, x in found.items()]
                title = f"{file}: {ratio:.0%} of the genes of {args.cells} cells hidden, {args.seeds} seeds"
                harness.print_table(title, ("mean squared error of digits", "mean", "95 %"), rows)
                ratio_to_mean = found[PLAIN]["mean"] / found[MEAN]["mean"]
                bars.append(harness.Bar(f"{file}, {ratio:.0%}: error to {MEAN}", ratio_to_mean, 1.0, at_least=False))
    options = {**vars(args), "data": str(args.data), "model": model["checkpoint"].label}
    return harness.conclude("generation", {"options": options, "figures": report}, bars)


if __name__ == "__main__":
    sys.exit(main())
