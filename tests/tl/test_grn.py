"""Networks of gene vectors: recorded numbers, real genes, what is written, what is refused."""

from __future__ import annotations

import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scanpy_scgpt import get, io, models, tl
from scanpy_scgpt.model import CellTokens, GeneContexts
from scanpy_scgpt.module import CellEncoder
from scanpy_scgpt.tl._gene_graph import cosine_pairs

HLA = ["HLA-A", "HLA-B", "HLA-C", "HLA-DRA", "HLA-DRB1", "HLA-DPA1", "HLA-DPB1", "HLA-DQA1"]


@pytest.fixture(scope="session")
def recorded_genes(fixtures_dir):
    return np.load(fixtures_dir / "gene_emb_grn.npz")


@pytest.fixture(scope="module")
def cells(data_dir):
    adata = ad.read_h5ad(data_dir / "pbmc3k_10x.h5ad")
    return adata[np.random.default_rng(0).permutation(adata.n_obs)[:100]].copy()


def as_cells(recorded):
    adata = ad.AnnData(recorded["score_input"])
    adata.var_names = [f"G{i:03d}" for i in range(100)]
    adata.varm["scgpt_genes"] = recorded["embedding"]
    return adata


def test_edges_and_similar_genes_are_those_of_the_original(recorded_genes):
    i, j, weights = cosine_pairs(recorded_genes["embedding"], threshold=0.5)
    expected = {(a, b) for a, b in recorded_genes["edges"] if a != b}  # the original links a gene with itself too
    assert set(zip(i.tolist(), j.tolist(), strict=True)) == expected
    units = recorded_genes["embedding"] / np.linalg.norm(recorded_genes["embedding"], axis=1, keepdims=True)
    np.testing.assert_allclose(weights, (units[i] * units[j]).sum(axis=1), atol=1e-5)
    similar = get.similar_genes(as_cells(recorded_genes), recorded_genes["sim_gene"][0], n=100)
    np.testing.assert_allclose(similar, recorded_genes["sim"], atol=1e-5)
    assert list(similar.index) == list(recorded_genes["sim_gene"])


def test_neighbours_and_threshold_go_together():
    vectors = np.random.default_rng(0).normal(size=(2100, 5))  # more than one block of rows
    cosines = np.corrcoef(vectors) * 0 + (u := vectors / np.linalg.norm(vectors, axis=1, keepdims=True)) @ u.T
    np.fill_diagonal(cosines, -2)
    nearest = {(min(a, b), max(a, b)) for a in range(2100) for b in np.argsort(-cosines[a])[:3]}
    i, j, weights = cosine_pairs(vectors, n_neighbors=3)
    assert set(zip(i.tolist(), j.tolist(), strict=True)) == nearest
    k, _, strong = cosine_pairs(vectors, n_neighbors=3, threshold=0.98)
    assert len(k) == (weights > 0.98).sum()
    assert strong.min() > 0.98
    with pytest.raises(ValueError, match=r"more than 5,000,000 edges .*n_neighbors=15"):
        cosine_pairs(np.ones((4000, 2)), threshold=0.5)


def test_hla_classes_part_in_the_bundled_model(cells, caplog, tmp_path, fingerprint):
    adata = cells.copy()
    before = fingerprint(adata)
    with caplog.at_level(logging.INFO, logger="scanpy_scgpt"):
        assert tl.grn(adata, genes=[*HLA, "HLA-Z9"], threshold=0.4) is None
    assert "8 of 8 genes · mini@" in caplog.text
    assert "'HLA-Z9' (did you mean 'HLA-" in caplog.text
    after = fingerprint(adata)
    assert {slot for slot in after if before.get(slot) != after[slot]} == {
        slot for slot in after if slot.startswith(("uns/scgpt", "varm/scgpt_genes"))
    }
    edges = get.grn_edges(adata)
    assert list(edges) == ["source", "target", "weight"]
    assert edges["weight"].is_monotonic_decreasing
    class_two = edges[["source", "target"]].map(lambda gene: gene.startswith("HLA-D"))
    assert (class_two["source"] == class_two["target"]).all()
    assert {*edges["source"], *edges["target"]} == set(HLA)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    back = ad.read_h5ad(tmp_path / "cells.h5ad")
    pd.testing.assert_frame_equal(get.grn_edges(back), edges)
    unknown = np.isnan(adata.varm["scgpt_genes"]).all(axis=1)
    assert unknown.sum() == adata.n_vars - adata.uns["scgpt"]["grn"]["genes"]["n_matched"]


