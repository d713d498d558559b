"""What users feed to `pp.tokenize` and `tl.embed`: every mistake has one behaviour and one text."""

from __future__ import annotations

import json
import logging
import os
import pickle
import random
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy import sparse

import scanpy_scgpt
from scanpy_scgpt import io, models, pp, settings, tl
from scanpy_scgpt.tokenizer import SPECIAL_TOKENS, GeneMatchError, GeneVocab

N_CELLS = 40
BINS, TOKEN, VECTORS = "scgpt_bins", "scgpt_token", "X_scgpt"
Fingerprint = Callable[[ad.AnnData], dict[str, str]]


def embed(adata: ad.AnnData, model: Any = None, **kwargs: Any) -> ad.AnnData | None:
    return tl.embed(adata, model, **{"device": "cpu", **kwargs})


each_verb = pytest.mark.parametrize("verb", [pp.tokenize, embed], ids=["tokenize", "embed"])


@pytest.fixture
def few(counts: ad.AnnData) -> ad.AnnData:
    """40 cells with integers in X."""
    return counts[:N_CELLS].copy()


@pytest.fixture
def logged(pbmc: ad.AnnData) -> ad.AnnData:
    """The same 40 cells with log-normalised values in X."""
    return pbmc[:N_CELLS].copy()


@pytest.fixture
def refuses(checkpoint: io.Checkpoint, fingerprint: Fingerprint) -> Callable[..., str]:
    """Function: the text of the error that a call raises; the cells are as they were before."""

    def call(verb: Callable, adata: ad.AnnData, error: type[Exception], model: Any = checkpoint, **kwargs: Any) -> str:
        before = fingerprint(adata)
        with pytest.raises(error) as caught:
            verb(adata, model, **kwargs)
        assert fingerprint(adata) == before
        assert type(caught.value) is error
        return caught.value.args[0]

    return call


def tokens(adata: ad.AnnData, model: Any, **kwargs: Any) -> np.ndarray:
    """Bins of the cells, dense; the cells themselves are left alone."""
    return pp.tokenize(adata, model, copy=True, **kwargs).layers[BINS].toarray()


def vectors(adata: ad.AnnData, model: Any, **kwargs: Any) -> np.ndarray:
    """Vectors of the cells; the cells themselves are left alone."""
    return embed(adata, model, copy=True, **kwargs).obsm[VECTORS]


def assert_same(adata: ad.AnnData, reference: ad.AnnData, model: Any, **kwargs: Any) -> None:
    """Both give the same bins, bit by bit, and the same vectors."""
    np.testing.assert_array_equal(tokens(adata, model, **kwargs), tokens(reference, model, **kwargs))
    np.testing.assert_allclose(vectors(adata, model, **kwargs), vectors(reference, model, **kwargs), atol=1e-6)


