"""The simple opponents of gene networks."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from scipy import sparse
from scipy.stats import spearmanr

from scanpy_scgpt import baselines, metrics


@pytest.fixture(scope="module")
def cells(data_dir):
    adata = ad.read_h5ad(data_dir / "perturb_papalexi2021_thp1.h5ad")
    rows = np.flatnonzero(adata.obs["perturbation"].isin(["STAT1", "control"]))[:400]
    return ad.AnnData(adata.X[rows], obs=adata.obs.iloc[rows][["perturbation"]].copy(), var=adata.var[[]].copy())[
        :, :60
    ]


def matrix(table):
    return table.pivot_table(index="source", columns="target", values="weight")


def test_correlations_are_those_of_dense_values(cells):
    found = baselines.grn(cells, methods=["pearson", "spearman"])
    work = cells.copy()
    work.X = work.X.astype(np.float32)
    sc.pp.normalize_total(work, target_sum=1e4)
    sc.pp.log1p(work)
    dense = work.X.toarray()
    expected = {"pearson": np.corrcoef(dense, rowvar=False), "spearman": spearmanr(dense).statistic}
    for name, table in found.items():
        assert len(table) == 60 * 59
        got = matrix(table).loc[cells.var_names, cells.var_names].to_numpy()
        off = ~np.eye(60, dtype=bool)
        np.testing.assert_allclose(got[off], np.abs(expected[name])[off], atol=5e-4)


def test_trees_find_what_depends_on_what():
    rng = np.random.default_rng(0)
    x = rng.poisson(5, size=(300, 7)).astype(np.float32)
    x[:, 3] = 2 * x[:, 0] + rng.poisson(1, size=300)
    x[:, 4] = np.where(x[:, 1] > 5, 20, 1)
    x[:, 6] = 2000  # so that scaling to the total couples no genes
    adata = ad.AnnData(sparse.csr_matrix(x), var=pd.DataFrame(index=list("abcdefz")))
    found = baselines.grn(adata, methods="trees", tfs=["a", "b", "c", "nosuch"])["trees"]
    assert set(found["source"]) == {"a", "b", "c"}
    best = found.loc[found.groupby("target")["weight"].idxmax()].set_index("target")["source"]
    assert best["d"] == "a"
    assert best["e"] == "b"
    known = pd.DataFrame({"source": ["a", "b"], "target": ["d", "e"]})
    assert metrics.grn(found, known)["auroc"].iloc[0] == 1


def test_differential_expression_and_chance(cells):
    given = {"groupby": "perturbation", "contrast": ("STAT1", "control"), "tfs": ["STAT1"]}
    adata = cells.copy()
    column = adata.var_names.get_loc(adata.var_names[5])
    x = adata.X.tolil()
    x[np.flatnonzero(adata.obs["perturbation"] == "STAT1"), column] = 50
    adata.X = x.tocsr()
    if "STAT1" not in adata.var_names:
        adata.var_names = ["STAT1" if i == 0 else name for i, name in enumerate(adata.var_names)]
    found = baselines.grn(adata, **given)
    assert list(found) == ["pearson", "spearman", "de", "random"]
    assert found["de"].loc[found["de"]["weight"].idxmax(), "target"] == adata.var_names[column]
    again = baselines.grn(adata, methods="random", tfs=["STAT1"])["random"]
    pd.testing.assert_frame_equal(again, found["random"])


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"methods": ["pearsn"]}, ValueError, "did you mean 'pearson'"),
        ({"methods": "de"}, ValueError, "'de' compares two groups"),
        ({"genes": ["NOSUCHGENE"]}, ValueError, "1 genes of genes= are not in the cells: NOSUCHGENE"),
        ({"tfs": ["NOSUCHGENE"]}, ValueError, "None of the 1 genes of tfs="),
        ({"groupby": "pertrbation", "contrast": ("a", "b")}, KeyError, "did you mean 'perturbation'"),
        ({"groupby": "perturbation", "contrast": ("STAT", "control")}, ValueError, "did you mean 'STAT1'"),
    ],
)
def test_what_is_refused(cells, change, error, text):
    with pytest.raises(error, match=text):
        baselines.grn(cells, **change)


def test_single_names_and_groups(cells):
    found = baselines.grn(cells, methods="pearson", tfs=cells.var_names[0])["pearson"]
    assert set(found["source"]) == {cells.var_names[0]}
    with pytest.raises(ValueError, match=r"is one gene: a network needs several"):
        baselines.grn(cells, genes=cells.var_names[0])
    for contrast in (("STAT1", "STAT1"), "STAT1"):
        with pytest.raises(ValueError, match="two different groups"):
            baselines.grn(cells, groupby="perturbation", contrast=contrast)
