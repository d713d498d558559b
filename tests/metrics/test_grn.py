"""Networks against known edges, rankings against lists."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import hypergeom
from sklearn.metrics import average_precision_score, roc_auc_score

from scanpy_scgpt import metrics

SOURCES, TARGETS = [f"T{i}" for i in range(12)], [f"g{j}" for j in range(80)]


@pytest.fixture(scope="module")
def network():
    """All pairs, and known ones: a tenth."""
    rng = np.random.default_rng(0)
    pairs = pd.MultiIndex.from_product([SOURCES, [*TARGETS, *SOURCES]], names=["source", "target"]).to_frame(
        index=False
    )
    pairs = pairs[pairs["source"] != pairs["target"]].reset_index(drop=True)
    pairs["true"] = rng.random(len(pairs)) < 0.1
    pairs["weight"] = rng.normal(size=len(pairs)) + pairs["true"]
    return pairs


def test_against_scikit_learn(network):
    row = metrics.grn(network, network[network["true"]]).iloc[0]
    assert row["auroc"] == pytest.approx(roc_auc_score(network["true"], network["weight"]))
    assert row["auprc"] == pytest.approx(average_precision_score(network["true"], network["weight"]))
    n = int(network["true"].sum())
    early = network.nlargest(n, "weight")["true"].mean()
    assert row["early_precision"] == pytest.approx(early)
    assert row["early_precision_ratio"] == pytest.approx(early / network["true"].mean())
    assert (row["n_sources"], row["n_edges"], row["n_candidates"]) == (12, n, len(network))
    assert row["early_precision_ratio_low"] < row["early_precision_ratio"] < row["early_precision_ratio_high"]
    best = network.sort_values("weight", ascending=False).groupby("source").head(20)
    assert row["overlap_20"] == pytest.approx(best["true"].sum() / 12)


def test_perfect_random_and_equal_weights(network):
    known = network[network["true"]]
    table = metrics.grn(
        {
            "perfect": network.assign(weight=network["true"].astype(float)),
            "equal": network.assign(weight=1.0),
            "reversed": network.assign(weight=-network["weight"]),
            "absolute": network.assign(weight=-network["true"].astype(float)),
        },
        known,
    )
    assert table.loc["perfect", "early_precision"] == table.loc["perfect", "auroc"] == pytest.approx(1)
    assert table.loc["equal", "early_precision_ratio"] == pytest.approx(1)
    assert table.loc["equal", "auroc"] == pytest.approx(0.5)
    assert table.loc["reversed", "auroc"] < 0.4
    again = metrics.grn(network.assign(weight=-1.0 * network["true"]), known, absolute=True)
    assert again["auroc"].iloc[0] == pytest.approx(1)


def test_pairs_that_are_missing_come_last(network):
    half = network.nlargest(len(network) // 2, "weight")
    scores = network["weight"].where(network.index.isin(half.index), -100)
    found = metrics.grn(half, network[network["true"]], genes=[*TARGETS, *SOURCES])
    assert found["auroc"].iloc[0] == pytest.approx(roc_auc_score(network["true"], scores))


def test_intervals_cover_the_truth_of_chance(network):
    rng, covered = np.random.default_rng(1), []
    for seed in range(40):
        table = network.assign(weight=rng.random(len(network)))
        row = metrics.grn(table, network[network["true"]], rng=seed).iloc[0]
        covered.append(row["auroc_low"] <= 0.5 <= row["auroc_high"])
    assert np.mean(covered) > 0.75


def test_what_is_refused(network):
    with pytest.raises(KeyError, match="edges has no column 'weight'"):
        metrics.grn(network[["source", "target"]], network)
    with pytest.raises(KeyError, match="reference has no column 'source'"):
        metrics.grn(network, network.rename(columns={"source": "tf"}))
    with pytest.raises(ValueError, match="No source of the tables .T0, T1, T10"):
        metrics.grn(network, network.assign(source="other"))


def test_overlap_is_hypergeometric():
    ranked = [f"g{i}" for i in range(100)]
    targets = ["g0", "g1", "g5", "g50", "unseen"]
    table = metrics.target_overlap(ranked, targets, n_top=[10, 1000])
    row = table.loc[10]
    assert (row["n_hits"], row["n_targets"], row["n_genes"]) == (3, 4, 100)
    assert row["p"] == pytest.approx(hypergeom.sf(2, 100, 4, 10))
    assert row["expected"] == pytest.approx(0.4)
    assert row["fold"] == pytest.approx(0.3 / 0.04)
    assert row["hits"] == "g0, g1, g5"
    assert table.loc[1000, "p"] == 1
    wider = metrics.target_overlap(ranked[:20], targets, genes=ranked, n_top=[10]).loc[10]
    assert wider["p"] == row["p"]


def test_overlap_refuses():
    with pytest.raises(ValueError, match="'a' more than once"):
        metrics.target_overlap(["a", "b", "a"], ["b"])
    with pytest.raises(ValueError, match="None of the 1 targets"):
        metrics.target_overlap(["A", "B"], ["a"])


def test_what_no_comparison_can_be_made_of(network):
    known = network[network["true"]]
    with pytest.raises(ValueError, match="edges holds no network"):
        metrics.grn({}, known)
    with pytest.raises(ValueError, match="confidence=95: a share between 0 and 1"):
        metrics.grn(network, known, confidence=95)
    with pytest.raises(ValueError, match="edges: 3 edges have no weight"):
        metrics.grn(network.assign(weight=network["weight"].where(network.index > 2)), known)
