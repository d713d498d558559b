"""Peak memory of `tl.embed` on a backed file, at two numbers of cells a decade apart.

Real cells are repeated under new names into a CSR h5ad file, a block at a time. A fresh process for each size loads a
tiny random checkpoint, notes its resident memory, opens the file backed, embeds it, and reports its peak above that.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks import _harness as harness
from benchmarks._cells import Cells, human_symbols, read_cells

FILES = ["pbmc3k_10x.h5ad"]
LIMIT = 2e9


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


def child(checkpoint: Path, path: Path) -> None:
    """What the fresh process does; prints one line of JSON."""
    harness.single_thread()
    import anndata as ad

    import scanpy_scgpt as scgpt

    model = scgpt.models.load(checkpoint)
    before = resident()
    start = time.process_time()
    adata = ad.read_h5ad(path, backed="r")
    scgpt.tl.embed(adata, model, device="cpu")
    vectors = adata.obsm["X_scgpt"]
    found = {
        "cells": len(vectors),
        "finite": bool(np.isfinite(vectors).all()),
        "result_bytes": vectors.nbytes,
        "before_bytes": before,
        "above_bytes": resident("VmHWM") - before,
        "cpu_seconds": time.process_time() - start,
    }
    print(json.dumps(found))


def measure(checkpoint: Path, path: Path) -> dict:
    """Run :func:`child` in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.memory", "--child", str(checkpoint), str(path)]
    done = subprocess.run(command, cwd=harness.ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000], help="numbers of cells")
    parser.add_argument("--files", nargs="+", default=FILES, help="files of the folder SCANPY_SCGPT_DATA")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--max-length", type=int, default=300)
    parser.add_argument("--folder", default=None, help="where the temporary files go")
    parser.add_argument("--child", nargs=2, type=Path, metavar=("CHECKPOINT", "FILE"), help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    args = parse()
    if args.child:
        child(*args.child)
        return 0
    cells = read_cells(args.files[:1], n_cells=5000)[0]
    found = []
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        write_tiny_checkpoint(Path(folder) / "tiny", args)
        for size in args.sizes:
            path = Path(folder) / "cells.h5ad"
            build(cells, path, n_cells=size)
            found.append({**measure(Path(folder) / "tiny", path), "file_bytes": path.stat().st_size})
    parts = ("file_bytes", "before_bytes", "above_bytes", "result_bytes")
    rows = [
        (f"{x['cells']:,} cells", *(f"{x[part] / 1e6:,.0f}" for part in parts), x["cells"] / x["cpu_seconds"])
        for x in found
    ]
    header = ("", "file MB", "model loaded MB", "peak above MB", "of it result MB", "cells/CPU-s")
    harness.print_table(f"tl.embed on a backed file, cells of {cells.name}", header, rows)
    bars = [
        harness.Bar(f"peak bytes over the model, {x['cells']:,} cells", x["above_bytes"], LIMIT, at_least=False)
        for x in found
    ]
    bars.append(
        harness.Bar("sizes with vectors that are not finite", sum(not x["finite"] for x in found), 0, at_least=False)
    )
    return harness.conclude("memory", {"options": {**vars(args), "child": None}, "sizes": found}, bars)


if __name__ == "__main__":
    sys.exit(main())
