"""More cells at the same number of steps: does the error fall, does the embedding get better?

    python -m benchmarks.studies.scaling [--data FOLDER] [--seeds N] [--steps N]

Networks learn from 1,000, 3,000, 9,000 and all cells of the corpus, each with the same number of steps; a seed draws
the cells and the weights (of all cells only the weights differ). Errors are on cells of the corpus that no network
learned from, beside ridge regression from the same cells. The embedding is judged frozen on six studies that are not in
the corpus, beside principal components that were fitted on the same cells and onto which the studies are projected.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import numpy as np
from anndata import AnnData

from benchmarks.studies._common import (
    DIRECTIONS,
    ERROR,
    F1,
    PCA,
    UNTRAINED,
    Kept,
    Setup,
    agreement,
    best_of,
    cells_of,
    digest,
    errors_of,
    on_genes,
    pca_probes,
    probe,
    queries_of,
    run,
    store_of,
    trained,
    vocabulary,
)
from benchmarks.studies._linear import components
from benchmarks.studies._tables import Arms
from scanpy_scgpt import models
from scanpy_scgpt.tokenizer import GeneVocab

SIZES = (1000, 3000, 9000)
HELD_CELLS = 1000
HELD = "held out"
NETWORK, PROJECTED, RIDGE = "network", "PCA fitted on the same cells", "ridge from the same cells"


def drawn(corpus: AnnData, n: int, *, seed: int) -> AnnData:
    """Some cells to learn from, and the held-out ones, which are the same for all, as a study of their own."""
    order = np.random.default_rng(0).permutation(corpus.n_obs)
    held, others = order[:HELD_CELLS], order[HELD_CELLS:]
    chosen = np.random.default_rng([seed, n]).permutation(others)[:n]
    cells = corpus[np.concatenate([held, chosen])].copy()
    cells.obs["study"] = np.where(np.arange(cells.n_obs) < len(held), HELD, cells.obs["study"].astype(str))
    return cells


def projected(cells: AnnData, queries: dict[str, AnnData], vocab: GeneVocab) -> dict[str, float]:
    """The frozen probe in principal components of the cells to learn from."""
    found = components(cells[cells.obs["study"] != HELD].X)
    vectors = {}
    for name, adata in queries.items():
        counts = on_genes(adata, vocab)
        vectors[name] = found.project(counts, np.asarray(counts.sum(axis=0)).ravel() > 0)
    return agreement(queries, vectors)


def one(setup: Setup, corpus: AnnData, vocab: GeneVocab, queries: dict, *, n: int, seed: int) -> Arms:
    """A network and its linear rivals, from the same cells."""
    name = f"scaling-{n}-{seed}-{digest(setup.corpus, HELD_CELLS)}"
    store = store_of(setup, name, vocab, lambda: drawn(corpus, n, seed=seed))
    checkpoint = trained(setup, store, seed=seed, validation_by="study", validation_studies=(HELD,))
    return {
        NETWORK: {**errors_of(checkpoint, "gep"), **probe(checkpoint, queries)},
        RIDGE: errors_of(checkpoint, "ridge"),
        "mean digit of the gene": errors_of(checkpoint, "gene_mean"),
        PROJECTED: projected(drawn(corpus, n, seed=seed), queries, vocab),
        UNTRAINED: probe(models.untrained(checkpoint, rng=seed), queries),
    }


def study(setup: Setup) -> dict[str, Any]:
    """All runs, or those that are missing."""
    vocab, queries, kept = vocabulary(setup), queries_of(setup), Kept(setup, held_cells=HELD_CELLS)
    corpus = cells_of(setup, setup.corpus, vocab)
    bars = kept.once("PCA", lambda: pca_probes(queries))
    everything, result = corpus.n_obs - HELD_CELLS, {}
    for seed in range(setup.seeds):
        for n in (*(size for size in SIZES if size < everything), everything):
            kept.once("cells", partial(one, setup, corpus, vocab, queries, n=n, seed=seed), seed=seed, x=n)
        result = kept.result(**described(best_of(bars, F1), cells=everything))
    return result


def described(bar: str, *, cells: int) -> dict[str, Any]:
    """What the tables and figures show."""
    errors = [f"error at {share} %" for share in (25, 50, 75)]
    return {
        "cells": cells,
        "axis": "{:,} cells",
        "directions": DIRECTIONS,
        "tables": [
            {"title": "Errors on unknown digits of held-out cells", "measures": errors},
            {"title": "Frozen embedding of unseen studies", "measures": [F1, "accuracy"]},
        ],
        "comparisons": [
            [NETWORK, RIDGE, ERROR],
            *([NETWORK, rival, F1] for rival in (PROJECTED, UNTRAINED, bar)),
        ],
        "slopes": [[NETWORK, ERROR], [RIDGE, ERROR], [NETWORK, F1], [PROJECTED, F1]],
        "figure": {
            "label": "cells to learn from",
            "panels": [
                {"measure": ERROR, "arms": [NETWORK, RIDGE]},
                {"measure": F1, "arms": [NETWORK, PROJECTED, UNTRAINED, *PCA]},
            ],
        },
    }


def main() -> int:
    return run(study, "scaling", __doc__, seeds=3)


if __name__ == "__main__":
    sys.exit(main())
