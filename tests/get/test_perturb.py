"""Predicted effects as cells; the package cell-eval reads the same out of them."""

from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scanpy_scgpt import baselines, get, metrics
from scanpy_scgpt.pp import parse_perturbations

SOME = ["STAT1", "JAK2", "IRF1", "SMAD4", "ATF2", "CD86"]


@pytest.fixture(scope="module")
def case(data_dir):
    cells = ad.read_h5ad(data_dir / "perturb_papalexi2021_thp1.h5ad")
    cells.obs_names_make_unique()
    keep = np.concatenate([np.flatnonzero(cells.obs["perturbation"] == name)[:150] for name in ["control", *SOME]])
    cells = cells[keep].copy()
    found = parse_perturbations(cells.obs["perturbation"], genes=cells.var_names)
    effects = baselines.pseudobulk_effects(cells, found)
    noise = np.random.default_rng(0).normal(size=effects.deltas.shape) * effects.deltas.std(axis=1).to_numpy()[:, None]
    floor = -effects.control
    return cells, found, effects, (effects.deltas + noise).clip(lower=floor, axis=1)


def test_means_are_the_prediction(case):
    cells, _, effects, predicted = case
    made, real = get.cell_eval_pair(cells, predicted, n_cells=80)
    assert made.obs["target"].value_counts()["STAT1"] == 80
    assert real.obs["target"].value_counts()["STAT1"] == 150
    assert made.X.data.min() >= 0
    base = made[made.obs["target"] == "non-targeting"].X
    assert (base != real[real.obs["target"] == "non-targeting"].X).nnz == 0
    np.testing.assert_allclose(np.asarray(base.mean(axis=0)).ravel(), effects.control, atol=1e-5)
    for name in SOME:
        mean = np.asarray(made[made.obs["target"] == name].X.mean(axis=0)).ravel()
        np.testing.assert_allclose(mean, effects.control + predicted.loc[name], atol=1e-4)


def test_cell_eval_agrees(case, tmp_path):
    evaluation = pytest.importorskip("cell_eval")
    cells, found, effects, predicted = case
    ours = metrics.perturbation(effects.deltas, predicted, targets=found.target_table).per_condition.loc["predicted"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        judge = evaluation.MetricsEvaluator(
            *get.cell_eval_pair(cells, predicted), outdir=str(tmp_path / "out"), num_threads=1, skip_de=True
        )
        theirs, _ = judge.compute(profile="anndata", write_csv=False, skip_metrics=["clustering_agreement"])
    theirs = pd.DataFrame(theirs.to_dict(as_series=False)).set_index("perturbation").loc[ours.index]
    np.testing.assert_allclose(theirs["pearson_delta"], ours["pearson_delta"], atol=1e-3)
    n = len(SOME)
    rank = (1 - theirs["discrimination_score_l1"]) * n  # of the own truth, from 0
    np.testing.assert_allclose(1 - rank / (n - 1), ours["discrimination"], atol=1e-6)


def test_bad_input(case):
    cells, _, _, predicted = case
    with pytest.raises(ValueError, match=r"No condition of predicted \('x', ...\) has cells"):
        get.cell_eval_pair(cells, predicted.iloc[:1].set_axis(["x"]))
    with pytest.raises(KeyError, match="predicted has the gene 'NOPE', which is none of adata"):
        get.cell_eval_pair(cells, predicted.assign(NOPE=0.0))
