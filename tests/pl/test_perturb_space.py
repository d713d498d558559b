"""Figures of the space of perturbations and of the search backwards."""

from __future__ import annotations

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from scanpy_scgpt import pl


@pytest.fixture
def space():
    names = ["A", "B", "C", "A+B", "A+C", "B+C"]
    obs = pd.DataFrame(
        {
            "n_targets": [1, 1, 1, 2, 2, 2],
            "cluster": pd.Categorical(["0", "1", "1", "0", "0", "1"]),
            "dominant_gene": ["A", "C", "C", "A", "A", "C"],
            "size": np.arange(6.0),
        },
        index=names,
    )
    umap = np.arange(12.0).reshape(6, 2)
    return ad.AnnData(np.zeros((6, 2), dtype=np.float32), obs=obs, obsm={"X_umap": umap})


@pytest.fixture
def ranking():
    names = ["A+B", "B", "A", "A+C", "C", "B+C"]
    return pd.DataFrame({"rank": range(1, 7), "score": np.linspace(1, 0, 6)}, index=names)


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def test_clusters_carry_the_name_of_their_gene_and_singles_are_ringed(space):
    ax = pl.perturb_space(space, show=False)
    assert sorted(text.get_text() for text in ax.texts) == ["A", "C"]
    assert len(ax.collections[0].get_offsets()) == 6
    assert len(ax.collections[1].get_offsets()) == 3
    assert ax.get_title() == "6 predicted perturbations"


def test_a_column_or_values_colour_the_space(space):
    _, own = plt.subplots()
    assert pl.perturb_space(space, color="size", ax=own) is own
    np.testing.assert_allclose(own.collections[0].get_array(), np.arange(6.0))
    ax = pl.perturb_space(space, color=np.ones(6), label=False, show=False)
    assert not ax.texts
    with pytest.raises(KeyError, match="no column 'depth'"):
        pl.perturb_space(space, color="depth")
    del space.obsm["X_umap"]
    with pytest.raises(KeyError, match="umap=True"):
        pl.perturb_space(space)


def test_the_grid_is_symmetric_and_frames_the_truth(ranking):
    ax = pl.reverse(ranking, true="A+C", k=2, show=False)
    grid = ax.images[0].get_array()
    np.testing.assert_array_equal(grid, grid.T)
    assert grid[0, 1] == 1
    assert grid[1, 1] == 2
    assert [text.get_text() for text in ax.texts].count("1") == 2
    assert len(ax.patches) == 2
    assert ax.get_title() == "A+C: rank 4 of 6"
    turned = pl.reverse(ranking, true="C+A", k=2, show=False)
    assert turned.get_title() == ax.get_title()
    with pytest.raises(KeyError, match="true='a.c'.*did you mean 'A.C'"):
        pl.reverse(ranking, true="a+c")
    with pytest.raises(KeyError, match="true='D'"):
        pl.reverse(ranking, true="D")
    with pytest.raises(KeyError, match="no column 'votes'"):
        pl.reverse(ranking, column="votes")


def test_the_curve_has_intervals_and_chance():
    rates = pd.DataFrame(
        {
            "k": [1, 2],
            "measure": ["correct"] * 2,
            "rate": [0.5, 1.0],
            "low": [0.2, 0.6],
            "high": [0.8, 1.0],
            "chance": [0.1, 0.2],
        }
    )
    ax = pl.reverse_hits({"ours": rates, "rival": rates}, measures=("correct",), show=False)
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert sorted(labels) == ["chance, correct", "ours correct", "rival correct"]
    np.testing.assert_allclose(np.asarray(ax.lines[0].get_ydata(), dtype=float), [0.5, 1.0])
    with pytest.raises(KeyError, match="no column 'chance'"):
        pl.reverse_hits(rates.drop(columns="chance"))