def renamed(adata: ad.AnnData, names: Any) -> ad.AnnData:
    """The cells with other names of the genes, duplicates allowed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata = adata.copy()
        adata.var_names = pd.Index(list(names))
    return adata


def with_matrix(adata: ad.AnnData, matrix: Any) -> ad.AnnData:
    """The same cells and genes with another matrix in X, stored as it is given."""
    made = ad.AnnData(matrix, obs=adata.obs[[]].copy(), var=adata.var[[]].copy())
    assert type(made.X) is type(matrix)
    return made


def scaled(adata: ad.AnnData) -> np.ndarray:
    """Values centred and scaled per gene, as by `sc.pp.scale`."""
    dense = adata.X.toarray().astype(np.float32)
    return (dense - dense.mean(axis=0)) / (dense.std(axis=0) + 1)


def in_vocabulary(adata: ad.AnnData, vocab: GeneVocab) -> np.ndarray:
    return vocab.ids(list(adata.var_names)) >= 0


def test_the_fingerprint_sees_every_change(few, fingerprint):
    few.raw = few.copy()
    few.uns["deep"] = {"list": [1, {"a": np.arange(3)}]}

    def change(path: str, edit: Callable[[ad.AnnData], Any]) -> None:
        other = few.copy()
        assert fingerprint(other) == fingerprint(few)
        edit(other)
        before, after = fingerprint(few), fingerprint(other)
        assert {slot for slot in before.keys() | after.keys() if before.get(slot) != after.get(slot)} == {path}

    change("X", lambda x: x.X.data.__setitem__(5, 999))
    change("X", lambda x: _unsorted(x.X))
    change("X", lambda x: setattr(x, "X", x.X.astype(np.int32)))
    change("raw/X", lambda x: x.raw.X.data.__setitem__(5, 999))
    change("var_names", lambda x: setattr(x, "var_names", [*x.var_names[:-1], "other"]))
    change("obs/new", lambda x: x.obs.insert(0, "new", 1))
    change("obs/bulk_labels", lambda x: x.obs.isetitem(0, x.obs["bulk_labels"].cat.as_ordered()))
    change("obsm/X_pca", lambda x: x.obsm["X_pca"].__setitem__((0, 0), 7))
    change("layers/new", lambda x: x.layers.__setitem__("new", x.X))
    change("uns/deep/list", lambda x: x.uns["deep"]["list"][1]["a"].__setitem__(0, 9))


# --- genes ----------------------------------------------------------------------------------------------------------


@each_verb
def test_no_gene_in_the_vocabulary(verb, few, refuses):
    strange = renamed(few, [f"gene_{i}" for i in range(few.n_vars)])
    text = refuses(verb, strange, GeneMatchError)
    assert text.startswith("0 of 765 genes are in the vocabulary of 521 genes, at least 200 are needed. ")
    assert "First names without a match: 'gene_0', 'gene_1', 'gene_2'." in text
    assert "gene_symbols='<column>'" in text
    assert "min_genes=" in text
    assert "at least 1 are needed" in refuses(verb, strange, GeneMatchError, min_genes=0)


@each_verb
def test_no_gene_at_all(verb, few, refuses):
    assert refuses(verb, few[:, []].copy(), GeneMatchError).startswith("0 of 0 genes are in the vocabulary")


@each_verb
def test_few_genes_need_min_genes(verb, few, refuses, checkpoint):
    panel = few[:, :60].copy()
    text = refuses(verb, panel, GeneMatchError)
    assert text.startswith("40 of 60 genes are in the vocabulary of 521 genes, at least 200 are needed.")
    assert text.endswith("A small panel passes with min_genes=.")
    assert "at least 41 are needed" in refuses(verb, panel, GeneMatchError, min_genes=41)
    verb(panel, checkpoint, min_genes=40)
    (record,) = panel.uns["scgpt"].values()
    assert record["genes"]["n_matched"] == 40


@each_verb
def test_a_small_share_of_genes_is_warned_of(verb, few, checkpoint, caplog):
    verb(few, checkpoint)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    names = [name if i < 400 else f"gene_{i}" for i, name in enumerate(few.var_names)]
    verb(renamed(few, names), checkpoint)
    (warned,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "only 35 % of the genes are in the vocabulary" in warned
    assert "First names without a match: 'SSU72', 'SRM', 'TNFRSF1B'." in warned


@each_verb
def test_mouse_symbols(verb, few, refuses):
    text = refuses(verb, renamed(few, few.var_names.str.capitalize()), GeneMatchError)
    assert "look like mouse symbols and the vocabulary is human" in text
    assert "human orthologs" in text
    assert "adata.var_names.str.upper()" in text


@each_verb
def test_mouse_ensembl_ids(verb, few, refuses):
    text = refuses(verb, renamed(few, [f"ENSMUSG{i:011d}" for i in range(few.n_vars)]), GeneMatchError)
    assert text.startswith("0 of 765 genes")
    assert "'ENSMUSG00000000000'" in text
    assert "mouse Ensembl ids and the vocabulary is human: rename the genes to their human orthologs" in text


@each_verb
def test_numbers_for_names(verb, few, refuses):
    text = refuses(verb, renamed(few, map(str, range(few.n_vars))), GeneMatchError)
    assert "These are numbers, not names: set them with adata.var_names = adata.var['<column with symbols>']" in text


def _doubled(few: ad.AnnData) -> tuple[ad.AnnData, ad.AnnData, str]:
    """Cells in which the second gene has the name of the first; the same with the sum in the first; the name."""
    first, second = 0, 1
    names = few.var_names.tolist()
    dense = few.X.toarray()
    dense[:, second] = np.arange(N_CELLS) % 3
    doubled = with_matrix(few, sparse.csr_matrix(dense))
    dense[:, first] += dense[:, second]
    dense[:, second] = 0
    summed = with_matrix(few, sparse.csr_matrix(dense))
    summed = renamed(summed, [names[first], "other", *names[2:]])
    return renamed(doubled, [names[first], names[first], *names[2:]]), summed, names[first]


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
@each_verb
def test_duplicated_names_are_summed_and_reported(verb, few, checkpoint, fingerprint, caplog):
    doubled, summed, name = _doubled(few)
    before = fingerprint(doubled)
    assert_same(doubled, summed, checkpoint)
    caplog.clear()
    verb(doubled, checkpoint)
    assert {slot: fingerprint(doubled)[slot] for slot in before} == before, "not renamed, not merged"
    (record,) = doubled.uns["scgpt"].values()
    assert record["genes"]["n_duplicates"] == 1
    assert record["genes"]["duplicates"] == [name]
    assert "1 duplicated and summed" in caplog.text


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.bool_, np.float32])
def test_sums_of_duplicates_do_not_overflow(few, checkpoint, dtype):
    doubled, _, _ = _doubled(few)
    top = 120 if dtype == np.int8 else 200 if dtype == np.uint8 else 50_000
    dense = np.minimum(doubled.X.toarray(), top)
    dense[:, :2] = top
    narrow = sparse.csr_matrix(dense.astype(dtype))
    wide = narrow.astype(np.int64)
    assert_same(
        renamed(with_matrix(few, narrow), doubled.var_names),
        renamed(with_matrix(few, wide), doubled.var_names),
        checkpoint,
    )


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_duplicates_out_of_a_longer_raw_stand_once(few, checkpoint):
    """With `raw` longer than `var`, a gene that stands twice in both has its tokens in one column."""
    doubled, summed, _ = _doubled(few)
    short = doubled[:, :700].copy()
    short.raw = doubled
    expected = tokens(summed, checkpoint)[:, :700]
    np.testing.assert_array_equal(tokens(short, checkpoint, use_raw=True), expected)


def test_a_gene_keeps_its_tokens_when_its_twin_is_left_out(few, checkpoint):
    """Two genes of `raw` mean the same gene and only the second of them is in `var`: the tokens stand there."""
    _, summed, name = _doubled(few)
    order = [1, 0, *range(2, few.n_vars)]  # all counts in the second
    twins = with_matrix(few, sparse.csr_matrix(summed.X.toarray()[:, order]))
    twins.var["symbol"] = [name, name, *few.var_names[2:]]
    twins.var_names = [f"id_{i}" for i in range(few.n_vars)]
    short = twins[:, 1:].copy()
    short.raw = twins
    np.testing.assert_array_equal(tokens(short, checkpoint, use_raw=True)[:, 0], tokens(summed, checkpoint)[:, 0])


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
@each_verb
def test_null_names_are_left_out_and_counted(verb, few, checkpoint, caplog):
    names = ["nan", "None", "", "nan", *few.var_names[4:]]
    verb(nameless := renamed(few, names), checkpoint)
    (record,) = nameless.uns["scgpt"].values()
    assert record["genes"]["n_null_names"] == 4
    assert record["genes"]["n_duplicates"] == 0
    assert "4 without a name" in caplog.text
    without = few[:, 4:].copy()
    np.testing.assert_array_equal(tokens(nameless, checkpoint)[:, 4:], tokens(without, checkpoint))
    assert tokens(nameless, checkpoint)[:, :4].sum() == 0
    np.testing.assert_allclose(vectors(nameless, checkpoint), vectors(without, checkpoint), atol=1e-6)


@pytest.mark.parametrize("null", ["NA", "nan", "None", "", "NaN"])
def test_null_names_in_a_symbol_column_match_nothing(few, checkpoint, null):
    """`NA` is also a former name of XK, which is in the vocabulary."""
    assert "XK" in checkpoint.vocab
    few.var["gene_symbols"] = [null, null, *few.var_names[2:]]
    few.var_names = [f"id_{i}" for i in range(few.n_vars)]
    pp.tokenize(few, checkpoint)
    assert few.var[TOKEN].tolist()[:2] == [-1, -1]
    assert (few.var[TOKEN] >= 0).sum() > 500


@pytest.fixture(scope="module")
def ensembl_of() -> pd.Series:
    """Ensembl id of each symbol that has one only."""
    path = Path(scanpy_scgpt.__file__).parent / "tokenizer" / "genes_human.tsv.gz"
    table = pd.read_csv(path, sep="\t", dtype=str, na_filter=False).drop_duplicates("symbol", keep=False)
    return "ENSG" + table.set_index("symbol")["ensembl"].str.zfill(11)


def test_names_of_two_genes_are_not_mixed_up(few, checkpoint, ensembl_of):
    """SLK is a gene, and a former name of the gene FYN: neither stands for the other."""
    names = few.var_names.tolist()
    assert not {"SLK", "FYN"} & {*names, *checkpoint.vocab.genes}
    for given, known in (("SLK", "FYN"), (ensembl_of["SLK"], "FYN"), (ensembl_of["FYN"], "SLK")):
        adata = renamed(few, [given, *names[1:]])
        pp.tokenize(adata, GeneVocab([*checkpoint.vocab.genes, known]))
        assert adata.var[TOKEN].iloc[0] == -1, f"{given} is not {known}"
    adata = renamed(few, [ensembl_of["FYN"], *names[1:]])
    pp.tokenize(adata, vocab := GeneVocab([*checkpoint.vocab.genes, "FYN"]))
    assert adata.var[TOKEN].iloc[0] == vocab["FYN"]


@pytest.mark.parametrize(("old", "new"), [("ATPIF1", "ATP5IF1"), ("SEPT7", "SEPTIN7")])
def test_former_names_are_found_both_ways(few, checkpoint, ensembl_of, old, new):
    names = few.var_names.tolist()
    others = [name for name in checkpoint.vocab.genes if name not in {old, new}]
    for given, known in ((old, new), (ensembl_of[new], old)):
        adata = renamed(few, [given, *(name if name != old else "other" for name in names[1:])])
        pp.tokenize(adata, vocab := GeneVocab([*others, known]))
        assert adata.var[TOKEN].iloc[0] == vocab[known]


@pytest.mark.parametrize("version", ["", ".12"], ids=["plain", "versions"])
@each_verb
def test_ensembl_ids(verb, few, checkpoint, ensembl_of, version, caplog):
    few = few[:, few.var_names.isin(ensembl_of.index)].copy()
    foreign = renamed(few, ensembl_of[few.var_names] + version)
    assert_same(foreign, few, checkpoint)
    caplog.clear()
    verb(foreign, checkpoint)
    (record,) = foreign.uns["scgpt"].values()
    n = int(in_vocabulary(few, checkpoint.vocab).sum())
    assert n > 400
    assert (record["genes"]["n_ensembl"], record["genes"]["n_symbol"]) == (n, 0)
    assert f"{n}/{few.n_vars} genes matched ({n} via Ensembl id)" in caplog.text
    assert foreign.var_names[0] == ensembl_of[few.var_names[0]] + version


@pytest.mark.parametrize("given", [None, "my_symbols"])
def test_ensembl_ids_with_a_symbol_column(few, checkpoint, given):
    """A column with a usual name is found; any other is named by the user."""
    foreign = renamed(few, [f"ENSG{i:011d}.1" for i in range(900_000, 900_000 + few.n_vars)])
    foreign.var[given or "feature_name"] = pd.Categorical(few.var_names)
    np.testing.assert_array_equal(tokens(foreign, checkpoint, gene_symbols=given), tokens(few, checkpoint))
    got = vectors(foreign, checkpoint, gene_symbols=given)
    np.testing.assert_allclose(got, vectors(few, checkpoint), atol=1e-6)
    pp.tokenize(foreign, checkpoint, gene_symbols=given)
    assert set(foreign.var["scgpt_match"]) == {"column", "none"}


@each_verb
def test_unknown_gene_symbols_column(verb, few, refuses):
    text = refuses(verb, few, KeyError, gene_symbols="symbols")
    assert text == "var of X has no column 'symbols' (gene_symbols=). Columns: means."


@each_verb
def test_gene_table_without_its_columns(verb, few, refuses):
    text = refuses(verb, few, ValueError, gene_table=pd.DataFrame({"ensembl": [], "name": []}))
    assert "has no column 'symbol'" in text
    assert "Columns: ensembl, name." in text


# --- values ---------------------------------------------------------------------------------------------------------


@each_verb
def test_scaled_values(verb, few, refuses):
    few.X = scaled(few)
    text = refuses(verb, few, ValueError)
    assert re.match(
        r"X has negative values \(minimum -\d\.\d+; \d\d% of the entries looked at\): it looks scaled\.", text
    )
    assert text.endswith("Name a layer with counts: layer='...'.")


@each_verb
def test_scaled_values_with_logs_in_raw(verb, logged, refuses, checkpoint):
    plain = logged.copy()
    logged.raw = logged.copy()
    logged.X = scaled(logged)
    text = refuses(verb, logged, ValueError)
    assert text.endswith(" Pass use_raw=True (raw.X has log-normalised values).")
    result = {"tokenize": tokens, "embed": vectors}[verb.__name__]
    np.testing.assert_array_equal(result(logged, checkpoint, use_raw=True), result(plain, checkpoint))


@each_verb
def test_scaled_values_with_counts_elsewhere(verb, few, checkpoint, caplog):
    """Counts are taken from where they are, and the receipt says so."""
    plain = few.copy()
    few.raw = few.copy()
    few.X = scaled(few)
    assert_same(few, plain, checkpoint)
    few.layers["counts"] = plain.X.copy()
    caplog.clear()
    verb(few, checkpoint)
    assert "layers['counts'] (counts)" in caplog.text
    del few.layers["counts"]
    verb(few, checkpoint)
    assert "raw.X (counts)" in caplog.text


@each_verb
def test_a_scaled_layer(verb, few, refuses):
    few.layers["scaled"] = scaled(few)
    assert refuses(verb, few, ValueError, layer="scaled").startswith("layers['scaled'] has negative values")


@pytest.mark.parametrize("layer", [None, "mine"])
@pytest.mark.parametrize("kind", [sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array, np.asarray])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf], ids=str)
@each_verb
def test_nan_and_infinity(verb, few, refuses, checkpoint, bad, kind, layer):
    """The text counts them, says where the first is, and its advice works."""
    dense = few.X.toarray().astype(np.float32)
    dense[[7, 9], [3, 5]] = bad
    matrix = kind(dense)
    if layer is None:
        few.X = matrix
    else:
        few.layers[layer] = matrix
    text = refuses(verb, few, ValueError, layer=layer)
    where = "X" if layer is None else "layers['mine']"
    assert text.startswith(f"{where}: it holds 2 NaN or infinite values. First at row 7. ")
    if bad > 0 or np.isnan(bad):
        exec(text.split("or set: ")[1], {"adata": few, "np": np})
        verb(few, checkpoint, layer=layer)


@each_verb
def test_log_normalised_values_are_taken_with_a_note(verb, logged, few, checkpoint, caplog):
    verb(few, checkpoint)
    assert "note:" not in caplog.text
    verb(logged, checkpoint)
    assert "note: X holds log-normalised values; bins are ranks inside a cell" in caplog.text
    assert "X (log-normalised values)" in caplog.text


@each_verb
def test_counts_that_are_not_whole(verb, few, checkpoint, caplog):
    few.X = few.X.astype(np.float32) * 1.0019
    verb(few, checkpoint)
    assert "note: X holds non-integer values" in caplog.text


def _with_empty(few: ad.AnnData, checkpoint: io.Checkpoint, how: str) -> tuple[ad.AnnData, np.ndarray]:
    """Cells of which three have no count, or none in a gene of the vocabulary; and which these are."""
    empty = np.isin(np.arange(N_CELLS), [0, 11, N_CELLS - 1])
    genes = in_vocabulary(few, checkpoint.vocab) if how == "matched" else np.ones(few.n_vars, dtype=bool)
    dense = few.X.toarray()
    dense[np.ix_(empty, genes)] = 0
    return with_matrix(few, sparse.csr_matrix(dense)), empty


@pytest.mark.parametrize("how", ["all", "matched"])
def test_empty_cells(few, checkpoint, caplog, how):
    adata, empty = _with_empty(few, checkpoint, how)
    expected = vectors(few, checkpoint)
    caplog.clear()
    embed(adata, checkpoint)
    got = adata.obsm[VECTORS]
    np.testing.assert_allclose(got[~empty], expected[~empty], atol=1e-6)
    assert np.isfinite(got).all()
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(got[empty], np.repeat(got[:1], 3, axis=0), atol=1e-6)
    assert adata.obs["scgpt_qc"].tolist() == np.where(empty, "empty", "ok").tolist()
    assert adata.obs["scgpt_qc"].cat.categories.tolist() == ["ok", "empty"]
    assert adata.uns["scgpt"]["embed"]["n_empty_cells"] == 3
    (warned,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warned.startswith("embed: 3 cells have no gene of the vocabulary")
    assert "obs['scgpt_qc']" in warned
    exec(warned.split("Drop them: ")[1], names := {"adata": adata})
    assert names["adata"].n_obs == N_CELLS - 3


@pytest.mark.parametrize("how", ["all", "matched"])
def test_empty_cells_have_no_tokens(few, checkpoint, how):
    adata, empty = _with_empty(few, checkpoint, how)
    expected = tokens(few, checkpoint)
    expected[empty] = 0
    np.testing.assert_array_equal(tokens(adata, checkpoint), expected)


@pytest.mark.parametrize("cls_value", [-2.0, 0.0])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("pooling", ["cls", "mean", "weighted", "layers"])
def test_empty_cells_have_finite_vectors(few, checkpoint, pooling, normalize, cls_value):
    """Whatever the pooling, and whatever value the checkpoint gives to `<cls>`."""
    checkpoint = replace(checkpoint, tokenizer=checkpoint.tokenizer.updated(cls_value=cls_value))
    adata, _ = _with_empty(few, checkpoint, "all")
    assert np.isfinite(vectors(adata, checkpoint, pooling=pooling, normalize=normalize)).all()


def test_marks_of_empty_cells_do_not_outlive_their_run(few, checkpoint):
    adata, empty = _with_empty(few, checkpoint, "all")
    adata.layers["full"] = few.X.copy()
    embed(adata, checkpoint)
    assert (adata.obs["scgpt_qc"] == "empty").sum() == empty.sum()
    embed(adata, checkpoint, layer="full")
    assert "empty" not in adata.obs.get("scgpt_qc", pd.Series(dtype=str)).tolist()


# --- storage --------------------------------------------------------------------------------------------------------

FORMATS = {
    "csr_matrix": sparse.csr_matrix,
    "csc_matrix": sparse.csc_matrix,
    "csr_array": sparse.csr_array,
    "csc_array": sparse.csc_array,
    "dense": lambda matrix: matrix.toarray(),
    "dense_columns": lambda matrix: np.asfortranarray(matrix.toarray()),
}
DTYPES = ["int64", "int32", "uint16", "float64", "float32", "bool"]


@pytest.mark.parametrize("kind", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_number_type_in_any_format(few, checkpoint, fingerprint, dtype, kind):
    reference = with_matrix(few, (few.X > 0).astype(np.int64) if dtype == "bool" else few.X)
    adata = with_matrix(few, kind(few.X.astype(dtype)))
    assert adata.X.dtype == dtype
    before = fingerprint(adata)
    assert_same(adata, reference, checkpoint)
    assert fingerprint(adata) == before


def test_half_precision(few, checkpoint):
    adata = with_matrix(few, few.X.toarray().astype(np.float16))
    assert_same(adata, with_matrix(few, adata.X.astype(np.float32)), checkpoint)


def _wide_indices(matrix: sparse.csr_matrix) -> sparse.csr_matrix:
    matrix.indices, matrix.indptr = matrix.indices.astype(np.int64), matrix.indptr.astype(np.int64)
    return matrix


def _unsorted(matrix: sparse.csr_matrix) -> sparse.csr_matrix:
    for start, stop in zip(matrix.indptr[:-1], matrix.indptr[1:], strict=True):
        matrix.indices[start:stop] = matrix.indices[start:stop][::-1]
        matrix.data[start:stop] = matrix.data[start:stop][::-1]
    matrix.has_sorted_indices = False
    return matrix


def _stored_zeros(matrix: sparse.csr_matrix) -> sparse.csr_matrix:
    rows, columns = np.nonzero(matrix.toarray()[:, :5] == 0)
    known = matrix.tocoo()
    data = np.concatenate([known.data, np.zeros(rows.size, matrix.dtype)])
    where = np.concatenate([known.row, rows]), np.concatenate([known.col, columns])
    stored = sparse.csr_matrix((data, where), shape=matrix.shape)
    assert stored.nnz == matrix.nnz + rows.size > matrix.nnz
    return stored


def _split_entries(matrix: sparse.csr_matrix) -> sparse.csr_matrix:
    """Each value as a sum of two entries of one place, which the format allows."""
    data = np.repeat(matrix.data, 2)
    data[::2] -= 1
    data[1::2] = 1
    split = sparse.csr_matrix((data, np.repeat(matrix.indices, 2), matrix.indptr * 2), shape=matrix.shape)
    assert not split.has_canonical_format
    return split


def _read_only(matrix: sparse.csr_matrix) -> sparse.csr_matrix:
    for part in (matrix.data, matrix.indices, matrix.indptr):
        part.flags.writeable = False
    return matrix


@pytest.mark.parametrize("change", [_wide_indices, _unsorted, _stored_zeros, _split_entries, _read_only])
def test_any_form_of_csr(few, checkpoint, fingerprint, change):
    adata = with_matrix(few, change(few.X.copy()))
    before = fingerprint(adata)
    assert_same(adata, few, checkpoint)
    assert fingerprint(adata) == before


@pytest.mark.parametrize("rows", ["slice", "mask", "order"])
@each_verb
def test_views_are_written_through(verb, few, checkpoint, fingerprint, rows):
    chosen = {"slice": slice(5, 25), "mask": np.arange(N_CELLS) % 2 == 0, "order": np.arange(N_CELLS)[::-1][:17]}[rows]
    before = fingerprint(few)
    view, copied = few[chosen], few[chosen].copy()
    assert view.is_view
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        verb(view, checkpoint)
    assert [warning.category for warning in caught] in ([], [ad.ImplicitModificationWarning])
    verb(copied, checkpoint)
    assert not view.is_view
    assert fingerprint(few) == before
    ours, theirs = fingerprint(view), fingerprint(copied)
    speed = "uns/scgpt/embed/cells_per_second"
    assert {k: v for k, v in ours.items() if k != speed} == {k: v for k, v in theirs.items() if k != speed}


def test_a_view_can_be_copied(few, checkpoint, fingerprint):
    view = few[5:25]
    before = fingerprint(view)
    np.testing.assert_array_equal(vectors(view, checkpoint), vectors(few[5:25].copy(), checkpoint))
    assert view.is_view
    assert fingerprint(view) == before


@pytest.mark.parametrize("kind", FORMATS.values(), ids=FORMATS)
@each_verb
def test_no_cells(verb, few, checkpoint, kind):
    nothing = with_matrix(few[:0], kind(few.X[:0]))
    nothing.raw = nothing.copy()
    verb(nothing, checkpoint)
    verb(nothing, checkpoint, use_raw=True)
    verb(nothing[:, :700].copy(), checkpoint, use_raw=True)
    if verb is embed:
        assert nothing.obsm[VECTORS].shape == (0, 16)
    else:
        assert nothing.layers[BINS].shape == (0, few.n_vars)
        assert nothing.layers[BINS].dtype == np.uint8


@pytest.mark.parametrize("kind", FORMATS.values(), ids=FORMATS)
def test_one_cell(few, checkpoint, kind):
    one = with_matrix(few[3:4], kind(few.X[3:4]))
    np.testing.assert_array_equal(tokens(one, checkpoint), tokens(few, checkpoint)[3:4])
    np.testing.assert_allclose(vectors(one, checkpoint), vectors(few, checkpoint)[3:4], atol=1e-5)


@pytest.fixture
def on_disk(few: ad.AnnData, tmp_path: Path) -> Iterator[Callable[..., ad.AnnData]]:
    """Function: the cells in a file, opened without reading X."""
    opened = []

    def open_backed(mode: str, matrix: Any) -> ad.AnnData:
        path = tmp_path / f"cells{len(opened)}.h5ad"
        with_matrix(few, matrix).write_h5ad(path)
        opened.append(ad.read_h5ad(path, backed=mode))
        assert opened[-1].isbacked
        return opened[-1]

    yield open_backed
    for adata in opened:
        adata.file.close()


@pytest.mark.parametrize("kind", ["csr_matrix", "csr_array", "dense"])
@pytest.mark.parametrize("mode", ["r", "r+"])
def test_cells_on_disk(few, checkpoint, on_disk, fingerprint, mode, kind):
    adata = on_disk(mode, FORMATS[kind](few.X))
    before = fingerprint(adata)
    embed(adata, checkpoint)
    pp.tokenize(adata, checkpoint)
    np.testing.assert_array_equal(adata.layers[BINS].toarray(), tokens(few, checkpoint))
    np.testing.assert_allclose(adata.obsm[VECTORS], vectors(few, checkpoint), atol=1e-6)
    assert adata.isbacked
    assert {slot: fingerprint(adata)[slot] for slot in before} == before


@each_verb
def test_cells_on_disk_can_be_copied(verb, few, checkpoint, on_disk, fingerprint):
    """A copy of cells on disk is in memory."""
    adata = on_disk("r", few.X)
    before = fingerprint(adata)
    copied = verb(adata, checkpoint, copy=True)
    assert not copied.isbacked
    assert copied.n_obs == N_CELLS
    assert fingerprint(adata) == before


@each_verb
def test_a_view_of_cells_on_disk(verb, few, refuses, checkpoint, on_disk):
    """There is nowhere to write to; the text says what to do, and a copy works."""
    view = on_disk("r", few.X)[:10]
    assert ".to_memory()" in refuses(verb, view, ValueError)
    assert verb(view, checkpoint, copy=True).n_obs == 10


@each_verb
def test_counts_in_raw_on_disk(verb, few, checkpoint, tmp_path, caplog):
    plain = few.copy()
    few.raw = few.copy()
    few.X = scaled(few)
    few[:, :700].copy().write_h5ad(tmp_path / "cells.h5ad")
    adata = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    verb(adata, checkpoint)
    assert "raw.X (counts)" in caplog.text
    if verb is embed:
        np.testing.assert_allclose(adata.obsm[VECTORS], vectors(plain, checkpoint), atol=1e-6)
    else:
        np.testing.assert_array_equal(adata.layers[BINS].toarray(), tokens(plain, checkpoint)[:, :700])
    adata.file.close()


@each_verb
def test_columns_on_disk_are_refused(verb, few, checkpoint, on_disk, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    adata = on_disk("r", few.X.tocsc())
    with pytest.raises(ValueError, match=r"X lies on disk by columns \(CSC\), cells cannot be read") as caught:
        verb(adata, checkpoint)
    advice = str(caught.value).split("Rewrite it by rows: ")[1].rstrip(".")
    rewritten = ad.read_h5ad(eval(advice, {"scanpy_scgpt": scanpy_scgpt}), backed="r")
    verb(rewritten, checkpoint)
    rewritten.file.close()


@pytest.mark.parametrize("kind", ["csr_matrix", "dense"])
@pytest.mark.parametrize(("bad", "words"), [(np.nan, "NaN or infinite values"), (-3, "has negative values")])
@each_verb
def test_bad_values_on_disk(verb, few, refuses, on_disk, monkeypatch, kind, bad, words):
    """Also where only the reading of a block finds them: at first three samples are looked at."""
    monkeypatch.setattr("scanpy_scgpt._counts._SAMPLED_ROWS", 2)
    dense = few.X.toarray().astype(np.float32)
    dense[7, 3] = bad
    adata = on_disk("r", FORMATS[kind](sparse.csr_matrix(dense)))
    assert words in refuses(verb, adata, ValueError)


# --- arguments ------------------------------------------------------------------------------------------------------


@each_verb
def test_missing_layer(verb, few, refuses):
    text = refuses(verb, few, KeyError, layer="count")
    assert text == "There is no layer 'count'. Layers: none. Leave layer out to use X."
    few.layers["counts"] = few.X.copy()
    assert "Layers: 'counts'." in refuses(verb, few, KeyError, layer="count")


@each_verb
def test_layer_and_raw_exclude_each_other(verb, few, refuses):
    few.layers["counts"] = few.X.copy()
    few.raw = few.copy()
    text = refuses(verb, few, ValueError, layer="counts", use_raw=True)
    assert text == "layer='counts' and use_raw=True exclude each other: give one of them."


@each_verb
def test_raw_that_is_not_there(verb, few, refuses):
    text = refuses(verb, few, ValueError, use_raw=True)
    assert text == "use_raw=True, but adata.raw is None. Leave use_raw out to use X."


@each_verb
def test_no_matrix(verb, few, refuses):
    del few.X
    assert "X is None, and there is no layer 'counts'" in refuses(verb, few, ValueError)


@pytest.mark.parametrize(
    ("verb", "given", "error", "words"),
    [
        (pp.tokenize, {"ties": "first"}, ValueError, "ties='first': use one of 'random', 'low', 'mid', 'high'"),
        (embed, {"ties": "first"}, ValueError, "ties='first': use one of 'random', 'low', 'mid', 'high'"),
        (embed, {"select": "best"}, ValueError, "select='best': use one of 'random', 'top'"),
        (
            embed,
            {"pooling": "means"},
            ValueError,
            "pooling='means': use one of 'cls', 'mean', 'weighted', 'layers'; did you mean",
        ),
        (embed, {"pooling": ""}, ValueError, "pooling='': use one of 'cls', 'mean', 'weighted', 'layers'"),
        (pp.tokenize, {"n_bins": 2}, ValueError, "n_bins=2: use 3 to 256"),
        (pp.tokenize, {"n_bins": 257}, ValueError, "n_bins=257: use 3 to 256"),
        (embed, {"max_length": 1}, ValueError, "max_length=1: it counts <cls>, so at least 2"),
        (embed, {"max_tokens": 0}, ValueError, "max_tokens=0: "),
        (embed, {"max_tokens": -5}, ValueError, "max_tokens=-5: "),
        (embed, {"device": "tpu9"}, ValueError, "device='tpu9' is not available"),
        (embed, {"device": "cuda:99"}, ValueError, "Use device='auto' or device='cpu'."),
        (pp.tokenize, {"rng": "0"}, TypeError, "rng='0': use an integer seed, a numpy.random.Generator, or None"),
        (embed, {"rng": 1.5}, TypeError, "rng=1.5: use an integer seed, a numpy.random.Generator, or None"),
        (embed, {"rng": True}, TypeError, "rng=True: use an integer seed, a numpy.random.Generator, or None"),
        (embed, {"rng": np.random.RandomState(0)}, TypeError, "use an integer seed, a numpy.random.Generator, or None"),
    ],
    ids=lambda value: re.sub(r" at 0x\w+", "", str(value)) if isinstance(value, dict) else None,
)
def test_bad_arguments(few, refuses, verb, given, error, words):
    assert words in refuses(verb, few, error, **given)


@pytest.mark.parametrize("seed", [np.int64(3), -1, 2**63, 2**70])
def test_any_integer_is_a_seed(few, checkpoint, seed):
    first = tokens(few, checkpoint, rng=seed)
    np.testing.assert_array_equal(first, tokens(few, checkpoint, rng=seed))
    assert (first != tokens(few, checkpoint, rng=4)).any()


def test_generators_and_none(few, checkpoint):
    first = tokens(few, checkpoint, rng=np.random.default_rng(5))
    np.testing.assert_array_equal(first, tokens(few, checkpoint, rng=np.random.default_rng(5)))
    assert (tokens(few, checkpoint, rng=None) != tokens(few, checkpoint, rng=None)).any()


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda adata: adata.X, "csr_matrix"),
        (lambda adata: adata.to_df(), "DataFrame"),
        (lambda _: None, "NoneType"),
    ],
    ids=["matrix", "table", "nothing"],
)
@each_verb
def test_something_else_than_anndata(verb, few, checkpoint, make, kind):
    name = "pp.tokenize" if verb is pp.tokenize else "tl.embed"
    with pytest.raises(TypeError) as caught:
        verb(make(few), checkpoint)
    text = f"{name} takes an AnnData, this is a {kind}. Read a file with anndata.read_h5ad(path)."
    assert str(caught.value) == text


@each_verb
def test_mudata(verb, few, checkpoint):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mudata import MuData

        mdata = MuData({"prot": few[:, :9].copy(), "rna": few.copy()})
    if verb is pp.tokenize:
        with pytest.raises(TypeError) as caught:
            verb(mdata, checkpoint)
        text = "pp.tokenize takes one AnnData, this is a MuData with the modalities 'prot', 'rna'. "
        assert str(caught.value) == f"{text}Pass the RNA modality: pp.tokenize(mdata['rna'])."
    verb(mdata["rna"], checkpoint)
    (key,) = mdata["rna"].uns["scgpt"]
    assert key == verb.__name__


# --- models ---------------------------------------------------------------------------------------------------------


@each_verb
def test_unknown_model_name(verb, few, refuses):
    text = refuses(verb, few, ValueError, "minni")
    assert text.startswith("No model 'minni': it is neither a name ('mini', ")
    assert "Did you mean 'mini'?" in text
    assert "best_model.pt, args.json, vocab.json" in text
    assert "Did you mean" not in refuses(verb, few, ValueError, "/nowhere/at/all")


@each_verb
def test_the_default_model_is_a_setting(verb, few, refuses, checkpoint, checkpoint_folder):
    with settings.override(model="whole-humman"):
        assert refuses(verb, few, ValueError, None).startswith("No model 'whole-humman'")
    with settings.override(model=checkpoint_folder):
        verb(few)
    (record,) = few.uns["scgpt"].values()
    assert record["vocab_hash"] == checkpoint.vocab.digest


@each_verb
def test_something_else_than_a_model(verb, few, refuses):
    assert "int" in refuses(verb, few, TypeError, 7)


@pytest.fixture
def folder(checkpoint_folder: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint folder that may be damaged."""
    return Path(shutil.copytree(checkpoint_folder, tmp_path / "tiny"))


