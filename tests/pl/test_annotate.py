"""The figures of predicted labels: what is drawn is what was counted."""

from __future__ import annotations

import anndata as ad
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from scanpy_scgpt import get, metrics, pl
from scanpy_scgpt._keys import LabelKeys

mpl.use("Agg")
LABELS = ["B", "NK", "T", "plasma"]


def predicted(n_cells: int = 400, *, key: str | None = None, labels: list[str] = LABELS) -> ad.AnnData:
    """Cells with a truth (`"Treg"` is not in the reference), predictions, probabilities and flags."""
    rng = np.random.default_rng(0)
    adata = ad.AnnData(np.zeros((n_cells, 1), dtype=np.float32))
    true = rng.integers(len(labels), size=n_cells)
    scores = rng.normal(size=(n_cells, len(labels)))
    scores[np.arange(n_cells), true] += rng.gamma(2, 1, n_cells)
    prob = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    keys = LabelKeys.named(key)
    adata.obsm[keys.prob] = prob
    adata.uns["scgpt"] = {keys.uns: {"labels": labels}}
    adata.obs[keys.label] = pd.Categorical(np.array(labels)[prob.argmax(axis=1)])
    adata.obs[keys.confidence] = prob.max(axis=1)
    adata.obs[keys.unknown] = prob.max(axis=1) < 0.4
    truth = np.array(labels, dtype=object)[true]
    truth[:20] = "Treg"
    truth[20:27] = None
    adata.obs["truth"] = pd.Categorical(truth)
    return adata


@pytest.fixture
def adata():
    yield predicted()
    plt.close("all")


def texts_of(labels: list) -> list[str]:
    return [label.get_text() for label in labels]


def rows_of(ax: plt.Axes) -> list[str]:
    return [text.rsplit(" (", 1)[0] for text in texts_of(ax.get_yticklabels())]


def drawn(ax: plt.Axes) -> pd.DataFrame:
    return pd.DataFrame(np.asarray(ax.images[0].get_array()), rows_of(ax), texts_of(ax.get_xticklabels()))


def expected(adata: ad.AnnData) -> pd.DataFrame:
    columns = adata.obs["scgpt_label"].astype(str).mask(adata.obs["scgpt_unknown"], "unknown")
    return pd.crosstab(adata.obs["truth"].astype(str), columns).drop(index="nan")


# -- confusion ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalize", [True, False])
def test_confusion_draws_the_crosstab(adata, normalize):
    table = expected(adata)
    assert table.loc["Treg"].sum() == 20
    ax = pl.confusion(adata, "truth", normalize=normalize, show=False)
    found = drawn(ax)
    assert list(found.columns) == [*LABELS, "unknown"]
    assert list(found.index) == [*LABELS, "Treg"]
    table = table.loc[found.index, found.columns]
    if normalize:
        np.testing.assert_allclose(found.sum(axis=1), 1)
        assert ax.images[0].get_clim() == (0, 1)
    np.testing.assert_allclose(found, table.div(table.sum(axis=1), axis=0) if normalize else table)
    assert texts_of(ax.get_yticklabels())[-1] == "Treg (20)"
    assert ax.get_title() == "393 cells\n7 without a label in 'truth' left out"
    assert ax.get_xlabel() == "predicted: scgpt_label"


def test_confusion_puts_labels_of_both_on_the_diagonal(adata):
    adata.obs["truth"] = ["z", "b", "c", "c"] * 100
    adata.obs["other"] = ["a", "b", "c", "d"] * 100
    ax = pl.confusion(adata, "truth", key="other", show=False)
    found = drawn(ax)
    assert list(found.index) == ["b", "c", "z"]
    assert list(found.columns) == ["b", "c", "a", "d"]
    assert found.loc["c", "d"] == 0.5
    assert len(ax.lines) == 2  # around the labels of both


def test_a_label_of_the_reference_that_was_never_predicted_is_on_the_diagonal(adata):
    adata = adata[adata.obs["scgpt_label"] != "NK"].copy()
    found = drawn(pl.confusion(adata, "truth", show=False))
    assert list(found.columns[:4]) == list(found.index[:4]) == LABELS
    assert found.loc["NK", "NK"] == 0
    del adata.obsm["scgpt_label_prob"]  # without it nobody knows of NK
    found = drawn(pl.confusion(adata, "truth", show=False))
    assert list(found.columns) == ["B", "T", "plasma", "unknown"]
    assert list(found.index) == ["B", "T", "plasma", "NK", "Treg"]


