"""Attention on a GPU gives what it gives on a CPU."""

from __future__ import annotations

import pytest
import torch

from scanpy_scgpt.nn import Segments, has_packed_kernel
from scanpy_scgpt.nn._attention import SelfAttention, generative_attention

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
LENGTHS = [5, 1, 270, 40, 7, 7]


def _segments(lengths):
    starts = torch.tensor([0, *lengths]).cumsum(0)
    return Segments(starts.to(torch.int32), max(lengths))


@pytest.mark.parametrize("d_head", [16, 48, 64])
def test_packed_kernel(d_head):
    torch.manual_seed(0)
    attention, cells = SelfAttention(d_model=4 * d_head, n_heads=4, dropout=0.0), _segments(LENGTHS)
    x = torch.randn(sum(LENGTHS), 4 * d_head)
    half = SelfAttention(d_model=4 * d_head, n_heads=4, dropout=0.0)
    half.load_state_dict(attention.state_dict())
    half = half.to("cuda", torch.bfloat16)
    device = torch.device("cuda")
    assert has_packed_kernel(device, torch.bfloat16, d_head) == (torch.cuda.get_device_capability() >= (8, 0))
    if not has_packed_kernel(device, torch.bfloat16, d_head):
        pytest.skip("needs a GPU of 2020 or later")
    with torch.inference_mode():
        expected = attention.packed(x, cells)
        found = half.packed(x.to("cuda", torch.bfloat16), cells._replace(starts=cells.starts.cuda()))
    torch.testing.assert_close(found.float().cpu(), expected, atol=2e-2 * expected.abs().max().item(), rtol=0)


@pytest.mark.parametrize("padded", [False, True])
def test_padded_attention(padded):
    torch.manual_seed(0)
    attention = SelfAttention(d_model=64, n_heads=4, dropout=0.0)
    x = torch.randn(3, 37, 64)
    padding = torch.arange(37)[None, :] >= torch.tensor([37, 20, 1])[:, None] if padded else None
    with torch.no_grad():
        expected = attention(x, padding)
        found = attention.cuda()(x.cuda(), None if padding is None else padding.cuda()).cpu()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("n_known", "length"), [(20, 37), (33, 64), (1, 9)])
def test_generative_attention_forward_and_backward(dtype, padded, n_known, length):
    torch.manual_seed(0)
    q, k, v, grad = (torch.randn(3, 2, length, 16) for _ in range(4))
    lengths = torch.tensor([n_known, max(n_known // 2, 1), 1])
    padding = torch.arange(n_known)[None, :] >= lengths[:, None] if padded else None
    results = []
    for device, kind in (("cpu", torch.float32), ("cuda", dtype)):
        given = [x.to(device, kind, copy=True).requires_grad_() for x in (q, k, v)]
        here = None if padding is None else padding.to(device)
        out = generative_attention(*given, n_known=n_known, known_padding=here)
        out.backward(grad.to(device, kind))
        results.append([x.detach().float().cpu() for x in (out, *(x.grad for x in given))])
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=tolerance * expected.abs().max().item(), rtol=0)


@pytest.mark.parametrize("padded", [False, True])
def test_training_in_half_precision_makes_no_plan_for_each_shape(padded):
    attention = SelfAttention(d_model=64, n_heads=4, dropout=0.0).to("cuda", torch.bfloat16)
    padding = torch.arange(37, device="cuda")[None, :] >= torch.tensor([37, 20], device="cuda")[:, None]
    out = attention(torch.randn(2, 37, 64, device="cuda", dtype=torch.bfloat16), padding if padded else None)
    names, steps = set(), [out.grad_fn]
    while steps:
        step = steps.pop()
        names.add(step.name())
        steps.extend(before for before, _ in step.next_functions if before is not None)
    assert any("Attention" in name for name in names)
    assert not any("Cudnn" in name for name in names)
