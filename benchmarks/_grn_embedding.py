"""Gene embedding networks: known partners among the nearest genes, and pathways among programs of genes."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
from sklearn.cluster import AgglomerativeClustering
from sklearn.metrics import adjusted_rand_score, roc_auc_score

from scanpy_scgpt import baselines, get, models, tl
from scanpy_scgpt.io import Checkpoint
from scanpy_scgpt.model import SCGPT

from ._harness import Bar, print_table

SETS = ("pbmc3k_10x", "pbmc_facs_zheng2017")  # neither of them did the model learn from
FAMILIES = (("CD3D", "CD3E", "CD3G"), ("CD79A", "CD79B"), ("CD8A", "CD8B"))
RESOLUTIONS = (1, 5, 10, 20, 30, 40, 50, 60)
N_GENES, N_VARIABLE, N_TRAINED, EPOCHS, N_CONTEXT = 5000, 1200, 400, 2, 200
ZERO, TUNED, UNTRAINED, CONTEXT, COEXPRESSION = (
    "mini, zero-shot", "mini, fine-tuned", "mini, untrained", "mini, in cells", "co-expression",
)  # fmt: skip
MATCHED, RANDOM = "co-expression, same size", "random, same sizes"


def read(data: Path, name: str) -> ad.AnnData:
    """Counts of a set and the labels of its cells."""
    adata = ad.read_h5ad(data / f"{name}.h5ad")
    return ad.AnnData(adata.X, obs=adata.obs[["cell_type"]].copy(), var=adata.var[[]].copy())


@cache
def fine_tuned(data: Path, name: str, seed: int) -> Checkpoint:
    """The bundled model, trained on some of the cells of a set to predict hidden genes."""
    adata = read(data, name)
    rows = np.sort(np.random.default_rng([seed, 1]).permutation(adata.n_obs)[:N_TRAINED])
    cells = ad.AnnData(adata.X[rows], obs=adata.obs.iloc[rows][[]].copy(), var=adata.var.copy())
    SCGPT.setup_anndata(cells)
    model = SCGPT(cells, objectives=("gep", "gepc"), max_length=400, rng=seed)
    model.train(max_epochs=EPOCHS, accelerator="cpu")
    return model.to_checkpoint("tuned")


def in_cells(adata: ad.AnnData, seed: int) -> pd.DataFrame:
    """What the last layer gives for each gene, averaged over some cells, less what all genes share."""
    some = adata[np.random.default_rng([seed, 2]).permutation(adata.n_obs)[:N_CONTEXT]].copy()
    some.obs["all"] = "all"
    tl.grn(some, groupby="all", min_cells=3, n_neighbors=1)
    context = pd.DataFrame(np.asarray(some.varm["scgpt_genes_all"]), index=some.var_names)
    return context - context.mean()


def _hla(data: Path) -> pd.Series:
    """Class of each classical HLA gene."""
    table = pd.read_csv(data / "knowledge" / "hla_and_cd_genes.tsv.gz", sep="\t")
    table = table[table["group"].isin(["hla_class_I", "hla_class_II"]) & table["symbol"].str.startswith("HLA-")]
    return table.set_index("symbol")["group"]


def _units(vectors: pd.DataFrame) -> pd.DataFrame:
    vectors = vectors.dropna()
    return vectors.div(np.maximum(np.linalg.norm(vectors.to_numpy(), axis=1), 1e-12), axis=0)


def partners(vectors: pd.DataFrame, hla: pd.Series) -> dict[str, float]:
    """Ranks of known partners among all genes, and how well the classes of HLA genes part."""
    vectors = _units(vectors)
    row: dict[str, float] = {"genes": float(len(vectors))}
    ranks = []
    for family in FAMILIES:
        own = []
        for gene in (gene for gene in family if gene in vectors.index):
            cosines = (vectors @ vectors.loc[gene]).drop(gene)
            order = cosines.rank(ascending=False)
            own += [order.get(other, float(len(vectors))) for other in family if other != gene]
        row["/".join((family[0], *(name[-1] for name in family[1:])))] = float(np.median(own)) if own else np.nan
        ranks += own
    row["in top 10"], row["in top 50"] = (float(np.mean(np.array(ranks) <= n)) for n in (10, 50))
    known = [gene for gene in hla.index if gene in vectors.index]
    cosines = vectors.loc[known].to_numpy() @ vectors.loc[known].to_numpy().T
    classes = hla[known].to_numpy()
    i, j = np.triu_indices(len(known), 1)
    row["HLA AUROC"] = float(roc_auc_score(classes[i] == classes[j], cosines[i, j]))
    cut = AgglomerativeClustering(2, metric="precomputed", linkage="average").fit_predict(1 - cosines)
    row["HLA ARI"] = float(adjusted_rand_score(classes, cut))
    return row


def networks(data: Path, seed: int) -> dict[str, dict[str, Any]]:
    """Partners in the bundled model, fine-tuned, untrained, in cells, and in co-expression of the same cells."""
    found = {}
    hla = _hla(data)
    for name in SETS:
        adata = read(data, name)
        seen = np.asarray((adata.X > 0).sum(axis=0)).ravel()
        wanted = {*hla.index, *(gene for family in FAMILIES for gene in family)}
        kept = (np.argsort(np.argsort(-seen)) < N_GENES) | (adata.var_names.isin(wanted) & (seen > 0))
        adata = adata[:, kept & (models.load("mini").vocab.ids(list(adata.var_names)) >= 0)].copy()
        checkpoint = models.load("mini")
        vectors = {}
        for title, model in (
            (ZERO, checkpoint),
            (TUNED, fine_tuned(data, name, seed)),
            (UNTRAINED, models.untrained(checkpoint, rng=seed)),
        ):
            tl.grn(adata, model, n_neighbors=1)
            vectors[title] = pd.DataFrame(np.asarray(adata.varm["scgpt_genes"]), index=adata.var_names)
        vectors[CONTEXT] = in_cells(adata, seed)
        vectors[COEXPRESSION] = baselines.gene_vectors(adata)
        found[name] = {title: partners(one, hla) for title, one in vectors.items()}
    return found


def pathways(data: Path, seed: int) -> dict[str, dict[str, Any]]:
    """Reactome sets that programs hit at each resolution, for the same genes and the same graph."""
    found = {}
    sets = data / "knowledge" / "reactome_msigdb2023.gmt.gz"
    for name in SETS:
        adata = read(data, name)
        work = adata.copy()
        sc.pp.normalize_total(work, target_sum=1e4)
        sc.pp.log1p(work)
        sc.pp.highly_variable_genes(work, n_top_genes=N_VARIABLE)
        adata.var["highly_variable"] = work.var["highly_variable"]
        checkpoint = models.load("mini")
        runs = {
            ZERO: checkpoint,
            TUNED: fine_tuned(data, name, seed),
            UNTRAINED: models.untrained(checkpoint, rng=seed),
            CONTEXT: None,
        }
        for title, model in runs.items():
            if title == CONTEXT:
                adata.varm["context"] = in_cells(adata, seed).to_numpy()
            use_varm = "context" if title == CONTEXT else None
            tl.gene_programs(adata, model, resolutions=RESOLUTIONS, use_varm=use_varm, scores=False, rng=seed)
            compare = ("coexpression", "coexpression_matched") if title == ZERO else ()
            tl.enrich(adata, sets, compare=compare, n_random=20 if title == ZERO else 0, rng=seed)
            table = adata.uns["scgpt_enrichment_hits"]
            names = {"scgpt": title, "coexpression": COEXPRESSION, "coexpression_matched": MATCHED, "random": RANDOM}
            for kind, own in table.groupby("network"):
                part = own.set_index("resolution")
                row = found.setdefault(name, {}).setdefault(names[kind], {})
                row.update({f"{level:g}": float(hits) for level, hits in part["hits"].items()})
                row["programs at 40"], row["genes at 40"] = (
                    float(part.loc[40.0, x]) for x in ("n_programs", "n_genes")
                )
            if title == ZERO:
                found[name]["shared"] = _shared(adata)
    return found


def _shared(adata: ad.AnnData) -> dict[str, float]:
    """Sets hit at resolution 40 by both, by one alone."""
    ours, theirs = (
        set(get.enrichment(adata, hits=True, resolution=40.0, network=kind)["gene_set"])
        if kind in set(get.enrichment(adata, resolution=40.0)["network"])
        else set()
        for kind in ("scgpt", "coexpression")
    )
    return {"common": len(ours & theirs), "scGPT alone": len(ours - theirs), "co-expression alone": len(theirs - ours)}


TASKS = {"networks": networks, "pathways": pathways}


def _mean(runs: list[dict[str, dict[str, float]]]) -> pd.DataFrame:
    frames = [pd.DataFrame.from_dict({k: v for k, v in run.items() if k != "shared"}, orient="index") for run in runs]
    return sum(frames) / len(frames)


def tables(kept: dict[str, Any]) -> list[Bar]:
    """Print what was measured; the bars."""
    bars = []
    for task in TASKS:
        runs = [rows for key, rows in kept.items() if key.startswith(f"{task}|")]
        for name in SETS if runs else ():
            mean = _mean([run[name] for run in runs])
            rows = [(title, *(round(float(x), 3) for x in mean.loc[title])) for title in mean.index]
            print_table(f"{task}: {name}, {len(runs)} seeds", ("genes", *mean.columns), rows)
            if task == "networks":
                top = mean["in top 50"]
                bars += [
                    Bar(f"{name}: HLA classes part, fine-tuned (AUROC)", float(mean.loc[TUNED, "HLA AUROC"]), 0.8),
                    Bar(
                        f"{name}: partners in top 50, fine-tuned less untrained",
                        float(top[TUNED] - top[UNTRAINED]),
                        0.3,
                    ),
                ]
                continue
            levels = [f"{level:g}" for level in RESOLUTIONS]
            for title in (ZERO, TUNED):
                good = int((mean.loc[title, levels] >= mean.loc[MATCHED, levels]).sum())
                bars.append(Bar(f"{name}: resolutions (of 8) at or above co-expression, {title}", good, 4))
            print(f"  resolution 40, {ZERO} and {COEXPRESSION}: {runs[0][name]['shared']}")
    return bars