def test_cells_without_a_prediction_are_unknown_with_or_without_flags(adata):
    del adata.obs["scgpt_unknown"]
    assert "unknown" not in drawn(pl.confusion(adata, "truth", show=False))
    adata.obs.loc[adata.obs_names[:5], "scgpt_label"] = np.nan
    found = drawn(pl.confusion(adata, "truth", normalize=False, show=False))
    assert found.loc["Treg", "unknown"] == found["unknown"].sum() == 5


def test_all_cells_unknown(adata):
    adata.obs["scgpt_unknown"] = True
    found = drawn(pl.confusion(adata, "truth", show=False))
    assert list(found["unknown"]) == [1] * 5
    assert found[LABELS].to_numpy().sum() == 0


def test_a_label_that_is_called_unknown_stays_a_label(adata):
    adata.obs["scgpt_label"] = adata.obs["scgpt_label"].astype(str).replace("NK", "unknown")
    found = drawn(pl.confusion(adata, "truth", normalize=False, show=False))
    assert list(found.columns) == ["B", "NK", "T", "plasma", "unknown", "(unknown)"]
    known = adata.obs["truth"].notna()
    assert found["(unknown)"].sum() == (known & adata.obs["scgpt_unknown"]).sum()


def test_numbers_are_compared_as_text(adata):
    adata.obs["cluster"] = pd.array([0, 1, 2, None] * 100, dtype="Int64")
    adata.obs["mine"] = pd.Categorical(["0", "1", "2", "2"] * 100)
    found = drawn(pl.confusion(adata, "cluster", key="mine", show=False))
    np.testing.assert_array_equal(found, np.eye(3))


def test_numbers_are_written_into_the_squares_of_a_few_labels(adata):
    ax = pl.confusion(adata, "truth", normalize=False, show=False)
    table = expected(adata).loc[rows_of(ax), texts_of(ax.get_xticklabels())]
    assert texts_of(ax.texts) == [f"{n}" if n else "" for n in table.to_numpy().ravel()]
    ax = pl.confusion(predicted(labels=[f"k{i:02}" for i in range(16)]), "truth", show=False)
    assert texts_of(ax.texts) == []


def test_shares_are_written_without_rounding_to_none_or_all(adata):
    adata.obs["truth"] = ["a"] * 399 + ["b"]
    adata.obs["mine"] = ["a"] * 398 + ["b"] * 2
    ax = pl.confusion(adata, "truth", key="mine", show=False)
    assert texts_of(ax.texts) == [">.99", "<.01", "", "1"]
    adata.obs["mine"] = ["a"] * 300 + ["b"] * 100
    ax = pl.confusion(adata, "truth", key="mine", show=False)
    assert texts_of(ax.texts) == [".75", ".25", "", "1"]
    assert [text.get_color() for text in ax.texts] == ["white", "black", "black", "white"]


def test_keywords_reach_matplotlib(adata):
    ax = pl.confusion(adata, "truth", show=False, cmap="Reds", norm=mpl.colors.PowerNorm(0.5, 0, 1))
    assert ax.images[0].get_cmap().name == "Reds"
    assert ax.images[0].norm.gamma == 0.5


# -- reliability ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_bins", [15, 4])
def test_reliability_draws_the_numbers_of_metrics(adata, n_bins):
    ax = pl.reliability(adata, "truth", n_bins=n_bins, show=False)
    prob = get.label_probabilities(adata)
    table = metrics.reliability(adata.obs["truth"], prob, n_bins=n_bins)
    filled = table[table["n"] > 0]
    (container,) = ax.containers
    points, _, (bars,) = container
    np.testing.assert_allclose(points.get_xydata(), filled[["confidence", "accuracy"]])
    ends = np.array(bars.get_segments())
    np.testing.assert_allclose(ends[:, 0, 1], filled["accuracy_low"])
    np.testing.assert_allclose(ends[:, 1, 1], filled["accuracy_high"])
    (below,) = ax.child_axes
    assert [bar.get_height() for bar in below.patches] == list(table["n"])
    np.testing.assert_allclose([bar.get_x() for bar in below.patches], table["lower"])
    error = metrics.calibration_error(adata.obs["truth"], prob, n_bins=n_bins)
    assert texts_of(ax.texts) == [f"calibration error {error:.3f}"]
    assert ax.get_title() == "393 cells\n7 without a label in 'truth' left out"


