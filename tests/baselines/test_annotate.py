"""The simple opponents of annotation."""

from __future__ import annotations

import logging
import sys
import types
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from scipy import sparse
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from scanpy_scgpt import baselines, metrics

OURS = ("majority", "logistic", "logistic_l1", "knn")
KEY = "bulk_labels"


@pytest.fixture
def two(counts):
    """A reference of 400 cells and a query of 300 of the same blood."""
    order = np.random.default_rng(0).permutation(counts.n_obs)
    return counts[order[:400]].copy(), counts[order[400:]].copy()


def standard(reference, query, *, n_top_genes, n_comps):
    """The same components, step by step with scanpy and scikit-learn; all genes are shared."""
    both = []
    for adata in (reference, query):
        work = ad.AnnData(adata.X.astype(np.float32), var=adata.var[[]])
        sc.pp.normalize_total(work, target_sum=1e4)
        sc.pp.log1p(work)
        both.append(work)
    sc.pp.highly_variable_genes(both[0], n_top_genes=n_top_genes)
    first, second = (work[:, both[0].var["highly_variable"]].X.toarray().astype(np.float64) for work in both)
    pca = PCA(n_comps, svd_solver="full").fit(first)
    return first, second, pca.transform(first), pca.transform(second)


def test_they_are_the_standard_steps(two):
    reference, query = two
    first, second, pcs, projected = standard(reference, query, n_top_genes=300, n_comps=20)
    found = baselines.annotate(reference, query, KEY, methods=OURS, n_top_genes=300, n_comps=20, n_neighbors=7)
    assert tuple(found) == OURS
    y = reference.obs[KEY].astype(str)
    for one in found.values():
        assert one.probabilities.columns.tolist() == sorted(y.unique())
        assert one.probabilities.index.equals(query.obs_names)
        assert (one.probabilities.dtypes == np.float32).all()
        np.testing.assert_allclose(one.probabilities.sum(axis=1), 1, atol=1e-5)
        assert one.seconds >= 0

    np.testing.assert_allclose(
        found["majority"].probabilities, np.tile(y.value_counts(normalize=True).sort_index(), (300, 1)), atol=1e-6
    )
    logistic = LogisticRegression(max_iter=5000, tol=1e-8).fit(pcs, y).predict_proba(projected)
    np.testing.assert_allclose(found["logistic"].probabilities, logistic, atol=1e-3)
    votes = KNeighborsClassifier(7).fit(pcs, y).predict_proba(projected)
    assert np.isclose(found["knn"].probabilities, votes, atol=1e-6).mean() > 0.995  # but for ties of distances

    lasso = {"l1_ratio": 1} if LogisticRegression().get_params()["penalty"] == "deprecated" else {"penalty": "l1"}
    one = LogisticRegression(solver="liblinear", max_iter=5000, tol=1e-8, random_state=1, **lasso)
    each = np.array([one.fit(first, y == label).predict_proba(second)[:, 1] for label in sorted(y.unique())])
    np.testing.assert_allclose(found["logistic_l1"].probabilities, each.T / each.sum(axis=0)[:, None], atol=1e-3)


def test_they_are_ahead_of_the_majority_and_leave_the_objects(two, fingerprint):
    before = [fingerprint(adata) for adata in two]
    found = baselines.annotate(*two, KEY, methods=OURS)
    assert [fingerprint(adata) for adata in two] == before
    scores = {
        method: metrics.annotation(two[1].obs[KEY], one.labels, probabilities=one.probabilities)
        for method, one in found.items()
    }
    for method in OURS[1:]:
        assert scores[method]["accuracy"] > scores["majority"]["accuracy"] + 0.25
        assert scores[method]["calibration_error"] < 0.2
    assert found["majority"].labels.nunique() == 1
    assert found["knn"].labels.index.equals(two[1].obs_names)


