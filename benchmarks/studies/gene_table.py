"""The start of the gene table: random, co-expression, knowledge, or both; before and after training.

    python -m benchmarks.studies.gene_table [--data FOLDER] [--seeds N] [--steps N]

Networks of the same weights elsewhere start from four gene tables. They are judged before training and after training
with the table learned at a tenth of the learning rate; random numbers also after learning it at the full rate, as
they have everything to learn. The embedding is judged frozen on six studies that are not in the corpus; errors are on
cells of the corpus that were held out.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

from benchmarks.studies._common import (
    DIRECTIONS,
    ERROR,
    F1,
    PCA,
    Kept,
    Setup,
    best_of,
    errors_of,
    pca_probes,
    probe,
    queries_of,
    run,
    started,
    trained,
    whole_corpus,
)
from benchmarks.studies._tables import Arms
from scanpy_scgpt.disk import TokenStore

TABLES = ("random", "coexpression", "knowledge", "both")
UNTRAINED, LEARNED, FAST = "untrained", "table learned slowly", "table learned fast"
ARMS = [(UNTRAINED, table) for table in TABLES] + [(LEARNED, table) for table in TABLES] + [(FAST, TABLES[0])]
RIDGE = "ridge from the known genes"


def one(setup: Setup, store: TokenStore, queries: dict, *, table: str, state: str, seed: int) -> Arms:
    """A network before or after training."""
    arm = f"{table}, {state}"
    if state == UNTRAINED:
        return {arm: probe(started(setup, store, seed=seed, gene_table=table), queries)}
    changes = {"gene_lr_scale": 1.0} if state == FAST else {}
    checkpoint = trained(setup, store, seed=seed, gene_table=table, **changes)
    rival = {RIDGE: errors_of(checkpoint, "ridge")} if arm == f"{TABLES[0]}, {LEARNED}" else {}
    return {arm: {**errors_of(checkpoint, "gep"), **probe(checkpoint, queries)}, **rival}


def study(setup: Setup) -> dict[str, Any]:
    """All runs, or those that are missing."""
    store, queries, kept = whole_corpus(setup), queries_of(setup), Kept(setup)
    bars = kept.once("PCA", lambda: pca_probes(queries))
    result = {}
    for seed in range(setup.seeds):
        for state, table in ARMS:
            make = partial(one, setup, store, queries, table=table, state=state, seed=seed)
            kept.once(f"{table}, {state}", make, seed=seed)
        result = kept.result(**described(best_of(bars, F1), list(queries), cells=len(store)))
    return result


def described(bar: str, studies: list[str], *, cells: int) -> dict[str, Any]:
    """What the tables and figures show."""
    states = (UNTRAINED, LEARNED)
    arms = [f"{table}, {state}" for state, table in ARMS]
    with_error = [f"{table}, {state}" for state, table in ARMS if state != UNTRAINED]
    random_fast, factorised = f"{TABLES[0]}, {FAST}", f"{TABLES[1]}, {LEARNED}"
    others = [*((table, "random") for table in TABLES[1:]), ("both", "coexpression")]
    return {
        "cells": cells,
        "directions": DIRECTIONS,
        "tables": [
            {
                "title": "Errors on unknown digits of held-out cells",
                "measures": [f"error at {n} %" for n in (25, 50, 75)],
            },
            {"title": "Frozen embedding of unseen studies", "measures": [F1, "accuracy"]},
            {"title": "Macro F1 by study", "measures": studies},
        ],
        "comparisons": [
            *([f"{a}, {state}", f"{b}, {state}", F1] for state in states for a, b in others),
            *([f"{a}, {LEARNED}", f"{b}, {LEARNED}", ERROR] for a, b in others),
            *([factorised, random_fast, measure] for measure in (F1, ERROR)),
            *([f"{table}, {LEARNED}", f"{table}, {UNTRAINED}", F1] for table in TABLES),
            *([arm, RIDGE, ERROR] for arm in with_error),
            *([arm, bar, F1] for arm in arms),
        ],
        "figure": {
            "panels": [{"measure": F1, "arms": [*arms, *PCA]}, {"measure": ERROR, "arms": [*with_error, RIDGE]}]
        },
    }


def main() -> int:
    return run(study, "gene_table", __doc__)


if __name__ == "__main__":
    sys.exit(main())
