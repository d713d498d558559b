"""Classes of cells, and the gradient that is turned around."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scanpy_scgpt.objectives import classification, reverse_gradient

SCORES = torch.tensor([[2.0, -1.0, 0.5], [0.0, 1.0, 0.0], [3.0, 3.0, -2.0], [9.0, 9.0, 9.0]])
LABELS = torch.tensor([0, 2, 1, -1])


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.5]])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_cross_entropy_leaves_cells_without_a_label_out(weights, smoothing):
    logs = torch.log_softmax(SCORES[:3], dim=1).numpy()
    w = np.ones(3) if weights is None else np.array(weights)
    labels, rows = LABELS[:3].numpy(), np.arange(3)
    exact = -(w[labels] * logs[rows, labels]).sum() / w[labels].sum()
    spread = -(w * logs).sum() / 3 / w[labels].sum()
    given = None if weights is None else torch.tensor(weights)
    got = classification(SCORES, LABELS, weights=given, smoothing=smoothing)
    assert got.item() == pytest.approx((1 - smoothing) * exact + smoothing * spread, rel=1e-5)


@pytest.mark.parametrize("n", [0, 3])
def test_no_label_at_all_is_a_loss_of_0_not_nan(n):
    scores = torch.randn(n, 3, requires_grad=True)
    loss = classification(scores, torch.full((n,), -1))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(scores.grad, torch.zeros(n, 3))


def test_the_gradient_comes_back_with_the_other_sign():
    x = torch.tensor([1.0, -2.0], requires_grad=True)
    for strength in (1.0, 0.25):
        x.grad = None
        out = reverse_gradient(x, strength=strength)
        assert torch.equal(out, x)
        (out * torch.tensor([3.0, 5.0])).sum().backward()
        assert x.grad.tolist() == [-3 * strength, -5 * strength]