def test_genes_are_matched_by_name(two):
    reference, query = two
    expected = baselines.annotate(reference, query, KEY, methods=OURS, n_comps=20)
    order = np.random.default_rng(1).permutation(query.n_vars)
    others = ad.AnnData(sparse.csr_matrix(np.full((300, 2), 50)), var=pd.DataFrame(index=["only here", "and here"]))
    others.obs_names = query.obs_names
    wide = ad.concat([query[:, order], others], axis=1)
    got = baselines.annotate(reference, wide, KEY, methods=OURS, n_comps=20)
    for method in OURS:
        pd.testing.assert_frame_equal(got[method].probabilities, expected[method].probabilities, atol=1e-4)


def test_columns_of_one_name_are_summed(two):
    reference, query = two
    expected = baselines.annotate(reference, query, KEY, methods="logistic", n_comps=20)
    half = query.copy()
    half.X = query.X // 2 if not sparse.issparse(query.X) else sparse.csr_matrix(query.X.toarray() // 2)
    rest = query.copy()
    rest.X = query.X - half.X
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of anndata, about the names
        split = ad.AnnData(
            sparse.hstack([half.X, rest.X], format="csr"),
            obs=query.obs,
            var=pd.DataFrame(index=pd.Index([*query.var_names, *query.var_names])),
        )
    got = baselines.annotate(reference, split, KEY, methods="logistic", n_comps=20)
    pd.testing.assert_frame_equal(got["logistic"].probabilities, expected["logistic"].probabilities, atol=1e-5)


def test_order_of_the_query_does_not_matter_and_results_repeat(two):
    reference, query = two
    expected = baselines.annotate(reference, query, KEY, methods=OURS)
    order = np.random.default_rng(2).permutation(query.n_obs)
    got = baselines.annotate(reference, query[order].copy(), KEY, methods=OURS)
    for method in OURS:
        again = got[method].probabilities.loc[query.obs_names]
        pd.testing.assert_frame_equal(again, expected[method].probabilities, atol=1e-5)


def test_logged_values_and_counts_give_the_same(two):
    """A panel of genes too: cells are scaled over the shared genes."""
    reference, query = two
    panel = query[:, query.var_names[::2]].copy()
    expected = baselines.annotate(reference, panel, KEY, methods=["knn"], n_comps=10)
    logged = reference.copy()
    logged.X = logged.X.astype(np.float32)
    sc.pp.normalize_total(logged, target_sum=1e4)
    sc.pp.log1p(logged)
    got = baselines.annotate(logged, panel, KEY, methods=["knn"], n_comps=10)
    assert (got["knn"].labels == expected["knn"].labels).mean() > 0.99


def test_counts_are_taken_from_where_they_are(two):
    reference, query = two
    expected = baselines.annotate(reference, query, KEY, methods=["logistic"], n_comps=10)
    for adata in two:
        adata.layers["umi"] = adata.X.copy()
        adata.X = -adata.X.astype(np.float32)
    got = baselines.annotate(reference, query, KEY, methods=["logistic"], n_comps=10, layer="umi")
    pd.testing.assert_frame_equal(got["logistic"].probabilities, expected["logistic"].probabilities)
    with pytest.raises(ValueError, match="reference: X has negative values"):
        baselines.annotate(reference, query, KEY)
    del query.layers["umi"]
    with pytest.raises(KeyError, match="query: There is no layer 'umi'"):
        baselines.annotate(reference, query, KEY, layer="umi")


def test_cells_of_the_reference_without_a_label_are_left_out(two, caplog):
    reference, query = two
    expected = baselines.annotate(reference[50:].copy(), query, KEY, methods=OURS)
    reference.obs[KEY] = reference.obs[KEY].astype(object)
    reference.obs.iloc[:50, reference.obs.columns.get_loc(KEY)] = np.nan
    with caplog.at_level(logging.INFO, logger="scanpy_scgpt"):
        got = baselines.annotate(reference, query, KEY, methods=OURS)
    assert "50 of 400 cells of the reference have no label and are left out." in caplog.text
    assert "765 genes by name in both (reference 765, query 765)." in caplog.text
    for method in OURS:
        pd.testing.assert_frame_equal(got[method].probabilities, expected[method].probabilities)