@each_verb
def test_empty_folder(verb, few, refuses, tmp_path):
    (tmp_path / "empty").mkdir()
    text = refuses(verb, few, io.CheckpointError, tmp_path / "empty")
    assert "is no checkpoint folder (it holds nothing)" in text
    assert "config.json, vocab.json, weights.safetensors" in text
    assert "best_model.pt, args.json, vocab.json" in text


@pytest.mark.parametrize("name", ["config.json", "vocab.json", "weights.safetensors"])
@each_verb
def test_missing_file(verb, few, refuses, folder, name):
    (folder / name).unlink()
    text = refuses(verb, few, io.CheckpointError, folder)
    assert f"{folder} lacks {name};" in text
    assert "Copy the whole folder." in text


def _edit(path: Path, change: Callable[[Any], Any]) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text(encoding="utf-8")))), encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text[:-9], "is no valid JSON"),
        (lambda _: "", "is no valid JSON"),
        (lambda _: "\udcff", "is no valid JSON"),
        (lambda _: "[1]", "format_version None"),
        (lambda text: text.replace('"transformer"', '"network"'), "'transformer'"),
        (lambda text: text.replace('"d_model": 16', '"d_model": "16"'), "d_model"),
        (lambda text: text.replace('"d_model": 16', '"d_model": 17'), "d_model=17 is no multiple of n_heads=2"),
        (lambda text: text.replace('"d_ff"', '"d_fff"'), "'d_fff'"),
        (lambda text: text.replace('"ties"', '"knots"'), "'knots'"),
        (lambda text: text.replace('"random"', '"first"', 1), "'first'"),
    ],
    ids=["cut", "blank", "bytes", "list", "part", "type", "value", "name", "token_name", "token_value"],
)
@each_verb
def test_damaged_config(verb, few, refuses, folder, change, words):
    path = folder / "config.json"
    path.write_bytes(change(path.read_text(encoding="utf-8")).encode(errors="surrogateescape"))
    text = refuses(verb, few, io.CheckpointError, folder)
    assert str(path) in text
    assert words in text