def test_known_partners_are_the_nearest_genes(cells):
    tl.grn(cells, n_neighbors=1)
    assert get.similar_genes(cells, "CD8A", n=3).index[1] == "CD8B"
    assert "CD79B" in get.similar_genes(cells, "CD79A", n=10)
    mean = get.similar_genes(cells, {"CD3D": 1.0, "CD3G": 1.0}, n=2)
    assert set(mean.index) == {"CD3D", "CD3G"}


def test_graphs_are_the_edges(cells):
    tl.grn(cells, genes=HLA, threshold=0.4)
    edges = get.grn_edges(cells)
    by_networkx = get.grn_graph(cells, genes=[*HLA, "B2M"])
    by_igraph = get.grn_graph(cells, as_="igraph", directed=True)
    assert set(by_networkx) == {*HLA, "B2M"}
    first = edges.iloc[0]
    assert by_networkx[first["source"]][first["target"]]["weight"] == pytest.approx(first["weight"])
    assert by_igraph.is_directed()
    assert by_igraph.es["weight"] == edges["weight"].tolist()
    assert {by_igraph.vs[e.source]["name"] for e in by_igraph.es} == set(edges["source"])
    both = get.grn_edges(cells, both_ways=True, threshold=0.6)
    assert len(both) == 2 * (edges["weight"] > 0.6).sum()


def test_vectors_of_a_model_object(cells, checkpoint):
    class Trained:
        def to_checkpoint(self):
            return checkpoint

    adata = ad.AnnData(cells.X[:5], var=cells.var[[]].copy())
    tl.grn(adata, Trained(), n_neighbors=1, key_added="net")
    assert adata.varm["net_genes"].shape == (adata.n_vars, 16)
    assert adata.uns["scgpt"]["grn_net"]["model"] == "tiny"
    assert get.grn_edges(adata, key="net")["weight"].max() <= 1 + 1e-6


def test_contexts_are_the_means_of_the_last_layer(counts, checkpoint):
    cells = counts[:40].copy()
    cells.obs["kind"] = ["a"] * 15 + ["b/c"] * 20 + ["d"] * 5
    genes = [name for name in cells.var_names if name in checkpoint.vocab][:30]
    tl.grn(cells, checkpoint, genes=genes, groupby="kind", min_cells=6, threshold=0.0)
    record = cells.uns["scgpt"]["grn"]
    assert record["groups"] == ["a", "b/c"]
    assert record["varm"] == ["scgpt_genes_a", "scgpt_genes_b|c"]
    tokens = CellTokens(cells, checkpoint, checkpoint.tokenizer).block(0, 40)
    config = checkpoint.tokenizer
    encoder = CellEncoder(checkpoint.transformer, n_bins=config.n_bins, cls_value=config.cls_value)
    io.load_component(encoder.transformer, checkpoint, "transformer", optional=frozenset({"encoder.unknown"}))
    encoder.prepare()
    import torch

    expected: dict[int, list[np.ndarray]] = {}
    for cell in range(15):
        one = tokens.take(np.array([cell]))
        ids = np.concatenate([[checkpoint.vocab.cls_id], one.gene_ids])
        digits = np.concatenate([[config.n_bins], one.values])
        out = encoder.tokens(torch.tensor(ids[None]), torch.tensor(digits[None].astype(np.int64)), None)[0]
        for gene, vector in zip(ids[1:], out[1:].numpy(), strict=True):
            expected.setdefault(int(gene), []).append(vector)
    found = pd.DataFrame(cells.varm["scgpt_genes_a"], index=cells.var_names)
    assert found.drop(index=genes).isna().all(axis=None)
    for gene in genes:
        own = expected.get(int(checkpoint.vocab.ids([gene])[0]), [])
        if len(own) >= 6:
            np.testing.assert_allclose(found.loc[gene], np.mean(own, axis=0), atol=1e-5)
        else:
            assert found.loc[gene].isna().all()
    assert 0 < found.notna().all(axis=1).sum() < len(genes)


