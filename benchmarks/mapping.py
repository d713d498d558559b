"""Neighbours among a million reference cells, and how often a mapped label is right.

    python -m benchmarks.mapping [--cells N] [--queries N] [--methods exact pq ...] [--quick]

**Search.** Real cells are embedded by the bundled model; one in five is held out. Reference cells are points between a
kept cell and one of its ten nearest neighbours, drawn evenly on the line, plus Gaussian noise of a tenth of their
distance, scaled to length 1; queries are made of the held-out cells in the same way. Each method is compared with exact
search: how many of the ten nearest it finds, how large what it keeps in memory is beside float32 vectors, and its
seconds on the threads that are there. Codes (`pq`) lie in a folder with their float16 vectors, memory-mapped.

**Labels.** Cells of one study or donor are mapped onto another; PCA of both together is given the same vote.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from pathlib import Path

import anndata as ad
import numpy as np

from benchmarks import _harness as harness
from benchmarks._cells import data_folder
from scanpy_scgpt import baselines, models, settings, tl
from scanpy_scgpt._optional import is_installed
from scanpy_scgpt.neighbours import NeighbourIndex

FILES = (
    "pbmc_facs_zheng2017", "pbmc3k_10x", "pbmc_kang2018_ctrl_8donors", "pbmc_onek1k_30donors", "bone_marrow_aml027_10x",
    "pancreas_panc8_5tech_500", "pbmc5k_10x_4000g", "pbmc_3chemistries_10x", "pbmc_donorA_10x", "pbmc_hao2021_1k",
    "pbmc_ifnb_kang2018_2k", "tumour_breast_gao2021", "tumour_lung_zilionis2019_300", "pbmc_celltypist_sample",
)  # fmt: skip
QUICK = ("pbmc_onek1k_30donors",)
FACS = {
    "B": "B cell", "CD14+ Mono": "CD14+", "NK": "NK cell", "CD8 T": "T cell", "Memory CD4 T": "T cell",
    "Naive CD4 T": "T cell",
}  # fmt: skip
K = 10
METHODS = ("exact", "hnsw", "ivf", "pq")
SHORTLISTS = (40, 100, 400)  # of pq; the last is the default
RECALL, SMALLER, SECONDS = 0.95, 100.0, 60.0


def embedded(files: tuple[str, ...], n_cells: int | None = None) -> dict[str, ad.AnnData]:
    """Cells of files with their vectors in `obsm["X_scgpt"]`; vectors are kept in `.bench`."""
    digest, found = models.load("mini").digest, {}
    for name in files:
        path = data_folder() / f"{name}.h5ad"
        if not path.is_file():
            continue
        adata = ad.read_h5ad(path)[:n_cells].copy()
        kept = harness.ROOT / ".bench" / "vectors" / f"{name}-{adata.n_obs}-{digest}.npy"
        if kept.is_file():
            adata.obsm["X_scgpt"] = np.load(kept)
        else:
            tl.embed(adata, "mini")
            kept.parent.mkdir(parents=True, exist_ok=True)
            np.save(kept, adata.obsm["X_scgpt"])
        found[name] = adata
    if not found:
        sys.exit("No file of cells in the folder of SCANPY_SCGPT_DATA (or ../shared/data).")
    return found


def resampled(cells: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Points between cells and their neighbours, with noise; length 1."""
    near = NeighbourIndex.build(cells, method="exact").search(cells, K + 1).rows[:, 1:]
    out = np.empty((n, cells.shape[1]), np.float32)
    for start in range(0, n, 2**16):
        part = out[start : start + 2**16]
        first = rng.integers(len(cells), size=len(part))
        gap = cells[near[first, rng.integers(K, size=len(part))]] - cells[first]
        noise = rng.standard_normal(gap.shape, dtype=np.float32) / np.sqrt(gap.shape[1])
        part[:] = cells[first] + rng.random((len(part), 1), dtype=np.float32) * gap
        part += 0.1 * np.linalg.norm(gap, axis=1, keepdims=True) * noise
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return out


def recall(found: np.ndarray, truth: np.ndarray) -> float:
    """Share of the true neighbours that were found."""
    return float((found[:, :, None] == truth[:, None, :]).any(axis=1).mean())


def measure(method: str, vectors: np.ndarray, queries: np.ndarray, folder: Path) -> list[dict]:
    """Rows of the table for one method, with what it found."""
    started = time.perf_counter()
    path = folder / method if method == "pq" else None
    index = NeighbourIndex.build(vectors, method=method, path=path)
    build, rows = time.perf_counter() - started, []
    for shortlist in SHORTLISTS if method == "pq" else (400,):
        index.search(queries[:20], K, shortlist=shortlist)  # compiles
        started = time.perf_counter()
        found = index.search(queries, K, shortlist=shortlist).rows
        seconds = time.perf_counter() - started
        name = f"pq, shortlist {shortlist}" if method == "pq" else method
        smaller = vectors.nbytes / index.memory_bytes
        rows.append({"method": name, "found": found, "smaller": smaller, "search": seconds, "build": build})
    return rows