@each_verb
def test_newer_format(verb, few, refuses, folder):
    _edit(folder / "config.json", lambda config: {**config, "format_version": 2})
    text = refuses(verb, few, io.CheckpointError, folder)
    assert f"{folder / 'config.json'} has format_version 2, this release reads 1." in text
    assert "pip install -U scanpy-scgpt" in text


@pytest.mark.parametrize("keep", [0, 5, 300, -40])
@each_verb
def test_truncated_weights(verb, few, refuses, folder, keep):
    path = folder / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    text = refuses(verb, few, io.CheckpointError, folder)
    assert text.startswith(f"{path} is damaged (")
    assert text.endswith("Copy the checkpoint folder again.")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda vocab: {**vocab, "GENE": 9}, "has id 9"),
        (lambda vocab: {**vocab, "GENE": 10_000}, "has id 10000"),
        (lambda vocab: {**vocab, "GENE": "9"}, "has id '9'"),
        (list, "list"),
    ],
    ids=["twice", "gap", "text", "list"],
)
@each_verb
def test_damaged_vocabulary(verb, few, refuses, folder, change, words):
    _edit(folder / "vocab.json", change)
    text = refuses(verb, few, io.CheckpointError, folder)
    assert str(folder / "vocab.json") in text
    assert words in text


