"""Tokens to padded batches."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from scanpy_scgpt.data import batches_by_length, collate_digits
from scanpy_scgpt.tokenizer import Tokens


def _tokens(lengths, seed=0):
    rng = np.random.default_rng(seed)
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    genes = np.concatenate([rng.permutation(90)[:n] for n in lengths] or [[]]).astype(np.int32)
    return Tokens(indptr, genes, rng.integers(1, 51, indptr[-1]).astype(np.uint8))


def test_cls_first_then_the_genes_then_padding():
    tokens = _tokens([3, 0, 5])
    batch = collate_digits(tokens, np.arange(len(tokens)), pad_id=90, cls_id=91, cls_digit=51)
    assert batch.gene_ids.shape == (3, 6)
    assert (batch.gene_ids[:, 0] == 91).all()
    assert (batch.digits[:, 0] == 51).all()
    assert batch.padding.tolist() == [[False] * 4 + [True] * 2, [False] + [True] * 5, [False] * 6]
    np.testing.assert_array_equal(batch.gene_ids[0, 1:4], tokens.gene_ids[:3])
    np.testing.assert_array_equal(batch.digits[2, 1:], tokens.values[3:])
    assert (batch.gene_ids[batch.padding] == 90).all()
    assert collate_digits(_tokens([4, 4]), np.arange(2), pad_id=90, cls_id=91, cls_digit=51).padding is None


@pytest.mark.parametrize("max_tokens", [1, 64, 500, 10**9])
@pytest.mark.parametrize("max_padding", [0.0, 0.1, 1.0])
def test_batches_hold_every_cell_once_within_the_budget(max_tokens, max_padding):
    lengths = np.random.default_rng(0).integers(0, 80, 333)
    batches = list(batches_by_length(lengths, max_tokens=max_tokens, max_padding=max_padding))
    np.testing.assert_array_equal(np.sort(np.concatenate(batches)), np.arange(333))
    for cells in batches:
        longest = lengths[cells].max() + 1
        assert len(cells) == 1 or longest * len(cells) <= max_tokens
        assert (lengths[cells] + 1 >= longest * (1 - max_padding) - 1e-9).all()
    if max_padding == 0:
        assert all(len(np.unique(lengths[cells])) == 1 for cells in batches)


def test_no_cells_no_batches():
    assert list(batches_by_length(np.zeros(0, dtype=np.int64), max_tokens=10)) == []


def test_padded_cells_of_the_original(fixtures_dir):
    """Order of genes, place of `<cls>` and padding as recorded (values are stored as they were given)."""
    recorded = np.load(fixtures_dir / "tokenize.npz")
    matrix = sparse.csr_matrix(recorded["input"])
    tokens = Tokens(matrix.indptr.astype(np.int64), matrix.indices.astype(np.int32), matrix.data.astype(np.uint8))
    batch = collate_digits(tokens, np.arange(len(tokens)), pad_id=100, cls_id=101, cls_digit=0)
    np.testing.assert_array_equal(batch.gene_ids, recorded["nonzero_fit/genes"])
    kept = ~batch.padding.numpy()
    np.testing.assert_array_equal(batch.digits.numpy()[kept], recorded["nonzero_fit/values"][kept])
    assert (recorded["nonzero_fit/values"][~kept] == -2).all()
