"""Batches of tokens with labels: what they hold, and who gets which."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
import torch

from scanpy_scgpt.data import InOrder, LabelledCells, ShuffledBatches, batch_loader
from scanpy_scgpt.data._labelled import Draw
from scanpy_scgpt.tokenizer import Tokens

LENGTHS = np.array([3, 0, 5, 1, 12, 7, 2, 9, 4, 6, 8])


@pytest.fixture(scope="module")
def cells():
    rng = np.random.default_rng(0)
    indptr = np.concatenate([[0], np.cumsum(LENGTHS)])
    genes = np.concatenate([rng.permutation(50)[:n] for n in LENGTHS]).astype(np.int32)
    tokens = Tokens(indptr, genes, rng.integers(1, 51, indptr[-1]).astype(np.uint8))
    return LabelledCells(tokens, {"labels": np.arange(11) % 3 - 1, "batch": np.zeros(11, int)}, 57, 58, -2.0)


def test_a_batch_holds_cls_genes_and_padding(cells):
    chosen = np.array([4, 1, 0, 4])
    batch = cells.batch(chosen)
    assert {name: (tuple(x.shape), x.dtype) for name, x in batch.items()} == {
        "gene_ids": ((4, 13), torch.int64),
        "values": ((4, 13), torch.float32),
        "padding": ((4, 13), torch.bool),
        "ind_x": ((4, 1), torch.int64),
        "labels": ((4, 1), torch.int64),
        "batch": ((4, 1), torch.int64),
    }
    for row, cell in enumerate(chosen):
        own, n = slice(*cells.tokens.indptr[cell : cell + 2]), LENGTHS[cell]
        expected = [58, *cells.tokens.gene_ids[own].tolist(), *[57] * (12 - n)]
        assert batch["gene_ids"][row].tolist() == expected
        assert batch["values"][row].tolist() == [-2.0, *cells.tokens.values[own].tolist(), *[-2.0] * (12 - n)]
        assert batch["padding"][row].tolist() == [False] * (n + 1) + [True] * (12 - n)
        assert batch["labels"][row].item() == cell % 3 - 1


def test_no_cell_and_no_gene(cells):
    assert cells.batch(np.zeros(0, int))["gene_ids"].shape == (0, 1)
    assert cells.batch(np.array([1]))["gene_ids"].tolist() == [[58]]


def test_a_long_cell_is_shown_by_genes_that_are_drawn(cells):
    counted = np.zeros(58, int)
    for seed in range(300):
        batch = cells.batch(np.array([4, 0]), most=6, rng=np.random.default_rng(seed))
        assert batch["gene_ids"].shape == (2, 6)
        assert batch["gene_ids"][1].tolist() == [*cells.batch(np.array([0]))["gene_ids"][0].tolist(), 57, 57]
        own = slice(*cells.tokens.indptr[4:6])
        where = dict(zip(cells.tokens.gene_ids[own], cells.tokens.values[own], strict=True))
        drawn, values = batch["gene_ids"][0, 1:].numpy(), batch["values"][0, 1:].numpy()
        assert [where[gene] for gene in drawn] == values.tolist()
        np.add.at(counted, drawn, 1)
    counted = counted[cells.tokens.gene_ids[own]]
    assert np.abs(counted - 300 * 5 / 12).max() < 4 * np.sqrt(300 * 5 / 12 * 7 / 12)  # each gene equally likely


def test_cells_as_long_as_allowed_are_whole(cells):
    batch = cells.batch(np.array([4]), most=13, rng=np.random.default_rng(0))
    assert torch.equal(batch["gene_ids"], cells.batch(np.array([4]))["gene_ids"])


def _seen(sampler):
    return [draw.cells.tolist() for draw in sampler]


def _flat(batches):
    return list(chain.from_iterable(batches))


def test_a_pass_has_each_cell_once_and_another_order_next_time(cells):
    sampler = ShuffledBatches(cells, np.arange(11), batch_size=3)
    first, second = _seen(sampler), _seen(sampler)
    assert len(first) == len(sampler) == 4
    assert sorted(_flat(first)) == sorted(_flat(second)) == list(range(11))
    assert first != second
    sampler.set_epoch(0)
    assert _seen(sampler) == first


def test_the_last_batch_may_be_left_out(cells):
    sampler = ShuffledBatches(cells, np.arange(11), batch_size=3, drop_last=True)
    assert [len(batch) for batch in _seen(sampler)] == [3, 3, 3]
    assert len(_seen(ShuffledBatches(cells, np.arange(2), batch_size=3, drop_last=True))) == 1


@pytest.mark.parametrize("world_size", [2, 3, 7])
@pytest.mark.parametrize("n", [2, 11])
def test_each_process_gets_as_many_batches(cells, world_size, n):
    settings = {"batch_size": 2, "world_size": world_size}
    samplers = [ShuffledBatches(cells, np.arange(n), rank=rank, **settings) for rank in range(world_size)]
    found = [_seen(sampler) for sampler in samplers]
    assert {len(batches) for batches in found} == {len(samplers[0])}
    assert set(_flat(_flat(found))) == set(range(n))


def test_groups_are_balanced(cells):
    balance = np.array([0] * 9 + [1] * 2)
    counted = np.zeros(11, int)
    for epoch in range(100):
        sampler = ShuffledBatches(cells, np.arange(11), batch_size=4, balance=balance, power=1.0)
        sampler.set_epoch(epoch)
        np.add.at(counted, _flat(_seen(sampler)), 1)
    assert counted[9:].sum() / counted.sum() == pytest.approx(0.5, abs=0.05)


def test_loaders_keep_the_order_and_draw_only_while_training(cells):
    positions = np.array([5, 4, 1])
    batches = list(batch_loader(cells, InOrder(positions, batch_size=2), most=4))
    assert [batch["ind_x"].flatten().tolist() for batch in batches] == [[5, 4], [1]]
    assert batches[0]["gene_ids"].shape == (2, 13)
    sampler = ShuffledBatches(cells, np.array([4]), batch_size=1)
    shown = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        shown.append(next(iter(batch_loader(cells, sampler, most=4)))["gene_ids"].tolist())
    assert shown[0] == shown[2] != shown[1]
    assert len(shown[0][0]) == 4


def test_training_batches_say_where_padding_is_only_when_there_is_some(cells):
    loader = batch_loader(
        cells, [Draw(np.array([4, 4]), key=(0,)), Draw(np.array([4, 0]), key=(0,)), Draw(np.array([4]))]
    )
    assert ["padding" in batch for batch in loader] == [False, True, True]
