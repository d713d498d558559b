"""Modalities of a MuData: guessed, named, refused."""

from __future__ import annotations

import logging

import anndata as ad
import mudata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scanpy_scgpt._modalities import (
    Modality,
    check_mudata,
    column_of,
    find_modalities,
    own_features,
    patterns,
    rows_of,
    values_of,
)


def part(cells, features, *, values=None, **var):
    x = np.arange(len(cells) * len(features), dtype=np.float32).reshape(len(cells), len(features)) % 7
    obs, names = pd.DataFrame(index=list(cells)), pd.DataFrame(var, index=list(features))
    return ad.AnnData(sparse.csr_matrix(x) if values is None else values, obs=obs, var=names)


def together(**parts):
    with mudata.set_options(pull_on_update=False):
        return mudata.MuData(parts)


GENES, PROTEINS, PEAKS = ("CD3E", "MS4A1"), ("CD3", "CD19"), ("chr1:10-20", "chr2-5-9")


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ({"rna": GENES, "prot": PROTEINS}, [("rna", "rna"), ("prot", "protein")]),
        ({"ADT": PROTEINS, "GEX": GENES}, [("GEX", "rna"), ("ADT", "protein")]),
        ({"x": PEAKS, "rna": GENES}, [("rna", "rna"), ("x", "atac")]),
        ({"rna": GENES, "hto": ("tag1", "tag2")}, [("rna", "rna")]),
    ],
)
def test_guessed_by_names(parts, expected):
    mdata = together(**{name: part("ab", features) for name, features in parts.items()})
    assert [(one.name, one.kind) for one in find_modalities(mdata)] == expected


def test_feature_types_go_before_names(caplog):
    mdata = together(
        first=part("ab", GENES, feature_types="Gene Expression"),
        rna=part("ab", PROTEINS, feature_types="Antibody Capture"),
    )
    with caplog.at_level(logging.INFO, logger="scanpy_scgpt"):
        found = find_modalities(mdata)
    assert found == (Modality("first", "rna", "by feature_types"), Modality("rna", "protein", "by feature_types"))
    assert "'rna' is protein (by feature_types)" in caplog.text


def test_named_and_refused():
    mdata = together(one=part("ab", GENES), two=part("ab", PROTEINS), rna=part("ab", ("ACTB",)))
    assert [one.name for one in find_modalities(mdata, {"two": "protein", "one": "rna"})] == ["one", "two"]
    with pytest.raises(KeyError, match="Did you mean 'two'"):
        find_modalities(mdata, {"tow": "protein"})
    with pytest.raises(ValueError, match=r"modalities\['two'\]='adt': use one of 'rna', 'protein', 'atac'"):
        find_modalities(mdata, {"two": "adt"})
    with pytest.raises(ValueError, match="'one', 'rna' are both taken as rna"):
        find_modalities(mdata, {"one": "rna", "rna": "rna"})
    with pytest.raises(ValueError, match=r"No modality can be used \(there are: 'one'\)"):
        find_modalities(together(one=part("ab", ("x", "y"))))


def test_an_empty_modality_is_left_out(caplog):
    mdata = together(rna=part("ab", GENES), prot=part("", PROTEINS))
    with caplog.at_level(logging.WARNING, logger="scanpy_scgpt"):
        assert [one.name for one in find_modalities(mdata)] == ["rna"]
    assert "modality 'prot' has no cells and is left out" in caplog.text


def test_antibodies_among_genes_are_left_out():
    adata = part("ab", ("CD3E", "AB_CD3"), feature_types=["Gene Expression", "Antibody Capture"])
    assert own_features(adata, "rna").tolist() == [True, False]
    assert own_features(adata, "protein").tolist() == [False, True]


def test_rows_and_patterns():
    mdata = together(rna=part("abc", GENES), prot=part("cd", PROTEINS))
    there = {}
    for name in ("rna", "prot"):
        rows = rows_of(mdata, name)
        assert mdata.mod[name].obs_names[rows[rows >= 0]].tolist() == mdata.obs_names[rows >= 0].tolist()
        there[name] = rows >= 0
    codes, names = patterns(there)
    found = dict(zip(mdata.obs_names, np.asarray(names)[codes], strict=True))
    assert found == {"a": "rna", "b": "rna", "c": "rna+prot", "d": "prot"}


def test_repeated_names_of_cells_are_refused():
    adata = part("ab", GENES)
    mdata = together(rna=adata, prot=part("ab", PROTEINS))
    mdata.mod["prot"].obs_names = ["a", "a"]
    with pytest.raises(ValueError, match=r"cell name 'a' twice. Make them unique: mdata.mod\['prot'\].obs_names_make"):
        rows_of(mdata, "prot")
    mdata.mod["prot"].obs_names = ["a", "z"]
    with pytest.raises(ValueError, match=r"1 cells that mdata.obs does not know. Bring them together: mdata.update"):
        rows_of(mdata, "prot")


def test_a_column_of_the_whole_or_of_the_parts():
    mdata = together(rna=part("abc", GENES), prot=part("cd", PROTEINS))
    mdata.mod["rna"].obs["donor"] = ["x", "y", "z"]
    mdata.mod["prot"].obs["donor"] = ["z", "w"]
    assert column_of(mdata, "donor").loc[list("abcd")].tolist() == ["x", "y", "z", "w"]
    mdata.mod["prot"].obs["donor"] = ["q", "w"]
    with pytest.raises(ValueError, match="disagree about obs"):
        column_of(mdata, "donor")
    mdata.obs["donor"] = "one"
    assert set(column_of(mdata, "donor")) == {"one"}
    with pytest.raises(KeyError, match="Did you mean 'donor'"):
        column_of(mdata, "donr")


def test_proteins_may_be_log_ratios():
    counts = np.asarray([[0, 3, 8], [5, 1, 0]], dtype=np.float32)
    logged = np.log1p(counts)
    ratios = logged - logged.mean(axis=1, keepdims=True)
    adata = part("ab", ("A", "B", "C"), values=ratios)
    found, what = values_of(adata, "protein")
    np.testing.assert_allclose(found.toarray(), counts, atol=1e-5)  # each cell has a protein without counts
    assert what == "negative values, taken as log ratios"
    with pytest.raises(ValueError, match="negative"):
        values_of(adata, "atac")
    found, what = values_of(part("ab", ("A", "B", "C"), values=counts), "protein")
    np.testing.assert_array_equal(found.toarray(), counts)
    assert what == "X (counts)"


def test_proteins_without_background_are_counts():
    values = np.asarray([[-120, 3, 800], [5, -1, 0]], dtype=np.float32)
    found, what = values_of(part("ab", ("A", "B", "C"), values=values), "protein")
    np.testing.assert_array_equal(found.toarray(), np.maximum(values, 0))
    assert what.startswith("negative values, taken as counts")
    values[0, 1] = np.inf
    with pytest.raises(ValueError, match="NaN or infinite values beside negative ones"):
        values_of(part("ab", ("A", "B", "C"), values=values), "protein")


def test_what_cannot_be_written_into():
    mdata = together(rna=part("abc", GENES))
    check_mudata(mdata, function="f")
    with pytest.raises(ValueError, match="cannot write into a view"):
        check_mudata(mdata[:2], function="f")
    with pytest.raises(ValueError, match="no cells"):
        check_mudata(together(rna=part("", GENES)), function="f")
    with mudata.set_options(pull_on_update=False):
        shared = mudata.MuData({"a": part("ab", GENES), "b": part("cd", GENES)}, axis=1)
    with pytest.raises(ValueError, match="axis=1"):
        check_mudata(shared, function="f")
