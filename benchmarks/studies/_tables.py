"""From the records of a study to its tables: intervals, paired differences, verdicts, slopes. No cells, no network.

A record is `{"arm", "seed", "x", "values": {measure: value}}`; `seed` is None where nothing is drawn, `x` where the
study has no axis.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from benchmarks._harness import print_table

Arms = dict[str, dict[str, float]]  # {arm: {measure: value}}
Result = Mapping[str, Any]


class Interval(NamedTuple):
    """Mean and half the width of its 95 % interval (Student), over `n` values."""

    mean: float
    half: float
    n: int

    def text(self, *, sign: bool = False) -> str:
        """As in a table."""
        digits = 2 if abs(self.mean) >= 10 else 3
        mean = f"{self.mean:{'+' if sign else ''}.{digits}f}"
        return mean if math.isnan(self.half) else f"{mean} ± {self.half:.{digits}f}"


def interval(values: Sequence[float]) -> Interval:
    """Interval of the mean of independent values; of one value there is none."""
    n = len(values)
    half = stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n) if n > 1 else math.nan
    return Interval(float(np.mean(values)), float(half), n)


def places(result: Result) -> list[tuple[str, float | None]]:
    """Arms with their `x`, in the order of the records."""
    return list(dict.fromkeys((record["arm"], record["x"]) for record in result["records"]))


def values_of(result: Result, arm: str, x: float | None, measure: str) -> dict[int | None, float]:
    """Value of each seed."""
    return {
        record["seed"]: record["values"][measure]
        for record in result["records"]
        if (record["arm"], record["x"]) == (arm, x) and measure in record["values"]
    }


def differences(result: Result, arm: str, reference: str, x: float | None, measure: str) -> list[float]:
    """An arm less a reference, seed by seed; a reference that has no seed, or no `x`, is the same everywhere."""
    ours = values_of(result, arm, x, measure)
    theirs = values_of(result, reference, x, measure) or values_of(result, reference, None, measure)
    fixed = theirs.get(None)
    pairs = ((value, theirs.get(seed, fixed)) for seed, value in ours.items())
    return [value - other for value, other in pairs if other is not None]


def verdict(difference: Interval, direction: str) -> str:
    """`win` or `loss` where the interval excludes zero, else `tie`; of fewer than two pairs nothing is said."""
    if math.isnan(difference.half):
        return "open"
    if abs(difference.mean) <= difference.half:
        return "tie"
    return "win" if (difference.mean > 0) == (direction == "higher") else "loss"


class Comparison(NamedTuple):
    """An arm beside a reference."""

    arm: str
    reference: str
    x: float | None
    measure: str
    difference: Interval
    verdict: str


def comparisons(result: Result) -> list[Comparison]:
    """All comparisons that the study names, at each `x`."""
    found = []
    for arm, reference, measure in result["comparisons"]:
        for x in [x for name, x in places(result) if name == arm]:
            if pairs := differences(result, arm, reference, x, measure):
                between = interval(pairs)
                said = verdict(between, result["directions"][measure])
                found.append(Comparison(arm, reference, x, measure, between, said))
    return found


def slope(result: Result, arm: str, measure: str) -> Interval:
    """Change of a measure for ten times `x`: least squares over all runs, with its 95 % interval."""
    points = [
        (math.log10(record["x"]), record["values"][measure])
        for record in result["records"]
        if record["arm"] == arm and record["x"] is not None and measure in record["values"]
    ]
    x, y = np.array(points).T
    if len(x) < 3:
        return Interval(math.nan, math.nan, len(x))
    fit = stats.linregress(x, y)
    return Interval(float(fit.slope), float(stats.t.ppf(0.975, len(x) - 2) * fit.stderr), len(x))


def name_of(arm: str, x: float | None, result: Result) -> str:
    """Label of a row."""
    return arm if x is None else f"{arm}, {result['axis'].format(x)}"


def arm_rows(result: Result, measures: Sequence[str]) -> list[list[str]]:
    """One row for each arm that has one of the measures: its name and the intervals."""
    rows = []
    for arm, x in places(result):
        found = [list(values_of(result, arm, x, measure).values()) for measure in measures]
        if any(found):
            rows.append([name_of(arm, x, result), *(interval(values).text() if values else "" for values in found)])
    return rows


def comparison_rows(result: Result) -> list[list[str]]:
    """One row for each comparison."""
    return [
        [
            f"{name_of(found.arm, found.x, result)}, less {found.reference}",
            found.measure,
            found.difference.text(sign=True),
            str(found.difference.n),
            found.verdict,
        ]
        for found in comparisons(result)
    ]


def slope_rows(result: Result) -> list[list[str]]:
    """One row for each slope that the study names."""
    found = [(arm, measure, slope(result, arm, measure)) for arm, measure in result.get("slopes", ())]
    return [
        [
            f"{arm}, for ten times the cells",
            measure,
            line.text(sign=True),
            str(line.n),
            _direction(line, measure, result),
        ]
        for arm, measure, line in found
        if not math.isnan(line.mean)
    ]


def _direction(line: Interval, measure: str, result: Result) -> str:
    said = verdict(line, result["directions"][measure])
    return {"win": "gets better", "loss": "gets worse", "tie": "no slope", "open": "open"}[said]


COMPARED = ("difference", "measure", "mean, 95 %", "pairs", "verdict")


def tables(result: Result) -> list[tuple[str, Sequence[str], list[list[str]]]]:
    """All tables of a study: title, header, rows."""
    found = [
        (table["title"], ("", *table["measures"]), arm_rows(result, table["measures"])) for table in result["tables"]
    ]
    found.append(("Differences inside a seed", COMPARED, comparison_rows(result)))
    if rows := slope_rows(result):
        found.append(("Slopes", COMPARED, rows))
    return found


def print_result(result: Result) -> None:
    """The tables as text."""
    for title, header, rows in tables(result):
        print_table(f"{result['study']}: {title}", header, rows)
