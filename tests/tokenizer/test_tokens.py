"""Ragged tokens: lengths, taking, damaged input."""

from __future__ import annotations

import numpy as np
import pytest

from scanpy_scgpt.tokenizer import Tokens

LENGTHS = np.array([3, 0, 5, 1])


@pytest.fixture
def tokens():
    indptr = np.concatenate([[0], np.cumsum(LENGTHS)])
    return Tokens(indptr, np.arange(9, dtype=np.int32), np.arange(1, 10, dtype=np.uint8))


def test_lengths_of_some_cells(tokens):
    cells = np.array([2, 0, 2, 1])
    np.testing.assert_array_equal(tokens.lengths, LENGTHS)
    np.testing.assert_array_equal(tokens.lengths_of(cells), LENGTHS[cells])
    np.testing.assert_array_equal(tokens.take(cells).lengths, LENGTHS[cells])
    assert tokens.lengths_of(cells[:0]).shape == (0,)
    assert tokens.take(cells).gene_ids.tolist() == [3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7]


def test_parts_that_do_not_fit(tokens):
    with pytest.raises(ValueError, match="8 gene ids, 9 values, row pointer ends at 9"):
        Tokens(tokens.indptr, tokens.gene_ids[:-1], tokens.values)