@pytest.mark.parametrize("n_more", [-1, 1, 500])
@each_verb
def test_vocabulary_of_another_size(verb, few, refuses, folder, checkpoint, n_more):
    """The ids would mean other genes, or none."""
    n, genes = len(checkpoint.vocab), checkpoint.vocab.genes
    listed = [*genes[: len(genes) + min(n_more, 0)], *(f"GENE{i}" for i in range(n_more)), *SPECIAL_TOKENS]
    _edit(folder / "vocab.json", lambda _: {token: i for i, token in enumerate(listed)})
    text = refuses(verb, few, io.CheckpointMismatchError, folder)
    assert re.search(rf"gene table has {n:,} rows, vocab\.json {n + n_more:,} tokens", text)


def _rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    path = folder / "weights.safetensors"
    save_file(change(load_file(path)), path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda weights: {name.replace(".attention.", ".attn."): x for name, x in weights.items()},
            r"8 of \d+ tensors .* among them 8 of 8 attention tensors\. Missing: layers\.0\.attention\.in_proj\.weight",
        ),
        (
            lambda weights: {name: x for name, x in weights.items() if "layers.1.attention.in_proj" not in name},
            r"2 of \d+ tensors .* among them 2 of 8 attention tensors\. Missing: layers\.1\.attention\.in_proj\.weight",
        ),
        (
            lambda weights: {name: torch.zeros(3, *x.shape) for name, x in weights.items()},
            r"cannot be loaded, among them 8 of 8 attention tensors\. Other shape: encoder\.",
        ),
        (lambda weights: {f"model.{name}": x for name, x in weights.items()}, "among them 8 of 8 attention tensors"),
        (lambda _: {"x": torch.zeros(1)}, "among them 8 of 8 attention tensors"),
    ],
    ids=["renamed_attention", "lost_attention", "other_shapes", "other_names", "no_weights"],
)
def test_weights_that_do_not_fit(few, refuses, folder, change, words):
    """A network with random weights in it never embeds."""
    embed(few, folder, copy=True)
    _rewrite(folder, change)
    text = refuses(embed, few, io.CheckpointMismatchError, folder)
    assert text.startswith("tiny@")
    assert re.search(words, text)
    assert "Random weights are never used in their place" in text


