"""Effects of perturbations that were not seen, beside every simple method and the ceiling of two half samples.

    python -m benchmarks.perturbation [--data FOLDER] [--sets NAME ...] [--seeds N] [--methods NAME ...]
        [--shared-controls] [--out FILE]

For each set, seed (other parts, other halves of the controls) and split, every method predicts the effects of the
held-out perturbations from the others. Controls are split in two: one half belongs to training, the other to the truth;
`--shared-controls` shows what the usual way, one mean of all controls for both, makes of it (kept apart).
A method is a function of a `Task` that returns effects, conditions x genes; put another one into `MODELS`. Finished
runs are kept in `.bench/perturbation` and not run again; `--fresh` runs everything.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from scanpy_scgpt import baselines, metrics
from scanpy_scgpt._logging import quiet

from . import _perturbation_models
from ._cells import data_folder
from ._harness import ROOT, Bar, conclude, print_table, single_thread
from ._perturbation_tasks import SETS, SIMULATED, Task, interaction, tasks_of

RESULTS = ROOT / "benchmarks" / "results" / "perturbation.json"
KEPT = ROOT / ".bench" / "perturbation"
SHOWN = (
    "pearson_delta", "pearson_delta_de", "pearson_perturbed", "l2", "centroid_accuracy", "discrimination",
    "de_overlap", "de_direction", "variance_ratio",
)  # fmt: skip
HEADLINE = ("pearson_delta", "discrimination")
CEILING = "half-split ceiling"

Method = Callable[[Task], pd.DataFrame | None]  # None: not for such a task
MODELS: dict[str, Method] = {**_perturbation_models.MODELS}
"""Methods beside the simple ones, by name."""


def simple(task: Task) -> dict[str, pd.DataFrame]:
    """Every simple method."""
    return baselines.perturb(task.effects.deltas, task.targets, task.wanted, features=task.features)


def predictions(task: Task, models: list[str]) -> dict[str, pd.DataFrame]:
    """What each method predicts, in the order of the table."""
    found = {name: MODELS[name](task) for name in models}
    return {**simple(task), **{name: table for name, table in found.items() if table is not None}}


def score(task: Task, predicted: dict[str, pd.DataFrame]) -> metrics.PerturbationScores:
    """All measures of the scored conditions of one split."""
    rows = list(task.scored)
    halves = None if task.ceiling is None else tuple(half.loc[rows] for half in task.ceiling)
    return metrics.perturbation(
        task.truth.loc[rows], {name: table.loc[rows] for name, table in predicted.items()}, control=task.control,
        reference=task.effects.deltas.mean(), targets=task.targets, de_genes=task.de_genes, ceiling=halves,
    )  # fmt: skip


def run(name: str, data: Path, seed: int, models: list[str], *, shared: bool = False) -> dict[str, Any]:
    """Scores of each condition with one seed; JSON-ready."""
    scores, extra, grades = [], [], {}
    for task in tasks_of(name, data, seed, shared=shared):
        predicted = predictions(task, models)
        scores.append(score(task, predicted))
        grades.update(task.grade)
        if name in SIMULATED:
            asked = {**predicted, CEILING: task.truth}
            extra.append({method: interaction(task, table) for method, table in asked.items()})
    if set(grades.values()) == {"other level"}:
        scores = [_renamed(one, i) for i, one in enumerate(scores)]  # a perturbation counts once in each level
    both = metrics.PerturbationScores.combined(scores)
    table = both.per_condition.round(5).reset_index()
    return {
        "per_condition": table.where(table.notna(), None).to_dict(orient="list"),
        "variance_ratio": both.table["variance_ratio"].round(5).to_dict(),
        "interaction": pd.DataFrame(extra).mean().round(4).to_dict() if extra else {},
        "grades": grades,
    }


def _renamed(scores: metrics.PerturbationScores, i: int) -> metrics.PerturbationScores:
    table = scores.per_condition.rename(index=lambda one: f"{one} [{i}]", level="condition")
    return replace(scores, per_condition=table)


def together(runs: list[dict[str, Any]]) -> tuple[metrics.PerturbationScores, pd.Series, dict[str, str]]:
    """Scores over the seeds, the recovered interaction by method, and what was known of each condition."""
    frames = []
    for one in runs:
        table = pd.DataFrame(one["per_condition"]).set_index(["method", "condition"]).astype(float)
        ratio = pd.DataFrame({"variance_ratio": one["variance_ratio"]})
        names = tuple(ratio.index)
        frames.append(metrics.PerturbationScores(ratio, ratio, ratio, table, (), 2000, 0.95))
        assert set(table.index.unique("method")) == set(names)
    extra = pd.DataFrame([one["interaction"] for one in runs]).mean()
    grades = {name: grade for one in runs for name, grade in one["grades"].items()}
    return metrics.PerturbationScores.combined(frames), extra, grades


def best_simple(scores: metrics.PerturbationScores, measure: str) -> str:
    names = [name for name in scores.table.index if name not in MODELS]
    return scores.best(measure, among=names)


def report(name: str, runs: list[dict[str, Any]]) -> tuple[dict[str, Any], list[Bar]]:
    """Print the table of one set; what is written, and the bars of the models."""
    scores, extra, grades = together(runs)
    shown = scores.table[list(SHOWN)]
    if CEILING in shown.index:
        shown = pd.concat([shown, scores.corrected_ceiling[list(SHOWN)].to_frame(f"{CEILING}, corrected").T])
    if len(extra):
        shown = shown.assign(interaction=extra)
    rows = [(method, *(round(float(x), 3) for x in shown.loc[method])) for method in shown.index]
    n = scores.per_condition.index.get_level_values("condition").nunique()
    print_table(f"{name}: {n} perturbations, {len(runs)} seeds", ("method", *shown.columns), rows)
    bars, against = [], {}
    for measure in HEADLINE:
        if scores.table[measure].isna().all():  # a split asks for one condition: nothing to tell it from
            continue
        rival = best_simple(scores, measure)
        for model in (one for one in MODELS if one in shown.index):
            gap = scores.difference(model, rival).loc[measure]
            text = f"{gap['difference']:+.3f} ({gap['low']:+.3f} to {gap['high']:+.3f})"
            print(f"  {measure}: {model} less {rival} {text}")
            against[f"{model}, {measure}"] = {"rival": rival, **gap.round(4).to_dict()}
            bars.append(Bar(f"{name}: {model} not below {rival} in {measure}", float(gap["high"]), 0.0))
    by_grade = {}
    if len(set(grades.values())) > 1:
        by_grade = _by_grade(name, scores, grades)
    kept = {
        "n": n, "seeds": len(runs), "mean": _numbers(shown), "low": _numbers(scores.low),
        "high": _numbers(scores.high), "difference": against, "by_grade": by_grade,
    }  # fmt: skip
    return kept, bars


def _numbers(frame: pd.DataFrame) -> dict[str, dict[str, float | None]]:
    found = frame[[one for one in (*SHOWN, "interaction") if one in frame]].round(4).astype(object)
    return found.where(found.notna(), None).to_dict("index")


def _by_grade(name: str, scores: metrics.PerturbationScores, grades: dict[str, str]) -> dict[str, Any]:
    table = scores.per_condition.reset_index()
    table["grade"] = table["condition"].map(grades)
    mean = table.groupby(["grade", "method"], sort=False)[list(HEADLINE)].mean().unstack("grade")["pearson_delta"]
    mean = mean.reindex(scores.table.index)
    rows = [(method, *(round(float(x), 3) for x in mean.loc[method])) for method in mean.index]
    print_table(f"{name}: pearson_delta by what was seen", ("method", *mean.columns), rows)
    return mean.round(4).to_dict()


def _written(path: Path) -> dict[str, Any]:
    """What another call wrote about other sets."""
    path.parent.mkdir(exist_ok=True)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.perturbation", description=__doc__)
    parser.add_argument("--data", type=Path, default=data_folder())
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--methods",
        nargs="*",
        choices=list(MODELS),
        default=[one for one in MODELS if one not in _perturbation_models.SLOW],
    )
    parser.add_argument("--shared-controls", action="store_true", help="one control mean for training and truth")
    parser.add_argument("--fresh", action="store_true", help="run again what was run before")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    single_thread()
    warnings.simplefilter("ignore")
    results, bars = {}, []
    for name in args.sets:
        runs = []
        for seed in range(args.seeds):
            parts = [name, str(seed), *args.methods, *(["shared"] if args.shared_controls else [])]
            label = "-".join(parts).replace(" ", "_").replace(",", "")
            path = KEPT / f"{label}.json"
            if args.fresh or not path.is_file():
                started = time.monotonic()
                with quiet("scanpy_scgpt", level=logging.ERROR):
                    found = run(name, args.data, seed, args.methods, shared=args.shared_controls)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(found) + "\n", encoding="utf-8")
                print(f"{name}, seed {seed}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
            runs.append(json.loads(path.read_text(encoding="utf-8")))
        with quiet("scanpy_scgpt", level=logging.ERROR):
            results[name], new = report(name, runs)
        bars += new
    if not args.shared_controls:
        results = {**_written(args.out), **results}
        args.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return conclude("perturbation", results, bars)


if __name__ == "__main__":
    sys.exit(main())