def test_cells_without_counts_and_tiny_references(two):
    reference, query = two
    query = query[:5].copy()
    query.X = sparse.csr_matrix(query.X.multiply(np.array([0, 1, 1, 1, 1])[:, None]))
    few = reference[reference.obs[KEY].isin(reference.obs[KEY].value_counts().index[:2])][:12].copy()
    found = baselines.annotate(few, query, KEY, methods=OURS, n_top_genes=10**6)
    for one in found.values():
        assert one.probabilities.shape == (5, 2)
        assert np.isfinite(one.probabilities).all(axis=None)


def test_bad_input(two):
    reference, query = two
    with pytest.raises(KeyError, match="reference.obs has no column 'bulk_label'; did you mean 'bulk_labels'"):
        baselines.annotate(reference, query, "bulk_label")
    with pytest.raises(ValueError, match="methods='knns': use one of 'majority', .*; did you mean 'knn'"):
        baselines.annotate(reference, query, KEY, methods=["knns"])
    with pytest.raises(ValueError, match="methods is empty: name one of 'majority'"):
        baselines.annotate(reference, query, KEY, methods=[])
    with pytest.raises(ValueError, match="n_neighbors=0: use a whole number of at least 1"):
        baselines.annotate(reference, query, KEY, n_neighbors=0)
    with pytest.raises(TypeError, match=r"baselines.annotate takes an AnnData, this is a str"):
        baselines.annotate(reference, "cells.h5ad", KEY)
    with pytest.raises(ValueError, match=r"query has no cells.*query.n_obs is 0"):
        baselines.annotate(reference, query[:0].copy(), KEY)


def test_a_reference_needs_two_labels(two):
    reference, query = two
    reference.obs["one"] = "B cell"
    text = r"labels_key='one': the 400 cells of the reference are all 'B cell'; a classifier needs two labels or more"
    with pytest.raises(ValueError, match=text):
        baselines.annotate(reference, query, "one")
    reference.obs["none"] = np.nan
    with pytest.raises(ValueError, match="labels_key='none': the 400 cells of the reference hold no label"):
        baselines.annotate(reference, query, "none")


@pytest.mark.parametrize("name", ["query", "reference"])
def test_no_shared_genes(two, name):
    reference, query = two
    renamed = {"query": query, "reference": reference}[name]
    renamed.var["gene_ids"] = [f"ENSG{i:011}" for i in range(renamed.n_vars)]
    renamed.var["symbol"] = renamed.var_names.astype(str)
    renamed.var_names = renamed.var["gene_ids"].to_numpy()
    line = rf"share 0 gene names .*{name}.var_names = {name}.var\['symbol'\].astype\(str\)"
    with pytest.raises(ValueError, match=line):
        baselines.annotate(reference, query, KEY)
    renamed.var_names = renamed.var["symbol"].astype(str)  # the line that the message gives
    baselines.annotate(reference, query, KEY, methods=["majority", "knn"])
    del renamed.var["symbol"]
    renamed.var_names = renamed.var["gene_ids"].to_numpy()
    with pytest.raises(ValueError, match=r"query.var_names = \[...\], the names that the reference uses"):
        baselines.annotate(reference, query, KEY, methods=["knn"])


def test_celltypist_is_left_out_unless_it_is_asked_for(two, monkeypatch):
    monkeypatch.setitem(sys.modules, "celltypist", None)  # as if it were not there
    monkeypatch.setattr("scanpy_scgpt.baselines._celltypist.is_installed", lambda _: False)
    assert tuple(baselines.annotate(*two, KEY)) == OURS
    text = r"methods=\[\"celltypist\"\] needs `celltypist`: pip install 'scanpy-scgpt\[celltypist\]'"
    with pytest.raises(ImportError, match=text):
        baselines.annotate(*two, KEY, methods=["celltypist"])


