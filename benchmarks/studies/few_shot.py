"""Few labels: fine-tune a pretrained network, the same from scratch, and one with the gene table alone.

    python -m benchmarks.studies.few_shot [--data FOLDER] [--seeds N] [--steps N]

Cells of six donors with 10, 50 or 100 % of their labels train a head for the cell type and the whole network below it;
two other donors, drawn by the seed, are predicted. The three arms have the same batches, learning rate, most steps and
rule to stop early, and differ in their first weights: pretrained on the corpus of the studies; what that pretraining
started from (co-expression of that corpus as gene table, layers that are random and quiet); all random, and not quiet.
Beside them logistic regression and nearest neighbours on PCA of all cells of the eight donors (no labels are used
there).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from anndata import AnnData
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.studies._common import DIRECTIONS, F1, Kept, Setup, read, run, started, trained, whole_corpus
from benchmarks.studies._tables import Arms
from scanpy_scgpt import baselines, models
from scanpy_scgpt.data import batches_by_length, collate_digits
from scanpy_scgpt.io import Checkpoint, load_component
from scanpy_scgpt.model import CellTokens
from scanpy_scgpt.nn import CellTransformer, ClassHead
from scanpy_scgpt.tokenizer import Tokens

TARGET = "pbmc_kang2018_ctrl_8donors.h5ad"
TEST_DONORS = 2
SHARES = (10, 50, 100)  # % of the labels
PRETRAINED, TABLE, SCRATCH = "pretrained", "gene table only", "from scratch"
LOGISTIC, NEIGHBOURS = "logistic regression on PCA", "nearest neighbours on PCA"
TUNING = {
    "lr": 1e-3,
    "weight_decay": 1e-2,
    "batch_size": 48,
    "most_steps": 200,
    "check_every": 20,
    "patience": 3,
    "validation_share": 0.2,  # of the labelled cells: they say when to stop
    "most_validation": 300,
}
_TOKENS = 16_384  # of a batch that is predicted


class Classifier(nn.Module):
    """A transformer and a head on its vector at `<cls>`."""

    def __init__(self, checkpoint: Checkpoint, *, n_classes: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.transformer = CellTransformer(checkpoint.transformer)
            self.head = ClassHead(d_model=checkpoint.transformer.d_model, n_classes=n_classes)
        load_component(self.transformer, checkpoint, "transformer")
        self.vocab, self.cls_value = checkpoint.vocab, checkpoint.tokenizer.cls_value

    def forward(self, tokens: Tokens, cells: np.ndarray) -> Tensor:
        """Scores of some cells, `(n_cells, n_classes)`."""
        batch = collate_digits(tokens, cells, pad_id=self.vocab.pad_id, cls_id=self.vocab.cls_id, cls_digit=0)
        values = batch.digits.float()
        values[:, 0] = self.cls_value
        return self.head(self.transformer(batch.gene_ids.long(), values, batch.padding)[:, 0])

    @torch.inference_mode()
    def predict(self, tokens: Tokens, cells: np.ndarray) -> Tensor:
        """:meth:`forward` of many cells, in the order given."""
        lengths = tokens.indptr[cells + 1] - tokens.indptr[cells]
        scores = torch.empty(len(cells), self.head.out.out_features)
        for positions in batches_by_length(lengths, max_tokens=_TOKENS):
            scores[torch.from_numpy(positions)] = self(tokens, cells[positions])
        return scores


@dataclass(frozen=True)
class Task:
    """Donors to learn from and to predict.

    `classes` (n_cells,) int64; `training`, `validation`, `test` positions of cells.
    """

    tokens: Tokens
    classes: Tensor
    training: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def batches(cells: np.ndarray, size: int, *, seed: int) -> Iterator[np.ndarray]:
    """Random batches, pass after pass."""
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(cells)
        yield from np.array_split(order, max(len(order) // size, 1))


def fine_tune(network: Classifier, task: Task, *, seed: int) -> Classifier:
    """Train until the loss on the validation cells has not fallen for a while; the best weights are kept."""
    optimiser = torch.optim.AdamW(network.parameters(), lr=TUNING["lr"], weight_decay=TUNING["weight_decay"])
    stream = batches(task.training, TUNING["batch_size"], seed=seed)
    best, best_loss, waited = deepcopy(network.state_dict()), np.inf, 0
    for step in range(1, TUNING["most_steps"] + 1):
        cells = next(stream)
        optimiser.zero_grad()
        F.cross_entropy(network(task.tokens, cells), task.classes[cells]).backward()
        optimiser.step()
        if step % TUNING["check_every"] == 0:
            scores = network.predict(task.tokens, task.validation)
            loss = float(F.cross_entropy(scores, task.classes[task.validation]))
            waited = 0 if loss < best_loss else waited + 1
            if loss < best_loss:
                best, best_loss = deepcopy(network.state_dict()), loss
            if waited == TUNING["patience"]:
                break
    network.load_state_dict(best)
    return network


def labelled(setup: Setup) -> AnnData:
    """Cells with a label, of all donors, with PCA."""
    adata = read(setup.data / TARGET)
    adata = adata[adata.obs["cell_type"].astype(str) != "unlabelled"].copy()
    baselines.embed_pca(adata)
    return adata


def tokens_of(adata: AnnData, checkpoint: Checkpoint, setup: Setup) -> Tokens:
    """All cells, as long as they were in pretraining."""
    config = replace(checkpoint.tokenizer, max_length=setup.network["max_length"])
    return Tokens.concatenate(list(CellTokens(adata, checkpoint, config)))


def split(adata: AnnData, *, share: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the cells with a label to learn from, and of those of the test donors; less is part of more."""
    rng = np.random.default_rng(seed)
    donors = adata.obs["batch"].astype(str).to_numpy()
    is_test = np.isin(donors, rng.permutation(np.unique(donors))[:TEST_DONORS])
    others = rng.permutation(np.flatnonzero(~is_test))
    return others[: round(len(others) * share / 100)], np.flatnonzero(is_test)


