"""`tl.perturb`, `tl.perturb_space` and `tl.reverse_perturb` on real cells, real tables and a simulation."""

from __future__ import annotations

import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scanpy_scgpt import tl
from scanpy_scgpt.model import SCGPTPerturber


@pytest.fixture(scope="module")
def cells(data_dir):
    every = ad.read_h5ad(data_dir / "perturb_papalexi2021_thp1.h5ad")
    names = every.obs["perturbation"].astype(str)
    rank = names.groupby(names).cumcount()
    return every[(rank < np.where(names == "control", 400, 80)).to_numpy(), :].copy()


@pytest.fixture(scope="module")
def result(cells):
    return tl.perturb(cells, "perturbation", batch_key="batch", predict=["IRF1+STAT1", "TYK2", ("JAK2",)], n_cells=2)


@pytest.fixture(scope="module")
def model(cells):
    return SCGPTPerturber(cells, "perturbation", batch_key="batch")


def test_one_row_for_each_perturbation_with_all_that_is_promised(result, cells):
    assert result.shape == (27, 299)
    assert list(result.var_names) == list(cells.var_names)
    assert set(result.layers) == {"delta", "lower", "upper", "measured"}
    assert result.obs.loc["STAT1", "kind"] == "measured"
    assert result.obs.loc["TYK2", "kind"] == "unseen"
    assert result.obs.loc["IRF1+STAT1", "kind"] == "combination"
    assert result.obs.loc["STAT1", "n_cells"] == 80
    assert result.obs.loc["TYK2", "n_cells"] == 0
    assert result.obs["target_measured"].sum() == 9
    assert (result.X >= 0).all()
    delta, measured = result.to_df("delta"), result.to_df("measured")
    assert (result.layers["lower"] <= result.layers["delta"]).all()
    assert measured.loc["TYK2"].isna().all()
    assert np.corrcoef(delta.loc["STAT1"], measured.loc["STAT1"])[0, 1] > 0.9
    assert delta.loc["STAT1", "STAT1"] < -0.5
    cells_of = result.uns["scgpt"]["perturb"]["cells"]
    assert sparse.issparse(cells_of)
    assert cells_of.shape == (54, 299)
    assert (cells_of.data > 0).all()


def test_the_same_seed_gives_the_same_and_the_cells_are_left_alone(result, cells, fingerprint):
    before = fingerprint(cells)
    again = tl.perturb(cells, "perturbation", batch_key="batch", predict=["IRF1+STAT1", "TYK2", ("JAK2",)])
    np.testing.assert_array_equal(result.layers["delta"], again.layers["delta"])
    assert fingerprint(cells) == before


def test_the_result_can_be_written(result, tmp_path):
    result.write_h5ad(tmp_path / "effects.h5ad")
    again = ad.read_h5ad(tmp_path / "effects.h5ad")
    np.testing.assert_array_equal(again.layers["delta"], result.layers["delta"])
    assert again.uns["scgpt"]["perturb"]["anchor"] == "ridge"


def test_a_model_that_was_saved_is_used(cells, tmp_path):
    first = tl.perturb(cells, "perturbation", predict=["TYK2"], save=tmp_path / "model")
    loaded = SCGPTPerturber.load(tmp_path / "model")
    again = tl.perturb(cells, "perturbation", predict=["TYK2"], model=loaded)
    np.testing.assert_allclose(first.layers["delta"], again.layers["delta"], atol=1e-5)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        tl.perturb(cells, "perturbation", save=tmp_path / "model")


