"""Splits: every label alike, every share, every refusal."""

from __future__ import annotations

import numpy as np
import pytest

from scanpy_scgpt.data import LabelledCells
from scanpy_scgpt.data.splitter import TokenDataSplitter, split_cells
from scanpy_scgpt.tokenizer import Tokens


def _cells(n, labels=None):
    tokens = Tokens(np.arange(n + 1), np.zeros(n, np.int32), np.ones(n, np.uint8))
    return LabelledCells(tokens, {} if labels is None else {"labels": np.asarray(labels)}, 57, 58, -2.0)


@pytest.mark.parametrize(("train", "validation"), [(0.9, 0.1), (0.5, 0.2), (0.6, 0.4), (1.0, 0.0)])
def test_every_label_is_split_alike(train, validation):
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2, -1], [100, 37, 10, 53]))
    parts = split_cells(labels, train, validation, rng=3)
    assert sorted(np.concatenate(parts)) == list(range(200))
    for label in np.unique(labels):
        n = (labels == label).sum()
        for part, share in zip(parts, (train, validation, 1 - train - validation), strict=True):
            assert abs((labels[part] == label).sum() - share * n) <= 1.01
    assert [part.tolist() for part in split_cells(labels, train, validation, rng=3)] == [x.tolist() for x in parts]
    if train < 1:
        assert not np.array_equal(split_cells(labels, train, validation, rng=4)[0], parts[0])


def test_a_label_of_one_cell_is_trained_on():
    labels = np.array([0] * 30 + [1])
    for rng in range(20):
        assert 30 in split_cells(labels, 0.5, 0.5, rng=rng)[0]


@pytest.mark.parametrize("n", [10, 11, 100, 1000])
def test_a_split_in_order_has_the_shares(n):
    train, validation, test = split_cells(np.zeros(n), 0.9, 1 - 0.9, shuffle=False)
    assert (len(validation), len(test)) == (n // 10, 0)
    assert np.concatenate([validation, train]).tolist() == list(range(n))


def test_the_rest_is_the_test_set():
    splitter = TokenDataSplitter(_cells(100), train_size=0.5, validation_size=0.2)
    assert (splitter.n_train, splitter.n_val, len(splitter.test_idx)) == (50, 20, 30)
    splitter = TokenDataSplitter(_cells(100), train_size=0.8)
    assert (splitter.n_train, splitter.n_val, len(splitter.test_idx)) == (80, 20, 0)
    assert TokenDataSplitter(_cells(100), validation_size=0.3).n_train == 70
    whole = TokenDataSplitter(_cells(100), validation_size=0)
    assert (whole.n_train, whole.n_val, len(whole.test_idx)) == (100, 0, 0)


@pytest.mark.parametrize("shares", [(0, None), (1.2, None), (0.9, 0.2), (-1, None), (0.5, 1.0)])
def test_shares_out_of_range(shares):
    train, validation = shares
    with pytest.raises(ValueError, match=rf"train_size={train!r}, validation_size={validation!r}: shares above 0"):
        TokenDataSplitter(_cells(10), train_size=train, validation_size=validation)


def test_positions_of_your_own():
    mask = np.zeros(6, bool)
    mask[[1, 4]] = True
    splitter = TokenDataSplitter(_cells(6), external_indexing=[[0, 2], mask])
    assert (splitter.train_idx.tolist(), splitter.val_idx.tolist()) == ([0, 2], [1, 4])
    assert splitter.test_idx.tolist() == []
    assert splitter.test_dataloader() == []
    with pytest.raises(ValueError, match="names a cell more than once: a model is not judged on what it learned from"):
        TokenDataSplitter(_cells(6), external_indexing=[[0, 2], [2]])
    for wrong in ([[0, 6]], [[-1]], [np.ones(5, bool)], [[0], [1], [2], [3]]):
        with pytest.raises(ValueError, match="training, validation and test cells as positions from 0 to 5"):
            TokenDataSplitter(_cells(6), external_indexing=wrong)
    with pytest.raises(ValueError, match="No cell of 6 is left to train on"):
        TokenDataSplitter(_cells(6), external_indexing=[[], [1]])


def test_codes_to_balance_must_be_there():
    with pytest.raises(KeyError, match="balance_key='batch': the cells have no such codes. Codes: 'labels'"):
        TokenDataSplitter(_cells(4, [0, 0, 1, 1]), balance_key="batch")


def test_loaders():
    splitter = TokenDataSplitter(_cells(40, [0] * 20 + [-1] * 20), train_size=0.5, batch_size=8, balance_key="labels")
    seen = np.concatenate([batch["ind_x"].numpy().ravel() for batch in splitter.train_dataloader()])
    assert set(seen) <= set(splitter.train_idx)
    held = np.concatenate([batch["ind_x"].numpy().ravel() for batch in splitter.val_dataloader()])
    assert sorted(held) == splitter.val_idx.tolist()
