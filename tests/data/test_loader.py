"""Batches of tokens from files: each cell once, with the tokens that it always has."""

from __future__ import annotations

import numpy as np
import pytest
from torch.utils.data import DataLoader

from scanpy_scgpt._counts import CountSource, choose_counts
from scanpy_scgpt.data import CellLoader, TokenSource
from scanpy_scgpt.disk import open_cells
from scanpy_scgpt.tokenizer import Tokenizer, TokenizerConfig, Tokens, match_genes


@pytest.fixture
def tokenizer(vocab):
    return Tokenizer(vocab, TokenizerConfig(max_length=60))


def source_of(adata, vocab):
    counts = choose_counts(adata)
    return TokenSource(counts, match_genes(counts.var.index, vocab).ids, np.asarray(adata.obs_names))


@pytest.fixture
def sources(counts, vocab, tmp_path):
    """A file with all genes, cells in memory with some of them in another order."""
    counts[:430].write_h5ad(tmp_path / "a.h5ad")
    other = counts[430:, ::-2].copy()
    return [source_of(open_cells(tmp_path / "a.h5ad"), vocab), source_of(other, vocab)]


@pytest.fixture
def wanted(sources, tokenizer):
    """Tokens of all cells, made at once."""
    parts = [tokenizer.encode(s.source.rows(0, s.n_obs), s.gene_ids, s.names, seed=5) for s in sources]
    return Tokens.concatenate(parts)


def check(batches, wanted):
    """The tokens of every batch are those wanted; returns the cells."""
    for batch in batches:
        expected = wanted.take(batch.cells)
        np.testing.assert_array_equal(batch.tokens.indptr, expected.indptr)
        np.testing.assert_array_equal(batch.tokens.gene_ids, expected.gene_ids)
        np.testing.assert_array_equal(batch.tokens.values, expected.values)
    return np.concatenate([batch.cells for batch in batches])


@pytest.mark.parametrize(
    ("batch_size", "block_size", "pool_blocks"), [(64, 64, 64), (7, 5, 3), (100, 3, 4), (1000, 64, 2)]
)
@pytest.mark.parametrize("shuffle", [True, False])
def test_each_cell_once_with_its_tokens(sources, tokenizer, wanted, batch_size, block_size, pool_blocks, shuffle):
    sizes = {"batch_size": batch_size, "block_size": block_size, "pool_blocks": pool_blocks}
    loader = CellLoader(sources, tokenizer, shuffle=shuffle, rng=5, **sizes)
    batches = list(loader)
    cells = check(batches, wanted)
    np.testing.assert_array_equal(np.sort(cells), np.arange(700))
    assert {len(batch.cells) for batch in batches[:-1]} <= {batch_size}
    assert len(batches) == loader.n_batches() == -(-700 // batch_size)
    assert (cells == np.arange(700)).all() != shuffle


def test_same_seed_same_order(sources, tokenizer, wanted):
    loader = CellLoader(sources, tokenizer, rng=5)
    first, again = check(list(loader), wanted), check(list(loader), wanted)
    np.testing.assert_array_equal(first, again)
    loader.set_epoch(1)
    assert (check(list(loader), wanted) != first).any()


@pytest.mark.parametrize("drop_last", [True, False])
def test_ranks_and_workers_get_disjoint_cells(sources, tokenizer, wanted, drop_last):
    cells, n_batches = [], []
    for rank in range(2):
        options = {"rank": rank, "world_size": 2, "block_size": 16, "batch_size": 20, "drop_last": drop_last}
        loader = CellLoader(sources, tokenizer, rng=5, **options)
        batches = list(DataLoader(loader, batch_size=None, num_workers=2, multiprocessing_context="fork"))
        assert len(batches) == loader.n_batches(2)
        cells.append(check([type(b)(*b) for b in batches], wanted))
        n_batches.append(len(batches))
    cells = np.concatenate(cells)
    assert len(np.unique(cells)) == len(cells)
    if drop_last:
        assert n_batches[0] == n_batches[1]
        assert 700 - 4 * 36 <= len(cells) < 700
    else:
        assert len(cells) == 700


def test_an_early_stop_and_an_error_end_the_thread(sources, tokenizer, monkeypatch):
    import threading

    batches = iter(CellLoader(sources, tokenizer, block_size=8, pool_blocks=4))
    next(batches)
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("cells")]

    def broken(*_args):
        raise OSError("the disk is gone")

    monkeypatch.setattr(CountSource, "take_blocks", broken)
    with pytest.raises(OSError, match="the disk is gone"):
        list(CellLoader(sources, tokenizer))


def test_one_source_and_none(sources, tokenizer):
    assert sum(len(batch.cells) for batch in CellLoader(sources[0], tokenizer, rng=-1)) == 430
    with pytest.raises(ValueError, match=r"sources is empty: give at least one TokenSource\."):
        CellLoader([], tokenizer)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"batch_size": 0}, r"batch_size=0: use 1 or more\."),
        ({"block_size": 0}, r"block_size=0: use 1 or more"),
        ({"rank": 1}, r"rank=1 and world_size=None belong together: give both or none\."),
        ({"rank": 2, "world_size": 2}, r"rank=2 of world_size=2: rank counts from 0"),
    ],
)
def test_numbers_out_of_range(sources, tokenizer, options, text):
    with pytest.raises(ValueError, match=text):
        CellLoader(sources, tokenizer, **options)


def test_names_and_genes_that_do_not_fit(sources):
    first = sources[0]
    with pytest.raises(
        ValueError, match=r"X has shape \(430, 765\), but there are 429 names of cells and 765 gene_ids"
    ):
        TokenSource(first.source, first.gene_ids, first.names[1:])
