"""Gene networks out of attention: what is written, what chance gives, what is refused."""

from __future__ import annotations

import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from scipy.stats import kstest

from scanpy_scgpt import tl
from scanpy_scgpt.model import AttentionRanks, CellTokens
from scanpy_scgpt.tl._attention_cells import digits_of
from scanpy_scgpt.tl._permuted import permuted

FAST = {"device": "cpu", "n_permutations": 50}


@pytest.fixture(scope="module")
def _screen(data_dir):
    """Cells of a knock-out of STAT1, of IRF1, and controls: 160 of 299 genes."""
    adata = ad.read_h5ad(data_dir / "perturb_papalexi2021_thp1.h5ad")
    groups = adata.obs["perturbation"].astype(str).to_numpy()
    rows = np.concatenate(
        [np.flatnonzero(groups == name)[:n] for name, n in (("STAT1", 60), ("IRF1", 40), ("control", 60))]
    )
    always = ["STAT1", "STAT2", "JAK2", "UBE2L6", "PSMB9", "IFNGR2"]
    genes = [*always, *[gene for gene in adata.var_names if gene not in always][:154]]
    return ad.AnnData(adata.X[rows], obs=pd.DataFrame({"ko": groups[rows]}, index=adata.obs_names[rows]),
                      var=pd.DataFrame(index=adata.var_names))[:, genes].copy()  # fmt: skip


@pytest.fixture
def screen(_screen):
    return _screen.copy()


@pytest.fixture(scope="module")
def compared(_screen):
    """The contrast of STAT1 with controls; not to be changed."""
    adata = _screen.copy()
    tl.attention_network(adata, groupby="ko", contrast=("STAT1", "control"), tfs=["STAT1"], n_targets=None, **FAST)
    return adata


def test_what_is_written(screen, fingerprint, caplog):
    before = fingerprint(screen)
    with caplog.at_level(logging.INFO, logger="scanpy_scgpt"):
        given = {"groupby": "ko", "contrast": ("STAT1", "control"), "tfs": ["STAT1", "NOSUCHGENE"], "n_targets": 30}
        assert tl.attention_network(screen, **given, **FAST) is None
    after = fingerprint(screen)
    assert {slot: value for slot, value in after.items() if slot in before} == before
    assert {slot.split("/")[1] for slot in set(after) - set(before)} == {"scgpt_grn", "scgpt_grn_influence", "scgpt"}
    edges = screen.uns["scgpt_grn"]
    assert list(edges) == ["group", "source", "target", "weight", "z", "p", "p_adjusted"]
    assert (edges["source"] == "STAT1").all()
    assert "STAT1" not in set(edges["target"])
    assert len(edges) == 30
    assert edges["weight"].is_monotonic_decreasing
    assert edges["p"].between(0, 1, inclusive="right").all()
    assert (edges["p_adjusted"] >= edges["p"]).all()
    record = screen.uns["scgpt"]["grn"]
    n = len(record["genes"])
    assert record["weights"].shape == record["z"].shape == (1, n, n)
    assert record["controls"] == ["control"]
    genes = screen.uns["scgpt_grn_influence"]
    assert len(genes) == n
    assert genes["received"].is_monotonic_decreasing
    assert "STAT1 - control" in caplog.text
    assert "1 of 2 genes of tfs= are not in the cells: 'NOSUCHGENE'" in caplog.text


def test_weights_are_differences_of_mean_ranks_over_every_cell(compared):
    from scanpy_scgpt import models

    checkpoint, record = models.load("mini"), compared.uns["scgpt"]["grn"]
    cells = CellTokens(compared, checkpoint, checkpoint.tokenizer)
    names = pd.Series(cells.match.ids, index=cells.match.names)
    ids = names[list(record["genes"])].to_numpy()
    digits = digits_of(cells, ids)
    rows = [np.flatnonzero(compared.obs["ko"] == name) for name in ("STAT1", "control")]
    own, control = AttentionRanks(checkpoint, ids, device="cpu").mean_ranks(digits, rows)
    np.testing.assert_allclose(record["weights"][0], (own - control)[1:, 1:], atol=1e-5)
    edges = compared.uns["scgpt_grn"].set_index("target")["weight"]
    place = list(record["genes"]).index("STAT1")
    np.testing.assert_allclose(edges[record["genes"][0]], record["weights"][0][place, 0], atol=1e-7)


def test_a_knocked_out_gene_and_its_pathway_change_most(compared):
    received = compared.uns["scgpt_grn_influence"].set_index("gene")["received"]
    assert "STAT1" in received.index[:5]
    table = tl.target_overlap(compared, ["STAT2", "JAK2", "UBE2L6", "PSMB9"], n_top=[20])
    assert table.loc[0, "n_hits"] >= 3
    assert table.loc[0, "p"] < 0.01
    assert "STAT1" not in table.loc[0, "hits"]


def test_between_random_halves_there_is_nothing(screen):
    control = screen[screen.obs["ko"] == "control"].copy()
    control.obs["half"] = np.tile(["a", "b"], 30)
    tl.attention_network(control, groupby="half", contrast=("a", "b"), n_targets=None, device="cpu")
    edges = control.uns["scgpt_grn"]
    assert (edges["p_adjusted"] > 0.05).mean() > 0.999
    assert 0.02 < (edges["p"] < 0.05).mean() < 0.1


