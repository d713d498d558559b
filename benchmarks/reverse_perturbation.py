"""Which double perturbation made these cells: predictions against the genes that change most and against chance.

    python -m benchmarks.reverse_perturbation [--data FOLDER] [--seeds N]

Simulated doubles on real control cells (there is no real screen of doubles at hand): 20 genes, 210 candidates; a fifth
of the measured doubles is held out, and its cells are the queries. Rival: the two genes of the list that fall most.
Also: time and memory for all 5,565 single and double perturbations of 105 genes, 20,000 genes measured.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

from scanpy_scgpt import baselines, datasets, models, pp, tl
from scanpy_scgpt.model import SCGPTPerturber

from ._cells import data_folder
from ._harness import Bar, conclude, print_table, single_thread

N_GENES, DOUBLES, KS = 20, 0.3, (1, 2, 4, 8)


def queries(data: Path, seed: int) -> dict[str, dict[str, list[str]]]:
    """Ranking of the candidates for each held-out double, by method."""
    real = ad.read_h5ad(data / "pbmc3k_10x.h5ad")
    kept = np.asarray((real.X > 0).mean(axis=0)).ravel() >= 0.05
    cells = datasets.simulate_perturb(
        real[:, kept].copy(), n_genes=N_GENES, doubles=DOUBLES, n_cells=100, n_control=800, rng=seed
    )
    names = cells.obs["perturbation"].astype(str)
    doubles = sorted({name for name in names if "+" in name})
    held = set(np.random.default_rng(seed).permutation(doubles)[: len(doubles) // 5].tolist())
    model = SCGPTPerturber(cells[~names.isin(held).to_numpy()].copy(), "perturbation", rng=seed)
    found = pp.parse_perturbations(cells.obs["perturbation"], genes=cells.var_names)
    effects = baselines.pseudobulk_effects(cells, found).deltas
    genes = sorted({gene for name in held for gene in name.split("+")} | set(model.screen_.conditions.universe))
    out: dict[str, dict[str, list[str]]] = {"direct": {}, "votes": {}, "DE genes": {}}
    for name in sorted(held):
        for method in ("direct", "votes"):
            table = tl.reverse_perturb(cells, model, target=name, groupby="perturbation", method=method, rng=seed)
            out[method][name] = list(table.index)
        order = list(effects.loc[name, genes].sort_values().index)
        place = {gene: i for i, gene in enumerate(order)}
        single = {one: 0.6 * ("+" not in one) for one in out["direct"][name]}  # of two that tie the double is first
        key = {one: np.mean([place[gene] for gene in one.split("+")]) + single[one] for one in single}
        out["DE genes"][name] = sorted(key, key=key.get)
    return out


def space() -> dict[str, float]:
    """Seconds and GB for 5,565 perturbations x 20,000 genes; made-up effects, since only the size counts."""
    rng = np.random.default_rng(0)
    pool = list(models.load("mini").vocab.genes)[:105]
    genes = [*pool, *(f"gene{i}" for i in range(20_000 - len(pool)))]
    single = rng.normal(size=(105, 12)) @ rng.normal(size=(12, 20_000)) * 0.1
    pairs = rng.permutation([(i, j) for i in range(105) for j in range(i + 1, 105)])[:131]
    names = [*pool, *(f"{pool[i]}+{pool[j]}" for i, j in pairs)]
    values = np.vstack([single, *(single[i] + single[j] for i, j in pairs)])
    values += rng.normal(size=values.shape) * 0.05
    frame = pd.DataFrame(values, names, genes)
    sizes = pd.Series(100, names)
    effects = baselines.Effects(frame, frame, frame * 0 + 0.05, sizes, pd.Series(1.0, genes), 1000)
    started = time.monotonic()
    model = SCGPTPerturber.from_effects(effects, {name: tuple(name.split("+")) for name in names})
    result = tl.perturb_space(model)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return {"rows": result.n_obs, "seconds": time.monotonic() - started, "peak_gb": peak}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reverse_perturbation", description=__doc__)
    parser.add_argument("--data", type=Path, default=data_folder())
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--no-space", action="store_true")
    args = parser.parse_args()
    single_thread()
    rankings: dict[str, dict[str, list[str]]] = {}
    for seed in range(args.first, args.first + args.seeds):
        for method, own in queries(args.data, seed).items():
            rankings.setdefault(method, {}).update({f"{name} [{seed}]": ranked for name, ranked in own.items()})
    tables = {}
    for method, own in rankings.items():
        plain = {name: [f"{one} [{name.partition(' ')[2][1:-1]}]" for one in ranked] for name, ranked in own.items()}
        tables[method] = tl.hit_rates(plain, ks=KS)
    rows = [
        (
            method,
            int(row.k),
            row.measure,
            f"{row.hits}/{row.n}",
            round(row.rate, 3),
            round(row.low, 3),
            round(row.high, 3),
            round(row.chance, 3),
        )
        for method, table in tables.items()
        for row in table.itertuples()
    ]
    print_table("SIMULATION: which double", ("method", "k", "measure", "hits", "rate", "low", "high", "chance"), rows)
    size = space() if not args.no_space else {"rows": 0, "seconds": 0.0, "peak_gb": 0.0}
    print_table(
        "5,565 perturbations x 20,000 genes",
        ("rows", "seconds", "peak GB"),
        [tuple(round(x, 2) for x in size.values())],
    )
    bars = [Bar("peak below 4 GB (negative)", -size["peak_gb"], -4.0)]
    for k, measure in ((1, "relevant"), (8, "correct")):
        rate = {
            method: float(table.loc[(table["k"] == k) & (table["measure"] == measure), "rate"].iloc[0])
            for method, table in tables.items()
        }
        chance = float(
            next(row.chance for row in tables["direct"].itertuples() if row.k == k and row.measure == measure)
        )
        bars += [
            Bar(f"top-{k} {measure} above the DE genes", rate["direct"], rate["DE genes"]),
            Bar(f"top-{k} {measure} above chance", rate["direct"], chance),
        ]
    results = {method: table.round(4).to_dict("records") for method, table in tables.items()}
    return conclude("reverse_perturbation", {**results, "space": size}, bars)


if __name__ == "__main__":
    sys.exit(main())
