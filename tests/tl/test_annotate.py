"""Labels, confidence, sets and unknown cells; what is written, what is refused, and that it learns."""

from __future__ import annotations

import json
import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc

from scanpy_scgpt import get, metrics, tl
from scanpy_scgpt.io import CheckpointError
from scanpy_scgpt.tokenizer import GeneMatchError

FAST = {"max_epochs": 0, "min_genes": 100, "device": "cpu"}


def cells() -> ad.AnnData:
    adata = sc.datasets.pbmc68k_reduced()
    out = ad.AnnData(adata.raw.X.copy(), obs=adata.obs[["bulk_labels"]].copy(), var=adata.raw.var[[]].copy())
    out.obs["cell_type"] = out.obs["bulk_labels"].astype(str)
    return out


@pytest.fixture(scope="module")
def split() -> tuple[ad.AnnData, ad.AnnData]:
    adata = cells()
    held = np.arange(adata.n_obs) % 3 == 0
    return adata[~held].copy(), adata[held].copy()


@pytest.fixture(scope="module")
def annotated(split, tmp_path_factory):
    reference, query = split
    folder = tmp_path_factory.mktemp("annotator") / "saved"
    return tl.annotate(query, reference, "cell_type", save=folder, copy=True, **FAST), folder


def test_what_is_written(split, annotated):
    reference, query = split
    found, _ = annotated
    labels = sorted(reference.obs["cell_type"].unique())
    assert list(found.obs["scgpt_label"].cat.categories) == labels
    probabilities = get.label_probabilities(found)
    assert probabilities.shape == (query.n_obs, len(labels))
    assert list(probabilities.index) == list(query.obs_names)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    assert (probabilities.idxmax(axis=1) == found.obs["scgpt_label"].astype(str)).all()
    np.testing.assert_allclose(found.obs["scgpt_confidence"], probabilities.max(axis=1))
    assert found.obs["scgpt_unknown"].dtype == bool
    assert found.obsm["scgpt_label_sets"].dtype == bool
    record = found.uns["scgpt"]["annotate"]
    assert record["n_reference"] == reference.n_obs
    assert set(record["held_out"]) == {"scGPT", "logistic", "knn"}
    assert record["model"].startswith("mini@")


def test_it_is_better_than_the_most_frequent_label(annotated):
    found, _ = annotated
    row = metrics.annotation(found.obs["cell_type"], found.obs["scgpt_label"])
    assert row["accuracy"] > 0.7
    assert row["macro_f1"] > 0.55


def test_nothing_else_changes(split):
    reference, query = split
    before = (reference.copy(), query.copy())
    mine = query.copy()
    tl.annotate(mine, reference, "cell_type", key_added="name", baselines=False, **FAST)
    assert set(mine.obs) - set(before[1].obs) == {"name", "name_confidence", "name_unknown"}
    assert set(mine.obsm) == {"name_prob", "name_sets"}
    assert list(mine.uns) == ["scgpt"]
    assert list(mine.uns["scgpt"]) == ["annotate_name"]
    assert (mine.X != before[1].X).nnz == 0
    pd.testing.assert_frame_equal(reference.obs, before[0].obs)
    assert list(reference.uns) == list(before[0].uns)
    assert list(reference.obsm) == list(before[0].obsm)


def test_a_saved_annotator_gives_the_same(split, annotated, tmp_path):
    found, folder = annotated
    again = split[1][::-1].copy()
    again = again[:, np.random.default_rng(0).permutation(again.n_vars)].copy()
    tl.annotate(again, folder, min_genes=100)
    same = get.label_probabilities(again).loc[found.obs_names]
    np.testing.assert_allclose(same, found.obsm["scgpt_label_prob"], atol=1e-4)
    assert again.uns["scgpt"]["annotate"]["held_out"] == found.uns["scgpt"]["annotate"]["held_out"]
    again.write_h5ad(tmp_path / "cells.h5ad")
    assert "scgpt_label_sets" in ad.read_h5ad(tmp_path / "cells.h5ad").obsm


