"""Several modalities: mosaics made by hiding one, and how well what was hidden is predicted, beside other methods.

    python -m benchmarks.multimodal [--data FOLDER] [--seeds N] [--tasks NAME ...] [--out FILE]

`impute` hides the proteins of half of the cells and predicts them; `mosaic` integrates such cells together; `multiome`
does so with hidden chromatin and lays the two halves of cells over one another (FOSCTTM). Labels of blood cells are
gates on all proteins, those that were hidden included; those of A549 cells are the hours of treatment. Finished runs
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
from typing import Any

import mudata as md
import numpy as np
import pandas as pd
from scipy import sparse

from scanpy_scgpt import baselines, metrics, settings, tl
from scanpy_scgpt._logging import quiet
from scanpy_scgpt._optional import is_installed

from ._cells import data_folder
from ._harness import ROOT, Bar, conclude, print_table, single_thread

RESULTS = ROOT / "benchmarks" / "results" / "multimodal.json"
N_CELLS = 600  # at most, for each seed
LOUD = ("scvi", "scanpy_scgpt", "lightning.pytorch", "mofapy2")
OURS, NO_NETWORK, TRAINED = "scGPT", "scGPT, network left out", "scGPT, one epoch"
GLUE = ("glue",) if is_installed("scglue") else ()  # not for chromatin: half an hour a seed
FILES = {"impute": ("cite_pbmc10k_10x", "cite_mimitou2019_500"), "mosaic": ("cite_pbmc10k_10x",)}
NO_ANTIBODY = ("IgG", "isotype", "mouse", "rat")  # controls: nothing to predict
GATES = {
    "B cell": (("CD19",), ("CD3",)),
    "CD8 T cell": (("CD3", "CD8a"), ("CD19", "CD14")),
    "CD4 T cell": (("CD3", "CD4"), ("CD19", "CD14", "CD8a")),
    "NK cell": (("CD56",), ("CD3", "CD19", "CD14")),
    "monocyte": (("CD14",), ("CD3", "CD19")),
}


def dense(x: Any) -> np.ndarray:
    """A matrix as an array."""
    return np.asarray(x.toarray() if sparse.issparse(x) else x, dtype=np.float32)


def mosaic_of(path: Path, modality: str, seed: int) -> tuple[md.MuData, md.MuData]:
    """Cells of which half lack a modality, and the same cells with all."""
    whole = md.read_h5mu(path)
    rng = np.random.default_rng([seed, 5])
    rows = np.sort(rng.permutation(whole.n_obs)[:N_CELLS])
    whole = whole[rows].copy()
    hidden = rng.permutation(len(rows)) < len(rows) // 2
    kept = {name: whole.mod[name].copy() for name in ("rna", modality)}
    kept[modality] = kept[modality][~hidden].copy()
    return md.MuData(kept), whole


def gated(proteins: pd.DataFrame) -> np.ndarray:
    """Cell types read from proteins; None for cells of no gate."""
    high = proteins > proteins.quantile(0.05) + (proteins.quantile(0.98) - proteins.quantile(0.05)) / 2
    labels = np.full(len(proteins), None, dtype=object)
    for name, (needed, not_there) in GATES.items():
        own = high[list(needed)].all(axis=1) & ~high[list(not_there)].any(axis=1)
        labels[own.to_numpy()] = name
    return labels


def impute(data: Path, seed: int) -> dict[str, dict[str, float]]:
    """Correlation over the antibodies, in the cells whose proteins were hidden."""
    rows: dict[str, dict[str, float]] = {}
    for file in FILES["impute"]:
        mosaic, whole = mosaic_of(data / f"{file}.h5mu", "prot", seed)
        truth = pd.DataFrame(
            np.log1p(dense(whole["prot"].X)), index=whole["prot"].obs_names, columns=whole["prot"].var_names
        ).loc[mosaic.obs_names]
        hidden = ~mosaic.obs_names.isin(mosaic["prot"].obs_names)
        real = [name for name in truth if not any(word.lower() in name.lower() for word in NO_ANTIBODY)]
        found = baselines.impute_modality(mosaic, methods=("mean", "neighbours", "ridge", "totalvi"), rng=seed)
        intervals = {}
        for name, given in ((OURS, {}), (NO_NETWORK, {"network_weight": 0}), (TRAINED, {"max_epochs": 1})):
            tl.impute_modality(mosaic, "prot", key_added="x", rng=seed, device="cpu", min_genes=100, **given)
            found[name] = mosaic.obsm["x"].copy()
            intervals[name] = mosaic.obsm["x_lower"].copy(), mosaic.obsm["x_upper"].copy()
        for name, table in found.items():
            ends = zip(("lower", "upper"), intervals.get(name, ()), strict=False)
            more = {end: x.loc[hidden, real] for end, x in ends}
            score = metrics.imputation(truth.loc[hidden, real], table.loc[hidden, real], **more)
            means = score.drop(columns=["spearman"]).mean().to_dict() | {"spearman": score["spearman"].mean()}
            rows[f"{file}: {name}"] = {key: float(np.nan_to_num(value)) for key, value in means.items()}
    return rows


def mosaic(data: Path, seed: int) -> dict[str, dict[str, float]]:
    """Cells with and without proteins in one space."""
    cells, whole = mosaic_of(data / f"{FILES['mosaic'][0]}.h5mu", "prot", seed)
    proteins = pd.DataFrame(
        np.log1p(dense(whole["prot"].X)), index=whole["prot"].obs_names, columns=whole["prot"].var_names
    ).loc[cells.obs_names]
    return _scored(cells, gated(proteins), ("pca", "harmony", "totalvi", "mofa", "scmomat", *GLUE), seed)


def multiome(data: Path, seed: int) -> dict[str, dict[str, float]]:
    """Cells with and without chromatin in one space."""
    cells, whole = mosaic_of(data / "multiome_a549_scicar2018.h5mu", "atac", seed)
    hours = whole["rna"].obs["time"].astype(str).loc[cells.obs_names].to_numpy(dtype=object)
    rows = _scored(cells, hours, ("pca", "harmony", "multivi", "mofa", "scmomat"), seed, min_genes=100)
    rows[OURS]["foscttm"] = _foscttm(whole, seed)
    return rows


def _scored(
    cells: md.MuData, labels: np.ndarray, rivals: tuple[str, ...], seed: int, min_genes: int = 200
) -> dict[str, dict[str, float]]:
    given = {"rng": seed, "device": "cpu", "min_genes": min_genes}
    started = time.process_time()
    tl.integrate(cells, max_epochs=0, **given)
    found, seconds = {OURS: cells.obsm["X_scgpt_integrated"]}, {OURS: time.process_time() - started}
    tl.integrate(cells, max_epochs=0, correct=True, key_added="corrected", **given)
    found["scGPT, corrected"] = cells.obsm["corrected"]
    tl.integrate(cells, max_epochs=0, network_weight=0, key_added="plain", **given)
    found[NO_NETWORK] = cells.obsm["plain"]
    for name in rivals:
        started = time.process_time()
        found[name] = baselines.integrate_modalities(cells, methods=[name], rng=seed)[name].embedding
        seconds[name] = time.process_time() - started
    has = cells.obs["scgpt_modalities"].astype(str)
    table = metrics.integration(found, labels, has, rng=seed)
    table["mixing"] = [metrics.modality_mixing(found[name], has) for name in table.index]
    table["seconds"] = pd.Series(seconds)
    return table.to_dict(orient="index")


def _foscttm(whole: md.MuData, seed: int) -> float:
    """Cells that the model has not seen, as RNA alone and as chromatin alone."""
    from scanpy_scgpt.model import SCGPTMulti

    rng = np.random.default_rng([seed, 6])
    new = rng.permutation(whole.n_obs) < whole.n_obs // 3
    taught = md.MuData({name: whole.mod[name][~new].copy() for name in ("rna", "atac")})
    SCGPTMulti.setup_mudata(taught)
    model = SCGPTMulti(taught, rng=seed, min_genes=100)
    model.train(max_epochs=0, accelerator="cpu")
    halves = []
    for name in ("rna", "atac"):
        half = md.MuData({name: whole.mod[name][new].copy()})
        halves.append(SCGPTMulti.load_query_data(half, model).get_latent_representation())
    return metrics.foscttm(*halves)


TASKS = {"impute": impute, "mosaic": mosaic, "multiome": multiome}


def _kept(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _interval(values: np.ndarray) -> str:
    draws = np.random.default_rng(0).integers(len(values), size=(2000, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), [0.025, 0.975])
    return f"{values.mean():+.3f} ({low:+.3f} to {high:+.3f})"


def tables(kept: dict[str, Any]) -> list[Bar]:
    """Print what was measured; the bars."""
    bars = []
    for task in TASKS:
        frames = [pd.DataFrame.from_dict(kept[key], orient="index") for key in kept if key.startswith(f"{task}|")]
        if not frames:
            continue
        mean = pd.concat(frames).groupby(level=0, sort=False).mean()  # a method may lack a seed
        rows = [(name, *(round(float(x), 3) for x in mean.loc[name])) for name in mean.index]
        print_table(f"{task}, {len(frames)} seeds", ("method", *mean.columns), rows)
        if task == "impute":
            for file in FILES["impute"]:
                for rival in ("neighbours", "totalvi", "ridge"):
                    less = [x.loc[f"{file}: {OURS}", "pearson"] - x.loc[f"{file}: {rival}", "pearson"] for x in frames]
                    print(f"  {file}: {OURS} less {rival}: {_interval(np.asarray(less))}")
                    if rival != "ridge":
                        bars.append(Bar(f"{file}: correlation less that of {rival}", float(np.mean(less)), 0.0))
        else:
            for rival in mean.index:
                both = [x for x in frames if rival in x.index]
                less = np.asarray([x.loc[OURS, "avg_batch"] - x.loc[rival, "avg_batch"] for x in both])
                overall = np.asarray([x.loc[OURS, "overall"] - x.loc[rival, "overall"] for x in both])
                print(f"  {OURS} less {rival}: AvgBATCH {_interval(less)}, overall {_interval(overall)}")
                if rival == "scmomat":
                    bars.append(Bar(f"{task}: AvgBATCH less that of scMoMaT", float(less.mean()), 0.0))
    return bars


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.multimodal", description=__doc__)
    parser.add_argument("--data", type=Path, default=data_folder())
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tasks", nargs="*", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    single_thread()
    os.environ.setdefault("TQDM_DISABLE", "1")
    warnings.simplefilter("ignore")
    md.set_options(pull_on_update=False)
    for seed in range(args.seeds):
        for task in args.tasks:
            key = f"{task}|{seed}"
            if key in _kept(args.out):
                continue
            started = time.monotonic()
            with settings.override(progress_bar=False), quiet(*LOUD, level=logging.ERROR):
                rows = TASKS[task](args.data, seed)
            kept = {**_kept(args.out), key: rows}  # read again: another process may have written
            args.out.parent.mkdir(exist_ok=True)
            args.out.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
            print(f"{key}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    kept = _kept(args.out)
    return conclude("multimodal", kept, tables(kept))


if __name__ == "__main__":
    sys.exit(main())