def test_a_stimulus_in_cell_types_and_one_where_it_was_not_tried(data_dir):
    every = ad.read_h5ad(data_dir / "pbmc_ifnb_kang2018_2k.h5ad")
    types = every.obs["cell_type"].value_counts().index[:3]
    kept = every.obs["cell_type"].isin(types).to_numpy()
    left = kept & ~((every.obs["cell_type"] == types[0]) & (every.obs["condition"] == "stim")).to_numpy()
    given = every[left, :1500].copy()
    found = tl.perturb(given, "condition", context_key="cell_type", predict=["stim"], features=())
    row = f"stim | {types[0]}"
    assert found.obs.loc[row, "kind"] == "seen elsewhere"
    whole = tl.perturb(every[kept, :1500].copy(), "condition", context_key="cell_type", features=())
    truth = whole.to_df("measured").loc[row]
    assert np.corrcoef(found.to_df("delta").loc[row], truth)[0, 1] > 0.7


def test_a_table_of_effects_is_taken_as_it_is(data_dir):
    table = ad.read_h5ad(data_dir / "perturb_table_luhmes_lalli2020.h5ad")
    found = tl.perturb(table, "perturbation", predict=["FOXP1"], p_layer="neglog10_p")
    assert found.shape[0] == 15
    assert found.obs.loc["FOXP1", "kind"] == "unseen"
    np.testing.assert_array_equal(found.X, found.layers["delta"])
    with pytest.raises(ValueError, match="n_cells=0"):
        tl.perturb(table, "perturbation", n_cells=3)


def test_predictions_that_are_all_the_same_are_said_to_be(cells, caplog):
    with caplog.at_level(logging.WARNING, logger="scanpy_scgpt"):
        tl.perturb(cells, "perturbation", predict=["TYK2", "IRF9", "SOCS1"], anchor="mean")
    assert "almost the same (0 % of the measured variance)" in caplog.text


def test_the_space_of_all_singles_and_doubles(model):
    genes = ["STAT1", "JAK2", "IFNGR1", "IFNGR2", "IRF1", "MYC", "BRD4", "CUL3", "SMAD4", "SPI1", "TYK2"]
    space = tl.perturb_space(model, genes, n_neighbors=8, umap=False)
    assert space.n_obs == 11 + 55
    changes = tl.space_changes(space)
    direct = model.changes(model.conditions([("STAT1",), ("IFNGR1", "JAK2")]))
    np.testing.assert_allclose(changes.loc[["STAT1", "IFNGR1+JAK2"]], direct, atol=0.02)
    np.testing.assert_allclose(space.obs.loc["STAT1", "size"], np.linalg.norm(direct[0]), rtol=1e-4)
    for _, rows in space.obs.groupby("cluster", observed=True):
        gene, share = rows["dominant_gene"].iloc[0], rows["dominant_share"].iloc[0]
        assert np.mean([gene in name.split("+") for name in rows.index]) == pytest.approx(share)
    assert tl.space_changes(space, ["MYC"]).shape == (1, 299)
    single = tl.perturb_space(model, genes, max_order=1, n_neighbors=4, umap=False)
    assert single.n_obs == 11
    with pytest.raises(ValueError, match="max_order=3"):
        tl.perturb_space(model, genes, max_order=3)
    with pytest.raises(ValueError, match="'STAT1' is there twice"):
        tl.perturb_space(model, ["STAT1", "STAT1"])


@pytest.mark.parametrize("method", ["direct", "votes"])
def test_cells_of_a_strong_perturbation_lead_back_to_it(cells, model, method):
    found = tl.reverse_perturb(cells, model, target="STAT1", groupby="perturbation", method=method)
    assert found.index[0] == "STAT1"
    assert found["rank"].tolist() == list(range(1, 26))
    assert found["chance_top"].iloc[0] == pytest.approx(1 / 25)
    if method == "direct":
        assert {"JAK2", "IFNGR1", "IFNGR2"} <= set(found.sort_values("correlation").index[-5:])


def test_a_shift_between_two_groups_and_given_candidates(cells, model):
    given = {"target": "JAK2", "source": "ATF2", "groupby": "perturbation"}
    found = tl.reverse_perturb(cells, model, candidates=["JAK2", "MYC", "STAT1+JAK2"], **given)
    assert set(found.index) == {"JAK2", "MYC", "JAK2+STAT1"}
    assert found["correlation"].idxmin() == "MYC"
    assert found["relevant_chance"].iloc[0] == pytest.approx(2 / 3 if found.index[0] != "MYC" else 1 / 3)


