"""Generative attention against a dense mask."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from scanpy_scgpt.nn import SelfAttention, generative_attention
from scanpy_scgpt.nn._attention import _known_plus_self_portable


def dense(q, k, v, *, n_known, known_padding=None):
    """The definition: one softmax over a `length x length` mask."""
    length = q.shape[2]
    allowed = torch.zeros(q.shape[0], 1, length, length, dtype=torch.bool)
    allowed[..., :n_known] = True if known_padding is None else ~known_padding[:, None, None, :]
    unknown = torch.arange(n_known, length)
    allowed[..., unknown, unknown] = True
    return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)


def _qkv(dtype, *, batch=3, heads=2, length=37, d=8, scale=2.0):
    generator = torch.Generator().manual_seed(0)
    return [
        (scale * torch.randn(batch, heads, length, d, generator=generator, dtype=dtype)).requires_grad_()
        for _ in range(3)
    ]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("n_known", [1, 20, 36, 37])
@pytest.mark.parametrize("padded", [False, True])
def test_value_and_gradient_are_those_of_the_dense_mask(dtype, tolerance, n_known, padded):
    padding = None
    if padded:
        padding = torch.arange(n_known)[None, :] >= torch.tensor([n_known, max(n_known - 3, 1), 1])[:, None]
    weight = torch.linspace(-1, 1, 8, dtype=dtype)
    results = []
    for function in (dense, generative_attention):
        tensors = _qkv(dtype)
        out = function(*tensors, n_known=n_known, known_padding=padding)
        (out * weight).square().sum().backward()
        results.append([out.detach(), *(x.grad for x in tensors)])
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, atol=tolerance * expected.abs().max().item(), rtol=0)


def test_portable_form_is_the_same():
    q, k, v = _qkv(torch.float64)
    padding = torch.arange(20)[None, :] >= torch.tensor([20, 17, 1])[:, None]
    bias = torch.zeros(3, 20, dtype=torch.float64).masked_fill(padding, -torch.inf)
    bias = bias[:, None, None, :].expand(-1, 1, 37, -1)
    expected = dense(q, k, v, n_known=20, known_padding=padding)
    torch.testing.assert_close(_known_plus_self_portable(q, k, v, 20, bias), expected)


def test_gradient_check_in_double_precision():
    tensors = _qkv(torch.float64, batch=1, heads=1, length=6, d=4, scale=1.0)
    assert torch.autograd.gradcheck(lambda q, k, v: generative_attention(q, k, v, n_known=4), tensors)


def test_known_tokens_do_not_see_unknown_ones():
    q, k, v = (x.detach() for x in _qkv(torch.float32))
    before = generative_attention(q, k, v, n_known=20)
    k2, v2 = k.clone(), v.clone()
    k2[:, :, 25], v2[:, :, 25] = 9.0, 9.0
    after = generative_attention(q, k2, v2, n_known=20)
    changed = (before - after).abs().amax(dim=(0, 1, 3)) > 0
    assert changed.nonzero().flatten().tolist() == [25]


def test_projection_of_unknown_tokens_can_be_left_out():
    torch.manual_seed(0)
    attention = SelfAttention(d_model=16, n_heads=4, dropout=0.0)
    x = torch.randn(2, 9, 16)
    whole = attention.generative(x, 5, None, project_unknown=True)
    legacy = attention.generative(x, 5, None, project_unknown=False)
    torch.testing.assert_close(whole[:, :5], legacy[:, :5])
    torch.testing.assert_close(whole[:, 5:], attention.out_proj(legacy[:, 5:]))
