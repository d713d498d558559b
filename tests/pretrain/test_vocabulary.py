"""Vocabularies from files: any species, in blocks, or an extension of another one."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from scanpy_scgpt.pretrain import _vocabulary, build_vocab
from scanpy_scgpt.tokenizer import GeneVocab


@pytest.fixture
def files(counts, tmp_path, write_cells):
    """Real cells in two files with different genes."""
    return [
        write_cells(counts[:400, :500].copy(), tmp_path / "a.h5ad"),
        write_cells(counts[400:, 300:].copy(), tmp_path / "b.zarr"),
    ]


def expressed(counts):
    """Number of cells of the two files that express each gene."""
    here = (counts.X > 0).toarray()
    return here[:400, :500].sum(axis=0), here[400:, 300:].sum(axis=0)


def test_all_names_that_enough_cells_express(files, counts, monkeypatch):
    first, second = expressed(counts)
    total = np.zeros(counts.n_vars)
    total[:500] += first
    total[300:] += second
    expected = tuple(sorted(counts.var_names[total >= 20]))
    assert 500 < len(expected) < 765
    assert build_vocab(files).genes == expected
    assert build_vocab(files[::-1]).genes == expected, "whatever the order of the files"
    monkeypatch.setattr(_vocabulary, "_BLOCK", 33)
    assert build_vocab(files).genes == expected


def test_names_that_may_enter_keep_their_order(files, counts):
    names = counts.var_names[::-7]
    assert build_vocab(files, names, min_cells=1).genes == tuple(
        names[np.isin(names, build_vocab(files, min_cells=1).genes)]
    )


def test_an_extension_keeps_the_ids(files, counts):
    """Former genes stay though no cell expresses them; special tokens stay where they are; new genes come after."""
    first = GeneVocab(["<pad>", *counts.var_names[:100], "INS", "<cls>", "<eoc>"])
    vocab = build_vocab(files, extend=first)
    assert vocab.tokens[: len(first)] == first.tokens
    assert vocab.pad_id == 0
    new = vocab.tokens[len(first) :]
    assert new == tuple(gene for gene in build_vocab(files).genes if gene not in first)
    assert build_vocab(files, extend=vocab) == vocab
    named = build_vocab(files, counts.var_names[90:200], extend=first, min_cells=1)
    assert set(named.tokens[len(first) :]) <= set(counts.var_names[100:200])


def test_a_gene_of_the_extended_vocabulary_has_other_names_too(counts, tmp_path):
    """A gene that the file calls by its Ensembl id or a former name is no new gene."""
    counts = counts[:, :4].copy()
    counts.X = sparse.csr_matrix(np.ones(counts.shape, np.int32))
    counts.var_names = ["ENSG00000141510", "FAM46C", "CD3D", "NEW1"]  # TP53, and the former name of TENT5C
    counts.write_h5ad(tmp_path / "a.h5ad")
    vocab = build_vocab(tmp_path / "a.h5ad", extend=GeneVocab(["TP53", "TENT5C", "CD3D"]))
    assert vocab.genes == ("TP53", "TENT5C", "CD3D", "NEW1")


@pytest.mark.parametrize("species", ["ENSMUSG", "ENSDARG"])
def test_symbols_stand_beside_ensembl_ids_of_any_species(counts, tmp_path, species):
    symbols = [f"Gene{i}" for i in range(counts.n_vars)]
    symbols[3] = "nan"
    counts.var["gene_symbols"] = symbols
    counts.var_names = [f"{species}{i:011d}" for i in range(counts.n_vars)]
    counts.write_h5ad(tmp_path / "a.h5ad")
    vocab = build_vocab(tmp_path / "a.h5ad", min_cells=1)
    assert set(vocab.genes) <= {*symbols, f"{species}00000000003"} - {"nan"}
    assert f"{species}00000000003" in vocab, "a gene without a symbol keeps its id"
    other = build_vocab(tmp_path / "a.h5ad", min_cells=1, gene_symbols="gene_symbols")
    assert other == vocab


def test_a_mix_of_symbols_and_ids_is_warned_of(counts, tmp_path, caplog):
    counts.write_h5ad(tmp_path / "a.h5ad")
    counts.var_names = [f"ENSMUSG{i:011d}" for i in range(counts.n_vars)]
    counts.write_h5ad(tmp_path / "b.h5ad")
    with caplog.at_level("WARNING", logger="scanpy_scgpt"):
        build_vocab(tmp_path / "a.h5ad")
        assert "Ensembl" not in caplog.text
        build_vocab([tmp_path / "a.h5ad", tmp_path / "b.h5ad"])
    assert "50 % of the names are Ensembl ids and the others are not: a gene may stand under both" in caplog.text


def test_errors(files, counts, tmp_path):
    with pytest.raises(ValueError, match=r"min_cells=0: use 1 or more cells \(20 is a good start\)"):
        build_vocab(files, min_cells=0)
    with pytest.raises(FileNotFoundError, match=r"nope\.h5ad: there is no such file"):
        build_vocab(tmp_path / "nope.h5ad")
    counts.X = counts.X * 0.5
    counts.write_h5ad(tmp_path / "half.h5ad")
    with pytest.raises(ValueError, match=r"half\.h5ad: X holds non-integer values; pretraining needs raw counts"):
        build_vocab(tmp_path / "half.h5ad")
