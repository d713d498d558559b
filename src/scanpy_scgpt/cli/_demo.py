"""The demonstration: real cells to embedding, figure, file and honest numbers."""

from __future__ import annotations

import time
import warnings
from pathlib import Path

import matplotlib as mpl
import scanpy as sc

from scanpy_scgpt import baselines, metrics, models, pl, tl
from scanpy_scgpt._logging import get_logger

logger = get_logger(__name__)
LABELS = "bulk_labels"
_METHODS = {"mini": "X_scgpt", "PCA": "X_pca_baseline", "untrained": "X_untrained"}


def demo(out: Path, *, model: str | None = None) -> str:
    """Embed the PBMC that scanpy ships and compare with PCA and with an untrained network of the same shape.

    Parameters
    ----------
    out
        Folder for `demo.png`, `demo.h5ad`, `summary.md`; made if needed.
    model
        Name or folder of a checkpoint; the bundled model by default.

    Returns
    -------
    The summary, as written to `summary.md`.
    """
    started = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    adata = _cells()
    checkpoint = models.load(model)
    logger.info("demo: %s PBMC (Zheng et al. 2017), %s genes, %s labels", *_size(adata))
    tl.embed(adata, checkpoint, use_raw=True)
    tl.embed(adata, models.untrained(checkpoint), use_raw=True, key_added=_METHODS["untrained"])
    baselines.embed_pca(adata, use_raw=True)
    for key in ("X_scgpt", "X_pca_baseline"):
        _umap(adata, key)
    _draw(adata, out / "demo.png", checkpoint.name)
    summary = _summary(adata, checkpoint.label)
    adata.write_h5ad(out / "demo.h5ad")
    summary += f"\nFigure: {out / 'demo.png'}\nCells: {out / 'demo.h5ad'}\n"
    (out / "summary.md").write_text(summary, encoding="utf-8")
    return f"{summary}Done in {time.perf_counter() - started:.0f} s.\n"


def _cells() -> sc.AnnData:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the file is older than the format of today
        shipped = sc.datasets.pbmc68k_reduced()
    adata = sc.AnnData(shipped.raw.X, obs=shipped.obs[[LABELS]].copy(), var=shipped.raw.var[[]].copy())
    adata.raw = adata
    return adata


def _size(adata: sc.AnnData) -> tuple[str, str, int]:
    return f"{adata.n_obs:,}", f"{adata.n_vars:,}", adata.obs[LABELS].nunique()


def _umap(adata: sc.AnnData, key: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # notes of umap on its own threads
        sc.pp.neighbors(adata, use_rep=key, metric="cosine" if key == "X_scgpt" else "euclidean", key_added=key)
        sc.tl.umap(adata, neighbors_key=key, random_state=0, key_added=f"{key}_umap")


def _draw(adata: sc.AnnData, path: Path, name: str) -> None:
    mpl.use("Agg")
    panels = {f"scGPT ({name}), zero-shot": "X_scgpt_umap", "PCA": "X_pca_baseline_umap"}
    axes = pl.embeddings(adata, panels, color=LABELS, show=False)
    axes[0].figure.savefig(path, dpi=150)


def _summary(adata: sc.AnnData, label: str) -> str:
    rows = []
    for method, key in _METHODS.items():
        distances = (True, False) if method == "PCA" else (True,)  # the rival takes its better one
        found = [metrics.knn_agreement(adata.obsm[key], adata.obs[LABELS].to_numpy(), cosine=x) for x in distances]
        got = max(found)
        name = {"mini": label, "PCA": "PCA (the better of two distances)"}.get(method, method)
        rows.append(f"| {name} | {got.accuracy:.3f} ({got.low:.3f} to {got.high:.3f}) | {got.macro_f1:.3f} |")
    return "\n".join(
        [
            f"Labels of held-out cells from their 10 nearest neighbours, {adata.n_obs:,} PBMC, 5 folds:",
            "",
            "| embedding | agreement (95 % interval) | macro F1 |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )
