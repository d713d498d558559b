"""Programs of genes and their pathways: recorded numbers, real genes, what is refused."""

from __future__ import annotations

import gzip
import logging

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from scipy import sparse, stats

from scanpy_scgpt import baselines, get, io, metrics, pl, tl

SETS = {
    "class II": ["HLA-DRA", "HLA-DRB1", "HLA-DPA1", "HLA-DPB1", "CD74", "HLA-DMA"],
    "T cells": ["CD3D", "CD3G", "CD2", "CD6", "CD5", "LCK"],
    "elsewhere": ["INS", "GCG", "SST", "PPY", "IAPP"],
}


@pytest.fixture
def recorded(fixtures_dir):
    return np.load(fixtures_dir / "gene_emb_grn.npz")


@pytest.fixture(scope="module")
def cells(data_dir):
    adata = ad.read_h5ad(data_dir / "pbmc3k_10x.h5ad")
    seen = np.asarray((adata.X > 0).sum(axis=0)).ravel()
    kept = (np.argsort(np.argsort(-seen)) < 500) | adata.var_names.isin(
        [gene for genes in SETS.values() for gene in genes]
    )
    adata = adata[np.random.default_rng(0).permutation(adata.n_obs)[:200], kept].copy()
    tl.gene_programs(adata, resolutions=[1, 5])
    tl.enrich(adata, SETS, n_random=5, min_set_size=3)
    return adata


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


def test_programs_and_scores_are_those_of_the_original(recorded):
    adata = ad.AnnData(sparse.csr_matrix(recorded["score_input"]))
    adata.var_names = [f"G{i:03d}" for i in range(100)]
    adata.varm["table"] = recorded["embedding"]
    tl.gene_programs(adata, resolutions=5, use_varm="table")
    names = {key.split("/")[1]: set(recorded[key]) for key in recorded if key.startswith("program/")}
    found = get.gene_programs(adata)
    assert sorted(map(sorted, found.values())) == sorted(map(sorted, names.values()))
    scores = get.program_scores(adata, scaled=True)
    for name, genes in names.items():
        (own,) = (program for program, members in found.items() if set(members) == genes)
        np.testing.assert_allclose(scores[own], recorded[f"score/{name}"], atol=1e-5)


def test_what_is_written(cells, tmp_path):
    table = cells.uns["scgpt_programs"]
    assert list(table) == ["program", "resolution", "gene"]
    programs = get.gene_programs(cells)
    assert cells.obsm["scgpt_programs"].shape == (200, len(programs))
    assert cells.obsm["scgpt_programs"].dtype == np.float32
    assert min(map(len, programs.values())) >= 5
    assert len(get.gene_programs(cells, resolution=5)) > len(get.gene_programs(cells, resolution=1))
    (second,) = {name for name, genes in get.gene_programs(cells, resolution=5).items() if "HLA-DRA" in genes}
    assert {"HLA-DRB1", "HLA-DPA1", "CD74"} <= set(programs[second])
    means = get.program_scores(cells, groupby="cell_type")
    assert means.loc[["B", "CD14+ Mono"], second].min() > means.loc["Naive CD4 T", second] + 0.2
    assert means.to_numpy().min() >= 0
    cells.write_h5ad(tmp_path / "cells.h5ad")
    back = ad.read_h5ad(tmp_path / "cells.h5ad")
    assert get.gene_programs(back) == programs
    pd.testing.assert_frame_equal(get.program_scores(back), get.program_scores(cells))
    hits = get.enrichment(cells, hits=True)
    pd.testing.assert_frame_equal(get.enrichment(back, hits=True), hits, check_dtype=False)


def test_scores_are_those_of_scanpy_where_it_draws_nothing(counts):
    """With fewer than 50 genes in a bin both compare with all of them."""
    adata = counts[:100, :300].copy()
    members = list(adata.var_names[::40])
    from scanpy_scgpt._counts import choose_counts
    from scanpy_scgpt.tl._program_scores import program_scores

    found = program_scores(choose_counts(adata), {"a": members}, seed=0)[:, 0]
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    sc.tl.score_genes(adata, members)
    np.testing.assert_allclose(found, adata.obs["score"], atol=1e-5)


def test_enrichment_is_the_hypergeometric_test():
    universe = [f"g{i}" for i in range(100)]
    programs = {"p": universe[:10], "q": universe[50:60]}
    sets = {"s": [*universe[:6], "outside"], "t": universe[8:30], "small": universe[:2]}
    table = metrics.enrichment(programs, sets, universe=universe)
    assert table.attrs == {"n_tests": 4, "n_sets": 2}
    first = table.iloc[0]
    assert (first["program"], first["gene_set"], first["overlap"], first["set_size"]) == ("p", "s", 6, 6)
    by_hand = stats.fisher_exact([[6, 4], [0, 90]], alternative="greater").pvalue
    assert first["p"] == pytest.approx(by_hand)
    assert first["p_adjusted"] == pytest.approx(4 * by_hand)
    assert first["genes"] == "g0;g1;g2;g3;g4;g5"
    assert first["fold"] == pytest.approx(10)
    assert metrics.enrichment(programs, sets, universe=universe, correction="sets").iloc[0]["p_adjusted"] == (
        pytest.approx(2 * by_hand)
    )
    wide = metrics.enrichment(programs, sets, universe=universe, correction="bh")
    every = [*wide["p"], *[1.0] * (4 - len(wide))]
    np.testing.assert_allclose(wide["p_adjusted"], stats.false_discovery_control(every)[: len(wide)])
    with pytest.raises(ValueError, match=r"None of the 3 gene sets has 50 of the 100 genes"):
        metrics.enrichment(programs, sets, universe=universe, min_set_size=50)
    with pytest.raises(ValueError, match="universe is empty"):
        metrics.enrichment(programs, sets, universe=[])


def test_programs_are_pathways_and_random_ones_are_not(cells, caplog):
    hits = get.enrichment(cells, hits=True, network="scgpt")
    assert "class II" in set(hits["gene_set"])
    assert "elsewhere" not in set(hits["gene_set"])
    summary = cells.uns["scgpt_enrichment_hits"].set_index(["resolution", "network"])
    assert set(summary.index.get_level_values(1)) == {"scgpt", "coexpression", "coexpression_matched", "random"}
    ours, random = (summary.loc[(5.0, kind)] for kind in ("scgpt", "random"))
    assert ours["hits"] > random["hits"]
    assert ours["p_random"] == pytest.approx(1 / 6)
    assert (ours["n_programs"], ours["n_genes"]) == (random["n_programs"], random["n_genes"])
    matched = summary.loc[(5.0, "coexpression_matched")]
    assert matched["mean_size"] == pytest.approx(ours["mean_size"], rel=0.3)
    record = cells.uns["scgpt"]["enrich"]
    assert record["n_universe"] == len(cells.uns["scgpt"]["gene_programs"]["genes"])
    with caplog.at_level(logging.INFO, logger="scanpy_scgpt"):
        tl.enrich(cells, SETS, programs={"mine": SETS["T cells"][:4]}, min_set_size=3, key_added="own", n_random=3)
    assert "universe of" in caplog.text
    own = get.enrichment(cells, key="own", hits=True)
    assert list(own["gene_set"]) == ["T cells"]
    assert set(cells.uns["own_enrichment_hits"]["network"]) == {"lists", "random"}


def test_sets_come_by_file_mapping_or_table(cells, tmp_path):
    lines = "\n".join("\t".join([name, "", *genes]) for name, genes in SETS.items()) + "\n\n"
    with gzip.open(tmp_path / "sets.gmt.gz", "wt") as file:
        file.write(lines)
    (tmp_path / "sets.gmt").write_text(lines)
    assert io.read_gmt(tmp_path / "sets.gmt.gz") == io.read_gmt(tmp_path / "sets.gmt") == SETS
    rows = [(name, gene) for name, genes in SETS.items() for gene in genes]
    settings = {"programs": SETS["T cells"], "n_random": 0, "min_set_size": 3, "key_added": "x"}
    tables = []
    for given in (tmp_path / "sets.gmt.gz", SETS, pd.DataFrame(rows, columns=["source", "target"])):
        tl.enrich(cells, given, **settings)
        tables.append(get.enrichment(cells, key="x"))
    assert tables[0].equals(tables[1])
    assert tables[0].equals(tables[2])


def test_gmt_files_that_are_none(tmp_path):
    (tmp_path / "empty.gmt").write_text("\n")
    with pytest.raises(ValueError, match=r"empty.gmt holds no gene set"):
        io.read_gmt(tmp_path / "empty.gmt")
    (tmp_path / "list.gmt").write_text("a\tb\tc\nCD3D\n")
    with pytest.raises(ValueError, match=r"line 2: 'CD3D' is no set"):
        io.read_gmt(tmp_path / "list.gmt")
    with pytest.raises(FileNotFoundError):
        io.read_gmt(tmp_path / "none.gmt")


@pytest.mark.parametrize(
    ("gene_sets", "error", "text"),
    [
        ({}, ValueError, r"holds no gene"),
        ({"a": ["ENSG00000167286", "ENSG00000198851"]}, ValueError, r"0 of the 2 genes.*Ensembl ids, the genes of the"),
        ({"a": ["Cd3d", "Cd3e", "Cd8a", "Ms4a1"]}, ValueError, r"0 of the 4 genes.*mouse symbols"),
        ({"a": ["INS", "GCG"]}, ValueError, r"0 of the 2 genes of gene_sets are among"),
        (pd.DataFrame({"geneset": ["a"], "genesymbol": ["CD3D"]}), ValueError, r"needs 'source' .*'target'"),
        (["CD3D"], TypeError, r"gene_sets is a list"),
    ],
)
def test_sets_that_are_refused(cells, gene_sets, error, text):
    with pytest.raises(error, match=text):
        tl.enrich(cells, gene_sets)


def test_what_is_refused(cells):
    bare = ad.AnnData(cells.X, var=cells.var[[]].copy())
    with pytest.raises(KeyError, match=r"no programs 'scgpt_programs'.*tl.gene_programs\(adata\)"):
        tl.enrich(bare, SETS)
    with pytest.raises(ValueError, match=r"No gene of the list 'a' is in the universe: 'INS'"):
        tl.enrich(cells, SETS, programs={"a": ["INS"]})
    with pytest.raises(ValueError, match=r"resolutions=\[0\]"):
        tl.gene_programs(bare, resolutions=[0])
    with pytest.raises(ValueError, match=r"6 genes have a vector, not more than n_neighbors=15"):
        tl.gene_programs(bare, genes=SETS["class II"])
    with pytest.raises(KeyError, match=r"adata.varm has no 'mine'"):
        tl.gene_programs(bare, use_varm="mine")
    with pytest.raises(ValueError, match="Leave one out"):
        tl.gene_programs(cells, "mini", use_varm="scgpt_genes")
    with pytest.raises(KeyError, match="no scores"):
        tl.gene_programs(bare, resolutions=1, scores=False)
        get.program_scores(bare)
    with pytest.raises(ValueError, match=r"at most 8,000"):
        baselines.gene_vectors(bare, [str(i) for i in range(9000)])


def test_cosines_of_coexpression_are_correlations(counts):
    adata = counts[:, :50].copy()
    vectors = baselines.gene_vectors(adata, [*adata.var_names[:20], "none"])
    assert vectors.loc["none"].isna().all()
    logged = counts[:, :50].to_df()
    logged = np.log1p(logged.div(logged.sum(axis=1).clip(lower=1e-9), axis=0) * 1e4)
    known = vectors.dropna()
    expected = np.corrcoef(logged[known.index].to_numpy().T)
    np.testing.assert_allclose(known.to_numpy() @ known.to_numpy().T, expected, atol=2e-3)


