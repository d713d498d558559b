"""Figures of attention networks."""

from __future__ import annotations

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_hex

from scanpy_scgpt import pl, tl

KNOWN = ["JAK2", "STAT2", "PSMB9"]


@pytest.fixture(scope="module")
def _made(data_dir):
    adata = ad.read_h5ad(data_dir / "perturb_papalexi2021_thp1.h5ad")
    groups = adata.obs["perturbation"].astype(str)
    rows = np.concatenate([np.flatnonzero(groups == name)[:30] for name in ("STAT1", "IRF1", "control")])
    adata = adata[rows, ["STAT1", *KNOWN, *[g for g in adata.var_names if g not in {"STAT1", *KNOWN}][:40]]].copy()
    given = {"groupby": "perturbation", "device": "cpu", "n_permutations": 0, "tfs": ["STAT1"]}
    tl.attention_network(adata, control="control", **given)
    tl.attention_network(adata[groups.iloc[rows] == "control"].copy(), device="cpu", n_permutations=0)
    return adata


@pytest.fixture
def made(_made):
    yield _made.copy()
    plt.close("all")


def test_heat_map_is_the_difference_among_the_first_targets(made):
    ax = pl.attention_difference(made, "STAT1", group="STAT1", n_top=8, show=False)
    shown = [text.get_text() for text in ax.get_yticklabels()]
    edges = made.uns["scgpt_grn"]
    own = edges[edges["group"] == "STAT1"]
    assert shown == ["STAT1", *own["target"].head(8)]
    drawn = ax.images[0].get_array()
    assert drawn.mask.diagonal().all()
    np.testing.assert_allclose(drawn[0, 1:], own["weight"].head(8), atol=1e-7)
    assert ax.images[0].norm.vmin == -ax.images[0].norm.vmax
    assert ax.get_title() == "STAT1 - control"
    ax = pl.attention_difference(made, genes=KNOWN, group="IRF1", show=False)
    assert [text.get_text() for text in ax.get_xticklabels()] == KNOWN


def test_star_shows_signs_widths_and_what_is_known(made):
    edges = made.uns["scgpt_grn"]
    own = edges[edges["group"] == "STAT1"].head(12)
    ax = pl.target_network(made, "STAT1", targets=own["target"].iloc[:2], group="STAT1", n_top=12, show=False)
    assert [text.get_text() for text in ax.texts] == [*own["target"], "STAT1"]
    assert ax.get_title() == "STAT1 - control: 2 of 12 are known targets"
    assert [text.get_fontweight() for text in ax.texts[:3]] == ["bold", "bold", "normal"]
    red = [to_hex(line.get_color()) == "#b2182b" for line in ax.lines]
    assert red == (own["weight"] > 0).tolist()
    widths = np.array([line.get_linewidth() for line in ax.lines])
    assert np.corrcoef(widths, own["weight"].abs())[0, 1] > 0.999


def test_it_is_shown(made, monkeypatch):
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(True))
    assert pl.target_network(made, "STAT1", group="IRF1") is None
    assert pl.attention_difference(made, "STAT1", group="IRF1") is None
    assert pl.attention_difference(made, "STAT1", group="IRF1", ax=plt.subplots()[1]) is not None
    assert len(shown) == 2


def test_what_is_refused(made):
    before = plt.get_fignums()
    for function, given, error, text in (
        (pl.attention_difference, {"source": "STAT1"}, ValueError, "networks of 2 groups"),
        (pl.attention_difference, {"source": "STAT1", "group": "IRF"}, ValueError, "did you mean 'IRF1'"),
        (pl.attention_difference, {"group": "IRF1"}, ValueError, "Name a gene"),
        (pl.attention_difference, {"group": "IRF1", "genes": ["JAK"]}, ValueError, "did you mean 'JAK2'"),
        (pl.target_network, {"source": "JAK2", "group": "IRF1"}, ValueError, "No edge of 'JAK2' was kept"),
        (pl.target_network, {"source": "JAK", "group": "IRF1"}, ValueError, "did you mean 'JAK2'"),
        (pl.target_network, {"source": "JAK2", "key": "x"}, KeyError, "no attention network 'x'"),
    ):
        with pytest.raises(error, match=text):
            function(made, show=False, **given)
    del made.uns["scgpt"]["grn"]["weights"]
    with pytest.raises(ValueError, match="without its matrices"):
        pl.attention_difference(made, "STAT1", group="IRF1", show=False)
    assert plt.get_fignums() == before