def search(args: argparse.Namespace, cells: dict[str, ad.AnnData]) -> list[dict]:
    """Compare the methods; prints the table."""
    rng = np.random.default_rng(0)
    real = np.concatenate([adata.obsm["X_scgpt"] for adata in cells.values()]).astype(np.float32)
    order = rng.permutation(len(real))
    held_out, kept = order[: len(real) // 5], order[len(real) // 5 :]
    vectors, queries = resampled(real[kept], args.cells, rng), resampled(real[held_out], args.queries, rng)
    print(f"{len(real):,} real cells of {len(cells)} files → {len(vectors):,} vectors of {real.shape[1]} values")
    rows: list[dict] = []
    with tempfile.TemporaryDirectory() as folder:
        for method in args.methods:
            if method in {"hnsw", "ivf"} and not is_installed("faiss"):
                print(f"{method}: faiss is not installed; pip install 'scanpy-scgpt[faiss]'")
                continue
            rows += measure(method, vectors, queries, Path(folder))
            print(f"  {method}: built in {rows[-1]['build']:,.0f} s", flush=True)
    truth = rows[0]["found"]
    for row in rows:
        row["recall"] = recall(row.pop("found"), truth)
    header = (f"method, {args.cells:,} cells", f"recall@{K}", "times smaller", f"s for {args.queries:,}", "s to build")
    table = [[row[name] for name in ("method", "recall", "smaller", "search", "build")] for row in rows]
    harness.print_table("Neighbours", header, table)
    return rows


def tasks(cells: dict[str, ad.AnnData]) -> dict[str, tuple[ad.AnnData, ad.AnnData, dict | None]]:
    """Reference, query and, where the names of the labels differ, which label of the query is which."""
    found = {}
    if {"pbmc_facs_zheng2017", "pbmc3k_10x"} <= cells.keys():
        query = cells["pbmc3k_10x"]
        known = query[query.obs["cell_type"].isin(list(FACS))]
        found["sorted PBMC → pbmc3k"] = (cells["pbmc_facs_zheng2017"], known, FACS)
    for name, n in (("pbmc_kang2018_ctrl_8donors", 1), ("pbmc_onek1k_30donors", 10)):
        if name in cells and "donor" in cells[name].obs:
            adata = cells[name][cells[name].obs["cell_type"].notna()]
            last = sorted(adata.obs["donor"].astype(str).unique())[-n:]
            is_query = adata.obs["donor"].astype(str).isin(last)
            found[f"{name}, {n} donor{'s' if n > 1 else ''} held out"] = (adata[~is_query], adata[is_query], None)
    return found


def agreement(reference: ad.AnnData, query: ad.AnnData, names: dict | None) -> dict[str, dict[str, float]]:
    """Accuracy and macro F1 of mapped labels, by the way of mapping."""
    from sklearn.metrics import accuracy_score, f1_score

    both = ad.concat([reference, query], join="inner", keys=["reference", "query"], index_unique="-")
    baselines.embed_pca(both)
    reference, query = reference.copy(), query.copy()
    reference.obsm["X_pca"] = both.obsm["X_pca_baseline"][: reference.n_obs]
    query.obsm["X_pca"] = both.obsm["X_pca_baseline"][reference.n_obs :]
    truth = query.obs["cell_type"].astype(str).map(names or str).to_numpy()
    ways = {
        "mini": {"use_rep": "X_scgpt"},
        "mini, weights='distance'": {"use_rep": "X_scgpt", "weights": "distance"},
        "mini, correct_shares=True": {"use_rep": "X_scgpt", "correct_shares": True},
        "PCA of both, cosine": {"use_rep": "X_pca"},
        "PCA of both, cosine, correct_shares=True": {"use_rep": "X_pca", "correct_shares": True},
        "PCA of both, Euclidean": {"use_rep": "X_pca", "metric": "euclidean"},
    }
    out = {}
    for way, given in ways.items():
        tl.map_reference(query, reference, "cell_type", **given)
        mapped = query.obs["scgpt_map_cell_type"].astype(str)
        labels = sorted(set(truth))
        scores = accuracy_score(truth, mapped), f1_score(truth, mapped, labels=labels, average="macro", zero_division=0)
        out[way] = dict(zip(("accuracy", "macro_f1"), map(float, scores), strict=True))
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, help="1,000,000 by default")
    parser.add_argument("--queries", type=int, help="10,000 by default")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, help="compared with the first")
    parser.add_argument("--quick", action="store_true", help="2,000 cells of one file, 50,000 vectors, 1,000 queries")
    args = parser.parse_args()
    args.cells = args.cells or (50_000 if args.quick else 1_000_000)
    args.queries = args.queries or (1_000 if args.quick else 10_000)
    with settings.override(verbosity="error", progress_bar=False), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cells = embedded(QUICK, 2_000) if args.quick else embedded(FILES)
        rows = search(args, cells)
        labels = {name: agreement(*task) for name, task in tasks(cells).items()}
    for name, ways in labels.items():
        table = [(way, scores["accuracy"], scores["macro_f1"]) for way, scores in ways.items()]
        harness.print_table(name, ("15 neighbours in", "accuracy", "macro F1"), table)
    bars = []
    for row in rows:
        if row["method"] == f"pq, shortlist {SHORTLISTS[-1]}":
            bars = [
                harness.Bar(f"recall@{K} of codes, re-ranked", row["recall"], RECALL),
                harness.Bar("times smaller in memory", row["smaller"], 1 if args.quick else SMALLER),
                harness.Bar(f"seconds for {args.queries:,} queries", row["search"], SECONDS, at_least=False),
            ]
    return harness.conclude("mapping", {"options": vars(args), "search": rows, "labels": labels}, bars)


if __name__ == "__main__":
    sys.exit(main())