def test_reliability_stays_inside_its_figure(adata):
    ax = pl.reliability(adata, "truth", show=False)
    figure = ax.figure
    figure.canvas.draw()
    box = figure.get_tightbbox()
    assert box.x0 >= 0
    assert box.y0 >= 0
    assert (box.width, box.height) <= tuple(figure.get_size_inches())
    assert box.y1 <= figure.get_size_inches()[1]


# -- confidence -----------------------------------------------------------------------------------------------------


def boxes(ax: plt.Axes) -> pd.DataFrame:
    whiskers, medians = ax.collections
    found = {
        "low": [line[0, 0] for line in whiskers.get_segments()],
        "first": [bar.get_x() for bar in ax.patches],
        "median": [line[0, 0] for line in medians.get_segments()],
        "third": [bar.get_x() + bar.get_width() for bar in ax.patches],
        "high": [line[1, 0] for line in whiskers.get_segments()],
    }
    return pd.DataFrame(found, index=rows_of(ax))


@pytest.mark.parametrize("groupby", [None, "truth"])
def test_confidence_draws_quantiles_from_the_highest_median_down(adata, groupby):
    ax = pl.confidence(adata, groupby=groupby, show=False)
    grouped = adata.obs.groupby(groupby or "scgpt_label", observed=True)
    wanted = grouped["scgpt_confidence"].quantile([0.05, 0.25, 0.5, 0.75, 0.95]).unstack()
    found = boxes(ax)
    assert list(found.index) == list(wanted[0.5].sort_values(ascending=False).index)
    np.testing.assert_allclose(found, wanted.loc[found.index])
    shares = grouped["scgpt_unknown"].mean()[found.index]
    assert texts_of(ax.texts) == [*(f"{100 * share:.0f} %" for share in shares), "unknown"]
    sizes = grouped.size()[found.index]
    assert texts_of(ax.get_yticklabels()) == [f"{group} ({n})" for group, n in sizes.items()]
    low, high = sorted(ax.get_ylim())
    assert ax.get_ylim() == (high, low), "the first row is on top"
    assert ax.get_ylabel() == (groupby or "scgpt_label")
    left_out = "\n7 without a group or a confidence left out" if groupby else ""
    assert ax.get_title() == f"{393 if groupby else 400} cells{left_out}"


def test_confidence_without_flags_or_values(adata):
    del adata.obs["scgpt_unknown"]
    adata.obs.loc[adata.obs_names[:3], "scgpt_confidence"] = np.nan
    ax = pl.confidence(adata, show=False)
    assert texts_of(ax.texts) == []
    assert ax.get_title() == "397 cells\n3 without a group or a confidence left out"


def test_equal_medians_are_in_the_order_of_the_alphabet(adata):
    adata.obs["scgpt_confidence"] = 0.5
    assert rows_of(pl.confidence(adata, show=False)) == LABELS


def test_rare_unknown_cells_are_not_none(adata):
    adata.obs["one"], adata.obs["scgpt_unknown"] = "all", False
    assert texts_of(pl.confidence(adata, groupby="one", show=False).texts)[0] == "0 %"
    adata.obs.loc[adata.obs_names[0], "scgpt_unknown"] = True
    assert texts_of(pl.confidence(adata, groupby="one", show=False).texts)[0] == "<1 %"
    adata.obs["scgpt_unknown"] = ~adata.obs["scgpt_unknown"]
    assert texts_of(pl.confidence(adata, groupby="one", show=False).texts)[0] == ">99 %"


# -- all ------------------------------------------------------------------------------------------------------------

EACH = {
    "confusion": lambda adata, **more: pl.confusion(adata, "truth", **more),
    "reliability": lambda adata, **more: pl.reliability(adata, "truth", **more),
    "confidence": pl.confidence,
}
each = pytest.mark.parametrize("draw", EACH.values(), ids=EACH)


