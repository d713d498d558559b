"""Splits into known and unknown genes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scanpy_scgpt.data import GenerativeBatches, StepSampler, as_panel, split_generative
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


def test_a_batch_depends_on_seed_and_step_alone():
    tokens = _tokens([30] * 50)
    make = lambda seed: GenerativeBatches(  # noqa: E731
        tokens, np.arange(50), batch_size=8, max_length=20, ratios=(0.25, 0.5), seed=seed, **SPECIAL
    )
    first, again, other = make(0), make(0), make(1)
    for step in (0, 5, 6, 100):
        torch.testing.assert_close(first[step].known.gene_ids, again[step].known.gene_ids)
    assert not torch.equal(first[3].known.gene_ids, first[4].known.gene_ids)
    assert not torch.equal(first[3].known.gene_ids, other[3].known.gene_ids)


def test_a_pass_shows_each_cell_once():
    tokens = Tokens(np.arange(41), np.arange(40, dtype=np.int32), np.ones(40, np.uint8))  # one gene a cell: its name
    batches = GenerativeBatches(
        tokens, np.arange(40), batch_size=8, max_length=5, ratios=(0.5,), seed=0, pad_id=100, cls_id=101, cls_value=-2.0
    )
    assert batches.steps_per_pass == 5
    forth = [batches[step].known.gene_ids for step in (0, 7, 1)]  # the order of a pass is kept, not of the first alone
    assert torch.equal(batches[7].known.gene_ids, forth[1])
    assert torch.equal(batches[0].known.gene_ids, forth[0])
    for start in (0, 5):
        seen = torch.cat([batches[step].known.gene_ids[:, 1] for step in range(start, start + 5)])
        assert sorted(seen.tolist()) == list(range(40))


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