def test_chance_and_exact_intervals_of_hits():
    rankings = {"A+B": ["A+B", "A", "C", "B+C"], "C": ["A", "B+C", "C", "A+B"]}
    rates = tl.hit_rates(rankings, ks=(1, 2)).set_index(["k", "measure"])
    assert rates.loc[(1, "correct"), "hits"] == 1
    assert rates.loc[(2, "relevant"), "hits"] == 2
    assert rates.loc[(1, "correct"), "chance"] == pytest.approx(0.25)
    assert rates.loc[(1, "relevant"), "chance"] == pytest.approx((3 / 4 + 2 / 4) / 2)
    assert rates.loc[(1, "correct"), "low"] == pytest.approx(0.0126, abs=1e-3)
    assert rates.loc[(1, "correct"), "high"] == pytest.approx(0.9874, abs=1e-3)
    with pytest.raises(ValueError, match="does not rank 'X' itself"):
        tl.hit_rates({"X": ["A"]})


def test_bad_input_of_the_search(cells, model, data_dir):
    with pytest.raises(ValueError, match="target='STAT9': no cell is in this group"):
        tl.reverse_perturb(cells, model, target="STAT9", groupby="perturbation")
    with pytest.raises(ValueError, match="method='best': use one of"):
        tl.reverse_perturb(cells, model, target="STAT1", groupby="perturbation", method="best")
    with pytest.raises(ValueError, match="genes of the screen are not among those of adata"):
        tl.reverse_perturb(cells[:, :50].copy(), model, target="STAT1", groupby="perturbation")
    table = ad.read_h5ad(data_dir / "perturb_table_luhmes_lalli2020.h5ad")[:, :200].copy()
    of_table = SCGPTPerturber(table, "perturbation", features=())
    moved = ad.AnnData(np.abs(table.X), obs=table.obs, var=table.var)
    with pytest.raises(ValueError, match="the state to start from must be named"):
        tl.reverse_perturb(moved, of_table, target="PTEN", groupby="perturbation")


def test_a_name_is_not_read_letter_by_letter(cells, model):
    found = tl.perturb(cells, predict="TYK2", model=model)
    assert found.obs["condition"][-1:].tolist() == ["TYK2"]
    assert list(tl.reverse_perturb(cells, model, target="STAT1", groupby="perturbation", candidates="STAT1").index) == [
        "STAT1"
    ]
    with pytest.raises(ValueError, match="there are 1, and a space needs two"):
        tl.perturb_space(model, "STAT1")


def test_candidates_count_once_and_rankings_are_taken_as_they_are(cells, model):
    given = {"target": "STAT1", "groupby": "perturbation"}
    table = tl.reverse_perturb(cells, model, candidates=["STAT1", "STAT1+ctrl", "IRF1", "STAT1"], **given)
    assert sorted(table.index) == ["IRF1", "STAT1"]
    assert table["chance_top"].tolist() == [0.5, 1.0]
    assert tl.hit_rates({"STAT1": table}, ks=[1])["hits"].tolist() == [1, 1]
    with pytest.raises(ValueError, match="There is no ranking"):
        tl.hit_rates({})
    with pytest.raises(ValueError, match="candidates is empty"):
        tl.reverse_perturb(cells, model, candidates=[], **given)
    with pytest.raises(ValueError, match="no shift between a group and itself"):
        tl.reverse_perturb(cells, model, source="STAT1", **given)
    with pytest.raises(ValueError, match="context=.typo."):
        tl.reverse_perturb(cells, model, context="typo", **given)


