"""The page of the studies: tables between markers in `docs/studies.md`, and a figure each, from the results alone.

    python -m benchmarks.studies.report

A verdict follows a rule: `win` or `loss` where the 95 % interval of the paired difference excludes zero, else `tie`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks._harness import ROOT
from benchmarks.studies._common import RESULTS
from benchmarks.studies._tables import Result, comparisons, interval, slope_rows, tables, values_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PAGE = ROOT / "docs" / "studies.md"
FIGURES = ROOT / "docs" / "_static" / "studies"
STUDIES = ("mask", "scaling", "context", "few_shot", "gene_table")
_BLOCK = "<!-- {0}: begin -->\n(.*?)<!-- {0}: end -->"


def markdown(header: tuple[str, ...], rows: list[list[str]]) -> str:
    """A table."""
    lines = [list(header), ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def block(result: Result | None) -> str:
    """What stands between the markers of a study."""
    if result is None:
        return "No result yet.\n"
    settings = result["settings"]
    parts = [
        f"{result['cells']:,} cells, {settings['steps']:,} steps of {settings['batch_size']} cells, "
        f"{settings['seeds']} seeds. {conclusion(result)}",
        f"![{result['study']}](_static/studies/{result['study']}.png)",
    ]
    for title, header, rows in tables(result):
        parts += [f"**{title}**", markdown(header, rows)]
    return "\n\n".join(parts) + "\n"


def conclusion(result: Result) -> str:
    """Wins, ties and losses of each comparison over all measures, in words."""
    counted: dict[tuple[str, str], Counter] = {}
    for found in comparisons(result):
        counted.setdefault((found.arm, found.reference), Counter())[found.verdict] += 1
    lines = [f"*{arm}* against *{other}*: {_words(counts)}" for (arm, other), counts in counted.items()]
    lines += [f"*{row[0]}*, {row[1]}: {row[-1]} ({row[2]})" for row in slope_rows(result)]
    return "Verdicts by rule:\n\n" + "\n".join(f"- {line}" for line in lines)


def _words(counts: Counter) -> str:
    many = {"win": "wins", "tie": "ties", "loss": "losses", "open": "open"}
    return ", ".join(f"{n} {word if n == 1 else many[word]}" for word in many if (n := counts[word]))


def page(text: str, results: dict[str, Result]) -> str:
    """The page with the blocks of all studies anew.

    Raises
    ------
    ValueError
        When the markers of a study are missing.
    """
    for study in STUDIES:
        pattern = re.compile(_BLOCK.format(study), re.DOTALL)
        if not pattern.search(text):
            msg = (
                f"The page lacks the markers of {study}: put <!-- {study}: begin --> and <!-- {study}: end --> into it."
            )
            raise ValueError(msg)
        new = f"<!-- {study}: begin -->\n{block(results.get(study))}<!-- {study}: end -->"
        text = pattern.sub(lambda _, new=new: new, text)
    return text


def read_results(folder: Path) -> dict[str, Result]:
    """Results that are there, by study."""
    paths = {study: folder / f"{study}.json" for study in STUDIES}
    return {study: json.loads(path.read_text(encoding="utf-8")) for study, path in paths.items() if path.is_file()}


def draw(result: Result, path: Path) -> None:
    """One panel for each measure: dots with intervals, by arm, or along the axis of the study."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    panels = result["figure"]["panels"]
    along = "label" in result["figure"]
    heights = [1 if along else 1.5 + len(panel["arms"]) for panel in panels]
    size = (4.4 * len(panels), 3.2) if along else (6.5, 0.22 * sum(heights))
    layout = {"ncols": len(panels)} if along else {"nrows": len(panels), "height_ratios": heights}
    with mpl.rc_context({"font.size": 8}):
        figure = Figure(figsize=size, layout="constrained")
        for ax, panel in zip(np.atleast_1d(figure.subplots(**layout)), panels, strict=True):
            (_lines if along else _dots)(ax, result, panel)
            ax.spines[["top", "right"]].set_visible(False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110, metadata={"Software": None})


def _dots(ax: Axes, result: Result, panel: dict) -> None:
    found = {arm: list(values_of(result, arm, None, panel["measure"]).values()) for arm in panel["arms"]}
    rows = [(arm, interval(values)) for arm, values in found.items() if values]
    for y, (_, (mean, half, _)) in enumerate(reversed(rows)):
        ax.errorbar(mean, y, xerr=np.nan_to_num(half), fmt="o", color="C0", capsize=2, markersize=4)
    ax.set_yticks(range(len(rows)), [arm for arm, _ in reversed(rows)])
    ax.set_xlabel(f"{panel['measure']} (mean, 95 %)")


def _lines(ax: Axes, result: Result, panel: dict) -> None:
    for i, arm in enumerate(panel["arms"]):
        if fixed := list(values_of(result, arm, None, panel["measure"]).values()):
            ax.axhline(np.mean(fixed), color=f"C{i}", linestyle=":", label=arm)
            continue
        at = sorted({record["x"] for record in result["records"] if record["arm"] == arm})
        found = [interval(list(values_of(result, arm, x, panel["measure"]).values())) for x in at]
        half = np.nan_to_num([one.half for one in found])
        ax.errorbar(
            at, [one.mean for one in found], yerr=half, fmt="o-", color=f"C{i}", capsize=2, markersize=4, label=arm
        )
    ax.set_xscale("log")
    ax.set_xlabel(result["figure"]["label"])
    ax.set_ylabel(f"{panel['measure']} (mean, 95 %)")
    ax.legend(frameon=False, fontsize=7)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.studies.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--figures", type=Path, default=FIGURES)
    args = parser.parse_args()
    results = read_results(args.results)
    args.page.write_text(page(args.page.read_text(encoding="utf-8"), results), encoding="utf-8")
    for study, result in results.items():
        draw(result, args.figures / f"{study}.png")
    print(f"written: {args.page} with {', '.join(results) or 'no result'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
