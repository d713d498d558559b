"""The figure of embeddings."""

from __future__ import annotations

import anndata as ad
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest

from scanpy_scgpt import pl

mpl.use("Agg")


@pytest.fixture
def adata():
    rng = np.random.default_rng(0)
    adata = ad.AnnData(np.zeros((30, 2), dtype=np.float32))
    adata.obs["kind"] = np.repeat(["a", "b", "c"], 10)
    adata.obsm["one"], adata.obsm["two"] = rng.normal(size=(30, 2)), rng.normal(size=(30, 5))
    return adata


def test_every_cell_is_drawn_once_in_its_colour(adata):
    axes = pl.embeddings(adata, {"first": "one", "second": "two"}, color="kind", show=False)
    assert [ax.get_title() for ax in axes] == ["first", "second"]
    for ax, key in zip(axes, ("one", "two"), strict=True):
        assert [c.get_label() for c in ax.collections] == ["a", "b", "c"]
        drawn = np.concatenate([c.get_offsets() for c in ax.collections])
        np.testing.assert_allclose(drawn, adata.obsm[key][:, :2])
        assert len({tuple(c.get_facecolor()[0]) for c in ax.collections}) == 3
    assert [t.get_text() for t in axes[-1].get_legend().get_texts()] == ["a", "b", "c"]
    plt.close("all")


def test_given_axes_and_palette(adata):
    _, ax = plt.subplots()
    got = pl.embeddings(adata, ["one"], color="kind", axes=[ax], palette={"a": "red", "b": "green", "c": "blue"})
    assert got == [ax]
    assert tuple(ax.collections[0].get_facecolor()[0]) == mpl.colors.to_rgba("red")
    plt.close("all")


def test_missing_keys(adata):
    with pytest.raises(KeyError, match="adata.obsm has no 'three'. Keys: 'one', 'two'"):
        pl.embeddings(adata, ["three"], color="kind")
    with pytest.raises(KeyError, match="adata.obs has no column 'kin'; did you mean 'kind'"):
        pl.embeddings(adata, ["one"], color="kin")


def test_numbers_are_sent_to_scanpy_and_switches_are_drawn(adata):
    adata.obs["depth"] = np.arange(30)
    with pytest.raises(TypeError, match=r"Use sc.pl.embedding\(adata, basis=..., color='depth'\)"):
        pl.embeddings(adata, ["one"], color="depth")
    adata.obs["good"] = np.arange(30) > 10
    axes = pl.embeddings(adata, ["one"], color="good", show=False)
    assert [c.get_label() for c in axes[0].collections] == ["False", "True"]
    plt.close("all")


def test_colours_of_uns_hold_unless_a_palette_is_given(adata):
    adata.uns["kind_colors"] = np.array(["#ff0000", "#00ff00", "#0000ff"])
    (ax,) = pl.embeddings(adata, ["one"], color="kind", show=False)
    assert mpl.colors.to_hex(ax.collections[1].get_facecolor()[0]) == "#00ff00"
    (ax,) = pl.embeddings(adata, ["one"], color="kind", show=False, palette=dict.fromkeys("abc", "black"))
    assert mpl.colors.to_hex(ax.collections[1].get_facecolor()[0]) == "#000000"
    adata.uns["kind_colors"] = ["#ff0000"]  # of fewer labels: out of date
    (ax,) = pl.embeddings(adata, ["one"], color="kind", show=False)
    assert mpl.colors.to_hex(ax.collections[0].get_facecolor()[0]) != "#ff0000"
    plt.close("all")


def test_cells_without_a_label_lie_below_the_others(adata):
    adata.obs["kind"] = adata.obs["kind"].astype("category")
    adata.obs.loc[adata.obs_names[:4], "kind"] = np.nan
    (ax,) = pl.embeddings(adata, ["one"], color="kind", show=False)
    assert [c.get_label() for c in ax.collections] == ["NA", "a", "b", "c"]
    assert len(ax.collections[0].get_offsets()) == 4
    assert tuple(ax.collections[0].get_facecolor()[0]) == mpl.colors.to_rgba("lightgray")
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["a", "b", "c", "NA"]
    plt.close("all")


@pytest.mark.parametrize("n", [20, 45, 70])
def test_many_labels_have_colours_of_their_own(n):
    adata = ad.AnnData(np.zeros((n, 1), dtype=np.float32))
    adata.obs["kind"] = [f"k{i:02}" for i in range(n)]
    adata.obsm["one"] = np.zeros((n, 2))
    (ax,) = pl.embeddings(adata, ["one"], color="kind", show=False)
    assert len({tuple(c.get_facecolor()[0]) for c in ax.collections}) == n
    plt.close("all")