ORIGINAL_NAMES = (
    (r"transformer\.encoder\.genes\.embedding\.", r"encoder.embedding."),
    (r"transformer\.encoder\.genes\.norm\.", r"encoder.enc_norm."),
    (r"transformer\.encoder\.values\.", r"value_encoder."),
    (r"transformer\.layers\.(\d)\.attention\.in_proj\.", r"transformer_encoder.layers.\1.self_attn.in_proj_"),
    (r"transformer\.layers\.(\d)\.attention\.", r"transformer_encoder.layers.\1.self_attn."),
    (r"transformer\.layers\.(\d)\.(?:feed_forward\.)?", r"transformer_encoder.layers.\1."),
    (r"expression_head\.network\.", r"decoder.fc."),
    (r"cell_to_gene_head\.query\.", r"mvc_decoder.gene2query."),
    (r"cell_to_gene_head\.weight\.", r"mvc_decoder.W."),
)


def _original_name(name: str) -> str:
    for pattern, new in ORIGINAL_NAMES:
        if re.match(pattern, name):
            return re.sub(pattern, new, name)
    return f"other.{name}"


@pytest.fixture
def original(checkpoint: io.Checkpoint, tmp_path: Path) -> Path:
    """The tiny checkpoint as a folder of the original release."""
    folder = tmp_path / "original"
    folder.mkdir()
    torch.save({_original_name(name): x for name, x in checkpoint.weights.items()}, folder / "best_model.pt")
    checkpoint.vocab.write(folder / "vocab.json")
    args = {"nheads": 2, "n_bins": 51, "max_seq_len": 1200, "pad_token": "<pad>", "pad_value": -2}
    (folder / "args.json").write_text(json.dumps(args), encoding="utf-8")
    return folder


