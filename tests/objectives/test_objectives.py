"""Objectives against their formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scanpy_scgpt.objectives import (
    combine,
    contrastive_cells,
    elastic_similarity,
    masked_cross_entropy,
    masked_mse,
    masked_nonzero_nll,
    similar_cells,
)

CELLS = torch.tensor([[1.0, 0.0], [0.6, 0.8], [-1.0, 0.0]])


def test_masked_mse_counts_only_what_counts():
    predicted, target = torch.tensor([[1.0, 5.0, 9.0]]), torch.tensor([[2.0, 2.0, 0.0]])
    counted = torch.tensor([[True, True, False]])
    assert masked_mse(predicted, target, counted).item() == pytest.approx((1 + 9) / 2)
    assert masked_mse(predicted, target, torch.zeros_like(counted)).item() == 0


def test_nonzero_nll_is_the_bernoulli_likelihood():
    p, target = torch.tensor([[0.8, 0.3, 0.5]]), torch.tensor([[4.0, 0.0, 1.0]])
    counted = torch.tensor([[True, True, False]])
    assert masked_nonzero_nll(p, target, counted).item() == pytest.approx(-(np.log(0.8) + np.log(0.7)) / 2)


def test_cross_entropy_counts_only_what_counts():
    logits = torch.log(torch.tensor([[[0.1, 0.9], [0.5, 0.5], [0.3, 0.7]]]))
    target, counted = torch.tensor([[1.0, 0.0, -2.0]]), torch.tensor([[True, True, False]])
    assert masked_cross_entropy(logits, target, counted).item() == pytest.approx(-(np.log(0.9) + np.log(0.5)) / 2)
    assert masked_cross_entropy(logits, target, torch.zeros_like(counted)).item() == 0


def test_elastic_similarity_by_hand():
    s = np.array([[0, 0.6, 0], [0.6, 0, 0], [0, 0, 0]])  # cosines above 0 without the diagonal
    assert elastic_similarity(CELLS, threshold=0.3).item() == pytest.approx((1 - (s - 0.3) ** 2).mean())


def test_contrast_is_small_for_matching_views_and_log_n_for_equal_ones():
    distinct = torch.eye(8)
    assert contrastive_cells(distinct, distinct, temperature=0.05).item() < 1e-4
    same = torch.ones(8, 3)
    assert contrastive_cells(same, same).item() == pytest.approx(np.log(8), abs=1e-6)


def test_similar_cells_is_the_cross_entropy_of_the_similarities():
    rng = np.random.default_rng(0)
    first, second, whole = (rng.standard_normal((6, 4)).astype(np.float32) for _ in range(3))
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)  # noqa: E731
    softmax = lambda x: np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)  # noqa: E731
    alike = unit(unit(whole) - unit(whole).mean(axis=0))
    targets = softmax(alike @ alike.T / 0.2)
    predicted = unit(first) @ unit(second).T / 0.5
    expected = -(targets * np.log(softmax(predicted)) + targets * np.log(softmax(predicted.T))).sum(axis=1).mean() / 2
    given = [torch.from_numpy(x).requires_grad_() for x in (first, second, whole)]
    loss = similar_cells(*given, temperature=0.5, sharpness=0.2)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert given[2].grad is None


def test_half_precision_leaves_the_targets_of_similar_cells():
    views = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    whole = views + 3  # nearly parallel: half precision could not tell them apart
    exact = similar_cells(views, views, whole, temperature=0.1, sharpness=0.05)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = similar_cells(views, views, whole, temperature=0.1, sharpness=0.05)
    assert half.item() == pytest.approx(exact.item(), rel=0.02)


def test_similar_cells_prefers_views_that_keep_the_groups():
    whole = torch.tensor([[1.0, 0.1], [1.0, 0.0], [-1.0, 0.0], [-1.0, 0.1]])
    mixed = whole[[0, 2, 1, 3]]
    kept, lost = (similar_cells(view, view, whole, temperature=0.1, sharpness=0.05) for view in (whole, mixed))
    assert kept < lost - 1


def test_combine_weights_and_names_terms():
    loss = combine({"a": torch.tensor(2.0), "b": torch.tensor(3.0)}, {"b": 10.0})
    assert loss.total.item() == 32
    assert loss.terms["b"].item() == 3
    with pytest.raises(KeyError, match="Weight for unknown term 'c'; terms: a"):
        combine({"a": torch.tensor(2.0)}, {"c": 1.0})


def test_shares_add_up_to_the_whole():
    """Means over parts, each times its share, give the mean over all, whatever a term is a mean over."""
    errors, cells = torch.arange(10.0), torch.arange(4.0).square()
    make = lambda e, c: combine({"a": e.mean(), "b": c.mean()}, {"b": 0.5}, over={"b": "cells"})  # noqa: E731
    whole = make(errors, cells)
    parts = [
        make(errors[:7], cells[:1]).shared({"targets": 0.7, "cells": 0.25}),
        make(errors[7:], cells[1:]).shared({"targets": 0.3, "cells": 0.75}),
    ]
    assert sum(part.total for part in parts).item() == pytest.approx(whole.total.item())
    for name in ("a", "b"):
        assert sum(part.terms[name] for part in parts).item() == pytest.approx(whole.terms[name].item())
