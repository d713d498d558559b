"""Measures of predicted effects: known cases, the original scores, and two halves of real cells."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from scanpy_scgpt import metrics

GENES = [f"g{i}" for i in range(60)]
CONDITIONS = list("ABCDEF")


def frame(values) -> pd.DataFrame:
    return pd.DataFrame(values, CONDITIONS, GENES)


@pytest.fixture
def truth() -> pd.DataFrame:
    return frame(np.random.default_rng(0).normal(size=(6, 60)))


def test_a_perfect_and_a_missing_prediction(truth):
    scores = metrics.perturbation(truth, {"perfect": truth, "no_change": truth * 0, "against": -truth})
    perfect, nothing, against = (scores.table.loc[name] for name in ("perfect", "no_change", "against"))
    assert perfect.drop(["l2", "mae"]).to_numpy() == pytest.approx(1)
    assert perfect["l2"] == perfect["mae"] == 0
    assert nothing["pearson_delta"] == nothing["pearson_delta_de"] == nothing["variance_ratio"] == 0
    for measure in ("centroid_accuracy", "discrimination", "discrimination_cosine", "de_direction"):
        assert nothing[measure] == pytest.approx(0.5)
    assert nothing["de_overlap"] == pytest.approx(20 / 60)
    assert against["pearson_delta"] == pytest.approx(-1)
    assert against["de_direction"] == 0
    assert against["de_overlap"] == 1
    assert scores.collapsed == ("no_change",)


def test_each_measure_by_hand(truth):
    rng = np.random.default_rng(1)
    predicted, control = truth + frame(rng.normal(size=(6, 60))), pd.Series(rng.random(60) * 4, GENES)
    reference = pd.Series(rng.normal(size=60), GENES)
    scores = metrics.perturbation(
        truth, predicted, control=control, reference=reference, targets={"A": ["g3"]}, n_top=10, n_de=5
    )
    row = scores.per_condition.loc["predicted", "A"]
    t, p = truth.loc["A"], predicted.loc["A"]
    de = t.drop("g3").abs().nlargest(5).index
    top = control.nlargest(10).index
    assert row["pearson_delta"] == pytest.approx(stats.pearsonr(t, p)[0])
    assert row["pearson_perturbed"] == pytest.approx(stats.pearsonr(t - reference, p - reference)[0])
    assert row["pearson_delta_de"] == pytest.approx(stats.pearsonr(t[de], p[de])[0])
    assert row["de_spearman"] == pytest.approx(stats.spearmanr(t[de], p[de])[0])
    assert row["pearson"] == pytest.approx(stats.pearsonr(t + control, p + control)[0])
    assert row["pearson_de"] == pytest.approx(stats.pearsonr((t + control)[de], (p + control)[de])[0])
    assert row["l2"] == pytest.approx(np.linalg.norm((t - p)[top]))
    assert row["mae"] == pytest.approx((t - p).abs().mean())
    assert row["de_direction"] == np.mean(np.sign(t[de]) == np.sign(p[de]))
    assert row["de_overlap"] == len(set(de) & set(p.drop("g3").abs().nlargest(5).index)) / 5
    far = np.linalg.norm(truth - p, axis=1)
    assert row["centroid_accuracy"] == np.mean(far[1:] > far[0])
    near = (truth - p).drop(columns="g3").abs().sum(axis=1).to_numpy()
    assert row["discrimination"] == np.mean(near[1:] > near[0])
    ratio = predicted.var(axis=0).sum() / truth.var(axis=0).sum()
    assert scores.table.loc["predicted", "variance_ratio"] == pytest.approx(ratio)


@pytest.mark.parametrize(
    ("sets", "non_zero", "prefix"), [("de20", False, "metric"), ("de20_non_dropout", True, "metric_non_zero")]
)
def test_scores_of_the_original(fixtures_dir, sets, non_zero, prefix):
    recorded = np.load(fixtures_dir / "perturb.npz")
    names, genes = np.unique(recorded["pert_cat"]), [f"g{i}" for i in range(60)]
    control = pd.Series(recorded["ctrl"].mean(axis=0, dtype=np.float64), genes)
    truth, predicted = (
        pd.DataFrame([recorded[key][recorded["pert_cat"] == name].mean(axis=0) for name in names], names, genes)
        - control
        for key in ("truth", "pred")
    )
    de = {name: [genes[i] for i in recorded[f"{sets}/{name}"]] for name in names}
    found = metrics.perturbation(truth, predicted, control=control, de_genes=de, non_zero=non_zero).table.iloc[0]
    theirs = {"pearson": "pearson", "pearson_de": "pearson_de", "pearson_delta": "pearson_delta"}
    for ours, name in {**theirs, "pearson_delta_de": "pearson_de_delta"}.items():
        assert found[ours] == pytest.approx(float(recorded[f"{prefix}/{name}"]), abs=1e-5)


def test_the_mean_of_training_scores_nothing_against_itself(truth):
    """What every perturbation does is no knowledge of one; the control as reference rewards it."""
    shift = 5 * np.random.default_rng(2).normal(size=60)
    shifted = truth + shift
    scores = metrics.perturbation(shifted, {"mean": frame(np.tile(shift, (6, 1)))}, reference=pd.Series(shift, GENES))
    assert scores.table.loc["mean", "pearson_delta"] > 0.95
    assert scores.table.loc["mean", "pearson_perturbed"] == 0
    assert scores.table.loc["mean", "centroid_accuracy"] == pytest.approx(0.5)


def test_the_ceiling_is_one_half_against_the_other(truth):
    rng = np.random.default_rng(3)
    halves = tuple(truth + 0.5 * frame(rng.normal(size=(6, 60))) for _ in range(2))
    scores = metrics.perturbation(truth, {"no_change": truth * 0}, ceiling=halves)
    ceiling = scores.table.loc["half-split ceiling"]
    expected = np.mean([stats.pearsonr(halves[0].loc[name], halves[1].loc[name])[0] for name in CONDITIONS])
    assert ceiling["pearson_delta"] == pytest.approx(expected)
    assert scores.best("pearson_delta") == "no_change"
    assert scores.corrected_ceiling["pearson_delta"] == pytest.approx(2 * expected / (1 + expected))
    assert np.isnan(scores.corrected_ceiling["l2"])
    assert metrics.perturbation(truth, truth).corrected_ceiling.isna().all()


def test_the_corrected_ceiling_is_that_of_all_cells():
    """Known noise: the correlation of two full samples is what the correction finds from halves."""
    rng = np.random.default_rng(6)
    names, genes = [f"c{i}" for i in range(40)], [f"g{i}" for i in range(400)]
    true = rng.normal(size=(40, 400))
    halves = [pd.DataFrame(true + 2 * rng.normal(size=true.shape), names, genes) for _ in range(2)]
    full = [pd.DataFrame(true + np.sqrt(2) * rng.normal(size=true.shape), names, genes) for _ in range(2)]
    scores = metrics.perturbation(full[0], full[1], ceiling=tuple(halves))
    expected = scores.table.loc["predicted", "pearson_delta"]
    assert scores.corrected_ceiling["pearson_delta"] == pytest.approx(expected, abs=0.02)


def test_differences_are_paired(truth):
    """A shared difficulty of the perturbations cancels in the difference, not in the means."""
    rng = np.random.default_rng(4)
    hard = truth + frame(rng.normal(size=(6, 60)) * np.arange(6)[:, None])
    better = truth + (hard - truth) * 0.9
    scores = metrics.perturbation(truth, {"a": better, "b": hard})
    gap = scores.difference("a", "b")
    assert gap.loc["l2", "difference"] == pytest.approx(scores.table.loc["a", "l2"] - scores.table.loc["b", "l2"])
    assert gap.loc["l2", "high"] < 0
    assert scores.high.loc["a", "l2"] > scores.low.loc["b", "l2"]
    assert gap.loc["l2", ["n", "n_above", "n_below"]].tolist() == [6, 0, 5]
    assert scores.best("l2") == "a"
    assert (scores.low["pearson_delta"] <= scores.table["pearson_delta"]).all()


def test_splits_are_brought_together(truth):
    noisy = {"m": truth + 0.5 * frame(np.random.default_rng(5).normal(size=(6, 60)))}
    parts = [metrics.perturbation(truth.loc[rows], noisy) for rows in (["A", "B", "C"], ["D", "E", "F"])]
    both = metrics.PerturbationScores.combined(parts)
    whole = metrics.perturbation(truth, noisy)
    assert both.table.loc["m", "pearson_delta"] == pytest.approx(whole.table.loc["m", "pearson_delta"])
    assert len(both.per_condition) == 6
    again = metrics.PerturbationScores.combined([*parts, parts[0]])
    pd.testing.assert_frame_equal(again.per_condition.sort_index(), both.per_condition.sort_index())


def test_one_condition_has_no_discrimination(truth):
    row = metrics.perturbation(truth.loc[["A"]], truth).table.iloc[0]
    assert row["pearson_delta"] == pytest.approx(1)
    assert np.isnan(row["discrimination"])
    assert np.isnan(row["variance_ratio"])


def test_collapsed_predictions_are_told(truth, caplog):
    with caplog.at_level("INFO", logger="scanpy_scgpt"):
        scores = metrics.perturbation(truth, {"network": truth * 0.1, "mean": truth * 0})
    assert scores.collapsed == ("network", "mean")
    assert "predictions of network are almost the same for all perturbations (under 20 % of the variance" in caplog.text


def test_bad_input(truth):
    with pytest.raises(KeyError, match="m lacks 1 conditions of truth, first 'B'"):
        metrics.perturbation(truth, {"m": truth.drop("B")})
    with pytest.raises(KeyError, match="predicted lacks 2 genes of truth, first 'g3'"):
        metrics.perturbation(truth, truth.drop(columns=["g3", "g5"]))
    with pytest.raises(ValueError, match="m has 60 NaN or infinite values"):
        metrics.perturbation(truth, {"m": truth.mask((truth.index == "C")[:, None] & np.ones(60, dtype=bool))})
    with pytest.raises(ValueError, match="truth has the condition 'A' twice"):
        metrics.perturbation(pd.concat([truth, truth.loc[["A"]]]), truth)
    with pytest.raises(ValueError, match=r"truth has the shape \(0, 60\)"):
        metrics.perturbation(truth[:0], truth)
    with pytest.raises(ValueError, match="non_zero=True needs the mean expression"):
        metrics.perturbation(truth, truth, non_zero=True)
    with pytest.raises(KeyError, match="control lacks 1 genes of truth, first 'g0'"):
        metrics.perturbation(truth, truth, control=pd.Series(1.0, GENES[1:]))
    with pytest.raises(KeyError, match="de_genes has no entry for 'A'"):
        metrics.perturbation(truth, truth, de_genes={})
    with pytest.raises(ValueError, match="a method='x': use one of 'predicted'"):
        metrics.perturbation(truth, truth).difference("x", "predicted")
