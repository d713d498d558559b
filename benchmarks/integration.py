"""Integration of donors, patients, technologies and stimulation, beside the simple methods.

    python -m benchmarks.integration [--data FOLDER] [--sets NAME ...] [--seeds N] [--tasks NAME ...] [--out FILE]

For each set and seed (other cells, other weights) `tl.integrate` as it is by default, its parts, principal components,
the variable genes, Harmony and scVI are scored on the same cells: AvgBIO, AvgBATCH, overall. The task `ablate` leaves
out one objective or part of the network after the other; `cost` measures freezing and leaving zeros out. Finished runs
are kept in the file and not run again.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import anndata as ad
import numpy as np
import pandas as pd

from scanpy_scgpt import baselines, metrics, settings
from scanpy_scgpt._logging import quiet

from ._cells import data_folder
from ._harness import ROOT, Bar, conclude, print_table, single_thread

RESULTS = ROOT / "benchmarks" / "results" / "integration.json"
N_CELLS, N_COST = 800, 240  # at most, for each seed
MAX_EPOCHS = 3
OURS, START, NETWORK = "scGPT", "scGPT, not trained", "network alone"
UNCORRECTED = "scGPT, not corrected"
RIVALS = ("pca", "harmony", "scvi")
WHOLE, LIGHT = "zeros, all trained", "no zeros, encoder frozen"
LOUD = ("scvi", "scanpy_scgpt", "lightning.pytorch")
ABLATIONS = {
    "all": {},
    "without gep": {"objectives": ("gepc", "ecs", "dar")},
    "without gepc": {"objectives": ("gep", "ecs", "dar")},
    "without ecs": {"objectives": ("gep", "gepc", "dar")},
    "without dar": {"objectives": ("gep", "gepc", "ecs")},
    "without domain norm": {"domain_norm": False},
    "without batch vectors": {"batch_vectors": False},
    "from scratch": {"from_scratch": True},
}


class Set(NamedTuple):
    """A file, its column of batches, and the label that means that there is none."""

    file: str
    batch: str


SETS = {
    "lupus, 8 donors": Set("pbmc_kang2018_ctrl_8donors", "batch"),
    "pancreas, 5 technologies": Set("pancreas_panc8_5tech_500", "technology"),
    "OneK1K, 30 donors": Set("pbmc_onek1k_30donors", "batch"),
    "lung tumours, 7 patients": Set("tumour_lung_zilionis2019_300", "batch"),
    "stimulated blood": Set("pbmc_ifnb_kang2018_2k", "condition"),
}


def cells_of(name: str, data: Path, seed: int) -> tuple[ad.AnnData, np.ndarray]:
    """Cells with the column `batch`, and their labels (None where there is none)."""
    adata = ad.read_h5ad(data / f"{SETS[name].file}.h5ad")
    rows = np.sort(np.random.default_rng([seed, 3]).permutation(adata.n_obs)[:N_CELLS])
    adata = ad.AnnData(adata.X[rows], obs=adata.obs.iloc[rows].copy(), var=adata.var[[]].copy())
    labels = adata.obs["cell_type"].astype(str).to_numpy(dtype=object)
    labels[labels == "unlabelled"] = None
    adata.obs = pd.DataFrame({"batch": adata.obs[SETS[name].batch].astype(str)}, index=adata.obs_names)
    return adata, labels


def trained(adata: ad.AnnData, *, seed: int, epochs: int, **given: Any) -> Any:
    """An integrator as `tl.integrate` makes it."""
    from scanpy_scgpt.model import SCGPTIntegrator

    cells = ad.AnnData(adata.X, obs=adata.obs[["batch"]].copy(), var=adata.var)
    SCGPTIntegrator.setup_anndata(cells, batch_key="batch")
    model = SCGPTIntegrator(cells, rng=seed, **given)
    model.train(max_epochs=epochs, accelerator="cpu")
    return model


def ours(adata: ad.AnnData, *, seed: int) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """What `tl.integrate` gives, and its parts."""
    started = time.process_time()
    model = trained(adata, seed=seed, epochs=MAX_EPOCHS)
    found = {OURS: model.get_latent_representation()}
    seconds = {OURS: time.process_time() - started}
    cells = model._cells()
    coordinates = model._coordinates(cells, np.arange(len(cells)))
    codes = cells.codes["batch"]
    found[UNCORRECTED] = model.joint.joined(coordinates, codes, corrected=False)
    found[NETWORK] = model.get_latent_representation(part="network")
    found[START] = trained(adata, seed=seed, epochs=0).get_latent_representation()
    return found, seconds


def compare(adata: ad.AnnData, labels: np.ndarray, seed: int) -> dict[str, dict[str, float]]:
    """Scores of every method on the same cells."""
    found, seconds = ours(adata, seed=seed)
    for name, result in baselines.integrate(adata, "batch", rng=seed).items():
        found[name], seconds[name] = result.embedding, result.seconds
    table = metrics.integration(found, labels, adata.obs["batch"], rng=seed)
    table["mixing"] = [metrics.batch_mixing(found[name], adata.obs["batch"]) for name in table.index]
    return table.to_dict(orient="index")


def ablate(adata: ad.AnnData, labels: np.ndarray, seed: int) -> dict[str, dict[str, float]]:
    """The network alone, and the whole, with one part left out at a time."""
    found = {}
    for name, given in ABLATIONS.items():
        model = trained(adata, seed=seed, epochs=MAX_EPOCHS, **given)
        found[name] = model.get_latent_representation()
        found[f"{name}, network alone"] = model.get_latent_representation(part="network")
    return metrics.integration(found, labels, adata.obs["batch"], rng=seed).to_dict(orient="index")


def cost(adata: ad.AnnData, labels: np.ndarray, seed: int) -> dict[str, dict[str, float]]:
    """CPU seconds of an epoch, and scores, with zeros and everything trained, and without."""
    found, seconds = {}, {}
    rows = np.sort(np.random.default_rng([seed, 4]).permutation(adata.n_obs)[:N_COST])
    adata, labels = adata[rows].copy(), labels[rows]
    for name, zeros, freeze in ((WHOLE, True, ()), (LIGHT, False, ("encoder",))):
        model = trained(adata, seed=seed, epochs=0, include_zeros=zeros, max_length=1200)
        model._cells()
        started = time.process_time()
        model.joint = None
        model.train(max_epochs=1, accelerator="cpu", freeze=freeze, keep_best=False, datasplitter_kwargs={
            "train_length": None, "external_indexing": [np.arange(len(adata))]})  # fmt: skip
        seconds[name] = time.process_time() - started
        found[name] = model.get_latent_representation(part="network")
    table = metrics.integration(found, labels, adata.obs["batch"], rng=seed)
    table["seconds"] = pd.Series(seconds)
    return table.to_dict(orient="index")


TASKS = {"compare": compare, "ablate": ablate, "cost": cost}


def _kept(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _interval(values: np.ndarray) -> str:
    draws = np.random.default_rng(0).integers(len(values), size=(2000, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), [0.025, 0.975])
    return f"{values.mean():+.3f} ({low:+.3f} to {high:+.3f})"


def tables(kept: dict[str, Any]) -> list[Bar]:
    """Print what was measured; the bars."""
    bars, good = [], 0
    for task in TASKS:
        runs = {key: rows for key, rows in kept.items() if key.startswith(f"{task}|")}
        for name in dict.fromkeys(key.split("|")[1] for key in runs):
            frames = [pd.DataFrame.from_dict(runs[key], orient="index") for key in runs if key.split("|")[1] == name]
            mean = sum(frames) / len(frames)
            rows = [(method, *(round(float(x), 3) for x in mean.loc[method])) for method in mean.index]
            print_table(f"{task}: {name}, {len(frames)} seeds", ("method", *mean.columns), rows)
            if task == "compare":
                overall = pd.DataFrame([frame["overall"] for frame in frames])
                best = overall[list(RIVALS)].mean().idxmax()
                difference = (overall[OURS] - overall[best]).to_numpy()
                start = (overall[OURS] - overall["pca"]).to_numpy()
                print(f"  {OURS} less {best}: {_interval(difference)}; less PCA: {_interval(start)}")
                spread = 1.96 * difference.std(ddof=1) / np.sqrt(len(difference)) if len(difference) > 1 else 0.0
                good += difference.mean() + spread >= 0
                bars.append(Bar(f"{name}: not below the uncorrected components", float(start.mean()), -0.005))
            if task == "cost":
                ratio = float(np.mean([x.loc[LIGHT, "seconds"] / x.loc[WHOLE, "seconds"] for x in frames]))
                loss = float(mean.loc[WHOLE, "avg_bio"] - mean.loc[LIGHT, "avg_bio"])
                bars.append(
                    Bar(f"{name}: epoch without zeros, encoder frozen, in the whole one", ratio, 0.5, at_least=False)
                )
                bars.append(Bar(f"{name}: AvgBIO that it loses", loss, 0.02, at_least=False))
    n_sets = len({key.split("|")[1] for key in kept if key.startswith("compare|")})
    if n_sets:
        bars.append(Bar(f"sets (of {n_sets}) within the interval of the best rival, or above", good, min(3, n_sets)))
    return bars


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.integration", description=__doc__)
    parser.add_argument("--data", type=Path, default=data_folder())
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tasks", nargs="*", choices=list(TASKS), default=["compare"])
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    single_thread()
    os.environ.setdefault("TQDM_DISABLE", "1")
    warnings.simplefilter("ignore")
    for seed in range(args.seeds):
        for task in args.tasks:
            for name in args.sets:
                key = f"{task}|{name}|{seed}"
                if key in _kept(args.out):
                    continue
                started = time.monotonic()
                with settings.override(progress_bar=False), quiet(*LOUD, level=logging.ERROR):
                    rows = TASKS[task](*cells_of(name, args.data, seed), seed)
                kept = {**_kept(args.out), key: rows}  # read again: another process may have written
                args.out.parent.mkdir(exist_ok=True)
                args.out.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
                print(f"{key}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    kept = _kept(args.out)
    return conclude("integration", kept, tables(kept))


if __name__ == "__main__":
    sys.exit(main())
