"""Counts to tokens."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from scanpy_scgpt.tokenizer import GeneVocab, Tokenizer, TokenizerConfig, Tokens


@pytest.fixture(scope="module")
def cells():
    rng = np.random.default_rng(0)
    matrix = sparse.csr_matrix(rng.poisson(0.8, (60, 300)).astype(np.int32))
    return matrix, np.array([f"cell{i}" for i in range(60)], dtype=object)


VOCAB = GeneVocab([f"G{i}" for i in range(300)])
IDS = np.arange(300)


def _tokens_by_cell(tokens: Tokens) -> list[dict[int, int]]:
    return [
        dict(zip(tokens.gene_ids[a:b].tolist(), tokens.values[a:b].tolist(), strict=True))
        for a, b in zip(tokens.indptr[:-1], tokens.indptr[1:], strict=True)
    ]


@pytest.mark.parametrize("select", ["random", "top"])
def test_a_cell_has_the_same_tokens_in_any_order_and_chunk(cells, select):
    matrix, names = cells
    tokenizer = Tokenizer(VOCAB, TokenizerConfig(max_length=101, select=select))
    whole = tokenizer.encode(matrix, IDS, names)
    order = np.random.default_rng(1).permutation(60)
    shuffled = tokenizer.encode(matrix[order], IDS, names[order])
    np.testing.assert_array_equal(shuffled.values, whole.take(order).values)
    np.testing.assert_array_equal(shuffled.gene_ids, whole.take(order).gene_ids)
    parts = [tokenizer.encode(matrix[i : i + 7], IDS, names[i : i + 7]) for i in range(0, 60, 7)]
    np.testing.assert_array_equal(Tokens.concatenate(parts).values, whole.values)
    columns = np.random.default_rng(2).permutation(300)
    moved = tokenizer.encode(matrix[:, columns].sorted_indices(), IDS[columns], names)
    assert _tokens_by_cell(moved) == _tokens_by_cell(whole)
    other = tokenizer.encode(matrix, IDS, names, seed=1)
    assert not np.array_equal(other.values, whole.values)


def test_selection_keeps_a_uniform_subset_or_the_top(cells):
    matrix, names = cells
    bins = _tokens_by_cell(Tokenizer(VOCAB, TokenizerConfig(ties="mid")).encode(matrix, IDS, names))
    top = Tokenizer(VOCAB, TokenizerConfig(ties="mid", max_length=51, select="top")).encode(matrix, IDS, names)
    assert (top.lengths == 50).all()
    for all_of, kept in zip(bins, _tokens_by_cell(top), strict=True):
        assert all(all_of[gene] == digit for gene, digit in kept.items())
        assert min(kept.values()) >= np.sort(list(all_of.values()))[-50]
    many = np.repeat(np.arange(1), 2000)
    drawn = Tokenizer(VOCAB, TokenizerConfig(max_length=51)).encode(
        matrix[many], IDS, np.array([f"x{i}" for i in range(2000)], dtype=object)
    )
    counts = np.bincount(drawn.gene_ids, minlength=300)[matrix[0].indices]
    expected = 2000 * 50 / matrix[0].nnz
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)


def test_protected_genes_stay(cells):
    matrix, names = cells
    tokenizer = Tokenizer(VOCAB, TokenizerConfig(max_length=11))
    keep = np.zeros(len(VOCAB), dtype=bool)
    keep[[5, 17]] = True
    bins = tokenizer.bins(matrix, IDS, names)
    cut = _tokens_by_cell(tokenizer.cut(bins, names, keep=keep))
    for row, kept in enumerate(cut):
        assert {5, 17} & set(matrix[row].indices) <= set(kept)
        assert len(kept) <= 10


def test_columns_of_one_gene_are_summed(cells):
    matrix, names = cells
    ids = IDS.copy()
    ids[7] = 3
    summed = matrix.copy().tolil()
    summed[:, 3] = matrix[:, 3] + matrix[:, 7]
    summed[:, 7] = 0
    twice = Tokenizer(VOCAB).encode(matrix, ids, names)
    once = Tokenizer(VOCAB).encode(sparse.csr_matrix(summed), IDS, names)
    np.testing.assert_array_equal(twice.values, once.values)
    np.testing.assert_array_equal(twice.gene_ids, once.gene_ids)


def test_unknown_genes_and_stored_zeros_have_no_token():
    matrix = sparse.csr_matrix((np.array([1.0, 0.0, 2.0, 3.0]), np.array([0, 1, 2, 3]), np.array([0, 4, 4])), (2, 4))
    tokens = Tokenizer(VOCAB).encode(matrix, np.array([4, 5, -1, 6]), np.array(["a", "b"], dtype=object))
    np.testing.assert_array_equal(tokens.gene_ids, [4, 6])
    np.testing.assert_array_equal(tokens.indptr, [0, 2, 2])


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"n_bins": 2}, "n_bins=2: use 3 to 256"),
        ({"n_bins": 500}, "n_bins=500: use 3 to 256"),
        ({"ties": "up"}, "ties='up': use one of 'random', 'low', 'mid', 'high'"),
        ({"select": "best"}, "select='best': use one of 'random', 'top'"),
        ({"max_length": 1}, "max_length=1: it counts <cls>"),
    ],
)
def test_settings_are_checked(changes, text):
    with pytest.raises(ValueError, match=text):
        TokenizerConfig(**changes)


def test_tokens_check_themselves():
    with pytest.raises(ValueError, match="Tokens do not fit: 2 gene ids, 1 values"):
        Tokens(np.array([0, 2]), np.zeros(2, np.int32), np.zeros(1, np.uint8))


def test_the_tokens_of_the_original_embedding_path(fixtures_dir):
    """Genes, lengths and order of the recorded batches; digits within the tie range (they were drawn at random)."""
    recorded = np.load(fixtures_dir / "embed.npz")
    vocab = GeneVocab.read(fixtures_dir / "ckpt_plain" / "vocab.json")
    matrix = sparse.csr_matrix(recorded["input_counts"])
    ids = vocab.ids(recorded["input_genes"].tolist())
    assert (ids < 0).sum() == 20
    names = np.array([f"c{i}" for i in range(40)], dtype=object)
    low, high = (Tokenizer(vocab, TokenizerConfig(ties=t)).encode(matrix, ids, names) for t in ("low", "high"))
    cell = 0
    for b in range(3):
        genes, values, pad = (recorded[f"full/batch{b}_{x}"] for x in ("gene_ids", "values", "pad"))
        for row in range(len(genes)):
            kept = ~pad[row]
            assert genes[row, 0] == vocab.cls_id
            assert values[row, 0] == -2
            part = slice(low.indptr[cell], low.indptr[cell + 1])
            np.testing.assert_array_equal(genes[row, kept][1:], low.gene_ids[part])
            assert (values[row, kept][1:] >= low.values[part]).all()
            assert (values[row, kept][1:] <= high.values[part]).all()
            cell += 1
    assert cell == 40
