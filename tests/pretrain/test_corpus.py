"""The corpus of a store: its groups, and the split by cell or by study."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scanpy_scgpt import pp
from scanpy_scgpt.disk import TokenStore
from scanpy_scgpt.pretrain import prepare
from scanpy_scgpt.pretrain._corpus import store_corpus

SIZES = {"big": 400, "a": 120, "b": 100, "c": 60, "tiny": 20}


@pytest.fixture
def corpus(counts, vocab, tmp_path):
    counts.obs = pd.DataFrame(
        {"study": np.repeat(list(SIZES), list(SIZES.values())), "tissue": ["blood"] * 600 + ["lung"] * 100},
        counts.obs_names,
    )
    counts.X.data[counts.X.indptr[5] : counts.X.indptr[6]] = 0  # a cell without genes
    counts.X.eliminate_zeros()
    counts.write_h5ad(tmp_path / "cells.h5ad")
    return store_corpus(prepare(tmp_path / "cells.h5ad", tmp_path / "cells.tokens", vocab=vocab))


def held_studies(corpus, **options):
    training, validation = corpus.split(rng=options.pop("rng", 0), **{"share": 0.2, **options})
    assert np.array_equal(np.sort(np.concatenate([training, validation])), np.delete(np.arange(700), 5))
    sides = [set(corpus.study[cells]) for cells in (training, validation)]
    assert sides[0] & sides[1] == set()
    return sides[1]


def test_groups(corpus):
    assert corpus.study.value_counts().to_dict() == SIZES
    assert corpus.tissue.value_counts().to_dict() == {"blood": 600, "lung": 100}
    assert corpus.tissue.codes.dtype == np.int8


def test_a_store_without_tissues(counts, vocab, tmp_path):
    counts.write_h5ad(tmp_path / "cells.h5ad")
    pp.tokenize(tmp_path / "cells.h5ad", vocab, min_genes=1, out=tmp_path / "x.tokens")
    assert set(store_corpus(TokenStore(tmp_path / "x.tokens")).tissue) == {"unknown"}


def test_cells_are_held_out_by_their_names(corpus):
    training, validation = corpus.split(share=0.3, rng=1)
    assert 0.2 < len(validation) / 700 < 0.4
    assert 5 not in {*training, *validation}
    assert len(training) + len(validation) == 699


def test_whole_studies_are_held_out_until_the_share_is_reached(corpus):
    drawn = [held_studies(corpus, by="study", rng=rng) for rng in range(20)]
    for studies in drawn:
        assert "big" not in studies, "training keeps half of the cells"
        n = sum(SIZES[study] for study in studies)
        assert 0.2 * 700 <= n <= 2 * 0.2 * 700
        assert any(n - SIZES[study] < 0.2 * 700 for study in studies), "none too many"
    assert len({frozenset(studies) for studies in drawn}) > 2, "the seed chooses"
    assert held_studies(corpus, by="study", rng=3) == drawn[3]
    assert len(held_studies(corpus, by="study", share=1e-6)) == 1


def test_a_small_share_holds_out_no_large_study(corpus):
    for rng in range(20):
        assert held_studies(corpus, by="study", rng=rng, share=0.03) == {"tiny"}, "20 of 700 cells: 21 are wanted"
        assert held_studies(corpus, by="study", rng=rng, share=0.05) in ({"tiny"}, {"tiny", "c"}, {"c"})
        assert held_studies(corpus, by="study", rng=rng, share=0.06) in ({"tiny", "c"}, {"c"}), "more than half of it"


def test_the_order_of_the_cells_does_not_matter(corpus, counts, vocab, tmp_path):
    cells = ad.read_h5ad(tmp_path / "cells.h5ad")[::-1].copy()
    cells.write_h5ad(tmp_path / "back.h5ad")
    other = store_corpus(prepare(tmp_path / "back.h5ad", tmp_path / "back.tokens", vocab=vocab))
    assert held_studies(corpus, by="study") == set(other.study[other.split(share=0.2, rng=0, by="study")[1]])


def test_studies_by_name(corpus):
    assert held_studies(corpus, studies=("big", "tiny")) == {"big", "tiny"}
    assert held_studies(corpus, studies=["a"], by="study", share=0.9) == {"a"}


def test_two_large_studies_leave_the_smaller_one_out(counts, vocab, tmp_path):
    counts.obs["study"] = np.where(np.arange(700) < 300, "x", "y")
    counts.write_h5ad(tmp_path / "cells.h5ad")
    corpus = store_corpus(prepare(tmp_path / "cells.h5ad", tmp_path / "x.tokens", vocab=vocab))
    for rng in range(4):
        assert set(corpus.study[corpus.split(share=0.9, rng=rng, by="study")[1]]) == {"x"}


def test_errors(corpus, counts, vocab, tmp_path):
    with pytest.raises(ValueError, match=r"There is no study 'bigg'\. Studies: 'a', 'b', 'big', 'c', 'tiny'\."):
        corpus.split(share=0.1, rng=0, studies=("a", "bigg"))
    with pytest.raises(
        ValueError, match=r"All studies \('a', .*\) are held out: none is left for training. Name fewer"
    ):
        corpus.split(share=0.1, rng=0, studies=tuple(SIZES))
    with pytest.raises(ValueError, match="by='donor': use one of 'cell', 'study'"):
        corpus.split(share=0.1, rng=0, by="donor")
    del counts.obs["study"]
    counts.write_h5ad(tmp_path / "one.h5ad")
    one = store_corpus(prepare(tmp_path / "one.h5ad", tmp_path / "one.tokens", vocab=vocab))
    with pytest.raises(
        ValueError, match=r"All cells are of one study \('one'\), and none can be held out\. Use by='cell'"
    ):
        one.split(share=0.1, rng=0, by="study")