def test_the_error_of_the_sets(split):
    """More error allowed, smaller sets; the sets hold the truth about as often as they should."""
    reference, query = split
    sizes = []
    for error in (0.05, 0.4):
        found = tl.annotate(query, reference, "cell_type", target_error=error, baselines=False, copy=True, **FAST)
        sets = get.label_sets(found)
        sizes.append(sets.to_numpy().sum(axis=1).mean())
        row = metrics.prediction_sets(found.obs["cell_type"], sets)
        assert row["coverage_high"] > 1 - error - 0.1
    assert sizes[0] > sizes[1]


def test_roll_up(split):
    reference, query = split
    parents = {label: "T" for label in reference.obs["cell_type"].unique() if label.startswith(("CD4", "CD8"))}
    found = tl.annotate(query, reference, "cell_type", hierarchy=parents, baselines=False, copy=True, **FAST)
    rolled = found.obs["scgpt_label_rollup"].astype(object)
    sure = (found.obs["scgpt_confidence"] >= 0.95).to_numpy()
    assert (rolled[sure] == found.obs["scgpt_label"].astype(str)[sure]).all()
    t_cells = get.label_probabilities(found)[list(parents)].sum(axis=1) >= 0.95
    best_is_t = found.obs["scgpt_label"].astype(str).isin(parents)
    assert (rolled[t_cells & best_is_t & ~sure] == "T").all()
    assert rolled[~sure & ~(t_cells & best_is_t)].isna().all()


@pytest.mark.parametrize(
    ("hierarchy", "text"),
    [
        ({"B": "A", "A": "B", "CD34+": "B"}, "is its own ancestor"),
        ({"x": "y"}, "names none of the labels"),
        ({"CD34+": "stem", "Dendritc": "myeloid"}, "'Dendritc' is no label and no parent.*Did you mean 'Dendritic'"),
    ],
)
def test_a_hierarchy_that_does_not_fit(split, annotated, hierarchy, text):
    with pytest.raises(ValueError, match=text):
        tl.annotate(split[1].copy(), annotated[1], hierarchy=hierarchy, min_genes=100)


def test_cells_without_a_label_are_left_out(split, caplog):
    reference, query = split[0].copy(), split[1].copy()
    labels = reference.obs["cell_type"].astype(object)
    labels.iloc[:40] = np.nan
    reference.obs["cell_type"] = labels
    with caplog.at_level(logging.INFO, logger="scanpy_scgpt"):
        tl.annotate(query, reference, "cell_type", baselines=False, **FAST)
    assert "40 cells of the reference have no label and are left out" in caplog.text
    record = query.uns["scgpt"]["annotate"]
    assert (record["n_unlabelled"], record["n_reference"]) == (40, reference.n_obs - 40)


def test_labels_of_one_cell_and_numbers(split, caplog):
    reference, query = split[0].copy(), split[1].copy()
    codes = pd.factorize(reference.obs["cell_type"])[0]
    codes[0] = 99
    reference.obs["number"] = codes
    with caplog.at_level(logging.WARNING, logger="scanpy_scgpt"):
        tl.annotate(query, reference, "number", baselines=False, **FAST)
    assert "1 label has a single cell ('99')" in caplog.text
    assert set(query.obs["scgpt_label"].cat.categories) == set(map(str, np.unique(codes)))


def test_reference_and_query_the_same_object(caplog):
    adata = cells()[:200].copy()
    labels = adata.obs["cell_type"].astype(object)
    labels.iloc[100:] = np.nan
    adata.obs["cell_type"] = labels
    with caplog.at_level(logging.WARNING, logger="scanpy_scgpt"):
        tl.annotate(adata, adata, "cell_type", baselines=False, **FAST)
    assert "reference and query are the same object; its 100 labelled cells are learned from" in caplog.text
    assert adata.obs["scgpt_label"].notna().all()


