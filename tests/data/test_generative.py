"""Splits into known and unknown genes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scanpy_scgpt.data import GenerativeBatches, StepSampler, as_panel, split_generative, split_sizes
from scanpy_scgpt.tokenizer import Tokens, bin_rows

SPECIAL = {"pad_id": 100, "cls_id": 101, "cls_value": -2.0}


def _tokens(lengths, seed=0):
    rng = np.random.default_rng(seed)
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    genes = np.concatenate([rng.permutation(100)[:n] for n in lengths]).astype(np.int32)
    return Tokens(indptr, genes, rng.integers(1, 51, indptr[-1]).astype(np.uint8))


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("max_length", [10, 48, 200])
def test_every_gene_is_known_or_unknown_never_both(ratio, max_length):
    tokens = _tokens([59, 1, 24, 2, 40])
    batch = split_generative(tokens, ratio=ratio, max_length=max_length, rng=np.random.default_rng(0), **SPECIAL)
    length = min(max_length, 60)
    assert batch.unknown_ids.shape[1] == max(int((length - 1) * ratio), 1)
    assert batch.known.gene_ids.shape[1] + batch.unknown_ids.shape[1] <= max(length, 3)
    for row in range(5):
        part = slice(tokens.indptr[row], tokens.indptr[row + 1])
        digits = dict(zip(tokens.gene_ids[part].tolist(), tokens.values[part].tolist(), strict=True))
        known_kept, unknown_kept = ~batch.known.padding[row], ~batch.unknown_padding[row]
        known = dict(
            zip(
                batch.known.gene_ids[row, known_kept].tolist(),
                batch.known.values[row, known_kept].tolist(),
                strict=True,
            )
        )
        unknown = dict(
            zip(batch.unknown_ids[row, unknown_kept].tolist(), batch.targets[row, unknown_kept].tolist(), strict=True)
        )
        assert known.pop(101) == -2
        assert not set(known) & set(unknown)
        assert all(digits[gene] == value for gene, value in {**known, **unknown}.items())
        assert len(unknown) == min(int(len(digits) * ratio), batch.unknown_ids.shape[1])
        if max_length >= 60:
            assert len(known) + len(unknown) == len(digits)
    assert (batch.known.gene_ids[batch.known.padding] == 100).all()


def test_sizes_and_digits_of_the_original_collator(fixtures_dir):
    recorded = np.load(fixtures_dir / "generative.npz")
    genes = [recorded[f"raw/{i}/genes"][1:] for i in range(8)]  # without <cls>
    counts = np.concatenate([recorded[f"raw/{i}/expressions"][1:] for i in range(8)]).astype(np.float32)
    indptr = np.concatenate([[0], np.cumsum([len(x) for x in genes])])
    ids = np.concatenate(genes).astype(np.int32)
    digits = bin_rows(indptr, counts, ids, np.zeros(8, np.uint64), n_bins=51, ties="high")
    tokens = Tokens(indptr, ids, digits)
    batch = split_generative(tokens, ratio=0.25, max_length=48, rng=np.random.default_rng(0), **SPECIAL)
    known, unknown = recorded["collated/pcpt_gene"], recorded["collated/gen_gene"]
    assert batch.known.gene_ids.shape == known.shape
    assert batch.unknown_ids.shape == unknown.shape
    np.testing.assert_array_equal((~batch.known.padding).sum(1), (known != 100).sum(1))
    np.testing.assert_array_equal((~batch.unknown_padding).sum(1), (unknown != 100).sum(1))
    for row in range(8):
        part = slice(indptr[row], indptr[row + 1])
        ours = dict(zip(ids[part].tolist(), digits[part].tolist(), strict=True))
        shown = zip(known[row].tolist(), recorded["collated/pcpt_expr"][row].tolist(), strict=True)
        hidden = zip(unknown[row].tolist(), recorded["collated/gen_expr_target"][row].tolist(), strict=True)
        theirs = {gene: value for gene, value in [*shown, *hidden] if gene < 100}
        assert all(ours[gene] == value for gene, value in theirs.items())


def _published_sizes(lengths, ratio, max_length):
    """Sizes by the rule that looks at the longest cell of the batch."""
    longest = min(max_length, int(lengths.max()) + 1) - 1
    n_unknown = max(int(longest * ratio), 1)
    n_known = max(longest - n_unknown, 1)
    hidden = (lengths * ratio).astype(int)
    return np.minimum(hidden, n_unknown), np.minimum(lengths - hidden, n_known)


@pytest.mark.parametrize("ratio", [0.15, 0.25, 0.4, 0.5, 0.75, 0.9])
def test_sizes_need_no_other_cell(ratio):
    rng = np.random.default_rng(0)
    for _ in range(200):
        lengths = rng.integers(1, rng.integers(10, 300), size=9)
        lengths[0] = max(lengths[0], int(np.ceil(1 / ratio)))  # one cell with an unknown gene
        max_length = int(rng.integers(12, 200))
        sizes = split_sizes(lengths, ratio=ratio, max_length=max_length)
        np.testing.assert_array_equal(sizes, _published_sizes(lengths, ratio, max_length))


def _parts_of(batch, row):
    known = {} if batch.known.padding is None else batch.known.padding[row]
    shown = batch.known.gene_ids[row] if known == {} else batch.known.gene_ids[row, ~known]
    return sorted(shown.tolist()), sorted(batch.unknown_ids[row, ~batch.unknown_padding[row]].tolist())


def test_a_cell_is_split_in_the_same_way_in_any_batch():
    tokens = _tokens([59, 1, 24, 2, 40, 31])
    keys = np.random.default_rng(0).integers(2**64, size=6, dtype=np.uint64)
    settings = {"ratio": 0.5, "max_length": 30, **SPECIAL}
    whole = split_generative(tokens, rng=keys, **settings)
    for cells in ([4, 0], [1], [5, 3, 2, 1]):
        part = split_generative(tokens.take(np.array(cells)), rng=keys[cells], **settings)
        for row, cell in enumerate(cells):
            assert _parts_of(part, row) == _parts_of(whole, cell)
    other = split_generative(tokens, rng=keys + np.uint64(1), **settings)
    assert _parts_of(other, 0) != _parts_of(whole, 0)


def test_each_gene_is_unknown_as_often():
    tokens = _tokens([40] * 3000)
    batch = split_generative(tokens, ratio=0.25, max_length=100, rng=np.random.default_rng(0), **SPECIAL)
    there = np.bincount(tokens.gene_ids, minlength=100)
    share = np.bincount(batch.unknown_ids[~batch.unknown_padding].numpy(), minlength=100) / there
    assert abs(share - 0.25).max() < 5 * np.sqrt(0.25 * 0.75 / there.min())


def test_full_cells_have_no_padding():
    full = split_generative(_tokens([50] * 4), ratio=0.5, max_length=21, rng=np.random.default_rng(0), **SPECIAL)
    assert full.known.padding is None
    assert full.known.gene_ids.shape == (4, 11)
    assert not full.unknown_padding.any()


def _batches(tokens, **changes):
    settings = {"batch_size": 8, "max_length": 20, "ratios": (0.25, 0.5), "seed": 0, **SPECIAL}
    return GenerativeBatches(tokens, np.arange(len(tokens)), **{**settings, **changes})


def test_a_step_depends_on_seed_and_number_alone():
    tokens = _tokens([30] * 50)
    ids = lambda batches, step: batches[step].batches[0].known.gene_ids  # noqa: E731
    first, again, other = _batches(tokens), _batches(tokens), _batches(tokens, seed=1)
    for step in (0, 5, 6, 100):
        torch.testing.assert_close(ids(first, step), ids(again, step))
    assert not torch.equal(ids(first, 3), ids(first, 4))
    assert not torch.equal(ids(first, 3), ids(other, 3))


def test_a_pass_shows_each_cell_once():
    tokens = Tokens(np.arange(41), np.arange(40, dtype=np.int32), np.ones(40, np.uint8))  # one gene a cell: its name
    batches = _batches(tokens, max_length=5, ratios=(0.5,))
    known = lambda step: batches[step].batches[0].known.gene_ids  # noqa: E731
    assert batches.steps_per_pass == 5
    forth = [known(step) for step in (0, 7, 1)]  # the order of a pass is kept, not of the first alone
    assert torch.equal(known(7), forth[1])
    assert torch.equal(known(0), forth[0])
    for start in (0, 5):
        seen = torch.cat([known(step)[:, 1] for step in range(start, start + 5)])
        assert sorted(seen.tolist()) == list(range(40))


def _cells_of(step):
    return [_parts_of(batch, row) for batch in step.batches for row in range(len(batch.targets))]


@pytest.mark.parametrize("panel_share", [0.0, 1.0])
@pytest.mark.parametrize("max_tokens", [None, 45])
def test_processes_and_micro_batches_divide_the_same_step(panel_share, max_tokens):
    tokens = _tokens(np.random.default_rng(1).integers(2, 60, size=50))
    settings = {"max_length": 33, "batch_size": 11, "panel_share": panel_share, "n_tokens": 100}
    whole = _batches(tokens, **settings)
    cut = _batches(tokens, max_tokens=max_tokens, **settings)
    for step in (0, 3, 17):
        expected = whole[step]
        (batch,), (shares,) = expected
        assert shares == {"targets": 1.0, "cells": 1.0}
        n_targets = int((~batch.unknown_padding).sum())
        for world in (1, 2, 4, 11):
            parts = [cut.of_process(rank, world)[step] for rank in range(world)]
            cells = [cell for part in parts for cell in _cells_of(part)]
            assert sorted(cells) == sorted(_cells_of(expected))  # each cell once
            for part in parts:
                for small, share in zip(*part, strict=True):
                    assert share["targets"] == int((~small.unknown_padding).sum()) / n_targets
                    assert share["cells"] == len(small.targets) / 11
                    if max_tokens and len(small.targets) > 1:
                        assert small.known.gene_ids.numel() + small.unknown_ids.numel() <= max_tokens
            for counted in ("targets", "cells"):
                assert sum(share[counted] for part in parts for share in part.shares) == pytest.approx(1)
    assert whole.rank == cut.rank == 0  # a part is a copy


def test_a_panel_takes_digits_anew():
    tokens = _tokens([80] * 20)
    panel = as_panel(tokens, n_tokens=100, n_bins=51, rng=np.random.default_rng(3))
    assert 0 < panel.indptr[-1] < tokens.indptr[-1]
    kept = set(panel.gene_ids.tolist())
    for row in range(20):
        part = slice(tokens.indptr[row], tokens.indptr[row + 1])
        there = [gene for gene in tokens.gene_ids[part].tolist() if gene in kept]
        mine = slice(panel.indptr[row], panel.indptr[row + 1])
        assert panel.gene_ids[mine].tolist() == there
        assert panel.values[mine].max() > 35  # the highest of the panel gets a high digit whatever it was before


def test_sampler_goes_on_where_training_stands():
    done = 0
    sampler = StepSampler(3, done=lambda: done)
    assert list(sampler) == [0, 1, 2]
    done = 7
    assert list(sampler) == [7, 8, 9]
    assert len(sampler) == 3
