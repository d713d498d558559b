"""Gene networks: known partners, pathways, known targets, beside co-expression, untrained networks and chance.

    python -m benchmarks.grn [--data FOLDER] [--tasks NAME ...] [--seeds N] [--out FILE]

`networks`: HLA classes and the partners of CD3, CD8, CD79 genes among the nearest genes. `pathways`: Reactome sets that
programs of genes hit at Leiden resolutions 1 to 60, beside co-expression and random programs of the same sizes.
`targets`: early precision of networks against TRRUST, DoRothEA and ChIP-seq; `all targets`: with all genes, for those
that take them. `screen`: known targets of STAT1 in the
difference of attention between knocked-out and control cells. `speed`: of attention networks; the last three have one
seed. Finished runs are kept in the file and not run again.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from scanpy_scgpt import settings
from scanpy_scgpt._logging import quiet

from . import _grn_attention, _grn_embedding
from ._cells import data_folder
from ._harness import ROOT, conclude, single_thread

RESULTS = ROOT / "benchmarks" / "results" / "grn.json"
LOUD = ("scvi", "scanpy_scgpt", "lightning.pytorch")
PARTS = (_grn_embedding, _grn_attention)  # each with TASKS (name -> function of folder and seed) and tables(kept)
TASKS = {name: task for part in PARTS for name, task in part.TASKS.items()}


def _kept(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.grn", description=__doc__)
    parser.add_argument("--data", type=Path, default=data_folder())
    parser.add_argument("--tasks", nargs="*", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    single_thread()
    os.environ.setdefault("TQDM_DISABLE", "1")
    warnings.simplefilter("ignore")
    for seed in range(args.seeds):
        for task in args.tasks:
            key = f"{task}|{seed}"
            if key in _kept(args.out) or (seed and task in _grn_attention.TASKS):
                continue
            started = time.monotonic()
            with settings.override(progress_bar=False), quiet(*LOUD, level=logging.ERROR):
                rows = TASKS[task](args.data, seed)
            kept = {**_kept(args.out), key: rows}  # read again: another process may have written
            args.out.parent.mkdir(exist_ok=True)
            args.out.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
            print(f"{key}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    kept = _kept(args.out)
    return conclude("grn", kept, [bar for part in PARTS for bar in part.tables(kept)])


if __name__ == "__main__":
    sys.exit(main())