def test_contexts_do_not_depend_on_blocks(counts, checkpoint):
    tokens = CellTokens(counts[:30], checkpoint, checkpoint.tokenizer).block(0, 30)
    ids, codes = np.unique(tokens.gene_ids), np.arange(30) % 3 - 1
    whole, parts = (GeneContexts(checkpoint, ids, 2, max_tokens=most) for most in (None, 700))
    whole.add(tokens, codes)
    for start in range(0, 30, 7):
        at = np.arange(start, min(start + 7, 30))
        parts.add(tokens.take(at), codes[at])
    np.testing.assert_array_equal(whole.counts, parts.counts)
    np.testing.assert_allclose(whole.means(min_cells=2), parts.means(min_cells=2), atol=1e-5)
    np.testing.assert_allclose(whole.centers(), parts.centers(), atol=1e-5)
    padded = GeneContexts(checkpoint, ids, 2)
    padded._engine.packed = False  # as on a GPU without a kernel for packed cells
    padded.add(tokens, codes)
    np.testing.assert_array_equal(whole.counts, padded.counts)
    np.testing.assert_allclose(whole.means(min_cells=2), padded.means(min_cells=2), atol=1e-5)


def test_context_networks_of_groups(counts, checkpoint, caplog):
    cells = counts[:60].copy()
    cells.obs["kind"] = "one"
    tl.grn(cells, checkpoint, groupby="kind", n_neighbors=2)
    assert "has one group, 'one'" in caplog.text
    assert set(get.grn_edges(cells)["group"]) == {"one"}
    assert get.grn_graph(cells).number_of_edges() == len(get.grn_edges(cells, group="one"))
    with pytest.raises(ValueError, match=r"group='two': use one of 'one'"):
        get.grn_edges(cells, group="two")


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        (
            {"genes": ["CD3X", "CD3Z9"]},
            ValueError,
            r"'CD3X' .did you mean 'CHD3'.*not in adata.var_names; 0 of 2 genes are left",
        ),
        ({"genes": ["ENSG00000167286", "ENSG00000198851"]}, ValueError, r"The first are Ensembl ids, the genes of the"),
        ({"genes": ["Cd3d", "Cd3e", "Cd8a"]}, ValueError, r"mouse symbols.*Write them in capitals"),
        ({"genes": "CD3D"}, ValueError, r"genes='CD3D' is one gene"),
        ({"genes": "hvg"}, KeyError, r"adata.var has no column 'hvg'"),
        ({"threshold": 1.5}, ValueError, r"threshold=1.5: a cosine"),
        ({"n_neighbors": 0}, ValueError, r"n_neighbors=0: a whole number"),
        ({"key_added": "a/b"}, ValueError, r"without a slash"),
        ({"groupby": "kind"}, KeyError, r"has no column 'kind'"),
        ({"groupby": "cell_type", "groups": ["T"]}, ValueError, r"has no group 'T'. Groups: 'B'"),
        ({"groupby": "cell_type", "min_cells": 5000}, ValueError, r"fewer than min_cells=5000 cells.*Lower it"),
        ({"method": "lasso"}, ValueError, r"method='lasso': use one of 'embedding', 'attention'"),
        ({"tfs": ["STAT1"]}, TypeError, r"takes no 'tfs'"),
    ],
)
def test_what_is_refused(cells, settings, error, text, fingerprint):
    before = fingerprint(cells)
    with pytest.raises(error, match=text):
        tl.grn(cells, **settings)
    assert fingerprint(cells) == before


def test_what_cannot_be_read_back(cells):
    bare = ad.AnnData(cells.X, var=cells.var[[]].copy())
    with pytest.raises(KeyError, match=r"no network 'scgpt_grn'.*scgpt.tl.grn\(adata\)"):
        get.grn_edges(bare)
    with pytest.raises(KeyError, match=r"adata.varm has no 'scgpt_genes'"):
        get.similar_genes(bare, "CD3D")
    bare.varm["scgpt_genes"] = np.ones((bare.n_vars, 2))
    with pytest.raises(KeyError, match=r"'CD3X' has no vector.*did you mean 'C"):
        get.similar_genes(bare, "CD3X")
    assert models.load("mini").vocab.ids(["CD3X"])[0] < 0


