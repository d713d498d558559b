"""Cells of a token store beside tokenising them again and beside numpy, one cell at a time.

Real cells are tokenised uncut and repeated under new names into a store; all variants then give the same batches of
tokens, once in the order of a loader that shuffles blocks, once in a fully random order. Rivals: `Tokenizer.bins` on
the CSR matrix in memory (its rows sliced beforehand), fancy indexing into the mapped arrays for each cell, and
`Tokens.take` with everything in memory.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks import _harness as harness
from benchmarks._cells import Cells, human_symbols, read_cells
from scanpy_scgpt.disk import TokenStore, TokenStoreWriter
from scanpy_scgpt.tokenizer import GeneVocab, Tokenizer, TokenizerConfig, Tokens, match_genes

FILES = ["pbmc3k_10x.h5ad"]
RATE = 280_000
BLOCK = 256  # cells that lie together in the order of a loader


def build(folder: Path, cells: Cells, tokenizer: Tokenizer, *, n_cells: int, shard: int) -> tuple[TokenStore, float]:
    """A store of repeated cells, and the CPU seconds of writing it."""
    tokens = tokenizer.bins(cells.counts, match_genes(cells.genes, tokenizer.vocab).ids, cells.names)
    seconds = 0.0
    with TokenStoreWriter(folder, tokenizer.vocab, tokenizer.config, origin={"file": cells.name}) as writer:
        for start in range(0, n_cells, shard):
            positions = np.arange(start, min(start + shard, n_cells))
            part, names = tokens.take(positions % len(tokens)), np.array([f"cell-{i}" for i in positions])
            seconds += harness.cpu_seconds(lambda: writer.write(f"part-{start}", part, names))  # noqa: B023
        store = writer.finish()
    return store, seconds


def orders(n_cells: int, n: int, *, seed: int) -> dict[str, np.ndarray]:
    """Positions of `n` cells: whole blocks, shuffled inside pools of sixteen; and fully random."""
    rng = np.random.default_rng(seed)
    blocks = rng.permutation(n_cells // BLOCK)[: n // BLOCK]
    pools = [blocks[i : i + 16] for i in range(0, len(blocks), 16)]
    inside = [rng.permutation((pool[:, None] * BLOCK + np.arange(BLOCK)).ravel()) for pool in pools]
    return {"blocks": np.concatenate(inside), "random": rng.permutation(n_cells)[: len(blocks) * BLOCK]}


class Rivals:
    """The same cells by other means."""

    def __init__(self, store: TokenStore, cells: Cells, tokenizer: Tokenizer) -> None:
        self.cells, self.tokenizer = cells, tokenizer
        self.ids = match_genes(cells.genes, tokenizer.vocab).ids
        self.memory = Tokens.concatenate([tokens for _, tokens in store.shards()])
        paths = sorted((store.folder / "shards").glob("*.tokens"), key=lambda path: int(path.stem.split("-")[1]))
        self.starts, self.parts = store.shard_starts, []
        dtype = np.dtype("<u2" if len(tokenizer.vocab) < 2**16 else "<u4")
        for i, path in enumerate(paths):
            whole = np.memmap(path, dtype=np.uint8, mode="r").view(np.ndarray)
            n = self.starts[i + 1] - self.starts[i] + 1
            indptr = whole[: 8 * n].view("<i8")
            first = -(-8 * n // 64) * 64
            size = int(indptr[-1]) * dtype.itemsize
            second = first + -(-size // 64) * 64
            self.parts.append((indptr, whole[first : first + size].view(dtype), whole[second : second + indptr[-1]]))

    def numpy(self, chosen: np.ndarray) -> Tokens:
        """One fancy index per cell."""
        shards = np.searchsorted(self.starts, chosen, side="right") - 1
        ids, digits = [], []
        for cell, i in zip(chosen - self.starts[shards], shards, strict=True):
            indptr, gene_ids, values = self.parts[i]
            where = np.arange(indptr[cell], indptr[cell + 1])
            ids.append(gene_ids[where])
            digits.append(values[where])
        indptr = np.cumsum([0, *map(len, ids)])
        return Tokens(indptr, np.concatenate(ids).astype(np.int32), np.concatenate(digits))

    def again(self, order: np.ndarray, size: int) -> Callable[[], None]:
        """Tokenise batches whose rows are at hand."""
        n = len(self.cells.names)
        batches = [order[i : i + size] % n for i in range(0, len(order), size)]
        rows = [(self.cells.counts[chosen], self.cells.names[chosen]) for chosen in batches]
        return lambda: [self.tokenizer.bins(counts, self.ids, names) for counts, names in rows]


def in_batches(take: Callable[[np.ndarray], Tokens], order: np.ndarray, size: int) -> Callable[[], None]:
    def run() -> None:
        for i in range(0, len(order), size):
            take(order[i : i + size])

    return run


def speed(store: TokenStore, rivals: Rivals, order: np.ndarray, args: argparse.Namespace, *, name: str) -> dict:
    """Cells per CPU second of each variant, the slow ones on a part of the cells."""
    few = order[: max(len(order) // 16, args.batch)]
    timed = {
        "TokenStore.take": (in_batches(store.take, order, args.batch), len(order)),
        "Tokens.take, in memory": (in_batches(rivals.memory.take, order, args.batch), len(order)),
        "numpy, each cell": (in_batches(rivals.numpy, few, args.batch), len(few)),
        "tokenised again": (rivals.again(few, args.batch), len(few)),
    }
    for run, _ in timed.values():
        run()
    timings = harness.interleave({key: run for key, (run, _) in timed.items()}, rounds=args.rounds)
    rates = {key: [timed[key][1] / seconds for seconds in timing.seconds] for key, timing in timings.items()}
    ratios = {
        key: float(np.median(np.divide(rates["TokenStore.take"], rate))) for key, rate in rates.items()
    }  # round by round
    rows = [(key, float(np.median(rate)), f"{ratios[key]:.2f}") for key, rate in rates.items()]
    title = f"{len(order):,} cells in batches of {args.batch}, order: {name}"
    harness.print_table(title, ("variant", "cells/CPU-s", "store is faster by"), rows)
    return {"cells": len(order), "rates": rates, "times_faster": ratios}


def different(store: TokenStore, rivals: Rivals, order: np.ndarray) -> int:
    """Batches in which a variant disagrees with the store."""
    found = 0
    for i in range(0, len(order), len(order) // 8):
        chosen = order[i : i + 64]
        ours = store.take(chosen)
        for theirs in (rivals.memory.take(chosen), rivals.numpy(chosen)):
            parts = ("indptr", "gene_ids", "values")
            found += not all(np.array_equal(getattr(ours, part), getattr(theirs, part)) for part in parts)
    return found


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.token_store", description=__doc__)
    parser.add_argument("--cells", type=int, default=200_000)
    parser.add_argument("--shard", type=int, default=16_384, help="cells of a shard")
    parser.add_argument("--taken", type=int, default=50_000, help="cells that are taken in a round")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--files", nargs="+", default=FILES, help="files of the folder SCANPY_SCGPT_DATA")
    parser.add_argument("--folder", default=None, help="where the temporary files go")
    parser.add_argument("--quick", action="store_true", help="50 thousand cells and 3 rounds")
    args = parser.parse_args()
    if args.quick:
        args.cells, args.taken, args.rounds = 50_000, 30_000, 3
    return args


def main() -> int:
    args = parse()
    harness.single_thread()
    cells = read_cells(args.files[:1], n_cells=5000)[0]
    tokenizer = Tokenizer(GeneVocab(human_symbols()), TokenizerConfig(ties="mid"))
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        store, seconds = build(Path(folder) / "store", cells, tokenizer, n_cells=args.cells, shard=args.shard)
        n_bytes = sum(path.stat().st_size for path in store.folder.rglob("*.tokens"))
        genes = store.n_tokens / len(store)
        print(
            f"{cells.name}: {len(store):,} cells of {genes:,.0f} tokens, {n_bytes / 1e6:,.0f} MB "
            f"({n_bytes / store.n_tokens:.2f} bytes a token), written at {len(store) / seconds:,.0f} cells/CPU-s"
        )
        opening = harness.fastest(lambda: TokenStore(store.folder), repeats=3)
        checking = harness.cpu_seconds(store.verify)
        print(f"opened in {1e3 * opening:.1f} ms; verified at {n_bytes / checking / 1e6:,.0f} MB per CPU second")
        rivals, found, wrong = Rivals(store, cells, tokenizer), {}, 0
        for name, order in orders(len(store), args.taken, seed=0).items():
            wrong += different(store, rivals, order)
            found[name] = speed(store, rivals, order, args, name=name)
    rate = float(np.median(found["blocks"]["rates"]["TokenStore.take"]))
    again = found["blocks"]["times_faster"]["tokenised again"]
    bars = [
        harness.Bar("cells per CPU second, blocks", rate, RATE),
        harness.Bar("times tokenising again, blocks", again, 1.0),
        harness.Bar("batches that differ from the rivals'", wrong, 0, at_least=False),
    ]
    size = {"cells": args.cells, "tokens": store.n_tokens, "bytes": n_bytes, "written_seconds": seconds}
    results = {"options": vars(args), "size": size, "opening": opening, "checking": checking, "orders": found}
    return harness.conclude("token_store", results, bars)


if __name__ == "__main__":
    sys.exit(main())
