"""Generative mask, plain masking, and no cell prompt, at equal steps.

    python -m benchmarks.studies.mask [--data FOLDER] [--seeds N] [--steps N]

The same network learns from the same cells in three ways. Errors are on the unknown digits of cells of the corpus that
were held out, the same ones for all, beside the mean digit, the mean digit of the gene, and ridge regression on the
known genes. The embedding is judged frozen, on six studies that are not in the corpus. Last, the generative model fills
in half of the genes of cells of unseen studies in 1, 3 or 5 steps, the most confident genes first or random ones.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from typing import Any

import numpy as np

from benchmarks import generation
from benchmarks.studies._common import (
    DIRECTIONS,
    ERROR,
    F1,
    PCA,
    UNTRAINED,
    Kept,
    Setup,
    best_of,
    errors_of,
    pca_probes,
    probe,
    queries_of,
    run,
    trained,
    whole_corpus,
)
from benchmarks.studies._tables import Arms
from scanpy_scgpt import models
from scanpy_scgpt.disk import TokenStore
from scanpy_scgpt.io import Checkpoint

GENERATIVE, PLAIN, ALONE = "generative mask, cell prompt", "plain masking", "generative mask, no cell prompt"
ARMS = (GENERATIVE, PLAIN, ALONE)
RIVALS = {"mean_digit": "mean digit", "gene_mean": "mean digit of the gene", "ridge": "ridge from the known genes"}
FILLED = "error at 50 %, unseen studies"
FROM_CELL = "error at 50 %, from the cell vector"
ONE, STEPS = "1 step", (3, 5)
SAME_FILE = "mean digit of the gene, same file"
HIDDEN_CELLS = 64  # of a file and seed


def network(checkpoint: Checkpoint, queries: dict) -> dict[str, float]:
    """Errors from the known genes and from the cell vector, and the frozen probe."""
    prefix = "masked_" if "masked_gep" in checkpoint.info["errors"]["0.5"] else ""
    from_cell = checkpoint.info["errors"]["0.5"][f"{prefix}gepc"]
    return {**errors_of(checkpoint, f"{prefix}gep"), FROM_CELL: from_cell, **probe(checkpoint, queries)}


def filled(checkpoint: Checkpoint, setup: Setup, *, seed: int) -> Arms:
    """Error of each number of steps and each order, mean over the files of :mod:`benchmarks.generation`."""
    model = generation.made_ready(Namespace(model=checkpoint, device="cpu", max_tokens=None))
    wanted = [v for v in generation.variants([1, *STEPS], with_confidence=True) if v.prompt == "genes"]
    found = []
    for file in generation.FILES:
        tokens, names = generation.digits_of(setup.data / file, checkpoint)
        draw = {"ratio": 0.5, "n_cells": HIDDEN_CELLS, "seed": seed}
        found.append(generation.one_seed(tokens, names, model, wanted, **draw))
    keys = {variant.name.removeprefix("genes, "): variant.name for variant in wanted}
    keys[SAME_FILE] = generation.MEAN
    return {arm: {FILLED: np.mean([x[key] for x in found])} for arm, key in keys.items()}


def of_seed(setup: Setup, store: TokenStore, queries: dict, kept: Kept, *, seed: int) -> None:
    """All runs of a seed; those after the first three look at the networks of these."""
    changes = {GENERATIVE: {"prompt_after": setup.warmup}, PLAIN: {"task": "pcpt"}, ALONE: {}}

    def train(arm: str) -> Checkpoint:
        return trained(setup, store, seed=seed, **changes[arm])

    for arm in ARMS:
        kept.once(arm, lambda arm=arm: {arm: network(train(arm), queries)}, seed=seed)
    kept.once("rivals", lambda: {arm: errors_of(train(ALONE), name) for name, arm in RIVALS.items()}, seed=seed)
    kept.once(UNTRAINED, lambda: {UNTRAINED: probe(models.untrained(train(ALONE), rng=seed), queries)}, seed=seed)
    kept.once("steps", lambda: filled(train(GENERATIVE), setup, seed=seed), seed=seed)


def study(setup: Setup) -> dict[str, Any]:
    """All runs, or those that are missing."""
    store, queries, kept = whole_corpus(setup), queries_of(setup), Kept(setup, hidden_cells=HIDDEN_CELLS)
    bars = kept.once("PCA", lambda: pca_probes(queries))
    result = {}
    for seed in range(setup.seeds):
        of_seed(setup, store, queries, kept, seed=seed)
        result = kept.result(**described(best_of(bars, F1), list(queries), cells=len(store)))
    return result


def described(bar: str, studies: list[str], *, cells: int) -> dict[str, Any]:
    """What the tables and figures show."""
    errors = [f"error at {share} %" for share in (25, 50, 75)]
    others = [arm for arm in ARMS if arm != GENERATIVE]
    steps = [f"{n} steps by {order}" for n in STEPS for order in ("confidence", "random")]
    return {
        "cells": cells,
        "directions": {**DIRECTIONS, FILLED: "lower", FROM_CELL: "lower"},
        "tables": [
            {"title": "Errors on unknown digits of held-out cells", "measures": [*errors, FROM_CELL]},
            {"title": "Frozen embedding of unseen studies", "measures": [F1, "accuracy"]},
            {"title": "Macro F1 by study", "measures": studies},
            {"title": "Genes of unseen studies filled in", "measures": [FILLED]},
        ],
        "comparisons": [
            *([GENERATIVE, other, measure] for other in others for measure in (*errors, FROM_CELL, F1)),
            *([arm, RIVALS["ridge"], measure] for arm in ARMS for measure in errors),
            *([arm, rival, F1] for arm in ARMS for rival in (UNTRAINED, bar)),
            [ONE, SAME_FILE, FILLED],
            *([step, ONE, FILLED] for step in steps),
            *([f"{n} steps by confidence", f"{n} steps by random", FILLED] for n in STEPS),
        ],
        "figure": {
            "panels": [
                {"measure": ERROR, "arms": [*ARMS, *RIVALS.values()]},
                {"measure": F1, "arms": [*ARMS, UNTRAINED, *PCA]},
                {"measure": FILLED, "arms": [ONE, *steps, SAME_FILE]},
            ]
        },
    }


def main() -> int:
    return run(study, "mask", __doc__)


if __name__ == "__main__":
    sys.exit(main())
