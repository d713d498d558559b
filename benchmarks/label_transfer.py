"""How well frozen embeddings keep labels together on studies that the bundled model never saw.

    python -m benchmarks.label_transfer [--data FOLDER] [--seeds N]

The label of each cell is predicted from its 10 nearest neighbours among the other cells of its study (5 folds). The
bundled model, its start (the same gene table below layers that learned nothing), an untrained network of the same shape
(several seeds of each), and PCA of the same cells by both distances are given the same folds. All labelled cells of the
six studies of :mod:`benchmarks.studies` take part; none of them is in the corpus of the model.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

import anndata as ad
import numpy as np

from benchmarks.studies._common import Setup, queries_of
from scanpy_scgpt import baselines, metrics, models, settings, tl
from scanpy_scgpt.io import Checkpoint
from scanpy_scgpt.module import PretrainModule

from ._harness import conclude

ALL_CELLS = 10**9
TABLE = "transformer.encoder.genes.embedding.weight"
MEASURES = ("accuracy", "macro_f1")


def start_of(checkpoint: Checkpoint, *, seed: int) -> Checkpoint:
    """The gene table of a model below new layers, as :func:`scanpy_scgpt.pretrain.run` starts them quietly."""
    new = models.untrained(checkpoint, rng=seed)
    module = PretrainModule(checkpoint.transformer, distribution=True)
    module.load_state_dict(new.weights)
    module.start_from(checkpoint.weights[TABLE], mean_digit=checkpoint.tokenizer.n_bins / 2, quiet=True)
    return replace(new, weights=module.state_dict(), name=f"start of {checkpoint.name}")


def compare(adata: ad.AnnData, *, n_seeds: int) -> dict[str, dict[str, float]]:
    """Agreement of the labels in each embedding of the same cells."""
    tl.embed(adata, "mini")
    found = {"mini": (adata.obsm["X_scgpt"], True)}
    for seed in range(n_seeds):
        tl.embed(adata, start_of(models.load("mini"), seed=seed), key_added="X_start")
        found[f"its start, seed {seed}"] = (adata.obsm["X_start"], True)
        tl.embed(adata, models.untrained("mini", rng=seed), key_added="X_untrained")
        found[f"untrained, seed {seed}"] = (adata.obsm["X_untrained"], True)
    baselines.embed_pca(adata)
    found["PCA, Euclidean"] = (adata.obsm["X_pca_baseline"], False)
    found["PCA, cosine"] = (adata.obsm["X_pca_baseline"], True)
    return {
        method: metrics.knn_agreement(vectors, adata.obs["label"], cosine=cosine)._asdict()
        for method, (vectors, cosine) in found.items()
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("SCANPY_SCGPT_DATA", "../shared/data")))
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    setup = Setup("label_transfer", args.data, Path(os.devnull), query_cells=ALL_CELLS)
    report = {}
    with settings.override(verbosity="error"):
        for name, adata in queries_of(setup).items():
            report[name] = compare(adata, n_seeds=args.seeds)
            print(f"\n{name}: {adata.n_obs:,} cells, {adata.obs['label'].nunique()} labels", flush=True)
            for method, row in report[name].items():
                interval = f"{row['accuracy']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
                print(f"  {method:20s} agreement {interval}   macro F1 {row['macro_f1']:.3f}", flush=True)
    print("\nmean over the studies")
    for method in next(iter(report.values())):
        means = [np.mean([rows[method][measure] for rows in report.values()]) for measure in MEASURES]
        print(f"  {method:20s} agreement {means[0]:.3f}   macro F1 {means[1]:.3f}")
    return conclude("label_transfer", report, [])


if __name__ == "__main__":
    sys.exit(main())