def test_a_network_of_all_cells_and_of_each_group(screen, caplog):
    tl.attention_network(screen[:40].copy(), **FAST)
    with caplog.at_level(logging.WARNING, logger="scanpy_scgpt"):
        tl.attention_network(
            screen, groupby="ko", min_cells=50, genes=60, tfs=["STAT1"], direction="in", order="z", **FAST
        )
    assert "fewer than min_cells=50 cells are left out: 'IRF1' (40)" in caplog.text
    edges = screen.uns["scgpt_grn"]
    assert set(edges["group"]) == {"STAT1", "control"}
    assert set(edges["target"]) == {"STAT1"}
    assert edges["weight"].between(0, 1).all()
    own = edges[edges["group"] == "control"]
    assert own["z"].abs().is_monotonic_decreasing
    assert len(screen.uns["scgpt"]["grn"]["genes"]) in (60, 61)  # the factor besides the variable genes


def test_every_group_beside_the_control_and_settings(screen):
    given = {"groupby": "ko", "genes": 40, "tfs": ["STAT1"], "n_targets": 3, "direction": "both", **FAST}
    tl.attention_network(screen, control="control", **given)
    assert set(screen.uns["scgpt_grn"]["group"]) == {"STAT1", "IRF1"}
    assert set(screen.uns["scgpt_grn"]["source"]) > {"STAT1"}
    both = dict(zip(screen.uns["scgpt"]["grn"]["groups"], screen.uns["scgpt"]["grn"]["weights"], strict=True))
    alone = {}
    for setting, name in (("perturbed", "STAT1"), ("control", "control")):
        tl.attention_network(screen, contrast=("STAT1", "control"), setting=setting, key_added=setting, **given)
        record = screen.uns["scgpt"][f"grn_{setting}"]
        assert record["groups"] == [name]
        alone[setting] = record["weights"][0]
    np.testing.assert_allclose(alone["perturbed"] - alone["control"], both["STAT1"], atol=1e-5)


def test_it_repeats_survives_a_file_and_a_copy_leaves_the_object(screen, tmp_path):
    given = {"groupby": "ko", "control": "control", "genes": 40, **FAST}
    made = tl.attention_network(screen, copy=True, **given)
    assert "scgpt_grn" not in screen.uns
    made.write_h5ad(tmp_path / "cells.h5ad")
    back = ad.read_h5ad(tmp_path / "cells.h5ad")
    pd.testing.assert_frame_equal(
        back.uns["scgpt_grn"], made.uns["scgpt_grn"], check_dtype=False, check_categorical=False
    )
    first = tl.target_overlap(back, ["JAK2", "STAT2"], groups="STAT1")
    pd.testing.assert_frame_equal(first, tl.target_overlap(made, ["JAK2", "STAT2"], groups="STAT1"))
    tl.attention_network(screen, **given)
    pd.testing.assert_frame_equal(screen.uns["scgpt_grn"], made.uns["scgpt_grn"])


def test_legacy_leaves_the_first_cell_out(screen):
    given = {"groupby": "ko", "contrast": ("STAT1", "control"), "genes": 30, "legacy": True, **FAST}
    tl.attention_network(screen, **given)
    assert list(screen.uns["scgpt_grn"]) == ["group", "source", "target", "weight"]
    other = screen.copy()
    first = int(np.flatnonzero(other.obs["ko"] == "STAT1")[0])
    other.X = sparse.vstack([other.X[:first], other.X[first + 1], other.X[first + 1 :]], format="csr")
    names = [str(gene) for gene in screen.uns["scgpt"]["grn"]["genes"]]
    tl.attention_network(other, **{**given, "genes": names})
    np.testing.assert_array_equal(other.uns["scgpt"]["grn"]["weights"], screen.uns["scgpt"]["grn"]["weights"])


