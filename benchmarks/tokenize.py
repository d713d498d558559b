"""Counts to padded batches of tokens: `Tokenizer` and `collate_digits` beside the original's per-cell loop.

All start from the CSR matrix and a vocabulary of 60,697 entries and end with batches. Rivals: the loop written from
its description, and, with `--rival`, binning and collator of the released package
(`pip install --no-deps --target <folder> scgpt==0.2.4`). Digits are compared as well: those without draws exactly,
those with draws against the exact distribution. Reading a vocabulary and matching names are reported apart, as they
are done once.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from benchmarks import _harness as harness
from benchmarks import _original as original
from benchmarks._cells import Cells, human_symbols, read_cells
from scanpy_scgpt.data import batches_by_length, collate_digits
from scanpy_scgpt.tokenizer import GeneVocab, Tokenizer, TokenizerConfig, match_genes

FILES = ["pbmc3k_10x.h5ad", "pbmc_hao2021_1k.h5ad"]
VOCABULARY = 60_697
SPEED, READING, MEAN_Z, DIGIT_Z = 25.0, 1.0, 4.0, 4.5
MAX_TOKENS = original.BATCH * original.MAX_LENGTH


def vocabulary() -> GeneVocab:
    """60,694 genes, real ones first, and the three special tokens."""
    genes = human_symbols()
    return GeneVocab(genes + [f"filler-{i}" for i in range(VOCABULARY - 3 - len(genes))])


def exhaust(batches: Iterable[object]) -> None:
    for _ in batches:
        pass


def ours(cells: Cells, gene_of_column: np.ndarray, tokenizer: Tokenizer) -> None:
    """Match columns, bin, cut, collate."""
    vocab = tokenizer.vocab
    tokens = tokenizer.encode(cells.counts, gene_of_column, cells.names)
    for chosen in batches_by_length(tokens.lengths, max_tokens=MAX_TOKENS):
        collate_digits(tokens, chosen, pad_id=vocab.pad_id, cls_id=vocab.cls_id, cls_digit=tokenizer.config.n_bins)


def variants(cells: Cells, vocab: GeneVocab, package: original.Package | None) -> dict[str, Callable[[], None]]:
    """What is timed. The rivals' matrix is cut to the genes of the vocabulary beforehand."""
    gene_of_column = match_genes(cells.genes, vocab).ids
    known = gene_of_column >= 0
    counts, ids = cells.counts[:, known].tocsr(), gene_of_column[known]
    marks = {"cls_id": vocab.cls_id, "pad_id": vocab.pad_id}
    rng = np.random.default_rng(0)
    tokenizer = Tokenizer(vocab)
    found = {"original's loop": lambda: exhaust(original.token_batches(counts, ids, rng=rng, **marks))}
    if package is not None:
        found[package.label] = lambda: exhaust(package.token_batches(counts, ids, **marks))
    found["scanpy_scgpt"] = lambda: ours(cells, gene_of_column, tokenizer)
    return found


def speed(cells: Cells, vocab: GeneVocab, package: original.Package | None, *, rounds: int) -> dict:
    """Cells per CPU second of each variant."""
    timed = variants(cells, vocab, package)
    for run in timed.values():
        run()
    timings = harness.interleave(timed, rounds=rounds)
    loop, n = timings["original's loop"], len(cells.names)
    rows = []
    for name, timing in timings.items():
        ratios = timing.ratios(loop)
        rows.append(
            (name, n / timing.median, f"{timing.times_faster(loop):.1f}", f"{min(ratios):.1f}-{max(ratios):.1f}")
        )
    genes = cells.counts.nnz / n
    title = f"{cells.name}: {n:,} cells, {genes:,.0f} genes per cell"
    harness.print_table(title, ("variant", "cells/CPU-s", "ratio", "over rounds"), rows)
    return {
        "cells": n,
        "seconds": {name: timing.seconds for name, timing in timings.items()},
        "ratio": timings["scanpy_scgpt"].times_faster(loop),
        "ratio_to_package": None if package is None else timings["scanpy_scgpt"].times_faster(timings[package.label]),
    }


class Expected:
    """Exact distribution of the digits of many cells, draws being uniform over the valid digits."""

    def __init__(self, rows: list[np.ndarray]) -> None:
        ranges = [original.digit_range(values) for values in rows]
        low, high = (np.concatenate(side) for side in zip(*ranges, strict=True))
        width = np.maximum(high - low, 1)
        first = np.minimum(low + 1, high)
        self.highest, self.n = high, high.size
        self.mean = ((first + high) / 2).mean()
        self.error_of_mean = np.sqrt(((width**2 - 1) / 12).sum()) / self.n
        self.counts, self.variance = (self._spread(first, high, p) for p in (1 / width, (1 / width) * (1 - 1 / width)))

    @staticmethod
    def _spread(first: np.ndarray, last: np.ndarray, weight: np.ndarray) -> np.ndarray:
        steps = np.bincount(first, weight, original.N_BINS + 1) - np.bincount(last + 1, weight, original.N_BINS + 1)
        return np.cumsum(steps)[: original.N_BINS]

    def compare(self, digits: np.ndarray) -> tuple[float, float, float]:
        """Mean digit, its deviation in standard errors, and the largest such deviation of the 50 frequencies."""
        observed = np.bincount(digits.astype(np.int64), minlength=original.N_BINS)
        deviation = np.abs(observed - self.counts) / np.sqrt(np.maximum(self.variance, 1))
        mean = float(digits.mean())
        return mean, abs(mean - self.mean) / self.error_of_mean, float(deviation.max())


