"""Peak memory of `tl.embed` of a file, at two numbers of cells a decade apart.

Real cells are repeated under new names into a CSR h5ad file, a block at a time. A fresh process for each size loads a
tiny random checkpoint, notes its resident memory, embeds the file into a zarr file, and reports its peak. Beside it the
same for the file opened backed by AnnData, where the vectors stay in memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks import _harness as harness
from benchmarks._cells import Cells, human_symbols, read_cells

FILES = ["pbmc3k_10x.h5ad"]
LIMIT, GROWTH = 2e9, 1.10
WAYS = {"file": "file to file", "backed": "backed AnnData"}


def build(cells: Cells, path: Path, *, n_cells: int) -> None:
    """Write `n_cells` cells to `path` by repeating `cells`."""
    import h5py
    import pandas as pd
    from anndata.io import write_elem

    source, n_source = cells.counts, cells.counts.shape[0]
    lengths = np.resize(np.diff(source.indptr), n_cells)
    indptr = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    with h5py.File(path, "w") as file:
        write_elem(file, "obs", pd.DataFrame(index=[f"cell-{i}" for i in range(n_cells)]))
        write_elem(file, "var", pd.DataFrame(index=cells.genes))
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        matrix = file.create_group("X")
        matrix.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0"})
        matrix.attrs["shape"] = np.array([n_cells, source.shape[1]])
        matrix.create_dataset("indptr", data=indptr)
        for name, values in (("data", source.data.astype(np.float32)), ("indices", source.indices)):
            written = matrix.create_dataset(name, shape=(int(indptr[-1]),), dtype=values.dtype)
            for start in range(0, n_cells, n_source):
                stop = min(start + n_source, n_cells)
                written[indptr[start] : indptr[stop]] = values[: source.indptr[stop - start]]


def write_tiny_checkpoint(folder: Path, args: argparse.Namespace) -> None:
    """A random network over the genes of the package."""
    from scanpy_scgpt.io import Checkpoint, write_checkpoint
    from scanpy_scgpt.module import initial_weights
    from scanpy_scgpt.nn import TransformerConfig
    from scanpy_scgpt.tokenizer import GeneVocab, TokenizerConfig

    vocab = GeneVocab(human_symbols())
    config = TransformerConfig(
        n_tokens=len(vocab), pad_id=vocab.pad_id, d_model=args.width, n_heads=4, n_layers=args.layers, d_ff=args.width
    )
    tokenizer, weights = TokenizerConfig(max_length=args.max_length), initial_weights(config, seed=0)
    write_checkpoint(Checkpoint("tiny", config, tokenizer, vocab, weights), folder)


def resident(field: str = "VmRSS") -> int:
    """Resident bytes of this process now, or at its peak (`VmHWM`)."""
    status = Path("/proc/self/status")
    if status.is_file():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        return int(lines[field].split()[0]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def child(way: str, checkpoint: str, path: Path, out: Path) -> None:
    """What the fresh process does; prints one line of JSON."""
    harness.single_thread()
    import anndata as ad

    import scanpy_scgpt as scgpt

    model = scgpt.models.load(checkpoint)
    before = resident()
    start = time.process_time()
    if way == "file":
        scgpt.tl.embed(path, model, device="cpu", backend="torch", out=out)
        peak = resident("VmHWM")
        vectors = ad.read_zarr(out).obsm["X_scgpt"]
    else:
        adata = ad.read_h5ad(path, backed="r")
        scgpt.tl.embed(adata, model, device="cpu", backend="torch")
        peak = resident("VmHWM")
        vectors = adata.obsm["X_scgpt"]
    found = {
        "way": way,
        "cells": len(vectors),
        "finite": bool(np.isfinite(vectors).all()),
        "result_bytes": vectors.nbytes,
        "before_bytes": before,
        "above_bytes": peak - before,
        "peak_bytes": peak,
        "cpu_seconds": time.process_time() - start,
    }
    print(json.dumps(found))


def measure(way: str, checkpoint: Path, path: Path) -> dict:
    """Run :func:`child` in a fresh process."""
    out = path.with_name(f"{way}.zarr")
    command = [sys.executable, "-m", "benchmarks.memory", "--child", way, str(checkpoint), str(path), str(out)]
    done = subprocess.run(command, cwd=harness.ROOT, check=True, stdout=subprocess.PIPE, text=True)
    if out.exists():
        shutil.rmtree(out)
    return json.loads(done.stdout.splitlines()[-1])


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[20_000, 200_000], help="numbers of cells")
    parser.add_argument("--files", nargs="+", default=FILES, help="files of the folder SCANPY_SCGPT_DATA")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--max-length", type=int, default=300)
    parser.add_argument("--folder", default=None, help="where the temporary files go")
    parser.add_argument("--quick", action="store_true", help="shorter cells, one layer, file to file alone")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.width, args.layers, args.max_length = 32, 1, 64
    return args


def bars_of(found: list[dict]) -> list[harness.Bar]:
    """Peak over the model, growth of the peak from file to file, and vectors that are whole."""
    streamed = [x for x in found if x["way"] == "file"]
    return [
        harness.Bar(
            "peak of the largest file over that of the smallest, file to file",
            streamed[-1]["peak_bytes"] / streamed[0]["peak_bytes"],
            GROWTH,
            at_least=False,
        ),
        harness.Bar("largest peak over the model, bytes", max(x["above_bytes"] for x in found), LIMIT, at_least=False),
        harness.Bar("results that are not finite", sum(not x["finite"] for x in found), 0, at_least=False),
    ]


def main() -> int:
    args = parse()
    if args.child:
        way, checkpoint, path, out = args.child
        child(way, checkpoint, Path(path), Path(out))
        return 0
    cells = read_cells(args.files[:1], n_cells=5000)[0]
    found = []
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        write_tiny_checkpoint(Path(folder) / "tiny", args)
        for size in args.sizes:
            path = Path(folder) / "cells.h5ad"
            build(cells, path, n_cells=size)
            ways = ("file",) if args.quick else tuple(WAYS)
            measured = [measure(way, Path(folder) / "tiny", path) for way in ways]
            found += [{**x, "file_bytes": path.stat().st_size} for x in measured]
    parts = ("file_bytes", "before_bytes", "above_bytes", "peak_bytes", "result_bytes")
    rows = [
        (
            f"{WAYS[x['way']]}, {x['cells']:,} cells",
            *(f"{x[part] / 1e6:,.0f}" for part in parts),
            x["cells"] / x["cpu_seconds"],
        )
        for x in found
    ]
    header = ("", "file MB", "model loaded MB", "peak above MB", "peak MB", "result MB", "cells/CPU-s")
    harness.print_table(f"tl.embed of a file, cells of {cells.name}", header, rows)
    return harness.conclude("memory", {"options": {**vars(args), "child": None}, "sizes": found}, bars_of(found))


if __name__ == "__main__":
    sys.exit(main())
