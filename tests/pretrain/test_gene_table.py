"""First gene table of a new model: each start, and what they share."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
from sklearn.linear_model import Ridge

from scanpy_scgpt.datasets import gene_features
from scanpy_scgpt.pretrain import _gene_table
from scanpy_scgpt.pretrain._gene_table import GENE_TABLES, _Block, _completed, coexpression_table, start_table
from scanpy_scgpt.tokenizer import GeneVocab, Tokenizer, TokenizerConfig, Tokens, match_genes

UNSEEN = {"CD3G": ["CD3D", "CD3E"], "HLA-DRA": ["HLA-DPA1", "HLA-DQB1"]}  # taken from the cells; their companions


@pytest.fixture
def corpus(counts: ad.AnnData) -> tuple[Tokens, np.ndarray, GeneVocab]:
    """Real cells in two made-up studies; a vocabulary with genes that no cell has and names that nobody knows."""
    names = [name for name in counts.var_names if name not in UNSEEN]
    vocab = GeneVocab([*names, *UNSEEN, "nobody1", "nobody2"])
    tokenizer = Tokenizer(vocab, TokenizerConfig(ties="mid"))
    ids = match_genes(counts.var_names, vocab).ids
    ids[counts.var_names.isin(list(UNSEEN))] = -1
    tokens = tokenizer.bins(counts.X, ids, counts.obs_names.to_numpy(dtype=object), seed=0)
    return tokens, np.arange(counts.n_obs) % 2, vocab


def table_of(kind: str, corpus: tuple[Tokens, np.ndarray, GeneVocab], *, d_model: int = 128, seed: int = 0):
    return start_table(kind, *corpus, d_model=d_model, rng=np.random.default_rng(seed))


def cosines(vectors: np.ndarray) -> np.ndarray:
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit @ unit.T


def known_features(vocab: GeneVocab) -> tuple[np.ndarray, np.ndarray]:
    """Ids of the tokens that the features know by their very name, and their features."""
    features = gene_features()
    names = [gene for gene in vocab.genes if gene in features.index]
    return vocab.ids(names), features.loc[names].to_numpy()


@pytest.mark.parametrize("kind", GENE_TABLES)
@pytest.mark.parametrize("d_model", [16, 100])
def test_shape_scale_and_seed(kind, d_model, corpus):
    table = table_of(kind, corpus, d_model=d_model)
    vocab = corpus[2]
    assert table.shape == (len(vocab), d_model)
    assert table.dtype == np.float32
    assert np.isfinite(table).all()
    np.testing.assert_allclose(table_of(kind, corpus, d_model=d_model), table, atol=1e-4)
    assert not np.allclose(table_of(kind, corpus, d_model=d_model, seed=1), table, atol=0.1)
    if kind == "random":
        assert table.std() == pytest.approx(1, abs=0.02)
        return
    assert np.abs(table.mean(axis=1)).max() < 1e-4  # the mean over channels is not used
    nothing = [vocab["nobody1"], vocab["nobody2"], vocab.cls_id]
    rows = np.sqrt(np.square(table).mean(axis=1))
    assert 0 < rows[nothing].max() < 0.3
    typical = rows[rows > 0.3]
    assert 0.4 < np.sqrt(np.square(typical).mean()) < 1.6


def test_global_random_state_is_left_alone(corpus):
    before = np.random.get_state()[1].copy()
    table_of("both", corpus, d_model=16)
    np.testing.assert_array_equal(np.random.get_state()[1], before)


def test_coexpression_is_the_plain_table(corpus):
    tokens, groups, vocab = corpus
    plain = coexpression_table(tokens, groups, n_tokens=len(vocab), d_model=32, rng=np.random.default_rng(0))
    np.testing.assert_allclose(table_of("coexpression", corpus, d_model=32), plain, atol=1e-4)


def test_knowledge_keeps_the_angles_of_the_features(corpus):
    ids, features = known_features(corpus[2])
    table = table_of("knowledge", corpus)
    np.testing.assert_allclose(cosines(table[ids]), cosines(features), atol=1e-4)


def test_knowledge_is_found_by_former_name_and_ensembl_id(corpus):
    vocab = GeneVocab(["SEPT7", "ENSG00000167286", "MS4A1", "SEPTIN9", "CD3D"])
    table = start_table("knowledge", *corpus[:2], vocab, d_model=128, rng=np.random.default_rng(0))
    wanted = gene_features().loc[["SEPTIN7", "CD3D", "MS4A1", "SEPTIN9"]].to_numpy()
    np.testing.assert_allclose(cosines(table[:4]), cosines(wanted), atol=1e-4)
    np.testing.assert_array_equal(table[1], table[4])


def test_both_blocks_have_equal_energy(corpus):
    """The inner products of genes that have both are those of the two blocks, added."""
    tokens, groups, vocab = corpus
    known, features = known_features(vocab)
    expressed = np.unique(tokens.gene_ids)
    table = table_of("both", corpus, d_model=200)
    plain = coexpression_table(tokens, groups, n_tokens=len(vocab), d_model=136, rng=np.random.default_rng(0))
    pairs = np.isin(known, expressed)
    ids = known[pairs]
    blocks = [plain[ids] @ plain[ids].T, features[pairs] @ features[pairs].T]
    together = table[ids] @ table[ids].T
    shares, *_ = np.linalg.lstsq(np.column_stack([block.ravel() for block in blocks]), together.ravel())
    np.testing.assert_allclose(shares[0] * blocks[0] + shares[1] * blocks[1], together, atol=1e-3 * together.max())
    energy = [np.square(plain[expressed]).sum(axis=1).mean(), np.square(features).sum(axis=1).mean()]
    assert shares[0] * energy[0] == pytest.approx(shares[1] * energy[1], rel=0.03)


def test_a_gene_that_no_cell_has_lies_by_its_companions(corpus):
    """Genes that were taken from the cells: knowledge brings them to the others of their kind."""
    vocab = corpus[2]
    table = table_of("both", corpus)
    plain = table_of("coexpression", corpus)
    for gene, companions in UNSEEN.items():
        own, all_genes = vocab.ids(companions), vocab.ids(vocab.genes)
        assert (own >= 0).all()
        rank = (cosines(table)[vocab[gene], own][:, None] > cosines(table)[vocab[gene], all_genes]).mean()
        assert rank > 0.85
        assert (cosines(plain)[vocab[gene], own][:, None] > cosines(plain)[vocab[gene], all_genes]).mean() < 0.9


def test_the_missing_coexpression_is_predicted_by_ridge_regression():
    rng = np.random.default_rng(0)
    knowledge = _Block(rng.standard_normal((50, 6)), np.arange(50) < 40)
    known = np.arange(50) % 3 > 0
    block = _Block(rng.standard_normal((50, 4)) * known[:, None], known)
    filled = _completed(block, knowledge)
    both, missing = known & knowledge.known, ~known & knowledge.known
    penalty = 0.1 * np.square(knowledge.factors[both]).sum(axis=0).mean()
    ridge = Ridge(alpha=penalty, fit_intercept=False).fit(knowledge.factors[both], block.factors[both])
    np.testing.assert_allclose(filled[missing], ridge.predict(knowledge.factors[missing]), atol=1e-6)
    np.testing.assert_array_equal(filled[~missing], block.factors[~missing])
    nothing_shared = _completed(block, _Block(knowledge.factors * ~known[:, None], ~known))
    np.testing.assert_array_equal(nothing_shared, block.factors)


def test_each_block_is_predicted_from_the_other(corpus, monkeypatch):
    """Factors before the rotation: the first columns are co-expression, the last 64 knowledge."""
    tokens, groups, vocab = corpus
    renamed = GeneVocab(["not a name" if token == "CD3E" else token for token in vocab.tokens])
    monkeypatch.setattr(_gene_table, "_spread", lambda block, *_: block.factors)
    factors = start_table("both", tokens, groups, renamed, d_model=200, rng=np.random.default_rng(0))
    assert factors.shape == (len(vocab), 135 + 64)
    expression, knowledge = np.square(factors[:, :135]).sum(axis=1), np.square(factors[:, 135:]).sum(axis=1)
    unseen, nameless, nobody = vocab["CD3G"], vocab["CD3E"], vocab["nobody1"]
    assert knowledge[unseen] > 3 * expression[unseen] > 0  # a prediction is shorter than what it predicts
    assert expression[nameless] > 3 * knowledge[nameless] > 0
    assert expression[nobody] == knowledge[nobody] == 0


def test_an_unknown_start_is_named(corpus):
    with pytest.raises(ValueError, match=r"gene_table='coexpresion': use one of .* did you mean 'coexpression'\."):
        table_of("coexpresion", corpus)


@pytest.mark.parametrize("kind", ["knowledge", "both"])
def test_names_of_another_species_are_refused(kind, corpus):
    names = ["Cd3d", *(f"AT1G{i:05d}" for i in range(60))]
    text = (
        rf"gene_table='{kind}': 0 of the 61 genes of the vocabulary are among the 16,124 human genes of "
        r"datasets\.gene_features\(\), which is too few\. First names of the vocabulary: 'Cd3d', 'AT1G00000', "
        r"'AT1G00001'\. Use gene_table='coexpression'\."
    )
    with pytest.raises(ValueError, match=text):
        start_table(kind, *corpus[:2], GeneVocab(names), d_model=16, rng=np.random.default_rng(0))