def test_original_folder(few, checkpoint, original):
    np.testing.assert_allclose(vectors(few, original), vectors(few, checkpoint), atol=1e-6)


@pytest.mark.parametrize("name", ["best_model.pt", "args.json", "vocab.json"])
@each_verb
def test_original_folder_without_a_file(verb, few, refuses, original, name):
    (original / name).unlink()
    text = refuses(verb, few, io.CheckpointError, original)
    assert f"{original} lacks {name}; a folder of the original release has best_model.pt, args.json, vocab.json" in text


@each_verb
def test_original_folder_without_heads(verb, few, refuses, original):
    _edit(original / "args.json", lambda args: {key: value for key, value in args.items() if key != "nheads"})
    text = refuses(verb, few, io.CheckpointError, original)
    assert f"{original / 'args.json'} does not give the number of heads ('nheads')" in text


class Bomb:
    """Makes a file where it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("how", ["pickle", "torch"])
@each_verb
def test_code_in_weights_is_not_run(verb, few, refuses, original, tmp_path, how):
    proof = tmp_path / "executed"
    pickle.loads(pickle.dumps(Bomb(proof)))
    proof.rmdir()  # it works
    state = {"encoder.embedding.weight": Bomb(proof)}
    if how == "torch":
        torch.save(state, original / "best_model.pt")
    else:
        (original / "best_model.pt").write_bytes(pickle.dumps(state, protocol=2))
    text = refuses(verb, few, io.CheckpointError, original)
    assert not proof.exists()
    assert f"{original / 'best_model.pt'} cannot be read as tensors" in text
    assert "never loaded because they could run code" in text


@pytest.mark.parametrize("keep", [0, 100, -50])
@each_verb
def test_original_folder_with_truncated_weights(verb, few, refuses, original, keep):
    path = original / "best_model.pt"
    path.write_bytes(path.read_bytes()[:keep])
    assert f"{path} cannot be read as tensors" in refuses(verb, few, io.CheckpointError, original)


@pytest.mark.parametrize("layer", [r"\d", "1"], ids=["all", "last"])
def test_original_folder_with_renamed_attention(few, refuses, original, layer):
    """What one wrong name did in the original: random attention, and no word about it."""
    state = torch.load(original / "best_model.pt", weights_only=True)
    pattern = rf"(layers\.{layer})\.self_attn\.in_proj_"
    changed = {re.sub(pattern, r"\1.self_attn.qkv.", name): x for name, x in state.items()}
    assert changed.keys() != state.keys()
    torch.save(changed, original / "best_model.pt")
    text = refuses(embed, few, io.CheckpointMismatchError, original)
    assert "attention" in text
    assert "in_proj.weight" in text


@each_verb
def test_original_folder_with_another_vocabulary(verb, few, refuses, original, checkpoint):
    _edit(original / "vocab.json", lambda vocab: {**vocab, "GENE": len(vocab)})
    n = len(checkpoint.vocab)
    text = refuses(verb, few, io.CheckpointMismatchError, original)
    assert f"the gene table has {n} rows, vocab.json {n + 1} tokens: the two files are not of one checkpoint" in text


# --- what is written ------------------------------------------------------------------------------------------------


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    """Slots that are new, gone or other; the parts of a record count as one."""
    slots = {slot for slot in before.keys() | after.keys() if before.get(slot) != after.get(slot)}
    return {re.sub(r"^(uns/scgpt/\w+)/.*", r"\1", slot) for slot in slots}


TOKENIZE_WRITES = {"var/scgpt_token", "var/scgpt_match", "layers/scgpt_bins", "uns/scgpt/tokenize"}
WRITES = [
    (pp.tokenize, {}, TOKENIZE_WRITES),
    (embed, {}, {"obsm/X_scgpt", "uns/scgpt/embed"}),
    (embed, {"key_added": "mine"}, {"obsm/mine", "uns/scgpt/embed_mine"}),
    (embed, {"gene_embeddings": True}, {"obsm/X_scgpt", "varm/scgpt_genes", "uns/scgpt/embed"}),
]
each_write = pytest.mark.parametrize(("verb", "given", "slots"), WRITES, ids=["tokenize", "embed", "key", "genes"])


@each_write
def test_only_the_documented_slots_change(few, checkpoint, fingerprint, verb, given, slots):
    few.raw = few.copy()
    before = fingerprint(few)
    assert verb(few, checkpoint, **given) is None
    assert changed(before, fingerprint(few)) == slots
    documented = (pp.tokenize if verb is pp.tokenize else tl.embed).__doc__
    for slot in slots - {"obsm/mine"}:
        assert slot.split("/")[-1].removesuffix("_mine") in documented


@each_write
def test_a_copy_leaves_the_cells_alone(few, checkpoint, fingerprint, verb, given, slots):
    few.raw = few.copy()
    before = fingerprint(few)
    copied = verb(few, checkpoint, copy=True, **given)
    assert fingerprint(few) == before
    assert changed(before, fingerprint(copied)) == slots
    verb(few, checkpoint, **given)
    assert changed(fingerprint(few), fingerprint(copied)) <= {"uns/scgpt/embed", "uns/scgpt/embed_mine"}, "speed alone"
    assert not np.shares_memory(few.X.data, copied.X.data)


@each_verb
def test_a_foreign_record_is_not_overwritten(verb, few, refuses):
    few.uns["scgpt"] = "my notes"
    assert "uns['scgpt']" in refuses(verb, few, ValueError)


def test_empty_cells_add_one_column(few, checkpoint, fingerprint):
    adata, _ = _with_empty(few, checkpoint, "all")
    before = fingerprint(adata)
    embed(adata, checkpoint)
    assert changed(before, fingerprint(adata)) == {"obs/scgpt_qc", "obsm/X_scgpt", "uns/scgpt/embed"}


def test_runs_do_not_disturb_each_other(few, checkpoint):
    few.uns["scgpt"] = {"notes": "mine"}
    pp.tokenize(few, checkpoint)
    embed(few, checkpoint)
    embed(few, checkpoint, key_added="top", max_length=60, select="top")
    assert set(few.uns["scgpt"]) == {"notes", "tokenize", "embed", "embed_top"}
    assert few.uns["scgpt"]["embed_top"]["n_cut_cells"] == N_CELLS
    assert few.uns["scgpt"]["embed"]["n_cut_cells"] == 0
    assert not np.allclose(few.obsm["top"], few.obsm[VECTORS], atol=1e-3)


def test_results_survive_a_file(few, checkpoint, tmp_path):
    adata, _ = _with_empty(few, checkpoint, "all")
    pp.tokenize(adata, checkpoint)
    embed(adata, checkpoint, gene_embeddings=True)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    read = ad.read_h5ad(tmp_path / "cells.h5ad")
    np.testing.assert_array_equal(read.layers[BINS].toarray(), adata.layers[BINS].toarray())
    assert read.layers[BINS].dtype == np.uint8
    np.testing.assert_array_equal(read.obsm[VECTORS], adata.obsm[VECTORS])
    np.testing.assert_array_equal(read.varm["scgpt_genes"], adata.varm["scgpt_genes"])
    pd.testing.assert_frame_equal(read.var, adata.var)
    pd.testing.assert_series_equal(read.obs["scgpt_qc"], adata.obs["scgpt_qc"])
    assert _plain(read.uns["scgpt"]) == _plain(adata.uns["scgpt"])
    pp.tokenize(read, checkpoint)
    assert set(read.uns["scgpt"]) == {"tokenize", "embed"}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return value


@each_verb
def test_global_random_state_is_left_alone(verb, few, checkpoint):
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    verb(few, checkpoint)
    assert random.getstate() == states[0]
    np.testing.assert_array_equal(np.random.get_state()[1], states[1])
    assert torch.equal(torch.get_rng_state(), states[2])


# --- the same cell gets the same tokens -----------------------------------------------------------------------------

SETTINGS = [{}, {"max_length": 60}, {"max_length": 60, "select": "top"}, {"pooling": "mean"}]
each_setting = pytest.mark.parametrize("given", SETTINGS, ids=["whole", "cut", "top", "mean"])


def _orders() -> dict[str, np.ndarray]:
    shuffled = np.random.default_rng(0).permutation(N_CELLS)
    return {"first": np.arange(13), "rest": np.arange(13, N_CELLS), "shuffled": shuffled, "some": shuffled[:7]}


@each_setting
def test_parts_orders_and_subsets_of_cells(few, checkpoint, given):
    whole_tokens, whole = tokens(few, checkpoint), vectors(few, checkpoint, **given)
    assert np.abs(whole[0] - whole[1]).max() > 1e-3, "cells differ, or the comparison means nothing"
    for cells in _orders().values():
        part = few[cells].copy()
        np.testing.assert_array_equal(tokens(part, checkpoint), whole_tokens[cells])
        np.testing.assert_allclose(vectors(part, checkpoint, **given), whole[cells], atol=1e-5)


@each_setting
@pytest.mark.parametrize("max_tokens", [1, 400, 1_000_000])
def test_batches_change_nothing(few, checkpoint, given, max_tokens):
    got = vectors(few, checkpoint, max_tokens=max_tokens, **given)
    np.testing.assert_allclose(got, vectors(few, checkpoint, **given), atol=1e-5)


def test_blocks_change_nothing(few, checkpoint, monkeypatch):
    adata, _ = _with_empty(few, checkpoint, "matched")
    whole_tokens, whole = tokens(adata, checkpoint), embed(adata, checkpoint, max_length=60, copy=True)
    monkeypatch.setattr("scanpy_scgpt.model._cells.BLOCK", 7)
    monkeypatch.setattr("scanpy_scgpt.pp._tokenize._BLOCK", 7)
    np.testing.assert_array_equal(tokens(adata, checkpoint), whole_tokens)
    blocks = embed(adata, checkpoint, max_length=60, copy=True)
    np.testing.assert_allclose(blocks.obsm[VECTORS], whole.obsm[VECTORS], atol=1e-5)
    assert blocks.obs["scgpt_qc"].tolist() == whole.obs["scgpt_qc"].tolist()
    assert blocks.uns["scgpt"]["embed"]["n_cut_cells"] == whole.uns["scgpt"]["embed"]["n_cut_cells"] > 0


@each_setting
def test_order_of_genes_changes_nothing(few, checkpoint, given):
    order = np.random.default_rng(0).permutation(few.n_vars)
    moved = few[:, order].copy()
    np.testing.assert_array_equal(tokens(moved, checkpoint), tokens(few, checkpoint)[:, order])
    np.testing.assert_allclose(vectors(moved, checkpoint, **given), vectors(few, checkpoint, **given), atol=1e-5)


def test_genes_outside_the_vocabulary_change_nothing(few, checkpoint):
    known = in_vocabulary(few, checkpoint.vocab)
    assert 0 < known.sum() < few.n_vars
    less = few[:, known].copy()
    np.testing.assert_array_equal(tokens(less, checkpoint), tokens(few, checkpoint)[:, known])
    np.testing.assert_allclose(vectors(less, checkpoint), vectors(few, checkpoint), atol=1e-6)


@pytest.mark.filterwarnings("ignore:Observation names are not unique")
@each_verb
def test_duplicated_cell_names(verb, few, checkpoint, fingerprint):
    """Cells of one name share their draws; each is still its own cell."""
    expected = tokens(few, checkpoint)[5], vectors(few, checkpoint)[5]
    dense = few.X.toarray()
    dense[6] = dense[5]
    few.X = sparse.csr_matrix(dense)
    few.obs_names = [few.obs_names[5]] * N_CELLS
    before = fingerprint(few)
    verb(few, checkpoint)
    assert before.items() <= fingerprint(few).items()
    if verb is pp.tokenize:
        got = few.layers[BINS].toarray()
        np.testing.assert_array_equal(got[5], expected[0])
    else:
        got = few.obsm[VECTORS]
        np.testing.assert_allclose(got[5], expected[1], atol=1e-5)
    np.testing.assert_allclose(got[5], got[6], atol=1e-6)
    assert np.abs(got[5].astype(float) - got[7]).max() > 1e-3


def test_tokens_are_those_of_the_layer(few, checkpoint):
    """One token per non-zero of a vocabulary gene, none elsewhere, digits within the bins."""
    pp.tokenize(few, checkpoint)
    bins = few.layers[BINS].toarray()
    known = few.var[TOKEN].to_numpy() >= 0
    np.testing.assert_array_equal(known, in_vocabulary(few, checkpoint.vocab))
    np.testing.assert_array_equal(bins > 0, (few.X.toarray() > 0) & known)
    assert bins.max() == 50
    assert [checkpoint.vocab.tokens[i] for i in few.var[TOKEN][known]] == few.var_names[known].tolist()


def test_the_model_may_be_given_in_three_ways(few, checkpoint, checkpoint_folder):
    expected = tokens(few, checkpoint)
    for model in (checkpoint_folder, str(checkpoint_folder), checkpoint.vocab):
        np.testing.assert_array_equal(tokens(few, model), expected)
    np.testing.assert_array_equal(vectors(few, checkpoint_folder), vectors(few, checkpoint))
    assert models.load(checkpoint) is checkpoint
