"""Gene names to ids."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scanpy_scgpt.tokenizer import GeneMatchError, GeneTable, GeneVocab, match_genes, require_enough

TABLE = GeneTable(
    pd.DataFrame(
        {
            "ensembl": ["ENSG00000000001", "2", "ENSG00000000003", "ENSG00000000004"],
            "symbol": ["NEW1", "B", "C", "D"],
            "aliases": ["OLD1|SHARED", "", "SHARED|CEE", "B"],
        }
    )
)
VOCAB = GeneVocab(["NEW1", "B", "C"])


def test_each_way_of_matching():
    names = ["B", "ENSG00000000001.7", "CEE", "SHARED", "nothing", "row5"]
    columns = {"gene_name": ["B", "x", "x", "x", "x", "C"]}
    match = match_genes(names, VOCAB, columns=columns, gene_table=TABLE)
    assert list(match.how) == ["symbol", "ensembl", "none", "none", "none", "column"]  # C is taken: CEE stays out
    np.testing.assert_array_equal(match.ids, [1, 0, -1, -1, -1, 2])
    alone = match_genes(["CEE", "OLD1", "SHARED"], VOCAB, gene_table=TABLE)
    assert list(alone.how) == ["alias", "alias", "none"]  # SHARED means two genes
    np.testing.assert_array_equal(alone.ids, [2, 0, -1])


@pytest.mark.parametrize(("name", "how"), [("NEW1", "alias"), ("ENSG00000000001", "ensembl")])
def test_an_older_vocabulary_is_found_through_the_alias_of_the_row(name, how):
    match = match_genes([name], GeneVocab(["OLD1", "B"]), gene_table=TABLE)
    np.testing.assert_array_equal(match.ids, [0])
    assert list(match.how) == [how]


def test_report_counts_everything():
    match = match_genes(["B", "B", "nan", "", "q"], VOCAB, gene_table=TABLE)
    report = match.report()
    assert report["n_genes"] == 5
    assert report["n_matched"] == 2
    assert report["n_null_names"] == 2
    assert report["duplicates"] == ["B"]
    assert match.summary() == "2/5 genes matched (1 duplicated and summed, 2 without a name)"


def test_shipped_table_knows_ensembl_ids_and_former_names():
    match = match_genes(["ENSG00000167286.10", "SEPT7", "MS4A1"], GeneVocab(["CD3D", "SEPTIN7", "MS4A1"]))
    assert list(match.how) == ["ensembl", "alias", "symbol"]


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["ENSMUSG00000051951"] * 3, "0 of 3 genes .* mouse Ensembl ids"),
        (["Cd3d", "Ms4a1", "Nkg7"], "They would match in capitals, so they look like mouse symbols"),
        (["0", "1", "2"], "These are numbers, not names"),
        (["CD3X", "zzz", "yyy"], r"'CD3X' is close to 'CD3D'.*min_genes="),
    ],
)
def test_too_few_genes(names, text):
    vocab = GeneVocab(["CD3D", "MS4A1", "NKG7"])
    with pytest.raises(GeneMatchError, match=text):
        require_enough(match_genes(names, vocab), vocab, min_genes=1)


def test_a_gene_table_needs_its_columns():
    with pytest.raises(ValueError, match="no column 'ensembl'"):
        GeneTable(pd.DataFrame({"symbol": ["A"]}))
