"""What became of the cells of each file on their way into a store."""

from __future__ import annotations

from collections import Counter
from typing import Any

from scanpy_scgpt.disk import TokenStore


def corpus_report(store: TokenStore) -> dict[str, Any]:
    """What became of the cells of each file that :func:`prepare` read.

    Parameters
    ----------
    store
        Its result; of a store that something else wrote little is known.

    Returns
    -------
    A dictionary of plain values:

    `files`
        For each file `cells` (read), `kept`, and `removed` (number for each reason, `duplicates` among them).
    `skipped`
        Files that could not be read, with the reason.
    `duplicates`
        Rows `[first file, file, number]`: cells with the counts of an earlier one.
    `filters`
        The limits.
    """
    files: dict[str, dict[str, Any]] = {}
    skipped, pairs = {}, Counter()
    origin = store.origins[0] if store.origins else {}
    names = list(origin.get("inputs", ()))
    sizes = store.shard_starts
    for note, n in zip(store.notes, (sizes[1:] - sizes[:-1]).tolist(), strict=True):
        if "skipped" in note:
            skipped[note["file"]] = note["skipped"]
        elif "file" in note:
            entry = files.setdefault(note["file"], {"cells": 0, "kept": 0, "removed": {}})
            entry["cells"] += note["cells"]
            entry["kept"] += n
            entry["removed"] = dict(Counter(entry["removed"]) + Counter(note["removed"]))
            pairs.update({(names[int(first)], note["file"]): times for first, times in note["duplicates"].items()})
    duplicates = [[*pair, n] for pair, n in sorted(pairs.items())]
    return {"files": files, "skipped": skipped, "duplicates": duplicates, "filters": origin.get("filters", {})}


def summary(report: dict[str, Any]) -> list[str]:
    """Lines for the log."""
    removed = sum((Counter(entry["removed"]) for entry in report["files"].values()), Counter())
    kept, cells = (sum(entry[key] for entry in report["files"].values()) for key in ("kept", "cells"))
    why = "".join(f", {n:,} removed by {reason}" for reason, n in removed.items())
    n_files = len(report["files"])
    lines = [f"corpus: {kept:,} of {cells:,} cells of {n_files:,} file{'s' if n_files > 1 else ''}{why}"]
    lines += [
        f"corpus: {name}: {entry['kept']:,} of {entry['cells']:,} cells kept; removed: "
        + ", ".join(f"{n:,} by {reason}" for reason, n in entry["removed"].items())
        for name, entry in report["files"].items()
        if entry["removed"]
    ]
    lines += [f"corpus: {name} was left out: {reason}" for name, reason in report["skipped"].items()]
    return lines + [
        f"corpus: {n:,} cells of {file} have the counts of a cell of {first}" for first, file, n in report["duplicates"]
    ]