def check_celltypist(two):
    """Its steps by hand: scaled genes, one regression for each label."""
    first, second, *_ = standard(*two, n_top_genes=300, n_comps=5)
    got = baselines.annotate(*two, KEY, methods=["celltypist"], n_top_genes=300)["celltypist"]
    scaler, y = StandardScaler().fit(first), two[0].obs[KEY].astype(str)
    first, second = (np.minimum(scaler.transform(values), 10) for values in (first, second))
    each = [LogisticRegression(max_iter=1000).fit(first, y == x).predict_proba(second)[:, 1] for x in sorted(set(y))]
    expected = np.array(each).T / np.sum(each, axis=0)[:, None]
    assert got.probabilities.columns.tolist() == sorted(set(y))
    np.testing.assert_allclose(got.probabilities, expected, atol=1e-2)


def test_celltypist(two):
    filters, handlers = len(warnings.filters), logging.getLogger().handlers[:]
    check_celltypist(two)
    assert tuple(baselines.annotate(*two, KEY)) == (*OURS, "celltypist")
    assert len(warnings.filters) == filters
    assert logging.getLogger().handlers == handlers


def stand_in(monkeypatch, train):
    """A module in the place of celltypist, that only trains."""
    module = types.ModuleType("celltypist")
    module.train = train
    monkeypatch.setitem(sys.modules, "celltypist", module)


def test_celltypist_that_cannot_train_with_this_scikit_learn(two, monkeypatch):
    def train(values, **kwargs):
        return LogisticRegression(multi_class="ovr")

    def broken(values, **kwargs):
        raise TypeError("another argument")

    stand_in(monkeypatch, train)
    if "multi_class" not in LogisticRegression().get_params():
        check_celltypist(two)
    stand_in(monkeypatch, broken)
    with pytest.raises(TypeError, match="another argument"):
        baselines.annotate(*two, KEY, methods=["celltypist"])


def test_celltypist_that_trains(two, monkeypatch):
    """The classifier that it returns is used, on the genes that it kept."""
    seen = {}

    class Model:
        features = None

    def train(values, labels, genes, *, check_expression):
        assert check_expression is False
        model = Model()
        model.features = genes[::-1][:40]  # others, in another order
        kept = values[:, ::-1][:, :40]
        model.scaler = StandardScaler().fit(kept)
        model.classifier = LogisticRegression(max_iter=1000).fit(model.scaler.transform(kept), labels == 0)
        seen["labels"] = labels
        return model

    stand_in(monkeypatch, train)
    reference, query = two
    pair = [adata[adata.obs[KEY].isin(["CD14+ Monocyte", "CD19+ B"])].copy() for adata in (reference, query)]
    found = baselines.annotate(*pair, KEY, methods=["celltypist"], n_top_genes=100)["celltypist"]
    assert set(seen["labels"]) == {0, 1}
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1, atol=1e-6)
    second = found.probabilities["CD19+ B"]  # the classifier knows whether it is the first label
    assert metrics.unknown_detection(pair[1].obs[KEY] == "CD14+ Monocyte", second)["auroc"] > 0.8


SHARED = {
    "B": "B cell", "CD14+ Mono": "CD14+", "NK": "NK cell", "CD8 T": "T cell", "Naive CD4 T": "T cell",
    "Memory CD4 T": "T cell",
}  # fmt: skip


def test_labels_that_came_from_sorting_are_found_in_another_study(data_dir):
    """Cells sorted by surface proteins, labelled from another experiment: the labels do not come from expression."""
    reference = ad.read_h5ad(data_dir / "pbmc3k_10x.h5ad")
    query = ad.read_h5ad(data_dir / "pbmc_facs_zheng2017.h5ad")
    reference.obs["label"] = reference.obs["cell_type"].astype(str).map(SHARED)  # the others have none
    found = baselines.annotate(reference, query, "label", methods=OURS)
    truth = query.obs["cell_type"].astype(str).where(lambda x: x != "CD34+")  # a type that the reference lacks
    scores = {method: metrics.annotation(truth, one.labels)["macro_f1"] for method, one in found.items()}
    assert scores["majority"] < 0.2
    for method in OURS[1:]:
        assert scores[method] > 0.9, scores
    unsure = 1 - found["logistic"].probabilities.max(axis=1)
    assert metrics.unknown_detection(truth.isna(), unsure)["auroc"] > 0.7
    assert sum(one.seconds for one in found.values()) < 120
