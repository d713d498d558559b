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
