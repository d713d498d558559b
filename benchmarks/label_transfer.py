"""How well frozen embeddings keep labels together on studies that the bundled model never saw.

    python -m benchmarks.label_transfer [--data FOLDER]

Each cell's label is predicted from its 10 nearest neighbours among the other cells (5 folds). The bundled model, an
untrained network of the same shape (several seeds) and PCA of the same cells are given the same folds. The studies are
`pbmc3k` (10x), OneK1K (30 donors, 974 genes) and the pancreas technologies that are not in the training data.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import anndata as ad

from scanpy_scgpt import baselines, metrics, models, settings, tl

from ._harness import conclude

FILES = {
    "pbmc3k_10x": (None, ()),
    "pbmc_onek1k_30donors": (None, ()),
    "pancreas_panc8_5tech_500": ("batch", ("indrop1", "indrop2", "indrop3", "indrop4")),  # inDrop: a training study
}


def cells(folder: Path, name: str) -> ad.AnnData:
    """Labelled cells of a file without the batches that the model was trained on."""
    adata = ad.read_h5ad(folder / f"{name}.h5ad")
    column, left_out = FILES[name]
    kept = adata.obs["cell_type"].astype(str) != "unlabelled"
    if column is not None:
        kept &= ~adata.obs[column].astype(str).isin(left_out)
    counts = adata.obs["cell_type"][kept].value_counts()
    kept &= adata.obs["cell_type"].isin(counts.index[counts >= 5])
    return adata[kept].copy()


def compare(adata: ad.AnnData, *, n_seeds: int) -> list[dict[str, object]]:
    """Agreement of the labels in each embedding of the same cells."""
    labels = adata.obs["cell_type"].to_numpy()
    tl.embed(adata, "mini")
    found = {"mini": (adata.obsm["X_scgpt"], True)}
    for seed in range(n_seeds):
        tl.embed(adata, models.untrained("mini", rng=seed), key_added="X_untrained")
        found[f"untrained, seed {seed}"] = (adata.obsm["X_untrained"], True)
    baselines.embed_pca(adata)
    found["PCA"] = (adata.obsm["X_pca_baseline"], False)
    rows = []
    for method, (vectors, cosine) in found.items():
        rows.append({"method": method, **metrics.knn_agreement(vectors, labels, cosine=cosine)._asdict()})
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("SCANPY_SCGPT_DATA", "../shared/data")))
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    report = {}
    with settings.override(verbosity="error"):
        for name in FILES:
            adata = cells(args.data, name)
            report[name] = compare(adata, n_seeds=args.seeds)
            print(f"\n{name}: {adata.n_obs:,} cells, {adata.obs['cell_type'].nunique()} labels")
            for row in report[name]:
                interval = f"{row['accuracy']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
                print(f"  {row['method']:20s} agreement {interval}   macro F1 {row['macro_f1']:.3f}")
    return conclude("label_transfer", report, [])


if __name__ == "__main__":
    sys.exit(main())
