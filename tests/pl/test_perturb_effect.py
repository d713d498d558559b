"""The figure of one perturbation."""

from __future__ import annotations

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pytest

from scanpy_scgpt import baselines, pl, tl
from scanpy_scgpt.pp import parse_perturbations


@pytest.fixture(scope="module")
def screen(data_dir):
    cells = ad.read_h5ad(data_dir / "perturb_papalexi2021_thp1.h5ad")
    found = parse_perturbations(cells.obs["perturbation"], genes=cells.var_names)
    return cells, baselines.pseudobulk_effects(cells, found)


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def test_boxes_are_observed_and_marks_predicted(screen):
    cells, effects = screen
    mean = effects.deltas * 0 + effects.deltas.mean().to_numpy()
    ax = pl.perturb_effect(cells, {"observed": effects.deltas, "mean": mean}, "STAT1", show=False)
    genes = effects.de_genes(20)["STAT1"]
    labels = [text.get_text() for text in ax.get_xticklabels()]
    assert labels == [f"{gene} (target)" if gene == "STAT1" else gene for gene in genes]
    marks = {
        one.get_label(): one.get_offsets()[:, 1] for one in ax.collections if one.get_label() in ("observed", "mean")
    }
    np.testing.assert_allclose(marks["observed"], effects.deltas.loc["STAT1", list(genes)])
    np.testing.assert_allclose(marks["mean"], mean.loc["STAT1", list(genes)])
    bars = next(one for one in ax.collections if one.get_label() == "mean of the cells")
    heights = [segment[0, 1] for segment in bars.get_segments()]
    np.testing.assert_allclose(heights, effects.deltas.loc["STAT1", list(genes)], atol=1e-6)
    assert ax.get_title() == "STAT1: 325 cells"
    assert len(ax.patches) == 20


def test_given_genes_and_axes(screen):
    cells, effects = screen
    _, own = plt.subplots()
    ax = pl.perturb_effect(cells, effects.deltas, "JAK2", genes=["STAT1", "JAK2"], ax=own)
    assert ax is own
    assert [text.get_text() for text in ax.get_xticklabels()] == ["STAT1", "JAK2 (target)"]


def test_a_real_stimulus(data_dir):
    cells = ad.read_h5ad(data_dir / "pbmc_ifnb_kang2018_2k.h5ad")
    found = parse_perturbations(cells.obs["condition"], genes=cells.var_names)
    deltas = baselines.pseudobulk_effects(cells, found).deltas
    ax = pl.perturb_effect(cells, deltas, "stim", perturbation_key="condition", show=False)
    drawn = {text.get_text() for text in ax.get_xticklabels()}
    assert len(drawn & {"ISG15", "IFI6", "IFIT3", "ISG20", "IFIT1", "IFIT2", "LY6E", "MX1"}) >= 6


def test_bad_input(screen):
    cells, effects = screen
    with pytest.raises(ValueError, match="condition='STAT9': use one of"):
        pl.perturb_effect(cells, effects.deltas, "STAT9")
    with pytest.raises(KeyError, match="predicted has no condition 'STAT1'"):
        pl.perturb_effect(cells, effects.deltas.drop("STAT1"), "STAT1")
    with pytest.raises(KeyError, match="predicted has no gene"):
        pl.perturb_effect(cells, effects.deltas.iloc[:, :3], "STAT1")
    with pytest.raises(KeyError, match="genes: 'NOPE' is none of the genes"):
        pl.perturb_effect(cells, effects.deltas, "STAT1", genes=["NOPE"])
    with pytest.raises(KeyError, match="has no column 'pert'"):
        pl.perturb_effect(cells, effects.deltas, "STAT1", perturbation_key="pert")


def test_what_tl_perturb_gives_is_taken_as_it_is(data_dir):
    every = ad.read_h5ad(data_dir / "perturb_papalexi2021_thp1.h5ad")
    names = every.obs["perturbation"].astype(str)
    rank = names.groupby(names).cumcount()
    cells = every[(rank < 60) & names.isin(["control", "STAT1", "JAK2", "IRF1", "STAT2"]), :].copy()
    cells.obs["half"] = np.where(np.arange(cells.n_obs) % 2, "a", "b")
    found = tl.perturb(cells, context_key="half")
    ax = pl.perturb_effect(cells, found, "STAT1", context_key="half", context="a", show=False)
    assert "STAT1" in ax.get_title()
    n = ((cells.obs["perturbation"] == "STAT1") & (cells.obs["half"] == "a")).sum()
    assert f"{n} cells" in ax.get_title()
    with pytest.raises(ValueError, match="contexts 'a', 'b'|contexts 'b', 'a'"):
        pl.perturb_effect(cells, found, "STAT1", show=False)
