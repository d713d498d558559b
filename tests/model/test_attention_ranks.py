"""Ranks of attention: recorded numbers of the original, ties, memory, and the same result in any order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse
from scipy.stats import rankdata

from scanpy_scgpt import io
from scanpy_scgpt.io._legacy import renamed
from scanpy_scgpt.model import AttentionRanks
from scanpy_scgpt.model._rank_kernels import rank_columns, rank_rows
from scanpy_scgpt.nn import TransformerConfig
from scanpy_scgpt.tokenizer import GeneVocab, TokenizerConfig

CONDITIONS = ("G007+ctrl", "ctrl")


@pytest.fixture(scope="module")
def recorded(fixtures_dir):
    return dict(np.load(fixtures_dir / "attention_grn.npz"))


@pytest.fixture(scope="module")
def original(fixtures_dir):
    """The recorded network. Its batch norm is an affine map in evaluation, and so goes into the norms before it."""
    state = torch.load(fixtures_dir / "attention_grn.state.pt", weights_only=True)
    weights, ignored = renamed(state)
    assert all(name.startswith("bn.") for name in ignored)
    scale = state["bn.weight"] / torch.sqrt(state["bn.running_var"] + 6.1e-5)
    shift = state["bn.bias"] - scale * state["bn.running_mean"]
    for part in ("genes", "values"):
        for kind in ("weight", "bias"):
            weights[f"transformer.encoder.{part}.norm.{kind}"] = (
                scale * weights[f"transformer.encoder.{part}.norm.{kind}"]
            )
    weights["transformer.encoder.genes.norm.bias"] += shift
    vocab = GeneVocab([f"G{i:03d}" for i in range(100)])
    config = TransformerConfig(n_tokens=103, pad_id=100, d_model=32, n_heads=4, n_layers=2, d_ff=48, dropout=0.0)
    return io.Checkpoint("recorded", config, TokenizerConfig(cls_value=0.0), vocab, weights)


@pytest.fixture(scope="module")
def digits(recorded):
    return sparse.csr_matrix(recorded["values"][:, 1:])


def made(original, recorded, **settings):
    assert recorded["ids"][0, 0] == original.vocab.cls_id
    return AttentionRanks(original, recorded["ids"][0, 1:], device="cpu", **settings)


def each_cell(ranks, digits):
    return ranks.mean_ranks(digits, [np.array([i]) for i in range(digits.shape[0])])


def sorts_as_recorded(recorded):
    """Whether the sort of this processor leaves equal values in the order of the one that recorded them."""
    rows = torch.from_numpy(recorded["raw_scores"]).argsort(dim=-1).argsort(dim=-1)
    ranks = rows.argsort(dim=-2).argsort(dim=-2).float().mean(dim=1) / rows.shape[-1]
    return np.abs(ranks.numpy() - recorded["rank_normed"]).max() < 1e-6


def test_scores_are_those_of_the_original(original, recorded, digits):
    queries, keys = made(original, recorded).queries_and_keys(digits)
    np.testing.assert_allclose((queries @ keys.transpose(-1, -2)).numpy(), recorded["raw_scores"], atol=1e-5)


@pytest.mark.parametrize("condition", CONDITIONS)
def test_ranks_and_means_are_those_of_the_original(original, recorded, digits, condition):
    if not sorts_as_recorded(recorded):
        pytest.skip("the sort of this processor leaves equal values in another order")
    ranks = made(original, recorded, ties="sorted")
    np.testing.assert_allclose(each_cell(ranks, digits).transpose(0, 2, 1), recorded["rank_normed"], atol=1e-6)
    own = np.flatnonzero(recorded["condition"] == condition)
    (mean,) = ranks.mean_ranks(digits, [own])
    np.testing.assert_allclose(mean.T, recorded[f"mean_correct/{condition}"], atol=1e-6)
    (as_written,) = made(original, recorded, legacy=True).mean_ranks(digits, [own])
    np.testing.assert_allclose(as_written.T, recorded[f"mean_as_written/{condition}"], atol=1e-6)


def test_differences_are_those_of_the_original(original, recorded, digits):
    if not sorts_as_recorded(recorded):
        pytest.skip("the sort of this processor leaves equal values in another order")
    blocks = [np.flatnonzero(recorded["condition"] == condition) for condition in CONDITIONS]
    key = 1 + 7  # <cls> is first
    for name, settings in (("correct", {"ties": "sorted"}), ("as_written", {"legacy": True})):
        perturbed, control = made(original, recorded, **settings).mean_ranks(digits, blocks)
        expected = recorded[f"difference_to_G007_{name}"]
        np.testing.assert_allclose((perturbed - control)[key], expected, atol=1e-6)


@pytest.mark.parametrize("condition", CONDITIONS)
def test_mean_ranks_lie_between_those_of_any_order_of_equal_values(original, recorded, digits, condition):
    """The ranks of rows have no ties, so the recorded columns are ours but for the order of equal values."""
    rows = rankdata(recorded["raw_scores"], axis=3)
    lowest, highest = (rankdata(rows, axis=2, method=how).mean(axis=1) / 41 for how in ("min", "max"))
    assert (recorded["rank_normed"] >= lowest - 1 / 41 - 1e-6).all()
    assert (recorded["rank_normed"] <= highest - 1 / 41 + 1e-6).all()
    own = recorded["condition"] == condition
    (mean,) = made(original, recorded).mean_ranks(digits, [np.flatnonzero(own)])
    expected = (rankdata(rows, axis=2).mean(axis=1) - 1)[own].mean(axis=0) / 41
    np.testing.assert_allclose(mean.T, expected, atol=1e-6)
    assert np.corrcoef(mean.T.ravel(), recorded[f"mean_correct/{condition}"].ravel())[0, 1] > 0.98


@pytest.mark.parametrize("heads", ["mean", "max", 2])
def test_heads_and_layers_against_the_definition(original, recorded, digits, heads):
    for layer, number in ((-1, 1), (0, 0)):
        ranks = made(original, recorded, heads=heads, layer=layer)
        q, k = ranks.embedder.encoder.queries_and_keys(
            torch.as_tensor(recorded["ids"]), torch.as_tensor(shown(recorded)), layer=number
        )
        by_head = rankdata(rankdata((q @ k.transpose(-1, -2)).numpy(), axis=3), axis=2) - 1
        expected = {"mean": by_head.mean(axis=1), "max": by_head.max(axis=1), 2: by_head[:, 2]}[heads]
        np.testing.assert_allclose(each_cell(ranks, digits).transpose(0, 2, 1) * 41, expected, atol=1e-4)


def shown(recorded):
    digits = recorded["values"].astype(np.int64)
    digits[:, 0] = 51  # the row of <cls>
    return digits


def test_the_portable_way_is_the_same(original, recorded, digits, monkeypatch):
    expected = each_cell(made(original, recorded), digits)
    monkeypatch.setattr(AttentionRanks, "_add_counted", AttentionRanks._add_sorted)
    np.testing.assert_array_equal(each_cell(made(original, recorded), digits), expected)


def test_blocks_add_up_and_threads_do_not_matter(original, recorded, digits):
    ranks = made(original, recorded, max_tokens=100)
    blocks = [np.arange(7), np.arange(7, 12), np.arange(12)]
    seen = []
    one = ranks.mean_ranks(digits, blocks, advance=seen.append)
    assert sum(seen) == 24
    np.testing.assert_allclose((7 * one[0] + 5 * one[1]) / 12, one[2], atol=1e-6)
    torch.set_num_threads(2)
    try:
        np.testing.assert_array_equal(ranks.mean_ranks(digits, blocks), one)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("kind", ["normal", "few values", "outlier", "constant", "two heaps"])
def test_kernels_against_scipy(kind):
    rng = np.random.default_rng(0)
    x = {
        "normal": rng.normal(size=(60, 60)),
        "few values": rng.integers(3, size=(60, 60)),
        "outlier": np.where(np.arange(60) == 7, 1e6, rng.normal(size=(60, 60))),
        "constant": np.ones((60, 60)),
        "two heaps": rng.normal(size=(60, 60)) * 1e-4 + np.where(np.arange(60) % 2, 5.0, -5.0),
    }[kind].astype(np.float32)
    ranks_t, total = np.empty((60, 60), np.uint16), np.zeros((60, 60), np.int64)
    for start in (0, 40):
        rank_rows(x[start : start + 40], start, ranks_t)
    rows = rankdata(x, axis=1)
    np.testing.assert_array_equal(ranks_t.T, 2 * rows - 2)
    for n in (1, 2):
        rank_columns(ranks_t, total, False)
        np.testing.assert_array_equal(total.T, n * (2 * rankdata(rows, axis=0) - 2))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"layer": 2}, "layer=2: use one of -2, -1, 0, 1"),
        ({"heads": 4}, "heads=4: use one of 'mean', 'max', 0"),
        ({"ties": "averag"}, "did you mean 'average'"),
        ({"gene_ids": np.array([1, 1])}, "each once"),
    ],
)
def test_what_is_refused(checkpoint, change, text):
    with pytest.raises(ValueError, match=text):
        AttentionRanks(checkpoint, **{"gene_ids": np.arange(5), "device": "cpu", **change})
