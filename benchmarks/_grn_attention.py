"""Attention networks: known targets beside co-expression and chance, a screen beside differential expression, speed.

`targets`: early precision against TRRUST, DoRothEA and ChIP-seq of the bundled model's gene table, its attention,
co-expression, trees and chance; `all targets`, with many more genes, of all but attention and trees. `screen`: known
targets of STAT1, JAK2 and IFNGR2 among the genes that the difference between knocked-out and control cells puts first.
`speed`: seconds a cell, beside the original's way.
"""

from __future__ import annotations

import gzip
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
from scipy import sparse

from scanpy_scgpt import baselines, metrics, models, tl

from ._harness import Bar, print_table

SETS = ("pbmc3k_10x", "pbmc_facs_zheng2017", "bone_marrow_aml027_10x")  # none of them did the model learn from
REFERENCES = {"TRRUST": "trrust_v2", "DoRothEA": "dorothea_abc", "ChIP-seq": "remap_chipseq"}
N_VARIABLE, N_FACTORS, N_ATTENDED, N_TREES = 400, 200, 300, 500  # genes, factors; cells of attention and of trees
EXPRESSED = 0.02  # share of the cells
TARGETS = ("STAT1", "JAK2", "IFNGR2")
PATHWAY, N_TOP = "HALLMARK_INTERFERON_GAMMA_RESPONSE", (20, 50)
ORIGINAL = "the original's way"


def known_edges(data: Path) -> dict[str, pd.DataFrame]:
    """Known edges by the name of their source."""
    found = {}
    for name, part in REFERENCES.items():
        table = pd.read_csv(data / "knowledge" / f"tf_target_{part}.tsv.gz", sep="\t")
        found[name] = table.rename(columns={"tf": "source"})[["source", "target"]].drop_duplicates()
    return found


def _panel(adata: ad.AnnData, known: dict[str, pd.DataFrame]) -> tuple[list[str], list[str]]:
    """Variable genes and the factors most cells express; the factors."""
    vocab = models.load("mini").vocab
    adata = adata[:, vocab.ids(list(adata.var_names)) >= 0]
    work = adata.copy()
    work.X = work.X.astype(np.float32)
    sc.pp.normalize_total(work, target_sum=1e4)
    sc.pp.log1p(work)
    variable = sc.pp.highly_variable_genes(work, n_top_genes=N_VARIABLE, inplace=False)["highly_variable"]
    factors = set().union(*(table["source"] for table in known.values()))
    there = adata.var_names[adata.var_names.isin(factors)]
    share = np.asarray((adata[:, there].X > 0).mean(axis=0)).ravel()
    chosen = there[np.argsort(-share)[:N_FACTORS]].tolist()
    return sorted({*adata.var_names[variable.to_numpy()], *chosen}), chosen


def _cosine(genes: list[str], factors: list[str]) -> pd.DataFrame:
    """Cosine similarity in the gene table of the bundled model."""
    from scanpy_scgpt.model import Embedder

    checkpoint = models.load("mini")
    vectors = Embedder(checkpoint, device="cpu").gene_vectors(checkpoint.vocab.ids(genes))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    weight = pd.DataFrame(vectors @ vectors.T, index=genes, columns=genes).loc[factors]
    table = weight.rename_axis("source").reset_index().melt("source", var_name="target", value_name="weight")
    return table[table["source"] != table["target"]]


def targets(data: Path, *, trees: bool = True) -> dict[str, Any]:
    """Rows by set of cells and reference."""
    known, out = known_edges(data), {}
    for file in SETS:
        adata = ad.read_h5ad(data / f"{file}.h5ad")
        genes, factors = _panel(adata, known)
        rows = np.sort(np.random.default_rng(0).permutation(adata.n_obs)[:N_ATTENDED])
        some = adata[rows].copy()
        tl.attention_network(some, genes=genes, tfs=factors, n_targets=None, n_permutations=0, device="cpu")
        edges = some.uns["scgpt_grn"]
        tables = {"gene table, cosine": _cosine(genes, factors), "attention": edges}
        tables["attention, z"] = edges.assign(weight=edges["z"].abs())
        tables |= baselines.grn(adata, genes=genes, tfs=factors)
        if trees:
            less = adata[np.sort(np.random.default_rng(1).permutation(adata.n_obs)[:N_TREES])]
            tables |= baselines.grn(less, methods="trees", genes=genes, tfs=factors)
        for name, reference in known.items():
            table = metrics.grn(tables, reference, genes=genes)
            out[f"{file}|{name}"] = table.to_dict(orient="index")
    return out