@each
def test_axes_and_show(adata, draw, monkeypatch):
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(1))
    _, ax = plt.subplots()
    assert draw(adata, ax=ax) is ax
    assert isinstance(draw(adata, show=False), mpl.axes.Axes)
    assert shown == []
    assert draw(adata) is None
    assert draw(adata, ax=ax, show=True) is None
    assert shown == [1, 1]


@each
def test_one_image_and_nothing_is_changed(adata, draw, tmp_path):
    before = adata.copy()
    draw(adata, show=False).figure.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5000
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    assert adata.uns == before.uns


@each
def test_slots_of_another_key(draw):
    adata = predicted(key="mine")
    assert draw(adata, key="mine", show=False).get_title().startswith(("393", "400"))
    with pytest.raises(KeyError, match=r"has no 'scgpt_.*scgpt.tl.annotate\(adata, reference, labels_key=...\)"):
        draw(adata)
    plt.close("all")


def test_missing_slots_name_the_line_that_fills_them(adata):
    line = r"Predict the labels first: scgpt.tl.annotate\(adata, reference, labels_key=..., key_added='two'\)."
    with pytest.raises(KeyError, match=r"adata.obs has no 'two'. Found: scgpt_label, .*, truth. " + line):
        pl.confusion(adata, "truth", key="two")
    with pytest.raises(KeyError, match=r"adata.obsm has no 'two_prob'. Found: scgpt_label_prob. " + line):
        pl.reliability(adata, "truth", key="two")
    with pytest.raises(
        KeyError, match=r"adata.obs has no 'two_confidence'; did you mean 'scgpt_confidence'. " ".*" + line
    ):
        pl.confidence(adata, key="two")
    del adata.obs["scgpt_label"]
    with pytest.raises(KeyError, match=r"adata.obs has no 'scgpt_label'.* labels_key=...\)."):
        pl.confidence(adata)
    pl.confidence(adata, groupby="truth", show=False)
    adata.obsm.clear()
    with pytest.raises(KeyError, match=r"adata.obsm has no 'scgpt_label_prob'. Found: none."):
        pl.reliability(adata, "truth")


@pytest.mark.parametrize("draw", [pl.confusion, pl.reliability])
def test_truth_that_cannot_be_used(adata, draw):
    with pytest.raises(KeyError, match="adata.obs has no column 'trut'; did you mean 'truth'"):
        draw(adata, "trut")
    adata.obs["empty"] = np.nan
    with pytest.raises(
        ValueError, match="adata.obs\\['empty'\\] has no label in any of the 400 cells. Name the column"
    ):
        draw(adata, "empty")
    with pytest.raises(TypeError, match=r"holds numbers \(float64\); .*\['scgpt_confidence'\].astype\('Int64'\)."):
        draw(adata, "scgpt_confidence")


def test_slots_of_another_kind(adata):
    adata.obs["scgpt_unknown"] = adata.obs["scgpt_unknown"].astype(object)
    adata.obs.loc[adata.obs_names[0], "scgpt_unknown"] = np.nan
    for draw in (EACH["confusion"], EACH["confidence"]):
        with pytest.raises(TypeError, match=r"\['scgpt_unknown'\] holds missing values; True and False are needed: "):
            draw(adata)
    adata.obs["scgpt_unknown"] = adata.obs["scgpt_unknown"].astype(str) == "True"  # as the text says
    pl.confusion(adata, "truth", show=False)
    adata.obs["scgpt_unknown"] = adata.obs["scgpt_unknown"].astype(str)
    with pytest.raises(TypeError, match=r"\['scgpt_unknown'\] holds object"):
        pl.confidence(adata)
    adata.obs["scgpt_confidence"] = adata.obs["scgpt_confidence"].astype(str)
    with pytest.raises(TypeError, match=r"holds object; numbers are needed: .* = pd.to_numeric\("):
        pl.confidence(adata)


def test_nothing_to_draw_and_other_objects(adata):
    adata.obs["scgpt_confidence"] = np.nan
    with pytest.raises(ValueError, match="None of the 400 cells has a confidence and a group. Name other groups"):
        pl.confidence(adata)
    with pytest.raises(ValueError, match="n_bins=0: use a whole number of at least 1"):
        pl.reliability(adata, "truth", n_bins=0)
    for name, draw in EACH.items():
        with pytest.raises(TypeError, match=f"pl.{name} takes an AnnData, this is a DataFrame"):
            draw(adata.obs)
