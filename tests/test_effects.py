"""Mean effects of perturbations, from cells and from tables."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scanpy_scgpt import baselines
from scanpy_scgpt.pp import parse_perturbations

THP1 = "perturb_papalexi2021_thp1.h5ad"


@pytest.fixture(scope="module")
def screen(data_dir):
    cells = ad.read_h5ad(data_dir / THP1)
    return cells, parse_perturbations(cells.obs["perturbation"], genes=cells.var_names)


@pytest.fixture
def small():
    """Log-normalised values, so that sums can be done by hand."""
    values = np.array([[1, 0], [3, 0], [2, 4], [4, 4], [0, 0.5], [2, 0], [9, 9]], dtype=np.float32)
    labels = pd.Series(["ctrl", "ctrl", "A", "A", "ctrl", "B", None])
    cells = ad.AnnData(sparse.csr_matrix(values), var=pd.DataFrame(index=["A", "G"]))
    cells.obs["batch"] = ["x", "x", "x", "x", "y", "y", "x"]
    return cells, parse_perturbations(labels, genes=cells.var_names)


def test_means_and_differences_by_hand(small):
    found = baselines.pseudobulk_effects(*small)
    np.testing.assert_allclose(found.control, [4 / 3, 0.5 / 3])
    np.testing.assert_allclose(found.means.loc["A"], [3, 4])
    np.testing.assert_allclose(found.deltas.loc["A"], [3 - 4 / 3, 4 - 0.5 / 3])
    assert found.n_cells.to_dict() == {"A": 2, "B": 1}
    assert found.n_control == 3


def test_a_covariate_compares_inside_its_levels(small):
    found = baselines.pseudobulk_effects(*small, covariate="batch")
    np.testing.assert_allclose(found.deltas.loc["A"], [3 - 2, 4 - 0])
    np.testing.assert_allclose(found.deltas.loc["B"], [2 - 0, 0 - 0.5])


def test_several_covariates_are_combined(small):
    cells, found = small
    cells.obs["kind"] = ["k", "l", "k", "l", "k", "k", "k"]
    together = baselines.pseudobulk_effects(cells, found, covariate=["batch", "kind"])
    np.testing.assert_allclose(together.deltas.loc["A"], [((2 - 1) + (4 - 3)) / 2, 4 - 0])


def test_one_cell_has_the_spread_of_the_others(small):
    errors = baselines.pseudobulk_effects(*small).errors
    assert np.isfinite(errors).all(axis=None)
    assert (errors.loc["B"] > errors.loc["A"]).all()


def test_a_condition_without_control_in_its_level_is_left_out(small, caplog):
    cells, found = small
    cells.obs["batch"] = ["x", "x", "x", "x", "x", "y", "x"]
    with caplog.at_level("WARNING", logger="scanpy_scgpt"):
        effects = baselines.pseudobulk_effects(cells, found, covariate="batch")
    assert list(effects.deltas.index) == ["A"]
    assert "no control cells in the levels of B; left out." in caplog.text


def test_blocks_and_disk_change_nothing(screen, tmp_path, monkeypatch, write_cells):
    cells, found = screen
    rows = np.unique(np.r_[0:400, np.flatnonzero(found.codes == -1)[:100]])
    part, few = cells[rows].copy(), found.take(rows)
    whole = baselines.pseudobulk_effects(part, few)
    monkeypatch.setattr("scanpy_scgpt._effects._BLOCK", 7 * part.n_vars)
    by_block = baselines.pseudobulk_effects(part, few)
    path = write_cells(part, tmp_path / "cells.h5ad")
    on_disk = baselines.pseudobulk_effects(ad.read_h5ad(path, backed="r"), few)
    for other in (by_block, on_disk):
        pd.testing.assert_frame_equal(whole.deltas, other.deltas)
        pd.testing.assert_frame_equal(whole.errors, other.errors)


def test_errors_tell_how_far_two_halves_are_apart(screen):
    """Differences of two random halves, in units of their standard error, have a spread of one."""
    cells, found = screen
    half = np.random.default_rng(0).random(cells.n_obs) < 0.5
    first, second = (baselines.pseudobulk_effects(cells[own], found.take(own)) for own in (half, ~half))
    z = (first.deltas - second.deltas) / np.sqrt(first.errors**2 + second.errors**2)
    expressed = first.control > 0.1
    assert z.loc[:, expressed].to_numpy().std() == pytest.approx(1, abs=0.15)


def test_real_screen_knows_its_targets(screen):
    cells, found = screen
    effects = baselines.pseudobulk_effects(cells, found, covariate="batch")
    assert effects.deltas.shape == (25, 299)
    measured = [name for name in effects.deltas.index if name in effects.deltas]
    assert len(measured) == 9
    assert all(effects.deltas.loc[name, name] < -0.5 for name in measured)
    top = effects.de_genes(20)
    assert "STAT1" in top["STAT1"]
    assert "STAT1" not in effects.de_genes(20, targets=found.target_table)["STAT1"]
    strong = ((effects.deltas / effects.errors).abs() > 4).sum(axis=1)
    assert strong.loc[["IFNGR1", "IFNGR2", "JAK2", "STAT1"]].min() > 30
    assert strong.loc[["ATF2", "CAV1", "CD86", "ETV7"]].max() == 0


def test_sizes_of_the_whole_transcriptome(data_dir):
    cells = ad.read_h5ad(data_dir / "perturb_datlinger2021_jurkat.h5ad")
    found = parse_perturbations(cells.obs["perturbation"], genes=cells.var_names)
    effects = baselines.pseudobulk_effects(cells, found, covariate="condition", size_key="total_counts")
    expected = np.log1p(
        cells.X.toarray()[found.codes == -1] * 1e4 / cells.obs["total_counts"].to_numpy()[found.codes == -1, None]
    )
    np.testing.assert_allclose(effects.control, expected.mean(axis=0))


def test_table_of_fold_changes(data_dir):
    table = ad.read_h5ad(data_dir / "perturb_table_luhmes_lalli2020.h5ad")
    found = parse_perturbations(table.obs["perturbation"], genes=table.var_names, needs_control=False)
    raw = baselines.table_effects(table, found)
    assert raw.deltas.shape == (14, 5986)
    np.testing.assert_allclose(raw.deltas.loc["ADNP"], np.asarray(table["ADNP"].X).ravel(), rtol=1e-6)
    assert raw.errors.isna().all(axis=None)
    shrunk = baselines.table_effects(table, found, p_layer="neglog10_p")
    assert (shrunk.deltas.abs() <= raw.deltas.abs() + 1e-9).all(axis=None)
    own = [name for name in shrunk.deltas.index if name in shrunk.deltas]
    for name in own:
        kept, certainty = (
            shrunk.deltas.loc[name, name] / raw.deltas.loc[name, name],
            table[name, name].layers["neglog10_p"],
        )
        assert kept > 0.85 if certainty.item() > 8 else kept < 0.75
    assert np.abs(shrunk.deltas.to_numpy()).sum() < 0.2 * np.abs(raw.deltas.to_numpy()).sum()


def test_clipped_values_say_nothing():
    table = ad.AnnData(np.array([[-10.0, 1.0], [0.5, 2.0]]), obs={"p": ["A", "B"]}, var=pd.DataFrame(index=["g", "h"]))
    found = parse_perturbations(table.obs["p"], needs_control=False)
    effects = baselines.table_effects(table, found, clip=10)
    assert effects.deltas.to_numpy().tolist() == [[0.0, 1.0], [0.5, 2.0]]


def test_bad_input(small):
    cells, found = small
    with pytest.raises(ValueError, match=r"perturbations is about 7 cells, adata has 6"):
        baselines.pseudobulk_effects(cells[:6], found)
    with pytest.raises(KeyError, match="has no column 'batc'; did you mean 'batch'"):
        baselines.pseudobulk_effects(cells, found, covariate="batc")
    scaled = ad.AnnData(cells.X.toarray() - 2, var=cells.var)
    with pytest.raises(ValueError, match="X has negative values"):
        baselines.pseudobulk_effects(scaled, found)
    twice = ad.AnnData(cells.X)
    twice.var_names = ["A", "A"]
    with pytest.raises(ValueError, match="The gene 'A' is there twice"):
        baselines.pseudobulk_effects(twice, found)
    cells.obs["batch"] = ["x", "x", "y", "y", "x", "y", "x"]
    with pytest.raises(ValueError, match="No condition has control cells to be compared with"):
        baselines.pseudobulk_effects(cells, found, covariate="batch")
    with pytest.raises(KeyError, match="There is no layer 'p'"):
        baselines.table_effects(cells, found, p_layer="p")


def test_the_order_of_a_table_does_not_matter(data_dir):
    table = ad.read_h5ad(data_dir / "perturb_table_macrophage_wang2025.h5ad")
    table = table[table.obs["condition"] == "CRISPRi"][:40, :2000].copy()
    order = np.random.default_rng(0).permutation(table.n_obs)
    first, second = (
        baselines.table_effects(
            x, parse_perturbations(x.obs["perturbation"], needs_control=False), p_layer="neglog10_p"
        ).deltas
        for x in (table, table[order].copy())
    )
    pd.testing.assert_frame_equal(first, second.loc[first.index], check_exact=False, atol=1e-12)
