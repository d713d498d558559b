"""Predictors without a network: against their definitions, on real cells."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge as Reference

from scanpy_scgpt.data import GenerativeBatches
from scanpy_scgpt.pretrain import _baselines
from scanpy_scgpt.pretrain._baselines import Asked, Ridge, asked_of, baseline_errors, digit_means
from scanpy_scgpt.tokenizer import Tokenizer, TokenizerConfig, match_genes


@pytest.fixture
def tokens(counts, vocab):
    match = match_genes(counts.var_names, vocab)
    config = TokenizerConfig(ties="mid")
    return Tokenizer(vocab, config).bins(counts.X, match.ids, counts.obs_names.to_numpy(object), seed=0)


@pytest.fixture
def batches(tokens, vocab):
    def make(cells, **changes):
        settings = {"batch_size": 50, "max_length": 200, "ratios": (0.5,), "cls_value": -2.0, "seed": 3}
        special = {"pad_id": vocab.pad_id, "cls_id": vocab.cls_id, "n_tokens": len(vocab)}
        return GenerativeBatches(tokens, cells, **{**settings, **special, **changes})

    return make


def _targets(step):
    """Genes, targets and weight of a step, read from its batches one by one."""
    for batch, shares in zip(*step, strict=True):
        counted = ~batch.unknown_padding
        yield batch.unknown_ids[counted].numpy(), batch.targets[counted].numpy(), shares["targets"] / int(counted.sum())


def test_means_by_hand(batches, tokens, monkeypatch):
    training, held = batches(np.arange(500)), batches(np.arange(500, 700), max_tokens=3000)
    means = digit_means(training, rng=0)
    seen = tokens.take(np.arange(500))
    assert means.overall == pytest.approx(seen.values.mean())
    gene = int(seen.gene_ids[0])
    assert means.of_gene[gene] == pytest.approx(seen.values[seen.gene_ids == gene].mean())
    never = np.setdiff1d(np.arange(len(means.of_gene)), seen.gene_ids)
    assert (means.of_gene[never] == means.overall).all()
    found = baseline_errors(training, held, n_steps=3, means=means)
    by_hand = {"mean_digit": 0.0, "gene_mean": 0.0}
    for step in range(3):
        for genes, targets, weight in _targets(held[step]):
            by_hand["mean_digit"] += np.square(targets - means.overall).sum() * weight / 3
            by_hand["gene_mean"] += np.square(targets - means.of_gene[genes]).sum() * weight / 3
    assert {name: found[name] for name in by_hand} == pytest.approx(by_hand)
    assert found["ridge"] < 0.99 * found["gene_mean"] < found["mean_digit"]  # real cells: other genes tell something
    monkeypatch.setattr(_baselines, "_MEAN_CELLS", 200)
    monkeypatch.setattr(_baselines, "_AT_A_TIME", 64)
    part = digit_means(training, rng=0)
    assert part.overall == digit_means(training, rng=0).overall != means.overall
    assert part.overall == pytest.approx(means.overall, rel=0.02)


def test_ridge_is_that_of_scikit_learn_where_a_gene_is_asked_of_all_cells():
    """The last gene is a target in every cell that trains, never an input; the shape of the penalty is the same."""
    rng = np.random.default_rng(0)
    n, p = 400, 12
    digits = rng.normal(size=(n, p)).astype(np.float32)
    target = digits @ rng.normal(size=p) + rng.normal(size=n)
    known = _baselines.sparse.csr_matrix(np.column_stack([digits, np.zeros(n, np.float32)]))
    asked = Asked(known, np.arange(n), np.full(n, p), target, np.full(n, 1 / n))
    ridge = Ridge(asked)
    assert ridge.inputs.tolist() == list(range(p))
    fitted = np.arange(n) % 10 > 0
    m = fitted.sum()
    penalty = ridge.penalty * np.square(digits[fitted]).sum() / m
    reference = Reference(alpha=penalty, fit_intercept=False).fit(digits[fitted], target[fitted])
    np.testing.assert_allclose(ridge.predict(asked), reference.predict(digits), rtol=1e-3, atol=1e-3)
    assert asked.error(ridge.predict(asked)) < 0.3 * asked.error(0.0)


def test_a_gene_that_was_never_asked_for_keeps_its_mean(batches):
    asked = asked_of(batches(np.arange(600)), 6, digit_means(batches(np.arange(600)), rng=0))
    gene = np.bincount(asked.genes).argmax()
    others = asked.genes != gene
    less = asked._replace(**{name: getattr(asked, name)[others] for name in ("cells", "genes", "targets", "weights")})
    predicted = Ridge(less).predict(asked)
    assert (predicted[~others] == 0).all()
    assert (predicted[others] != 0).mean() > 0.99


def test_blocks_of_genes_change_nothing(batches, monkeypatch):
    asked = asked_of(batches(np.arange(300)), 4, digit_means(batches(np.arange(300)), rng=0))
    whole = Ridge(asked).predict(asked)
    monkeypatch.setattr(_baselines, "_TARGETS", 37)
    np.testing.assert_allclose(Ridge(asked).predict(asked), whole, rtol=1e-4, atol=1e-4)
