"""Tokens of proteins and peaks."""

from __future__ import annotations

import numpy as np
import pytest

from scanpy_scgpt.tokenizer import kinds_of_tokens, match_peaks, peak_tokens, protein_tokens


def test_proteins():
    assert protein_tokens(["CD3_TotalSeqB", "CD19-TotalSeqC", "p_CD4", "HLA-DR"]) == [
        "p_CD3",
        "p_CD19",
        "p_CD4",
        "p_HLA-DR",
    ]
    assert protein_tokens(["CD3_TotalSeqA", "CD3_TotalSeqB"]) == ["p_CD3_TotalSeqA", "p_CD3_TotalSeqB"]


@pytest.mark.parametrize(
    ("name", "token"),
    [
        ("chr1:10-20", "chr1:10-20"),
        ("chr1-10-20", "chr1:10-20"),
        ("chrX_10_20", "chrX:10-20"),
        ("1:10-20", "chr1:10-20"),
        ("chrGL000220.1-117507-120143", "chrGL000220.1:117507-120143"),
        ("MT:1-9", "chrM:1-9"),
        ("CD3E", None),
        ("HLA-A", None),
    ],
)
def test_peaks(name, token):
    assert peak_tokens([name]) == [token]


def test_kinds():
    assert kinds_of_tokens(["CD3E", "p_CD3", "chr1:10-20", "<cls>", "chr1"]).tolist() == [0, 1, 2, 0, 0]


def test_peaks_go_to_what_they_overlap_most():
    known = ["chr1:100-200", "chr1:300-400", "chr1:150-900", "chr2:100-200"]
    found = ["chr1:300-400", "chr1:190-230", "chr1:120-180", "chr1:5-50", "chr2:199-300", "chr3:1-9"]
    assert match_peaks(found, known).tolist() == [1, 2, 0, -1, 3, -1]
    assert match_peaks(found, []).tolist() == [-1] * 6


def test_peaks_against_every_pair():
    rng = np.random.default_rng(0)
    start = rng.integers(0, 3000, 120)
    end = start + rng.integers(1, 200, 120)
    tokens = [f"chr{c}:{a}-{b}" for c, a, b in zip(rng.integers(1, 3, 120), start, end, strict=True)]
    found, known = tokens[:60], list(dict.fromkeys(tokens[60:]))

    def overlap(one, other):
        (c, x), (d, y) = (token.split(":") for token in (one, other))
        (a, b), (e, f) = (map(int, span.split("-")) for span in (x, y))
        return min(b, f) - max(a, e) if c == d else 0

    for token, i in zip(found, match_peaks(found, known), strict=True):
        shares = [overlap(token, other) for other in known]
        assert (i < 0 and max(shares) <= 0) or shares[i] == max(shares) > 0