def all_targets(data: Path) -> dict[str, Any]:
    """The same of the gene table and of co-expression, with all genes that 2 % of the cells express."""
    known, out, vocab = known_edges(data), {}, models.load("mini").vocab
    factors = set().union(*(table["source"] for table in known.values()))
    for file in SETS:
        adata = ad.read_h5ad(data / f"{file}.h5ad")
        kept = (vocab.ids(list(adata.var_names)) >= 0) & (np.asarray((adata.X > 0).mean(axis=0)).ravel() >= EXPRESSED)
        adata = adata[:, kept].copy()
        genes = list(adata.var_names)
        sources = [gene for gene in genes if gene in factors]
        tables = {"gene table, cosine": _cosine(genes, sources)} | baselines.grn(adata, genes=genes, tfs=sources)
        for name, reference in known.items():
            out[f"{file}|{name}"] = metrics.grn(tables, reference, genes=genes).to_dict(orient="index")
    return out


def _lists(data: Path, genes: pd.Index) -> dict[str, list[str]]:
    """Known targets of STAT1 in any source, and the response of its pathway, among these genes."""
    direct = set().union(*(set(t.loc[t["source"] == "STAT1", "target"]) for t in known_edges(data).values()))
    with gzip.open(data / "knowledge" / "hallmark_msigdb2023.gmt.gz", "rt") as lines:
        sets = {line.split("\t")[0]: line.rstrip("\n").split("\t")[2:] for line in lines}
    found = {"known targets of STAT1": direct, "interferon-gamma response": set(sets[PATHWAY])}
    return {name: sorted(chosen & set(genes)) for name, chosen in found.items()}


def screen(data: Path) -> dict[str, Any]:
    """Rankings of the genes by knocked-out gene, list of targets and method; also between two halves of controls."""
    adata = ad.read_h5ad(data / "perturb_papalexi2021_thp1.h5ad")
    groups = adata.obs["perturbation"].astype(str)
    adata = adata[groups.isin([*TARGETS, "control"])].copy()
    adata.obs = pd.DataFrame({"group": adata.obs["perturbation"].astype(str)})
    given = {"groupby": "group", "tfs": list(TARGETS), "n_targets": None, "device": "cpu"}
    tl.attention_network(adata, control="control", **given)
    genes = pd.Index(adata.uns["scgpt"]["grn"]["genes"])
    lists = _lists(data, genes)
    rng, out = np.random.default_rng(0), {}
    for target in TARGETS:
        rankings = _rankings(adata, target, genes, rng)
        for name, wanted in lists.items():
            rows = {}
            for method, ranked in rankings.items():
                table = metrics.target_overlap(ranked, [gene for gene in wanted if gene != target], n_top=N_TOP)
                place = np.isin(ranked, wanted)
                order = np.arange(len(ranked))
                low = np.mean(order[~place][None, :] > order[place][:, None])
                rows[method] = {"auroc": float(low), **{f"hits_{n}": int(table.loc[n, "n_hits"]) for n in N_TOP}}
                rows[method] |= {f"expected_{n}": float(table.loc[n, "expected"]) for n in N_TOP}
                rows[method] |= {f"p_{n}": float(table.loc[n, "p"]) for n in N_TOP}
            out[f"{target}|{name}"] = rows
    control = adata[adata.obs["group"] == "control"].copy()
    control.obs["half"] = np.where(rng.permutation(control.n_obs) % 2 == 0, "a", "b")
    tl.attention_network(control, groupby="half", contrast=("a", "b"), n_targets=None, device="cpu")
    null, found = control.uns["scgpt_grn"], adata.uns["scgpt_grn"]
    out["null|two halves of the controls"] = {
        "edges": {"n": len(null), "below_0.05": float((null["p"] < 0.05).mean()),
                  "at_5_percent_fdr": int((null["p_adjusted"] < 0.05).sum())},
        "edges of the screen": {"n": len(found), "below_0.05": float((found["p"] < 0.05).mean()),
                                "at_5_percent_fdr": int((found["p_adjusted"] < 0.05).sum())},
    }  # fmt: skip
    return out