def agreement(cells: Cells, vocab: GeneVocab, package: original.Package | None) -> dict:
    """Digits of all cells against the rule."""
    gene_of_column = match_genes(cells.genes, vocab).ids
    known = cells.counts[:, gene_of_column >= 0].astype(np.float32).tocsr()
    rows = [row for row in np.split(known.data, known.indptr[1:-1]) if row.size]
    expected, rng = Expected(rows), np.random.default_rng(0)

    def digits(ties: str) -> np.ndarray:
        tokenizer = Tokenizer(vocab, TokenizerConfig(ties=ties))
        return tokenizer.bins(cells.counts, gene_of_column, cells.names).values

    drawn = {"original's loop": np.concatenate([original.bin_cell(row, rng) for row in rows])}
    if package is not None:
        drawn[package.label] = np.concatenate([package.binning(row, original.N_BINS) for row in rows])
    drawn["scanpy_scgpt"] = digits("random")
    compared = {name: expected.compare(values) for name, values in drawn.items()}
    different = int((digits("high") != expected.highest).sum())
    harness.print_table(
        f"{cells.name}: {expected.n:,} digits with drawn ties; exact mean {expected.mean:.4f}",
        ("variant", "mean digit", "its |z|", "largest |z| of 50 frequencies"),
        [(name, f"{mean:.4f}", f"{z:.2f}", f"{worst:.2f}") for name, (mean, z, worst) in compared.items()],
    )
    print(f"without draws (ties='high'): {different} of {expected.n:,} digits differ from np.digitize")
    mean, z, worst = compared["scanpy_scgpt"]
    return {"digits": expected.n, "different": different, "mean": mean, "mean_z": z, "worst_z": worst}


def matching(cells: Cells, vocab: GeneVocab) -> dict:
    """Names of genes to ids, once for a data set."""
    names = cells.genes.tolist()
    ours_ = harness.fastest(lambda: match_genes(names, vocab), repeats=3)
    plain = harness.fastest(lambda: vocab.ids(names), repeats=3)
    exact, found = int((vocab.ids(names) >= 0).sum()), match_genes(names, vocab).n_matched
    print(
        f"once: {len(names):,} names matched in {1e3 * ours_:.0f} ms with Ensembl ids and aliases ({found:,} found); "
        f"exact symbols alone {1e3 * plain:.0f} ms ({exact:,} found)"
    )
    return {"seconds": ours_, "found": found, "seconds_exact": plain, "found_exact": exact}


def reading(vocab: GeneVocab, package: original.Package | None, sizes: list[int]) -> dict:
    """Reading a vocabulary file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocab.json"
        vocab.write(path)
        rows = [("scanpy_scgpt", len(vocab), harness.fastest(lambda: GeneVocab.read(path), repeats=3))]
        read = None if package is None else package.vocabulary_reader()
        for size in sizes if read else []:
            path.write_text(json.dumps({token: i for i, token in enumerate(vocab.tokens[:size])}), encoding="utf-8")
            rows.append((f"{package.label}, its from_file", size, harness.cpu_seconds(lambda: read(path))))
    harness.print_table("reading a vocabulary", ("variant", "entries", "CPU-s"), rows)
    if read:
        size, seconds = rows[-1][1:]
        print(
            "Its container stands in for torchtext and renews its dictionary at each insertion, so the time grows "
            f"with the square: about {seconds * (VOCABULARY / size) ** 2:,.0f} CPU-s for {VOCABULARY:,} (not run)."
        )
    return {"rows": rows}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tokenize", description=__doc__)
    parser.add_argument("--cells", type=int, default=1000, help="most cells of a file")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--files", nargs="+", default=FILES, help="files of the folder SCANPY_SCGPT_DATA")
    parser.add_argument("--rival", default=os.environ.get("SCGPT_RIVAL"), help="folder with the released package")
    parser.add_argument("--quick", action="store_true", help="one file, 2 rounds, two vocabularies for the rival")
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[2000, 4000, 8000], help="sizes for the rival")
    args = parser.parse_args()
    if args.quick:
        args.files, args.rounds, args.vocabularies = args.files[:1], 2, [2000, 4000]
    return args


def main() -> int:
    args = parse()
    harness.single_thread()
    vocab, package = vocabulary(), original.find_package(args.rival)
    results, bars = {}, []
    for cells in read_cells(args.files, n_cells=args.cells):
        timed, digits = speed(cells, vocab, package, rounds=args.rounds), agreement(cells, vocab, package)
        results[cells.name] = {"speed": timed, "digits": digits, "matching": matching(cells, vocab)}
        bars += [
            harness.Bar(f"times the original's loop, {cells.name}", timed["ratio"], SPEED),
            harness.Bar(f"digits that differ without draws, {cells.name}", digits["different"], 0, at_least=False),
            harness.Bar(f"|z| of the mean digit, {cells.name}", digits["mean_z"], MEAN_Z, at_least=False),
            harness.Bar(f"|z| of the digit frequencies, {cells.name}", digits["worst_z"], DIGIT_Z, at_least=False),
        ]
    results["reading"] = reading(vocab, package, args.vocabularies)
    seconds = results["reading"]["rows"][0][2]
    bars.append(harness.Bar(f"CPU seconds to read {VOCABULARY:,} entries", seconds, READING, at_least=False))
    return harness.conclude("tokenize", {"options": vars(args), **results}, bars)


if __name__ == "__main__":
    sys.exit(main())