def test_shares_are_uniform_without_an_effect_and_small_with_one():
    rng = np.random.default_rng(0)
    a, b = (rng.normal(0.5, spread, size=(16, 60, 60)).astype(np.float32) for spread in (0.01, 0.02))
    found = permuted(a, b, n_permutations=100, rng=rng)
    off = ~np.eye(60, dtype=bool)
    assert kstest(found.p[off], "uniform").statistic < 0.03
    assert np.isnan(found.p[~off]).all()
    b[:, 3] += 0.05
    found = permuted(a, b, n_permutations=100, rng=rng)
    assert (found.p_adjusted[3][off[3]] < 0.05).all()
    assert found.exerted_p[3] < 0.05
    assert found.exerted.argmax() == 3
    assert np.isnan(permuted(a, b, n_permutations=0, rng=rng).received_p).all()


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"groupby": "koo"}, KeyError, "did you mean 'ko'"),
        ({"contrast": ("STAT1", "STAT1")}, ValueError, r"contrast=\('STAT1', 'STAT1'\): two different groups"),
        ({"contrast": ("STAT1", "contrl")}, ValueError, "did you mean 'control'"),
        ({"contrast": "STAT1"}, ValueError, "two different groups"),
        ({"control": "control"}, ValueError, "Leave control= out"),
        ({"groupby": None}, ValueError, "groupby= does not say where"),
        ({"min_cells": 500}, ValueError, "Group 'STAT1' .* has 60 cells, fewer than min_cells=500"),
        ({"genes": ["STAT1", "NOSUCHGENE"]}, ValueError, "1 of the 2 genes of genes= .*'NOSUCHGENE'"),
        ({"genes": ["STAT1"]}, ValueError, "a network needs two"),
        ({"genes": 0}, ValueError, "genes=0"),
        ({"tfs": ["Stat1", "Irf8"]}, ValueError, "None of the 2 genes of tfs=.*Give symbols as in adata.var_names"),
        ({"tfs": ["STAT1"], "genes": ["JAK2", "STAT2"]}, ValueError, "is among the 2 genes of the network"),
        ({"setting": "differnce"}, ValueError, "did you mean 'difference'"),
        ({"direction": "up"}, ValueError, "direction='up'"),
        ({"order": "p"}, ValueError, "order='p'"),
        ({"n_targets": 0}, ValueError, "n_targets=0: a whole number of at least 1"),
        ({"attention_layer": 5}, ValueError, "layer=5"),
        ({"key_added": "a/b"}, ValueError, "key_added='a/b'"),
    ],
)  # fmt: skip
def test_what_is_refused(screen, change, error, text):
    with pytest.raises(error, match=text):
        tl.attention_network(screen, **{"groupby": "ko", "contrast": ("STAT1", "control"), **FAST, **change})
    assert "scgpt_grn" not in screen.uns


def test_groups_alone_or_small_are_refused(screen):
    alone = screen[screen.obs["ko"] == "control"].copy()
    with pytest.raises(ValueError, match="has one group alone, 'control'"):
        tl.attention_network(alone, groupby="ko", control="control", **FAST)
    with pytest.raises(ValueError, match="No group of obs\\['ko'\\] has min_cells=500.*Lower min_cells"):
        tl.attention_network(screen, groupby="ko", min_cells=500, **FAST)


def test_overlap_of_a_source_and_what_it_refuses(compared, screen):
    table = tl.target_overlap(compared, {"STAT1": ["JAK2", "PSMB9"]}, source="STAT1", by="z", n_top=[5, 1000])
    assert table["n_hits"].tolist()[1] == 2
    assert table.loc[1, "p"] == 1
    for change, error, text in (
        ({"source": "STAT7"}, ValueError, "did you mean 'STAT"),
        ({"by": "weight"}, ValueError, "by='weight': use one of 'received', 'exerted'"),
        ({"groups": "STAT"}, ValueError, "did you mean 'STAT1'"),
        ({"targets": ["Jak2"]}, ValueError, "None of the 1 targets"),
        ({"targets": {"IRF1": ["JAK2"]}}, ValueError, "a list of targets='STAT1'"),
        ({"key": "other"}, KeyError, "no attention network 'other'"),
    ):
        with pytest.raises(error, match=text):
            tl.target_overlap(compared, **{"targets": ["JAK2"], **change})
    tl.attention_network(screen, genes=20, matrices=False, **FAST)
    with pytest.raises(ValueError, match="matrices=True"):
        tl.target_overlap(screen, ["JAK2"], source=str(screen.uns["scgpt_grn"]["source"][0]))


def test_tl_grn_leads_here(screen, compared):
    given = {"groupby": "ko", "contrast": ("STAT1", "control"), "tfs": ["STAT1"], "n_targets": None}
    tl.grn(screen, method="attention", **given, **FAST)
    pd.testing.assert_frame_equal(screen.uns["scgpt_grn"], compared.uns["scgpt_grn"])
    with pytest.raises((TypeError, ValueError), match="n_permutations"):
        tl.grn(screen, n_permutations=50)


def test_blocks_of_unequal_size_keep_the_level():
    rng, found = np.random.default_rng(3), []
    sizes = np.full(8, 3), np.full(16, 12)
    for _ in range(20):
        cells = [rng.exponential(size=(n, 12, 12)).astype(np.float32) for n in np.concatenate(sizes)]
        blocks = np.stack([x.mean(axis=0) for x in cells])
        made = permuted(blocks[:8], blocks[8:], sizes=sizes, n_permutations=100, rng=rng)
        off = ~np.eye(12, dtype=bool)
        found.append(((made.p[off] < 0.05).mean(), (made.p_adjusted[off] < 0.05).sum()))
    share, false = np.mean(found, axis=0)
    assert 0.03 < share < 0.07
    assert false < 0.5


def test_genes_may_be_a_column(screen):
    screen.var["mine"] = screen.var_names.isin(["STAT1", "STAT2", "JAK2"])
    tl.grn(screen, method="attention", genes="mine", **FAST)
    assert set(screen.uns["scgpt"]["grn"]["genes"]) == {"STAT1", "STAT2", "JAK2"}
    with pytest.raises(ValueError, match="genes='JAK2' is one gene"):
        tl.grn(screen, method="attention", genes="JAK2", **FAST)
