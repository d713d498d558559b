"""Scores of integration: they see what is there, and agree with others."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import silhouette_score

from scanpy_scgpt import metrics


@pytest.fixture(scope="module")
def cells():
    rng = np.random.default_rng(0)
    kind, batch = rng.integers(3, size=300), rng.integers(2, size=300)
    x = (rng.normal(size=(3, 8)) * 5)[kind] + rng.normal(size=(300, 8))
    return x, np.array(["a", "b", "c"])[kind], np.array(["p", "q"])[batch]


def test_types_apart_and_batches_mixed_score_high(cells):
    x, kind, batch = cells
    split = x + np.where(batch == "p", 0, 12)[:, None]
    table = metrics.integration(
        {"good": x, "split": split, "noise": np.random.default_rng(1).normal(size=x.shape)}, kind, batch
    )
    assert list(table.index) == ["good", "split", "noise"]
    good = table.loc["good"]
    assert good["nmi"] == pytest.approx(1)
    assert good["ari"] == pytest.approx(1)
    assert good["graph_connectivity"] == 1
    assert good["asw_label"] == pytest.approx((silhouette_score(x, kind) + 1) / 2)
    assert good["avg_bio"] == pytest.approx(good[["nmi", "ari", "asw_label"]].mean())
    assert good["overall"] == pytest.approx(0.6 * good["avg_bio"] + 0.4 * good["avg_batch"])
    assert table.loc["split", "avg_batch"] < good["avg_batch"] - 0.2
    assert table.loc["noise", "avg_bio"] < 0.4


def test_against_the_reference_package(cells):
    x, kind, batch = (given[:90] for given in cells)
    ours, theirs = metrics.integration(x, kind, batch).iloc[0], metrics.scib(x, kind, batch).iloc[0]
    assert ours["asw_label"] == pytest.approx(theirs["silhouette_label"], abs=1e-3)
    assert ours["asw_batch"] == pytest.approx(theirs["silhouette_batch"], abs=1e-3)
    assert theirs["nmi_kmeans"] == pytest.approx(1, abs=1e-6)


def test_cells_without_a_label_are_left_out(cells):
    x, kind, batch = cells
    labels = kind.astype(object)
    labels[::5] = None
    x = x.copy()
    x[::5] = np.nan
    kept = np.arange(300) % 5 > 0
    expected = metrics.integration(x[kept], kind[kept], batch[kept])
    np.testing.assert_allclose(metrics.integration(x, labels, batch), expected)


def test_it_repeats(cells):
    x, kind, batch = cells
    noisy = x + np.random.default_rng(0).normal(size=x.shape) * 4
    np.testing.assert_array_equal(metrics.integration(noisy, kind, batch), metrics.integration(noisy, kind, batch))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"labels": np.full(300, "a")}, r"labels of the cells with a label: \['a'\]"),
        ({"batches": np.full(300, 1)}, r"batches of the cells with a label: \['1'\]"),
        ({"batches": np.arange(299)}, "labels has 300 entries, batches 299"),
        ({"embedding": np.zeros((299, 2))}, "embedding: 299 rows, and labels has 300"),
        ({"embedding": {"mine": np.full((300, 2), np.nan)}}, "mine: 300 rows have NaN"),
    ],
)
def test_what_is_refused(cells, change, text):
    given = dict(zip(("embedding", "labels", "batches"), cells, strict=True))
    with pytest.raises(ValueError, match=text):
        metrics.integration(**{**given, **change})


def test_mixing_is_zero_apart_and_one_at_random(cells):
    x, _, batch = cells
    assert metrics.batch_mixing(x, batch) > 0.95
    assert metrics.batch_mixing(x + np.where(batch == "p", 0, 50)[:, None], batch) < 0.01
    assert metrics.batch_mixing(x, np.zeros(300)) == 1
    uneven = np.where(np.arange(300) < 20, "few", "many")
    assert metrics.batch_mixing(np.random.default_rng(0).normal(size=(300, 4)), uneven) > 0.9


def test_structure_is_kept_by_a_shift_and_lost_at_random(cells):
    x, _, batch = cells
    shifted = x + np.where(batch == "p", 0, 50)[:, None]
    assert metrics.structure_kept(x, shifted, batch) == 1
    lost = metrics.structure_kept(x, np.random.default_rng(0).normal(size=x.shape), batch)
    assert 0.05 < lost < 0.4
    assert metrics.structure_kept(x[:5], x[:5], np.zeros(5)) == 1
