"""Interleaved timing, tables, bars, JSON.

On a shared machine a plain timing says little. All variants therefore run once in each round, in shuffled order, on one
thread; what counts is CPU time of the process, and ratios are formed inside a round before their median is taken.
"""

from __future__ import annotations

import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Timing:
    """CPU seconds of one variant, one number per round."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def ratios(self, baseline: Timing) -> list[float]:
        """How many times faster than `baseline`, round by round."""
        return [slow / fast for slow, fast in zip(baseline.seconds, self.seconds, strict=True)]

    def times_faster(self, baseline: Timing) -> float:
        """How many times faster than `baseline`: median over the rounds."""
        return statistics.median(self.ratios(baseline))


@dataclass(frozen=True)
class Bar:
    """A figure that must hold."""

    name: str
    value: float
    bound: float
    at_least: bool = True

    @property
    def holds(self) -> bool:
        return self.value >= self.bound if self.at_least else self.value <= self.bound


def single_thread() -> None:
    """One thread for everything that is measured, so that waiting threads do not count as work."""
    import numba
    import torch

    torch.set_num_threads(1)
    numba.set_num_threads(1)


def cpu_seconds(function: Callable[[], object]) -> float:
    """CPU seconds of one call."""
    start = time.process_time()
    function()
    return time.process_time() - start


def interleave(variants: Mapping[str, Callable[[], object]], *, rounds: int, seed: int = 0) -> dict[str, Timing]:
    """Time all variants side by side.

    Parameters
    ----------
    variants
        Functions that do the same work in different ways; warm them up before.
    rounds
        How often each is run.
    seed
        Seed of the order inside the rounds.
    """
    order, rng = list(variants), random.Random(seed)
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        rng.shuffle(order)
        for name in order:
            seconds[name].append(cpu_seconds(variants[name]))
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def fastest(function: Callable[[], object], *, repeats: int) -> float:
    """Smallest CPU seconds of several calls, after one that does not count."""
    function()
    return min(cpu_seconds(function) for _ in range(repeats))


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows in columns: text to the left, numbers to the right."""
    cells = [[_text(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    print(f"\n{title}")
    for line in (list(header), ["-" * width for width in widths], *cells):
        first, *others = zip(line, widths, strict=True)
        print("  ".join([first[0].ljust(first[1]), *(text.rjust(width) for text, width in others)]).rstrip())


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def environment() -> dict[str, Any]:
    """What the figures were measured on and with."""
    import torch

    names = ("torch", "numpy", "numba", "scanpy", "anndata")
    return {
        "python": platform.python_version(),
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        **{name: version(name) for name in names},
    }


def _processor() -> str:
    listing = Path("/proc/cpuinfo")
    if listing.is_file():
        for line in listing.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def conclude(name: str, results: Mapping[str, Any], bars: Sequence[Bar]) -> int:
    """Print the bars, write `.bench/<name>.json`, return the exit status (1 when a bar does not hold)."""
    print()
    for bar in bars:
        sign, verdict = ("≥" if bar.at_least else "≤"), ("holds" if bar.holds else "DOES NOT HOLD")
        print(f"bar: {bar.name}: {bar.value:.6g} ({sign} {bar.bound:g}) {verdict}")
    folder = ROOT / ".bench"
    folder.mkdir(exist_ok=True)
    listed = [{**asdict(bar), "holds": bar.holds} for bar in bars]
    content = {"environment": environment(), "results": results, "bars": listed}
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content, indent=2, default=lambda value: value.item()) + "\n", encoding="utf-8")
    print(f"written: {path.relative_to(ROOT)}")
    return int(not all(bar.holds for bar in bars))