def test_one_label_for_all_is_said(split, caplog):
    reference = split[0]
    query = split[1][split[1].obs["cell_type"] == "CD19+ B"].copy()
    with caplog.at_level(logging.WARNING, logger="scanpy_scgpt"):
        tl.annotate(query, reference, "cell_type", baselines=False, **FAST)
    assert query.uns["scgpt"]["annotate"]["degenerate"]
    assert "of the cells got the label 'CD19+ B', which" in caplog.text


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"labels_key": None}, ValueError, r"labels_key: name the column of reference.obs.*bulk_labels"),
        ({"labels_key": "celltype"}, KeyError, "reference.obs has no column 'celltype'; did you mean 'cell_type'"),
        ({"batch_key": "donr"}, KeyError, "reference.obs has no column 'donr'"),
        ({"max_epochs": -1}, ValueError, "max_epochs=-1: a whole number, 0 for the network as it is"),
        ({"key_added": "a/b"}, ValueError, "key_added='a/b': a name other than 'scgpt', without a slash"),
        ({"key_added": "scgpt"}, ValueError, "key_added='scgpt': a name other than 'scgpt'"),
        ({"hierarchy": [("B", "A")]}, TypeError, "hierarchy is a list. Map each label to its parent"),
        ({"target_error": 1.5}, ValueError, "target_error=1.5: a share between 0 and 1"),
        ({"validation_size": 0}, ValueError, "validation_size=0: a share between 0 and 0.4"),
    ],
)
def test_arguments_that_are_refused(split, change, error, text):
    reference, query = split
    arguments = {"labels_key": "cell_type", **change}
    with pytest.raises(error, match=text):
        tl.annotate(query.copy(), reference, arguments.pop("labels_key"), **{**FAST, **arguments})


def test_a_reference_with_one_label(split):
    reference = split[0].copy()
    reference.obs["cell_type"] = "B"
    with pytest.raises(ValueError, match=r"reference.obs\['cell_type'\] has one label, 'B'; at least two"):
        tl.annotate(split[1].copy(), reference, "cell_type", **FAST)


def test_what_stands_for_no_label(split, caplog):
    reference = split[0].copy()
    labels = reference.obs["cell_type"].astype(object)
    labels.iloc[:4] = ["", "nan", "None", " CD19+ B "]
    reference.obs["cell_type"] = labels
    query = split[1].copy()
    with caplog.at_level(logging.INFO, logger="scanpy_scgpt"):
        tl.annotate(query, reference, "cell_type", baselines=False, **FAST)
    assert "3 cells of the reference have no label" in caplog.text
    assert set(query.obs["scgpt_label"].cat.categories) == set(split[0].obs["cell_type"])


def test_measurements_are_no_labels(split):
    reference = split[0].copy()
    reference.obs["score"] = np.linspace(0, 1, reference.n_obs)
    with pytest.raises(ValueError, match=r"reference.obs\['score'\] holds measurements \(float64\), no labels"):
        tl.annotate(split[1].copy(), reference, "score", **FAST)


def test_whole_batches_are_left_out_or_it_is_said(split, caplog):
    reference = split[0].copy()
    reference.obs["donor"] = np.arange(reference.n_obs) % 4
    found = tl.annotate(split[1], reference, "cell_type", batch_key="donor", baselines=False, copy=True, **FAST)
    assert found.uns["scgpt"]["annotate"]["batch_key"] == "donor"
    assert "batches cannot be left out" not in caplog.text
    with caplog.at_level(logging.WARNING, logger="scanpy_scgpt"):
        tl.annotate(split[1].copy(), reference, "cell_type", batch_key="cell_type", baselines=False, **FAST)
    assert "cells have a label that no other batch has, so batches cannot be left out" in caplog.text


