"""Fields of the data manager: genes by name, categories that may be missing."""

from __future__ import annotations

import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scanpy_scgpt.data.fields import MISSING_BATCH, CategoryField, CountsField


def _adata(**obs):
    n = len(next(iter(obs.values()), range(4)))
    counts = sparse.csr_matrix(np.arange(3 * n).reshape(n, 3) % 5, dtype=np.float32)
    names = [f"c{i}" for i in range(n)]
    var = pd.DataFrame({"symbol": ["A", "B", "C"]}, index=["g0", "g1", "g2"])
    return ad.AnnData(counts, obs=pd.DataFrame(obs, index=names), var=var)


def test_categories_are_sorted_names():
    adata = _adata(kind=["b", "a", None, "c"])
    field = CategoryField("labels", "kind")
    state = field.register_field(adata)
    assert state["categorical_mapping"].tolist() == ["a", "b", "c"]
    assert adata.obs["_scvi_labels"].tolist() == [1, 0, -1, 2]
    assert state["original_key"] == "kind"
    assert field.get_summary_stats(state) == {"n_labels": 3}
    assert not field.is_empty


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ([2, 10, 2], ["10", "2"]),
        ([2.0, 10.0, 2.0], ["10", "2"]),
        ([0.5, 2.0, 0.5], ["0.5", "2"]),
        ([True, False, True], ["False", "True"]),
    ],
)
def test_numbers_become_names(values, names, caplog):
    adata = _adata(kind=values)
    with caplog.at_level(logging.INFO, "scanpy_scgpt"):
        state = CategoryField("batch", "kind").register_field(adata)
    assert state["categorical_mapping"].tolist() == names
    assert caplog.messages == ["note: obs['kind'] holds numbers; they are taken as names of batch."]


def test_whole_numbers_keep_their_names_where_some_are_missing():
    """A column of integers becomes one of floats when a value is missing; 3 is not another batch for that."""
    field = CategoryField("batch", "kind", missing=MISSING_BATCH)
    state = field.register_field(_adata(kind=[3, 4, 3]))
    other = _adata(kind=[4, np.nan, 3])
    field.transfer_field(state, other)
    assert other.obs["_scvi_batch"].tolist() == [1, -1, 0]


def test_a_missing_batch_is_a_batch(caplog):
    adata = _adata(donor=pd.Categorical(["x", None, "y", None]))
    state = CategoryField("batch", "donor", missing=MISSING_BATCH).register_field(adata)
    assert state["categorical_mapping"].tolist() == ["unknown_batch", "x", "y"]
    assert adata.obs["_scvi_batch"].tolist() == [1, 0, 2, 0]
    assert caplog.messages == ["obs['donor'] has 2 missing values; they become 'unknown_batch'."]


def test_a_label_that_means_none():
    adata = _adata(kind=["a", "?", "b", "?"])
    state = CategoryField("labels", "kind", unlabeled="?").register_field(adata)
    assert state["categorical_mapping"].tolist() == ["a", "b"]
    assert adata.obs["_scvi_labels"].tolist() == [0, -1, 1, -1]


def test_columns_that_are_not_there_or_empty():
    adata = _adata(cell_type=["a", "b"], none=[np.nan, np.nan])
    with pytest.raises(KeyError, match="adata.obs has no column 'celltype'; did you mean 'cell_type'. Columns: "):
        CategoryField("labels", "celltype").register_field(adata)
    with pytest.raises(ValueError, match=r"obs\['none'\] has no value at all. Name a column with labels."):
        CategoryField("labels", "none").register_field(adata)
    assert CategoryField("labels", None).is_empty
    assert CategoryField("labels", None).get_summary_stats({}) == {"n_labels": 0}


def test_other_cells_get_the_codes_of_the_names(caplog):
    state = CategoryField("labels", "kind").register_field(_adata(kind=["a", "b", "c"]))
    other = _adata(kind=["c", "z", "a"])
    with caplog.at_level(logging.INFO, "scanpy_scgpt"):
        CategoryField("labels", "kind").transfer_field(state, other, extend_categories=True)
    assert other.obs["_scvi_labels"].tolist() == [2, -1, 0]
    assert caplog.messages == ["note: obs['kind'] has labels that the model does not know: 'z'."]
    bare = _adata(other=["c", "z", "a"])
    CategoryField("labels", "kind").transfer_field(state, bare)
    assert bare.obs["_scvi_labels"].tolist() == [-1, -1, -1]


def test_batches_are_added_when_asked_for():
    state = CategoryField("batch", "donor").register_field(_adata(donor=["m", "n"]))
    other = _adata(donor=["a", "n", "z"])
    new = CategoryField("batch", "donor").transfer_field(state, other, extend_categories=True)
    assert new["categorical_mapping"].tolist() == ["m", "n", "a", "z"]  # those of before keep their numbers
    assert other.obs["_scvi_batch"].tolist() == [2, 1, 3]
    assert state["categorical_mapping"].tolist() == ["m", "n"]
    CategoryField("batch", "donor").transfer_field(state, other)
    assert other.obs["_scvi_batch"].tolist() == [-1, 1, -1]


def test_counts_are_known_by_the_names_of_their_genes():
    adata = _adata(kind=["a", "b"])
    adata.layers["raw_counts"] = adata.X.copy()
    field = CountsField("raw_counts", gene_symbols="symbol")
    field.validate_field(adata)
    state = field.register_field(adata)
    assert state["column_names"].tolist() == ["g0", "g1", "g2"]
    assert field.get_summary_stats(state) == {"n_vars": 3, "n_cells": 2}
    other = adata[:, [2, 0]].copy()
    assert field.transfer_field(state, other)["column_names"].tolist() == ["g2", "g0"]
    assert (field.attr_name, field.attr_key) == ("layers", "raw_counts")
    assert (CountsField().attr_name, CountsField().attr_key) == ("X", None)


def test_counts_that_are_none():
    adata = _adata(kind=["a", "b"])
    with pytest.raises(KeyError, match="count"):
        CountsField("count").validate_field(adata)
    with pytest.raises(KeyError, match=r"var of X has no column 'symbols' \(gene_symbols=\). Columns: symbol."):
        CountsField(gene_symbols="symbols").validate_field(adata)
    adata.X = -adata.X
    with pytest.raises(ValueError, match="negative"):
        CountsField().validate_field(adata)
