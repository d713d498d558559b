"""Figures of an integration."""

from __future__ import annotations

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from scanpy_scgpt import metrics, pl


@pytest.fixture
def cells():
    rng = np.random.default_rng(0)
    adata = ad.AnnData(np.zeros((60, 1), dtype=np.float32))
    adata.obs["batch"], adata.obs["kind"] = np.tile(["p", "q"], 30), np.repeat(["a", "b", "c"], 20)
    adata.obsm["before"], adata.obsm["after"] = rng.normal(size=(60, 2)), rng.normal(size=(60, 3))
    yield adata
    plt.close("all")


def test_rows_are_colours_columns_embeddings_and_the_last_row_scores(cells):
    table = metrics.integration(
        {"one": cells.obsm["before"], "two": cells.obsm["after"]}, cells.obs["kind"], cells.obs["batch"]
    )
    axes = pl.integration(
        cells, {"Before": "before", "After": "after"}, batch_key="batch", labels_key="kind", scores=table, show=False
    )
    assert axes.shape == (3, 2)
    assert [ax.get_title() for ax in axes[0]] == ["Before", "After"]
    assert [text.get_text() for text in axes[1, 1].get_legend().get_texts()] == ["a", "b", "c"]
    drawn = axes[1, 0].collections[0].get_offsets()
    np.testing.assert_allclose(drawn, cells.obsm["before"][:20])
    widths = sorted(patch.get_width() for patch in axes[2, 0].patches)
    np.testing.assert_allclose(widths, sorted(table[["avg_bio", "avg_batch", "overall"]].to_numpy().ravel()))
    assert [text.get_text() for text in axes[2, 0].get_yticklabels()] == ["one", "two"]


def test_batches_alone(cells, monkeypatch):
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(True))
    assert pl.integration(cells, ["before"], batch_key="batch") is None
    assert shown


def test_what_is_refused(cells):
    with pytest.raises(KeyError, match="'Before'"):
        pl.integration(cells, ["Before"], batch_key="batch", show=False)
    with pytest.raises(KeyError, match="did you mean 'batch'"):
        pl.integration(cells, ["before"], batch_key="bach", show=False)
    with pytest.raises(KeyError, match="no column 'avg_bio'"):
        pl.integration(cells, ["before"], batch_key="batch", scores=pd.DataFrame({"nmi": [1]}), show=False)
    assert not plt.get_fignums()
