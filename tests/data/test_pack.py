"""Packed batches hold the same tokens as padded ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scanpy_scgpt.data import collate_digits, pack_digits
from scanpy_scgpt.tokenizer import Tokens


@pytest.fixture(scope="module")
def tokens():
    rng = np.random.default_rng(0)
    lengths = np.array([3, 0, 7, 1, 5])
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    return Tokens(indptr, rng.integers(0, 90, 16).astype(np.int32), rng.integers(1, 51, 16).astype(np.uint8))


@pytest.mark.parametrize("cells", [[0, 1, 2, 3, 4], [2], [1], [4, 1, 0], []])
def test_the_cells_of_a_padded_batch(tokens, cells):
    cells = np.array(cells, dtype=np.int64)
    packed = pack_digits(tokens, cells, cls_id=97, cls_digit=51)
    lengths = tokens.lengths[cells] + 1
    assert packed.starts.dtype == packed.gene_ids.dtype == packed.digits.dtype == torch.int32
    assert packed.starts.tolist() == [0, *np.cumsum(lengths).tolist()]
    assert packed.longest == max(lengths, default=1)
    padded = collate_digits(tokens, cells, pad_id=99, cls_id=97, cls_digit=51)
    real = torch.from_numpy(np.arange(packed.longest) < lengths[:, None])
    torch.testing.assert_close(packed.gene_ids, padded.gene_ids[real])
    torch.testing.assert_close(packed.digits, padded.digits[real])
