"""What `prepare` says of files that do not hold what it was asked for."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest

from scanpy_scgpt import pretrain
from scanpy_scgpt.pretrain import corpus_report, prepare
from scanpy_scgpt.tokenizer import GeneMatchError, GeneVocab


@pytest.fixture
def files(counts, tmp_path):
    """Two files of real cells; the first has columns that the second lacks."""
    first, second = counts[:300].copy(), counts[300:].copy()
    first.obs["donor"], first.obs["organ"] = "D1", "blood"
    first.write_h5ad(tmp_path / "a.h5ad")
    second.write_h5ad(tmp_path / "b.h5ad")
    return [tmp_path / "a.h5ad", tmp_path / "b.h5ad"]


def test_columns_that_no_file_has(files, vocab, tmp_path):
    out = tmp_path / "x.tokens"
    with pytest.raises(
        KeyError,
        match=r"obs of no file has a column 'dnor' \(study_key=\)\. Columns: bulk_labels, .*donor, organ\. Name one of",
    ):
        prepare(files, out, vocab=vocab, study_key="dnor")
    with pytest.raises(KeyError, match=r"a column 'tissu' \(tissue_key=\)\. .*or leave tissue_key out"):
        prepare(files, out, vocab=vocab, tissue_key="tissu")
    assert not out.exists()


def test_columns_that_some_files_lack(files, vocab, tmp_path, caplog):
    with caplog.at_level("WARNING", logger="scanpy_scgpt"):
        store = prepare(files, tmp_path / "x.tokens", vocab=vocab, study_key="donor", tissue_key="organ")
    text = "corpus: 1 of 2 files have no column 'donor' (study_key=): b.h5ad; their cells get the name of the file."
    assert text in caplog.text
    assert "no column 'organ' (tissue_key=): b.h5ad; their cells get 'unknown'." in caplog.text
    assert store.column("study").tolist() == ["D1"] * 300 + ["b"] * 400
    caplog.clear()
    with caplog.at_level("WARNING", logger="scanpy_scgpt"):
        prepare(files, tmp_path / "y.tokens", vocab=vocab)
    assert "no column" not in caplog.text, "files may lack the columns that nobody named"


@pytest.mark.parametrize("given", ["vocabulary", "none"])
def test_the_file_without_the_column_of_names(files, vocab, tmp_path, given):
    with pytest.raises(KeyError, match=r"a\.h5ad: var of X has no column 'nope' \(gene_symbols=\)\. Columns: means"):
        prepare(files, tmp_path / "x", vocab=vocab if given == "vocabulary" else None, gene_symbols="nope")
    with pytest.raises(KeyError, match=r"a\.h5ad: var of X has no column 'nope'"):
        pretrain.build_vocab(files, vocab.genes, gene_symbols="nope")


def test_files_without_cells_are_in_the_report(files, counts, vocab, tmp_path):
    whole = prepare(files, tmp_path / "whole.tokens", vocab=vocab)
    counts[:0].write_h5ad(tmp_path / "empty.h5ad")
    store = prepare([files[0], tmp_path / "empty.h5ad", files[1]], tmp_path / "x.tokens", vocab=vocab)
    assert corpus_report(store)["files"]["empty.h5ad"] == {"cells": 0, "kept": 0, "removed": {}}
    assert list(corpus_report(store)["files"]) == ["a.h5ad", "empty.h5ad", "b.h5ad"]
    assert store.names.tolist() == whole.names.tolist()
    assert store.column("file").tolist() == ["a.h5ad"] * 300 + ["b.h5ad"] * 400
    with pytest.raises(ValueError, match="No cell is left: the files are empty"):
        prepare(tmp_path / "empty.h5ad", tmp_path / "y.tokens", vocab=vocab)


@pytest.mark.parametrize(
    ("value", "text"), [(-2.0, r"negative values \(minimum -2\)"), (np.nan, "1 NaN or infinite values")]
)
def test_values_that_no_counts_are(counts, vocab, tmp_path, value, text):
    counts.X = counts.X.astype(np.float32)
    counts.X.data[5] = value
    counts.write_h5ad(tmp_path / "a.h5ad")
    text = rf"^a\.h5ad: X holds {text}; pretraining needs raw counts\. Leave the file out\.$"
    with pytest.raises(ValueError, match=text):
        prepare(tmp_path / "a.h5ad", tmp_path / "x.tokens", vocab=vocab)
    with pytest.raises(ValueError, match=text):
        pretrain.build_vocab(tmp_path / "a.h5ad")


@pytest.fixture
def mouse(counts, tmp_path):
    """The cells with genes that are spelt as those of mice; a few have one name in both."""
    names = [name if i < 20 else name.capitalize() for i, name in enumerate(counts.var_names)]
    counts.var_names = names
    counts.write_h5ad(tmp_path / "mouse.h5ad")
    return tmp_path / "mouse.h5ad"


def test_mouse_genes_and_a_human_vocabulary(mouse, vocab, tmp_path):
    with pytest.raises(
        GeneMatchError,
        match=r"mouse\.h5ad: \d+ of 765 genes are in the vocabulary of 521 genes, at least 200 are needed\. .*they "
        r"look like mouse symbols and the vocabulary is human: rename the genes to their human orthologs",
    ):
        prepare(mouse, tmp_path / "x.tokens", vocab=vocab)
    assert not (tmp_path / "x.tokens").exists()
    assert len(prepare(mouse, tmp_path / "y.tokens")) == 700, "their own vocabulary has them"


def test_few_genes_in_the_vocabulary(counts, tmp_path):
    """Half of the genes of a small file, or of a small vocabulary, are enough."""
    names = list(counts.var_names)
    counts.write_h5ad(tmp_path / "a.h5ad")
    assert len(prepare(tmp_path / "a.h5ad", tmp_path / "x.tokens", vocab=GeneVocab(names[:100]))) == 700
    counts[:, :100].write_h5ad(tmp_path / "panel.h5ad")
    assert len(prepare(tmp_path / "panel.h5ad", tmp_path / "y.tokens", vocab=GeneVocab(names[40:]))) == 700
    with pytest.raises(
        GeneMatchError,
        match=r"panel\.h5ad: 30 of 100 genes are .* at least 50 are needed\. .*Else leave the file out, or use a",
    ) as caught:
        prepare(tmp_path / "panel.h5ad", tmp_path / "z.tokens", vocab=GeneVocab(names[70:]))
    assert "min_genes=" not in str(caught.value), "prepare has no such argument"


def test_a_file_whose_genes_few_cells_express(counts, tmp_path):
    """Without a vocabulary: the one that is made of the files has no gene of it."""
    counts.write_h5ad(tmp_path / "a.h5ad")
    other = ad.AnnData(counts[:5].X, obs=counts[:5].obs[[]])
    other.var_names = [f"Q{i}" for i in range(counts.n_vars)]
    other.write_h5ad(tmp_path / "b.h5ad")
    with pytest.raises(ValueError, match=r"b\.h5ad: none of its 765 genes is in the vocabulary of \d+ genes"):
        prepare([tmp_path / "a.h5ad", tmp_path / "b.h5ad"], tmp_path / "x.tokens")
