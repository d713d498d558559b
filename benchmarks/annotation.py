"""Annotation on held-out studies, donors and technologies, beside the simple methods.

    python -m benchmarks.annotation [--data FOLDER] [--splits NAME ...] [--folds N] [--epochs N] [--out FILE]

For each fold the annotator of :func:`scanpy_scgpt.tl.annotate` (the fine-tuned bundled model and the linear classifier
of bins beside it), its two parts alone, the frozen network, and majority, logistic regression on PCA (L2) and on genes
(L1), nearest neighbours in PCA and CellTypist (where installed) name the same cells from one reference. With a tenth
of the labels the network is compared with one from random weights. A label is taken out of the reference, and its cells
must look unknown. Finished folds are kept in the file and not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from scipy.special import softmax

from scanpy_scgpt import baselines, metrics, settings
from scanpy_scgpt._logging import quiet

from ._annotation_splits import FOLDS, REMOVED, SPLITS, Fold, few_labels, fold_of
from ._harness import ROOT, Bar, conclude, print_table

RESULTS = ROOT / "benchmarks" / "results" / "annotation.json"
N_REFERENCE, N_QUERY, TRAIN_LENGTH = 1000, 800, 200  # at most
FEWER = {"blood, study to study": (600, 500)}  # whole transcriptomes: some 850 genes a cell
OURS = "scGPT annotator"
SIMPLE = ("logistic", "logistic_l1", "knn", "majority")
ERROR = 0.1  # of the conformal sets
SHARE, EPOCHS_OF_FEW = 0.1, 10
LOUD = ("scvi", "scanpy_scgpt", "lightning.pytorch")


def train(reference: ad.AnnData, query: ad.AnnData, *, epochs: int, seed: int, from_scratch: bool = False) -> Any:
    """An annotator of a reference, as :func:`scanpy_scgpt.tl.annotate` trains it for a query."""
    from scanpy_scgpt.model import SCGPTAnnotator

    cells = ad.AnnData(reference.X, obs=reference.obs[["label", "group"]].copy(), var=reference.var)
    SCGPTAnnotator.setup_anndata(cells, labels_key="label", batch_key="group")
    model = SCGPTAnnotator(cells, rng=seed, from_scratch=from_scratch)
    model.only_shared(query.var)
    model.train(max_epochs=epochs, accelerator="cpu", datasplitter_kwargs={"train_length": TRAIN_LENGTH})
    return model


def answers(model: Any, query: ad.AnnData) -> dict[str, pd.DataFrame]:
    """Probabilities of the annotator and of its parts."""
    cells = model._cells(query)
    members, _ = model._seen(cells, np.arange(len(cells)))
    parts = {name: softmax(scores, axis=1) for name, scores in members.items()}
    found = {OURS: model._calibration.probabilities(list(members.values())), **parts}
    return {name: pd.DataFrame(x, index=query.obs_names, columns=model.labels_) for name, x in found.items()}


def measured(truth: pd.Series, probabilities: pd.DataFrame, seconds: float) -> dict[str, float]:
    """Macro F1, accuracy, calibration error, seconds."""
    row = metrics.annotation(truth, probabilities.idxmax(axis=1), probabilities=probabilities)
    return {**{name: float(row[name]) for name in ("macro_f1", "accuracy", "calibration_error")}, "seconds": seconds}


def compare(fold: Fold, *, epochs: int, seed: int) -> dict[str, Any]:
    """Every method on one fold."""
    known = fold.query.obs["label"].isin(set(fold.reference.obs["label"])).to_numpy()
    query = Fold(fold.reference, fold.query[known].copy()).query
    truth = query.obs["label"].astype(str)
    rows: dict[str, dict[str, float]] = {}
    started = time.perf_counter()
    model = train(fold.reference, query, epochs=epochs, seed=seed)
    found = answers(model, query)
    seconds = time.perf_counter() - started
    rows |= {name: measured(truth, x, seconds) for name, x in found.items()}
    started = time.perf_counter()
    frozen = answers(train(fold.reference, query, epochs=0, seed=seed), query)
    seconds = time.perf_counter() - started
    rows["frozen network"] = measured(truth, frozen["network"], seconds)
    rows["frozen annotator"] = measured(truth, frozen[OURS], seconds)
    for name, answer in baselines.annotate(fold.reference, query, "label", rng=seed).items():
        rows[name] = measured(truth, answer.probabilities, answer.seconds)
    sets = model.assess(query, target_error=ERROR).sets
    conformal = metrics.prediction_sets(truth, sets)
    return {
        "rows": rows,
        "n_reference": fold.reference.n_obs,
        "n_query": int(known.sum()),
        "n_labels": int(truth.nunique()),
        "coverage": float(conformal["coverage"]),
        "set_size": float(conformal["mean_size"]),
        "weights": model._calibration.weights.tolist(),
        "temperature": model._calibration.temperature,
    }


def with_few(fold: Fold, *, seed: int) -> dict[str, float]:
    """Macro F1 with a tenth of the labels: pretrained, from scratch, and the simple methods."""
    reference = few_labels(fold.reference, SHARE, seed)
    query = fold.query[fold.query.obs["label"].isin(set(reference.obs["label"])).to_numpy()].copy()
    truth = query.obs["label"].astype(str)
    found = {}
    for name, scratch in (("pretrained", False), ("from scratch", True)):
        answer = answers(train(reference, query, epochs=EPOCHS_OF_FEW, seed=seed, from_scratch=scratch), query)
        found[f"network, {name}"] = answer["network"]
        found.setdefault(OURS, answer[OURS])
    for name, answer in baselines.annotate(reference, query, "label", methods=SIMPLE, rng=seed).items():
        found[name] = answer.probabilities
    return {name: float(metrics.annotation(truth, x.idxmax(axis=1))["macro_f1"]) for name, x in found.items()}


def unknown(fold: Fold, removed: str, *, epochs: int, seed: int) -> dict[str, float]:
    """How well cells of a label that the reference lacks stand out; nothing where the query has none of them."""
    is_new = (fold.query.obs["label"].astype(str) == removed).to_numpy()
    if is_new.all() or not is_new.any():
        return {}
    reference = fold.reference[(fold.reference.obs["label"].astype(str) != removed).to_numpy()].copy()
    model = train(reference, fold.query, epochs=epochs, seed=seed)
    assessed = model.assess(fold.query)
    scores = {
        "doubt": assessed.doubt.to_numpy(),
        "1 - confidence": 1 - assessed.probabilities.to_numpy().max(axis=1),
        "distance": assessed.distance.to_numpy(),
    }
    return {name: float(metrics.unknown_detection(is_new, x)["auroc"]) for name, x in scores.items()}


def run(args: argparse.Namespace) -> dict[str, Any]:
    """All folds that are not in the file yet."""
    done = json.loads(args.out.read_text()) if args.out.is_file() else {}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for split in args.splits:
        for i in range(args.folds):
            key = f"{split}/{i}"
            entry = done.setdefault(key, {})
            n_reference, n_query = FEWER.get(split, (N_REFERENCE, N_QUERY))
            fold = fold_of(split, args.data, i, n_reference=n_reference, n_query=n_query)
            tasks = {
                "compare": lambda fold=fold, i=i: compare(fold, epochs=args.epochs, seed=i),
                "few": lambda fold=fold, i=i: with_few(fold, seed=i),
                "unknown": lambda fold=fold, i=i, split=split: unknown(
                    fold, REMOVED[split], epochs=args.epochs, seed=i
                ),
            }
            for name in set(args.tasks) - set(entry):
                started = time.perf_counter()
                entry[name] = tasks[name]()
                args.out.write_text(json.dumps(done, indent=1) + "\n")
                print(f"{key} {name}: {time.perf_counter() - started:.0f} s {_short(entry[name])}", flush=True)
    return done


def _short(found: Mapping[str, Any]) -> str:
    rows = {name: row["macro_f1"] for name, row in found["rows"].items()} if "rows" in found else found
    return ", ".join(f"{name} {value:.3f}" for name, value in rows.items())


def _mean(values: list[float]) -> str:
    row = metrics.paired_difference(values, np.zeros(len(values)))
    return f"{row['difference']:.3f} ({row['low']:.3f} to {row['high']:.3f})"


def report(done: Mapping[str, Any], splits: list[str]) -> list[Bar]:
    """Print the tables; the bars."""
    bars = []
    for split in splits:
        folds = [x["compare"] for key, x in done.items() if key.startswith(f"{split}/") and "compare" in x]
        if len(folds) > 1:
            bars += _report_split(split, folds)
    few = [x["few"] for x in done.values() if "few" in x]
    if few:
        rows = [[name, _mean([x[name] for x in few])] for name in few[0]]
        print_table(f"a tenth of the labels, {len(few)} folds", ["method", "macro F1 (95 %)"], rows)
        gain = metrics.paired_difference(
            [x["network, pretrained"] for x in few], [x["network, from scratch"] for x in few]
        )
        bars.append(Bar("a tenth of the labels: pretrained above scratch, low end", float(gain["low"]), 0.0))
    found = {key: x["unknown"] for key, x in done.items() if x.get("unknown")}
    if found:
        rows = [[key, *(f"{x[name]:.3f}" for name in next(iter(found.values())))] for key, x in found.items()]
        print_table("AUROC of cells whose label the reference lacks", ["fold", *next(iter(found.values()))], rows)
        for split in splits:
            scores = [x["doubt"] for key, x in found.items() if key.startswith(f"{split}/")]
            bars += [Bar(f"{split}: AUROC of unknown cells", float(np.mean(scores)), 0.85)] if scores else []
    return bars


def _report_split(split: str, folds: list[dict[str, Any]]) -> list[Bar]:
    of = {name: [fold["rows"][name] for fold in folds] for name in folds[0]["rows"]}
    rows = [
        [name, *(_mean([row[x] for row in found]) for x in ("macro_f1", "accuracy", "calibration_error")),
         f"{np.median([row['seconds'] for row in found]):.1f}"]
        for name, found in of.items()
    ]  # fmt: skip
    print_table(
        f"{split}: {len(folds)} folds", ["method", "macro F1 (95 %)", "accuracy", "calibration error", "s"], rows
    )
    means = {name: np.mean([row["macro_f1"] for row in found]) for name, found in of.items()}
    best = max((name for name in of if name in {*SIMPLE, "celltypist"}), key=means.get)
    ours, theirs = ([row["macro_f1"] for row in of[name]] for name in (OURS, best))
    gain = metrics.paired_difference(ours, theirs)
    coverage = float(np.mean([fold["coverage"] for fold in folds]))
    print(f"  {OURS} - {best}: {gain['difference']:+.3f} ({gain['low']:+.3f} to {gain['high']:+.3f})")
    print(f"  coverage of label sets at error {ERROR}: {coverage:.3f}, labels in a set {folds[0]['set_size']:.2f}")
    error = float(np.mean([row["calibration_error"] for row in of[OURS]]))
    return [
        Bar(f"{split}: macro F1 above {best}", float(gain["difference"]), 0.0),
        Bar(f"{split}: calibration error", error, 0.05, at_least=False),
        Bar(f"{split}: coverage off by", abs(coverage - (1 - ERROR)), 0.02, at_least=False),
    ]


def markdown(done: Mapping[str, Any], splits: list[str]) -> str:
    """Macro F1 of every method and split as a table for the documentation."""
    folds = {
        split: [x["compare"]["rows"] for key, x in done.items() if key.startswith(f"{split}/") and "compare" in x]
        for split in splits
    }
    folds = {split: found for split, found in folds.items() if found}
    lines = ["| method | " + " | ".join(folds) + " |", "|---|" + "---|" * len(folds)]
    for name in next(iter(folds.values()))[0]:
        cells = [_mean([rows[name]["macro_f1"] for rows in found]) for found in folds.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("SCANPY_SCGPT_DATA", "../shared/data")))
    parser.add_argument("--splits", nargs="+", default=list(SPLITS), choices=list(SPLITS))
    parser.add_argument("--tasks", nargs="+", default=["compare", "few", "unknown"])
    parser.add_argument("--folds", type=int, default=FOLDS)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--markdown", action="store_true", help="print the table of the documentation, run nothing")
    args = parser.parse_args()
    if args.markdown:
        print(markdown(json.loads(args.out.read_text()), args.splits))
        return 0
    with settings.override(verbosity="error"), warnings.catch_warnings(), quiet(*LOUD, level=40):
        warnings.simplefilter("ignore")
        done = run(args)
    return conclude("annotation", done, report(done, args.splits))


if __name__ == "__main__":
    sys.exit(main())