def test_a_saved_model_is_taken_by_its_folder_and_cells_are_its_own(cells, model, result, tmp_path):
    model.save(tmp_path / "saved")
    again = tl.perturb(cells, predict=["TYK2"], model=tmp_path / "saved")
    np.testing.assert_allclose(again["TYK2"].layers["delta"], result["TYK2"].layers["delta"], atol=1e-6)
    other = cells[::-1, ::-1][:50].copy()
    first, second = (
        tl.perturb(x, predict=["TYK2"], model=model, n_cells=2).uns["scgpt"]["perturb"]["cells"] for x in (cells, other)
    )
    assert (first != second).nnz == 0
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds something else"):
        model.save(tmp_path / "mine", overwrite=True)


def test_two_ways_to_change_a_gene_are_not_mixed(cells):
    mixed = cells.copy()
    names = mixed.obs["perturbation"].astype(str).to_numpy()
    names = np.where(names == "STAT1", "STAT1_CRISPRi", np.where(names == "JAK2", "STAT1_CRISPRa", names))
    mixed.obs["perturbation"] = names
    with pytest.raises(ValueError, match="'STAT1 CRISPRa' and 'STAT1 CRISPRi', two ways"):
        tl.perturb(mixed)
    mixed.obs["way"] = np.where(names == "STAT1_CRISPRa", "activation", "interference")
    mixed.obs.loc[mixed.obs_names[names == "control"][::2], "way"] = "activation"
    found = tl.perturb(mixed, context_key="way")
    rows = found.obs["targets"] == "STAT1"
    assert set(found.obs.loc[rows, "condition"]) == {"STAT1"}
    assert set(found.obs.loc[rows & (found.obs["kind"] == "measured"), "context"]) == {"activation", "interference"}


def test_a_cytokine_can_be_told_from_a_knock_out(cells):
    renamed = cells.copy()
    renamed.obs["perturbation"] = renamed.obs["perturbation"].astype(str).replace({"STAT2": "IL6"})
    assert tl.perturb(renamed).obs.loc["IL6", "targets"] == "IL6"
    found = tl.perturb(renamed, targets={"IL6": ()})
    assert not found.obs.loc["IL6", "target_measured"]
    assert tl.perturb(cells, targets={"STAT2": ()}).obs.loc["STAT2", "targets"] == ""


def test_values_that_are_logged_say_so_and_take_no_sizes(cells, caplog):
    import scanpy as sc

    logged = cells.copy()
    logged.X = logged.X.astype(np.float32)
    logged.obs["size"] = np.asarray(logged.X.sum(axis=1)).ravel()
    logged.raw = logged
    sc.pp.normalize_total(logged, target_sum=1e4)
    sc.pp.log1p(logged)
    del logged.raw
    with caplog.at_level(logging.INFO, logger="scanpy_scgpt"):
        tl.perturb(logged)
    assert "they are used as they are" in caplog.text
    assert "bins" not in caplog.text
    with pytest.raises(ValueError, match="size_key cannot scale any more"):
        tl.perturb(logged, size_key="size")


def test_small_spaces_and_what_is_no_gene(model):
    assert tl.perturb_space(model, ["STAT1", "JAK2"]).shape[0] == 3
    assert tl.perturb_space(model, ["STAT1", "JAK2"], max_order=1).obsm["X_umap"].shape == (2, 2)
    for genes in (["STAT1", "control"], ["STAT1+JAK2", "IRF1"]):
        with pytest.raises(ValueError, match="is no single gene"):
            tl.perturb_space(model, genes)
    with pytest.raises(ValueError, match="n_components=0"):
        tl.perturb_space(model, n_components=0)


def test_the_search_takes_sizes_and_context_from_the_model(data_dir):
    every = ad.read_h5ad(data_dir / "perturb_datlinger2021_jurkat.h5ad")
    model = SCGPTPerturber(every, "perturbation", context_key="condition", size_key="total_counts")
    context = model.contexts_[1]
    given = {"target": "LCK", "groupby": "perturbation", "context": context}
    found = tl.reverse_perturb(every, model, **given)
    own = every[every.obs["condition"].astype(str) == context].copy()
    alone = tl.reverse_perturb(own, model, size_key="total_counts", **given)
    np.testing.assert_allclose(found["score"], alone["score"])
    del own.obs["condition"]
    other = tl.reverse_perturb(own, model, **given)
    np.testing.assert_allclose(found["score"], other["score"])