def _rankings(adata: ad.AnnData, target: str, genes: pd.Index, rng: np.random.Generator) -> dict[str, list[str]]:
    """Genes of the network without the target, best first, by method."""
    edges = adata.uns["scgpt_grn"]
    own = edges[(edges["group"] == target) & (edges["source"] == target)].set_index("target")
    gene_wise = adata.uns["scgpt_grn_influence"]
    gene_wise = gene_wise[gene_wise["group"] == target].set_index("gene")
    others = [gene for gene in genes if gene != target]
    given = {"genes": list(genes), "tfs": [target]}
    tables = baselines.grn(adata, methods="de", groupby="group", contrast=(target, "control"), **given)
    control = adata[adata.obs["group"] == "control"]
    tables |= baselines.grn(control, methods=["pearson", "spearman"], **given)
    scores = {
        "attention, received": gene_wise["received"],
        "attention, edges of the target": own["weight"],
        "attention, |z| of these edges": own["z"].abs(),
        **{name: table.set_index("target")["weight"] for name, table in tables.items()},
        "random": pd.Series(rng.random(len(others)), index=others),
    }
    return {
        name: s.reindex(others).sort_values(ascending=False, kind="stable").index.tolist() for name, s in scores.items()
    }


def _as_original(engine: Any, digits: sparse.csr_matrix) -> np.ndarray:
    """All layers, all scores of a cell at once, each ranking by two sorts; sums over cells."""
    import torch

    n_layers = engine.embedder.checkpoint.transformer.n_layers
    total = None
    with torch.inference_mode():
        for cell in range(digits.shape[0]):
            q, k = engine.queries_and_keys(digits[cell : cell + 1])
            encoder = engine.embedder.encoder
            shown = torch.full((1, engine.n_tokens), engine.embedder.checkpoint.tokenizer.n_bins, dtype=torch.int64)
            x = encoder._enter(engine._ids[None], shown)
            for layer in encoder.transformer.layers[n_layers - 1 :]:  # it runs the layer whose scores it takes, too
                layer(x, None)
            ranks = q @ k.transpose(-1, -2)
            for axis in (-1, -2):
                ranks = ranks.argsort(dim=axis).argsort(dim=axis).float() / engine.n_tokens
            total = ranks.mean(dim=1)[0] if total is None else total + ranks.mean(dim=1)[0]
    return (total / digits.shape[0]).numpy().T


