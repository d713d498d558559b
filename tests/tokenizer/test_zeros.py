"""Zeros as tokens, against a loop over cells."""

from __future__ import annotations

import numpy as np
import pytest

from scanpy_scgpt.tokenizer import Tokens, with_zeros


def _cells():
    return Tokens(
        np.array([0, 3, 3, 7]), np.array([4, 0, 9, 1, 4, 2, 7], np.int32), np.array([5, 1, 2, 9, 8, 7, 6], np.uint8)
    )


@pytest.mark.parametrize("max_genes", [1, 4, 5, 100])
@pytest.mark.parametrize("panel", [[], [9, 4, 3, 0, 12], [1]])
def test_zeros_follow_the_expressed_genes_in_the_order_of_the_panel(panel, max_genes):
    cells = _cells()
    got = with_zeros(cells, np.array(panel, np.int64), max_genes=max_genes)
    assert len(got) == 3
    for i in range(3):
        own = slice(*cells.indptr[i : i + 2])
        expressed = cells.gene_ids[own].tolist()
        room = max(max_genes - len(expressed), 0)
        zeros = [gene for gene in panel if gene not in expressed][:room]
        here = slice(*got.indptr[i : i + 2])
        assert got.gene_ids[here].tolist() == expressed + zeros
        assert got.values[here].tolist() == cells.values[own].tolist() + [0] * len(zeros)
    assert (got.gene_ids.dtype, got.values.dtype) == (np.int32, np.uint8)
