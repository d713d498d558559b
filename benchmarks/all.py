"""Every benchmark of speed and memory in turn, then one table of all bars.

`--quick` takes few cells, layers and rounds: all is done within ten minutes on two cores. Each benchmark runs in a
process of its own, so none warms another up, and writes `.bench/<name>.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time

from benchmarks import _harness as harness

NAMES = ("tokenize", "embed", "generative_attention", "train_step", "loaders", "token_store", "memory")


def run(name: str, args: argparse.Namespace) -> float:
    """Run one benchmark; returns its wall seconds."""
    command = [sys.executable, "-m", f"benchmarks.{name}", *(["--quick"] if args.quick else [])]
    if name == "tokenize" and args.rival:
        command += ["--rival", args.rival]
    if name == "loaders" and args.scdataset:
        command += ["--scdataset", args.scdataset]
    started = time.monotonic()
    print(f"\n=== {name} ===", flush=True)
    path = harness.ROOT / ".bench" / f"{name}.json"
    path.unlink(missing_ok=True)  # what is read afterwards is of this run
    subprocess.run(command, cwd=harness.ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    return time.monotonic() - started


def bars_of(name: str) -> list[dict]:
    """The bars that a benchmark wrote; one that does not hold where it wrote none."""
    path = harness.ROOT / ".bench" / f"{name}.json"
    if not path.is_file():
        return [{"name": "the benchmark failed", "value": float("nan"), "bound": 0.0, "at_least": True, "holds": False}]
    return json.loads(path.read_text(encoding="utf-8"))["bars"]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.all", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few cells, layers and rounds")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--rival", default=os.environ.get("SCGPT_RIVAL"), help="folder with the released package")
    parser.add_argument("--scdataset", default=None, help="wheel or folder of scDataset, when not installed")
    args = parser.parse_args()
    seconds = {name: run(name, args) for name in args.only}
    rows, failed = [], 0
    for name in args.only:
        for bar in bars_of(name):
            failed += not bar["holds"]
            sign, verdict = ("≥" if bar["at_least"] else "≤"), ("holds" if bar["holds"] else "DOES NOT HOLD")
            rows.append((f"{name}: {bar['name']}", bar["value"], f"{sign} {bar['bound']:g}", verdict))
    harness.print_table("All bars", ("figure", "measured", "bar", ""), rows)
    print(f"\n{sum(seconds.values()):,.0f} s; {failed} of {len(rows)} bars do not hold.")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