def scored(truth: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Macro F1 over the labels of the test donors, and accuracy."""
    macro = f1_score(truth, predicted, average="macro", labels=np.unique(truth), zero_division=0.0)
    return {F1: macro, "accuracy": accuracy_score(truth, predicted)}


def one(setup: Setup, adata: AnnData, networks: dict[str, Checkpoint], *, share: int, seed: int) -> Arms:
    """All methods with the same labels."""
    names, classes = np.unique(adata.obs["cell_type"].astype(str).to_numpy(), return_inverse=True)
    known, test = split(adata, share=share, seed=seed)
    n_validation = min(max(int(len(known) * TUNING["validation_share"]), 1), TUNING["most_validation"])
    tokens = tokens_of(adata, networks[PRETRAINED], setup)
    task = Task(tokens, torch.from_numpy(classes), known[n_validation:], known[:n_validation], test)
    found = {}
    for arm, checkpoint in networks.items():
        network = fine_tune(Classifier(checkpoint, n_classes=len(names), seed=seed), task, seed=seed)
        found[arm] = scored(classes[test], network.predict(tokens, test).argmax(dim=1).numpy())
    vectors = adata.obsm["X_pca_baseline"]
    rivals = {
        LOGISTIC: make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)),
        NEIGHBOURS: KNeighborsClassifier(min(10, len(known))),
    }
    for arm, rival in rivals.items():
        found[arm] = scored(classes[test], rival.fit(vectors[known], classes[known]).predict(vectors[test]))
    return found


def study(setup: Setup) -> dict[str, Any]:
    """All runs, or those that are missing."""
    store, adata, kept = whole_corpus(setup), labelled(setup), Kept(setup, tuning=TUNING, test_donors=TEST_DONORS)
    result = {}
    for seed in range(setup.seeds):

        def networks(seed: int = seed) -> dict[str, Checkpoint]:
            pretrained = trained(setup, store, seed=seed)
            table = started(setup, store, seed=seed, gene_table="coexpression")
            return {PRETRAINED: pretrained, TABLE: table, SCRATCH: models.untrained(pretrained, rng=seed)}

        for share in SHARES:
            kept.once(
                "labels",
                lambda share=share, seed=seed: one(setup, adata, networks(), share=share, seed=seed),
                seed=seed,
                x=share,
            )
        result = kept.result(**described(cells=len(store)))
    return result


def described(*, cells: int) -> dict[str, Any]:
    """What the tables and figures show."""
    rivals = (SCRATCH, TABLE, LOGISTIC, NEIGHBOURS)
    return {
        "cells": cells,
        "axis": "{:.0f} % of the labels",
        "directions": DIRECTIONS,
        "tables": [{"title": "Two donors predicted from the labels of six others", "measures": [F1, "accuracy"]}],
        "comparisons": [[PRETRAINED, rival, F1] for rival in rivals] + [[TABLE, SCRATCH, F1]],
        "figure": {"label": "% of the labels", "panels": [{"measure": F1, "arms": [PRETRAINED, *rivals]}]},
    }


def main() -> int:
    return run(study, "few_shot", __doc__)


if __name__ == "__main__":
    sys.exit(main())