def test_batches_without_controls_are_named(cells, caplog):
    lone = cells.copy()
    batch = np.where(np.arange(lone.n_obs) % 2, "a", "b")
    batch[(lone.obs["perturbation"] == "control").to_numpy() & (batch == "a")] = "b"
    lone.obs["lane"] = batch
    with caplog.at_level(logging.WARNING, logger="scanpy_scgpt"):
        tl.perturb(lone, batch_key="lane")
    assert "lie in 1 levels without a control cell" in caplog.text


def test_counts_in_raw_are_taken_with_their_genes(cells, model):
    import scanpy as sc

    usual = cells.copy()
    usual.raw = usual
    usual.X = usual.X.astype(np.float32)
    sc.pp.normalize_total(usual, target_sum=1e4)
    sc.pp.log1p(usual)
    usual = usual[:, 149::-1].copy()
    given = {"target": "STAT1", "groupby": "perturbation"}
    found, expected = (tl.reverse_perturb(x, model, **given) for x in (usual, cells))
    assert list(found.index) == list(expected.index)
    assert expected.index[0] == "STAT1"


def test_a_stimulus_with_the_name_of_a_gene_changes_no_gene(cells):
    found = tl.perturb(cells, targets={"STAT1": ()}, batch_key="batch")
    row = found.obs.loc["STAT1"]
    assert row["targets"] == ""
    assert not row["target_measured"]
    both = tl.perturb(cells, predict=["irf1"], batch_key="batch")
    assert both.n_obs == 25
    for wrong in ((), np.nan):
        with pytest.raises(ValueError, match="is no perturbation"):
            tl.perturb(cells, predict=[wrong])


def test_contexts_that_say_nothing_are_left_out(cells, caplog):
    lost = cells.copy()
    lost.obs["kind"] = np.where(np.arange(lost.n_obs) % 2, "a", "b").astype(object)
    lost.obs.loc[lost.obs_names[:30], "kind"] = np.nan
    with caplog.at_level(logging.WARNING, logger="scanpy_scgpt"):
        found = tl.perturb(lost, context_key="kind")
    assert set(found.obs["context"]) == {"a", "b"}
    assert "30 cells have no 'kind'" in caplog.text
    lost.obs["empty"] = 0.0
    with pytest.raises(ValueError, match="cells have no number above 0"):
        tl.perturb(lost, size_key="empty")


def test_one_control_cell_is_enough_to_go_on(cells, caplog):
    names = cells.obs["perturbation"].astype(str).to_numpy()
    few = cells[(names != "control") | (np.cumsum(names == "control") == 1)].copy()
    with caplog.at_level(logging.WARNING, logger="scanpy_scgpt"):
        assert tl.perturb(few).n_obs == 25
    assert "control" in caplog.text
    ensembl = cells.copy()
    ensembl.var_names = [f"ENSG{i:011d}" for i in range(cells.n_vars)]
    with caplog.at_level(logging.WARNING, logger="scanpy_scgpt"):
        tl.perturb(ensembl)
    assert "no target is among the 299 genes" in caplog.text


def test_many_candidates_are_ranked_in_a_moment():
    from time import perf_counter

    from scanpy_scgpt.tl._reverse import _with_chance

    genes = [f"G{i}" for i in range(150)]
    parts = [(a, b) for i, a in enumerate(genes) for b in genes[i + 1 :]]
    started = perf_counter()
    table = _with_chance(pd.DataFrame(index=["+".join(x) for x in parts]), parts)
    assert perf_counter() - started < 5
    n = len(parts)
    assert table["relevant_chance"].iloc[0] == pytest.approx((2 * 148 + 1) / n)
    assert table["relevant_chance"].iloc[-1] == 1