def test_figures(cells):
    heat = pl.gene_programs(cells, "cell_type", resolution=5, n_programs=6, show=False)
    assert len(heat.get_yticks()) == 6
    assert [text.get_text() for text in heat.get_xticklabels()] == list(cells.obs["cell_type"].cat.categories)
    values = heat.images[0].get_array()
    assert values.min() == 0
    assert values.max() == 1
    one = pl.gene_programs(cells, "cell_type", programs=["r5_p1"], show=False)
    assert one.get_yticklabels()[0].get_text().startswith("r5_p1 (")
    counted, listed = pl.enrichment(cells, resolution=5, show=False)
    assert len(counted.patches) == 2 * 4
    n_hits = get.enrichment(cells, hits=True, network="scgpt", resolution=5.0)["gene_set"].nunique()
    assert len(listed.patches) == n_hits
    tl.grn(cells, genes=SETS["class II"] + SETS["T cells"], threshold=0.4)
    drawn = pl.grn(cells, colors=dict.fromkeys(SETS["class II"], "II"), show=False)
    assert len(drawn.collections[0].get_segments()) == len(get.grn_edges(cells))
    assert {text.get_text() for text in drawn.texts} == set(get.grn_graph(cells))
    assert [text.get_text() for text in drawn.get_legend().get_texts()] == ["II"]
    with pytest.raises(ValueError, match="has no edge among these genes"):
        pl.grn(cells, threshold=0.999, show=False)
    with pytest.raises(ValueError, match=r"a program='r9_p9'"):
        pl.gene_programs(cells, "cell_type", programs=["r9_p9"], show=False)


def test_resolutions_without_programs_count_as_no_hit(cells, caplog):
    adata = cells.copy()
    tl.gene_programs(adata, resolutions=[1, 5000], scores=False)
    assert "no cluster has min_size=5 genes at resolution 5000" in caplog.text
    tl.enrich(adata, SETS, n_random=2, min_set_size=3)
    summary = adata.uns["scgpt_enrichment_hits"].set_index(["resolution", "network"])
    assert summary.loc[(5000.0, "scgpt"), ["n_programs", "hits"]].tolist() == [0, 0]
    assert summary.loc[(1.0, "scgpt"), "hits"] > 0
    assert "scgpt_programs" not in adata.obsm


def test_settings_of_enrichment_that_make_no_sense(cells):
    for given, text in (
        ({"alpha": 5}, "alpha=5: a corrected p value"),
        ({"n_random": -1}, "n_random=-1: a whole number from 0"),
        ({"compare": "corexpression"}, "did you mean 'coexpression'"),
        ({"programs": {}}, "programs holds no gene"),
        ({"programs": "CD3D"}, r"programs='CD3D' is one name"),
        ({"programs": {"a": "CD3D"}}, r"programs\['a'\] is the text 'CD3D'"),
        ({"universe": ["TBX21", "INS", "GCG"]}, "is among the 3 genes of the universe"),
    ):
        sets = {"class II": SETS["class II"]} if "universe" in given else SETS
        with pytest.raises(ValueError, match=text):
            tl.enrich(cells, sets, **given)


def test_programs_of_genes_that_are_gone_and_none_at_all(cells, caplog):
    adata = cells.copy()
    tl.enrich(adata, SETS, programs={"a": ["CD3D", "CD3G", "TCRX"]}, compare=None, n_random=0, min_set_size=3)
    assert "'TCRX' of programs= are not in the universe" in caplog.text
    less = cells[:, 100:].copy()
    tl.enrich(less, SETS, compare="coexpression", n_random=0, min_set_size=3)
    assert "genes that were grouped are not in adata any more" in caplog.text
    tl.gene_programs(adata, resolutions=5000, scores=False)
    tl.enrich(adata, SETS, n_random=2, min_set_size=3)
    assert {"program", "gene_set", "p_adjusted", "hit", "network", "resolution"} <= set(adata.uns["scgpt_enrichment"])
    assert not len(get.enrichment(adata))
    assert pl.gene_programs(cells, "cell_type", programs="r5_p1", show=False) is not None
    cells_without = cells.copy()
    cells_without.obs["none"] = pd.Series([None] * cells.n_obs, index=cells.obs_names, dtype=object)
    with pytest.raises(ValueError, match=r"'none'"):
        pl.gene_programs(cells_without, "none", show=False)
