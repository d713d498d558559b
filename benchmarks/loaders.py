"""Shuffled minibatches from a file: AnnData's backed mode, scDataset, our raw rows, our tokens.

Real cells are repeated under new names into one plain file. Every rival reads seeded pools of blocks of one
size, and gives batches of one size as CSR rows (tokens in the last case), in one process and one thread.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from scipy import sparse

from benchmarks import _harness as harness
from benchmarks._cells import human_symbols, read_cells
from benchmarks.memory import build, resident

FILES = ["pbmc3k_10x.h5ad"]
BAR = 10.0


def blocks(args: argparse.Namespace, n_obs: int) -> Iterator:
    from scanpy_scgpt.disk import block_order

    pools = block_order(n_obs, block_size=args.block_size, pool_blocks=args.pool_blocks, seed=0)
    for _, pool in zip(range(args.pools), pools, strict=False):
        yield pool


def batches(rows: sparse.csr_matrix, order: np.ndarray, size: int) -> int:
    """Go through the batches of a pool; returns the number of cells."""
    return sum(rows[order[start : start + size]].shape[0] for start in range(0, len(order), size))


def run_backed(adata, args: argparse.Namespace) -> int:
    """Pools through the fancy index of the backed matrix."""
    n = 0
    for pool in blocks(args, adata.n_obs):
        rows = np.concatenate([np.arange(a, b) for a, b in zip(pool.starts, pool.stops, strict=True)])
        n += batches(adata.X[rows], pool.order, args.batch_size)
    return n


def run_backed_batches(adata, args: argparse.Namespace) -> int:
    """As most loops are written: a batch of whole blocks at a time, taken to memory as an AnnData."""
    n, per_batch = 0, max(args.batch_size // args.block_size, 1)
    for pool in blocks(args, adata.n_obs):
        for i in range(0, len(pool.starts), per_batch):
            pairs = zip(pool.starts[i : i + per_batch], pool.stops[i : i + per_batch], strict=True)
            n += adata[np.concatenate([np.arange(a, b) for a, b in pairs])].to_memory().X.shape[0]
    return n


def run_rows(matrix, args: argparse.Namespace) -> int:
    """Ours: `disk.row_batches`, in one thread like the rivals; each batch is a copy that is checked."""
    from scanpy_scgpt.disk import row_batches

    sizes = {"batch_size": args.batch_size, "block_size": args.block_size, "pool_blocks": args.pool_blocks}
    n, wanted = 0, min(args.pools * args.per_pool, matrix.shape[0])
    for batch in row_batches(matrix, ahead=False, **sizes):
        n += batch.rows.shape[0]
        if n >= wanted:
            break
    return n


def run_scdataset(adata, args: argparse.Namespace) -> int:
    """scDataset with its block shuffling over the same backed matrix."""
    from scdataset import BlockShuffling, scDataset

    strategy = BlockShuffling(block_size=args.block_size)
    data = scDataset(
        adata,
        strategy,
        batch_size=args.batch_size,
        fetch_factor=args.per_pool // args.batch_size,
        fetch_callback=lambda collection, rows: collection.X[rows],
    )
    n, wanted = 0, min(args.pools * args.per_pool, adata.n_obs)
    for batch in data:
        n += batch.shape[0]
        if n >= wanted:
            break
    return n


def token_loader(path: Path, args: argparse.Namespace):
    from scanpy_scgpt._counts import choose_counts
    from scanpy_scgpt.data import CellLoader, TokenSource
    from scanpy_scgpt.disk import open_cells
    from scanpy_scgpt.tokenizer import GeneVocab, Tokenizer, match_genes

    tokenizer = Tokenizer(GeneVocab(human_symbols()))
    cells = open_cells(path)
    source = choose_counts(cells)
    ids = match_genes(source.var.index, tokenizer.vocab).ids
    sizes = {"batch_size": args.batch_size, "block_size": args.block_size, "pool_blocks": args.pool_blocks}
    return CellLoader(TokenSource(source, ids, cells.obs_names), tokenizer, **sizes)


def run_tokens(loader, args: argparse.Namespace) -> int:
    n, wanted = 0, min(args.pools * args.per_pool, sum(source.n_obs for source in loader.sources))
    for batch in loader:
        n += len(batch.cells)
        if n >= wanted:
            break
    return n


def measure(path: Path, zarr: Path, args: argparse.Namespace) -> tuple[list[tuple], list[harness.Bar]]:
    import anndata as ad

    from scanpy_scgpt.disk import DiskMatrix

    h5ad, plain = DiskMatrix(path), DiskMatrix(zarr)
    adata, loader = ad.read_h5ad(path, backed="r"), token_loader(path, args)
    variants: dict[str, Callable[[], int]] = {
        "AnnData backed, pools": lambda: run_backed(adata, args),
        "AnnData backed, batch by batch": lambda: run_backed_batches(adata, args),
        "ours, rows, h5ad": lambda: run_rows(h5ad, args),
        "ours, rows, zarr": lambda: run_rows(plain, args),
        "ours, tokens, h5ad": lambda: run_tokens(loader, args),
    }
    try:
        import scdataset  # noqa: F401

        variants["scDataset over backed"] = lambda: run_scdataset(adata, args)
    except ImportError as error:
        print(f"scDataset is left out ({error}); its wheel can be given with --scdataset.")
    cells, grown = {}, {}
    for name, run in variants.items():  # warm up; the growth of the memory counts from the state before
        before = resident()
        cells[name], grown[name] = run(), resident() - before
    timings = harness.interleave(variants, rounds=args.rounds)
    base = min(("AnnData backed, pools", "AnnData backed, batch by batch"), key=lambda name: timings[name].median)
    rows = [
        (name, cells[name] / time.median, time.times_faster(timings[base]), f"{grown[name] / 1e6:,.0f}")
        for name, time in timings.items()
    ]
    bars = [  # the first rival is the fastest that AnnData can do, the second what most loops do
        harness.Bar(f"{name} against {rival!r}", timings[name].times_faster(timings[rival]), BAR)
        for rival in ("AnnData backed, pools", "AnnData backed, batch by batch")
        for name in ("ours, rows, h5ad", "ours, rows, zarr")
    ]
    adata.file.close()
    return rows, bars


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loaders", description=__doc__)
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--files", nargs="+", default=FILES, help="files of the folder SCANPY_SCGPT_DATA")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--block-size", type=int, default=64)
    parser.add_argument("--pool-blocks", type=int, default=64)
    parser.add_argument("--pools", type=int, default=5, help="pools that each rival reads in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scdataset", type=Path, default=None, help="wheel or folder of scDataset, when not installed")
    parser.add_argument("--folder", default=None, help="where the temporary files go")
    parser.add_argument("--quick", action="store_true", help="50,000 cells, 2 pools, 3 rounds")
    args = parser.parse_args()
    if args.quick:
        args.cells, args.pools, args.rounds = 50_000, 2, 3
    args.per_pool = args.block_size * args.pool_blocks
    return args


def main() -> int:
    args = parse()
    if args.scdataset is not None:
        sys.path.insert(0, str(args.scdataset))
    harness.single_thread()
    cells = read_cells(args.files[:1], n_cells=5000)[0]
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path, zarr = Path(folder) / "cells.h5ad", Path(folder) / "cells.zarr"
        build(cells, path, n_cells=args.cells)
        from scanpy_scgpt.disk import rewrite

        rewrite(path, zarr)
        rows, bars = measure(path, zarr, args)
    title = (
        f"shuffled minibatches of {args.batch_size}, blocks of {args.block_size}, {args.cells:,} cells of {cells.name}"
    )
    header = ("", "cells/CPU-s", "times faster", "memory grown MB")
    harness.print_table(title, header, rows)
    results = {"options": {**vars(args), "scdataset": str(args.scdataset)}, "rows": rows}
    return harness.conclude("loaders", results, bars)


if __name__ == "__main__":
    sys.exit(main())
