"""`scanpy-scgpt annotate`: the labels of a file after those of another."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_parser(commands: Any) -> None:
    """Add the command and its arguments."""
    parser = commands.add_parser("annotate", help="name the cells of a file after labelled cells, or by an annotator")
    parser.add_argument("file", type=Path, help=".h5ad or .zarr file of the cells to name; it is not changed")
    parser.add_argument("--reference", type=Path, required=True, help="labelled cells, or the folder of an annotator")
    parser.add_argument("--labels-key", help="column of the reference with the labels; not with an annotator")
    parser.add_argument("--batch-key", help="column of the reference with donors, studies or technologies")
    parser.add_argument("--out", type=Path, required=True, help=".h5ad file of the result: a copy with labels")
    parser.add_argument("--model", help="name or folder of a checkpoint (the bundled model)")
    parser.add_argument("--layer", help="layer with the counts")
    parser.add_argument("--target-error", type=float, default=0.05, help="of the label sets (0.05)")
    parser.add_argument("--max-epochs", type=int, default=5, help="passes over the reference (5)")
    parser.add_argument("--min-genes", type=int, default=200, help="fewest genes that both share (200)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps, cuda:1 (auto)")
    parser.add_argument("--save", type=Path, help="folder to save the annotator to")
    parser.add_argument("--overwrite", action="store_true", help="replace what stands at --out and --save")


def annotate(args: argparse.Namespace) -> Path:
    """Name the cells of a file; the path of the result."""
    import anndata as ad

    from scanpy_scgpt import tl

    readers = {".h5ad": ad.read_h5ad, ".zarr": ad.read_zarr}
    for path, kinds in ((args.file, list(readers)), (args.out, [".h5ad"])):
        if path.suffix not in kinds:
            msg = f"{path}: here the name of a file ends in {' or '.join(kinds)}."
            raise ValueError(msg)
    if args.out.exists() and not args.overwrite:
        msg = f"{args.out} exists. Choose another name, or pass overwrite=True to replace it."
        raise FileExistsError(msg)
    adata = readers[args.file.suffix](args.file)
    tl.annotate(
        adata,
        args.reference,
        args.labels_key,
        batch_key=args.batch_key,
        model=args.model,
        layer=args.layer,
        target_error=args.target_error,
        max_epochs=args.max_epochs,
        min_genes=args.min_genes,
        device=args.device,
        save=args.save,
        overwrite=args.overwrite,
    )
    adata.write_h5ad(args.out)
    return args.out