def test_a_former_roll_up_goes(split, annotated):
    query = split[1].copy()
    tl.annotate(query, annotated[1], hierarchy={"CD34+": "stem"}, min_genes=100)
    assert "scgpt_label_rollup" in query.obs
    tl.annotate(query, annotated[1], min_genes=100)
    assert "scgpt_label_rollup" not in query.obs


def test_names_of_genes_in_a_column(split, annotated):
    query = split[1].copy()
    query.var["gene_symbols"] = query.var_names
    query.var_names = [f"gene{i}" for i in range(query.n_vars)]
    tl.annotate(query, annotated[1], min_genes=100)
    np.testing.assert_allclose(query.obsm["scgpt_label_prob"], annotated[0].obsm["scgpt_label_prob"], atol=1e-4)


def test_an_error_that_cannot_be_reached_is_said(split, annotated, caplog):
    query = split[1].copy()
    with caplog.at_level(logging.WARNING, logger="scanpy_scgpt"):
        tl.annotate(query, annotated[1], target_error=0.001, min_genes=100)
    assert query.obsm["scgpt_label_sets"].all()
    assert "every label set holds every label: target_error=0.001 asks for more left-out cells" in caplog.text
    assert not query.obs["scgpt_unknown"].all()


def test_unknown_does_not_depend_on_the_error_of_the_sets(split, annotated):
    flags = []
    for error in (0.05, 0.5):
        query = split[1].copy()
        tl.annotate(query, annotated[1], target_error=error, min_genes=100)
        flags.append(query.obs["scgpt_unknown"].to_numpy())
    np.testing.assert_array_equal(*flags)


def test_nothing_is_kept_of_the_query(split, annotated):
    from scanpy_scgpt.model import SCGPTAnnotator

    before = len(SCGPTAnnotator._setup_adata_manager_store)
    tl.annotate(split[1].copy(), annotated[1], min_genes=100)
    assert len(SCGPTAnnotator._setup_adata_manager_store) == before


def test_other_folders_are_left_alone(split, annotated, tmp_path):
    (tmp_path / "mine.csv").write_text("1,2")
    with pytest.raises(FileExistsError, match="is there and holds no model, so nothing is put into it"):
        tl.annotate(split[1].copy(), split[0], "cell_type", save=tmp_path, overwrite=True, baselines=False, **FAST)
    with pytest.raises(FileExistsError, match="exists. Choose another folder, or pass overwrite=True"):
        tl.annotate(split[1].copy(), split[0], "cell_type", save=annotated[1], **FAST)
    with pytest.raises(ValueError, match="adata has no cells"):
        tl.annotate(split[1][:0].copy(), annotated[1])


def test_a_scaled_reference_names_the_line(split):
    reference = sc.datasets.pbmc68k_reduced()
    with pytest.raises(ValueError, match=r"^reference: X has negative values.*reference = reference.raw.to_adata\(\)"):
        tl.annotate(split[1].copy(), reference, "bulk_labels", **FAST)


def test_a_query_without_a_gene_of_the_reference(split):
    query = split[1].copy()
    query.var_names = [f"gene{i}" for i in range(query.n_vars)]
    with pytest.raises(GeneMatchError, match=r"Reference and query share 0 genes.*'gene0'"):
        tl.annotate(query, split[0], "cell_type", **FAST)


def test_an_annotator_has_its_own_labels(split, annotated):
    with pytest.raises(ValueError, match="labels_key='cell_type' does not go with an annotator"):
        tl.annotate(split[1].copy(), annotated[1], "cell_type")


def test_a_model_of_a_newer_version(split, annotated, tmp_path):
    import shutil

    folder = tmp_path / "newer"
    shutil.copytree(annotated[1], folder)
    saved = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**saved, "format_version": 99}))
    with pytest.raises(CheckpointError, match="format_version 99, this release reads 1.*pip install -U"):
        tl.annotate(split[1].copy(), folder)
    with pytest.raises(FileNotFoundError, match="Name a file of labelled cells"):
        tl.annotate(split[1].copy(), tmp_path / "nowhere")