def speed(data: Path, *, n_cells: int = 60, n_naive: int = 4) -> dict[str, Any]:
    """CPU seconds a cell at 1,200 genes, wall seconds on two threads, largest memory."""
    import torch

    from scanpy_scgpt.model import AttentionRanks, CellTokens
    from scanpy_scgpt.tl._attention_cells import digits_of, panel

    files = ("pbmc3k_10x", "pbmc_facs_zheng2017", "pbmc_3chemistries_10x", "pbmc_donorA_10x")
    checkpoint, parts, shown = models.load("mini"), [], None
    for file in files:
        if sum(part.shape[0] for part in parts) >= n_cells:
            break
        adata = ad.read_h5ad(data / f"{file}.h5ad")
        cells = CellTokens(adata, checkpoint, checkpoint.tokenizer)
        shown = shown or panel(cells, 1200, None, None)
        parts.append(digits_of(cells, shown.ids))
    digits = sparse.vstack(parts, format="csr")[:n_cells]
    engine = AttentionRanks(checkpoint, shown.ids, device="cpu")
    torch.set_num_threads(2)
    engine.mean_ranks(digits, [np.arange(2)])
    blocks = np.array_split(np.arange(digits.shape[0]), 16)
    cpu, wall = time.process_time(), time.perf_counter()
    ours = engine.mean_ranks(digits, blocks)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    torch.set_num_threads(1)
    start = time.process_time()
    naive = _as_original(engine, digits[:n_naive])
    slow = (time.process_time() - start) / n_naive
    same = np.corrcoef(engine.mean_ranks(digits, [np.arange(n_naive)])[0].ravel(), naive.ravel())[0, 1]
    found = {"n_cells": digits.shape[0], "n_genes": len(shown.ids), "cpu_seconds_per_cell": cpu / digits.shape[0],
             "wall_seconds_two_threads": wall, "peak_gb": peak, "load": os.getloadavg()[0],
             "minutes_for_10000_cells_on_two_cores": cpu / digits.shape[0] * 10_000 / 2 / 60}  # fmt: skip
    found["sum"] = float(ours.mean())
    original = {"n_cells": n_naive, "cpu_seconds_per_cell": slow, "correlation": float(same),
                "minutes_for_10000_cells_on_two_cores": slow * 10_000 / 2 / 60}  # fmt: skip
    return {"speed": {"ours": found, ORIGINAL: original}}


TASKS: dict[str, Callable[[Path, int], dict[str, Any]]] = {
    "targets": lambda data, _seed: targets(data),
    "all targets": lambda data, _seed: all_targets(data),
    "screen": lambda data, _seed: screen(data),
    "speed": lambda data, _seed: speed(data),
}


def tables(kept: dict[str, Any]) -> list[Bar]:
    """Print what was measured; the bars."""
    bars = []
    kept = {name: kept[f"{name}|0"] for name in TASKS if f"{name}|0" in kept}
    both = [(task, *item) for task in ("targets", "all targets") for item in kept.get(task, {}).items()]
    for task, key, rows in both:
        columns = ("early_precision_ratio", "auprc_ratio", "auroc")
        text = [
            (m, *(f"{r[c]:.2f} ({r[c + '_low']:.2f} to {r[c + '_high']:.2f})" for c in columns))
            for m, r in rows.items()
        ]
        print_table(f"{task}: {key.replace('|', ', ')}", ("method", *columns), text)
    for key, rows in kept.get("screen", {}).items():
        columns = list(next(iter(rows.values())))
        print_table(f"screen: {key.replace('|', ', ')}", ("", *columns), [(m, *r.values()) for m, r in rows.items()])
    for name, rows in kept.get("speed", {}).items():
        for method, row in rows.items():
            print_table(f"{name}: {method}", ("figure", "value"), [(k, float(v)) for k, v in row.items()])
    for target in TARGETS:
        rows = kept.get("screen", {}).get(f"{target}|known targets of STAT1")
        if rows:
            p = rows["attention, received"]["p_20"]
            bars.append(Bar(f"{target}: hypergeometric p of known targets among the first 20", p, 0.05, at_least=False))
    if "speed" in kept:
        ours = kept["speed"]["speed"]["ours"]
        minutes = ours["minutes_for_10000_cells_on_two_cores"]
        bars.append(Bar("minutes for 10,000 cells and 1,200 genes on two cores", minutes, 10, at_least=False))
        bars.append(Bar("largest memory, GB", ours["peak_gb"], 2, at_least=False))
    for name in REFERENCES:
        lows = [
            rows["gene table, cosine"]["early_precision_ratio_low"]
            for key, rows in kept.get("all targets", {}).items()
            if key.endswith(name)
        ]
        if lows:
            bars.append(Bar(f"{name}: gene table, least lower limit of the early precision ratio", min(lows), 1))
    return bars