@pytest.fixture
def linked(cells):
    adata = cells.copy()
    tl.grn(adata, genes=[name for name in adata.var_names if name.startswith("HLA-")], threshold=0.2)
    return adata


def test_what_does_not_belong_any_more_goes_and_groups_need_a_column(linked):
    adata = linked.copy()
    adata.uns["scgpt_grn_influence"] = pd.DataFrame({"gene": ["A"]})
    with pytest.raises(ValueError, match="name it, groupby="):
        tl.grn(adata, groups=["B"])
    tl.grn(adata, genes=list(adata.var_names[:30]))
    assert "scgpt_grn_influence" not in adata.uns
    with pytest.raises(KeyError, match="no attention network"):
        tl.target_overlap(adata, ["A"])


def test_names_are_no_letters_and_weights_may_be_negative(linked):
    name = str(linked.uns["scgpt_grn"]["source"].iloc[0])
    assert get.grn_graph(linked, genes=name).number_of_nodes() == 1
    with pytest.raises(ValueError, match=f"did you mean '{name}'"):
        get.grn_edges(linked, genes=[name, name.lower()])
    assert get.similar_genes(linked, {name: -1}, n=linked.n_vars).loc[name] == pytest.approx(-1)
    for wrong in ([], {name: 0.0}):
        with pytest.raises(ValueError, match="empty|no length"):
            get.similar_genes(linked, wrong)


def test_a_directed_network_keeps_both_weights(linked):
    adata = linked.copy()
    adata.uns["scgpt_grn"] = pd.DataFrame(
        {"source": ["A", "B", "A"], "target": ["B", "A", "C"], "weight": [0.2, 0.9, 0.5]}
    )
    graph = get.grn_graph(adata)
    assert graph.is_directed()
    assert graph["B"]["A"]["weight"] == 0.9
    assert graph["A"]["B"]["weight"] == 0.2
    flat = get.grn_graph(adata, directed=False)
    assert flat["A"]["B"]["weight"] == 0.9
    assert not get.grn_graph(linked).is_directed()


def test_genes_by_their_symbols_where_the_index_has_others(cells):
    adata = cells[:, ["CD3D", "CD3E", "CD79A", "CD79B"]].copy()
    adata.var["symbol"], adata.var_names = adata.var_names.to_numpy(), [f"gene{i}" for i in range(4)]
    tl.grn(adata, genes=["CD79A", "gene3", "CD79B"], gene_symbols="symbol", threshold=-1)
    assert get.grn_edges(adata)[["source", "target"]].to_numpy().tolist() == [["gene2", "gene3"]]


def test_antibodies_have_no_vector_of_a_gene(cells):
    adata = cells[:, ["CD3D", "CD79A", "CD79B"]].copy()
    adata.var["feature_types"] = ["Antibody Capture", "Gene Expression", "Gene Expression"]
    tl.grn(adata, threshold=-1)
    assert np.isnan(adata.varm["scgpt_genes"]).all(axis=1).tolist() == [True, False, False]


def test_the_nearest_of_a_group_are_those_of_its_edges(counts, checkpoint):
    adata = counts[:60].copy()
    adata.obs["kind"] = np.where(np.arange(60) % 2, "a", "b")
    tl.grn(adata, checkpoint, groupby="kind", groups="a", n_neighbors=3, min_cells=5)
    edges = get.grn_edges(adata)
    assert set(edges["group"]) == {"a"}
    best = edges.iloc[0]
    nearest = get.similar_genes(adata, best["source"], n=500, use_varm="scgpt_genes_a")
    assert nearest[best["target"]] == pytest.approx(best["weight"], abs=1e-5)
    adata.obs["none"] = pd.Series([None] * 60, index=adata.obs_names, dtype=object)
    with pytest.raises(ValueError, match=r"adata.obs\['none'\] has no value in any cell"):
        tl.grn(adata, checkpoint, groupby="none")
