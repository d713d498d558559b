"""Generative attention against a dense mask; packed cells against cells alone."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from scanpy_scgpt.nn import (
    Segments,
    SelfAttention,
    _attention,
    _fused,
    _packed,
    generative_attention,
    has_packed_kernel,
    packed_attention,
)
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


def _segments(lengths):
    starts = torch.tensor([0, *lengths]).cumsum(0)
    return Segments(starts.to(torch.int32), max(lengths))


@pytest.mark.parametrize("lengths", [[5], [1, 1, 1], [7, 7, 3, 1, 7], [1, 270, 40]])
@pytest.mark.parametrize("n_heads", [2, 4])
def test_packed_cells_see_themselves_alone(lengths, n_heads):
    torch.manual_seed(0)
    attention, cells = SelfAttention(d_model=64, n_heads=n_heads, dropout=0.0), _segments(lengths)
    x = torch.randn(sum(lengths), 64)
    with torch.no_grad():
        torch.nn.init.normal_(attention.in_proj.bias)
        got = attention.packed(x, cells)
        expected = torch.cat([attention(part[None], None)[0] for part in x.split(lengths)])
        padded, padding = cells.pad(x)
        masked = attention(padded, padding)[~padding]
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(got, masked, atol=1e-5, rtol=0)


def test_padding_of_segments():
    padded, padding = _segments([2, 1, 3]).pad(torch.arange(1, 7))
    assert padded.tolist() == [[1, 2, 0], [3, 0, 0], [4, 5, 6]]
    assert padding.tolist() == [[False, False, True], [False, True, True], [False, False, False]]


class _OnCuda:
    """Stands in for a tensor on a GPU where only the device is asked for."""

    device = torch.device("cuda", 0)


def test_one_kernel_for_all_cells_on_cuda(monkeypatch):
    varlen = pytest.importorskip("torch.nn.attention.varlen")
    given = []
    monkeypatch.setattr(varlen, "varlen_attn", lambda *arguments: given.append(arguments) or "attended")
    cells = _segments([3, 5])
    assert packed_attention(_OnCuda(), "k", "v", cells) == "attended"
    (_, k, v, starts, starts_of_keys, longest, longest_of_keys) = given[0]
    assert (k, v, longest, longest_of_keys) == ("k", "v", 5, 5)
    assert starts is starts_of_keys
    assert starts.dtype == torch.int32
    assert starts.tolist() == [0, 3, 8]


def test_arguments_fit_the_kernel():
    """The kernel is called as its signature wants it; shapes are worked out without a GPU."""
    varlen = pytest.importorskip("torch.nn.attention.varlen")
    q = torch.empty(8, 2, 16, dtype=torch.bfloat16, device="meta")
    cells = _segments([3, 5])
    starts = cells.starts.to("meta")
    assert _packed._kernel() is varlen.varlen_attn
    assert packed_attention(q, q, q, cells._replace(starts=starts)).shape == q.shape


def test_operator_of_older_releases(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", None)
    assert _packed._kernel() is _packed._flash_forward
    names = [argument.name for argument in torch.ops.aten._flash_attention_forward.default._schema.arguments]
    order = ["query", "key", "value", "cum_seq_q", "cum_seq_k", "max_q", "max_k", "dropout_p", "is_causal"]
    assert names[:9] == order
    assert names[9] == "return_debug_mask"


@pytest.mark.parametrize(
    ("device", "dtype", "d_head", "capability", "expected"),
    [
        ("cpu", torch.bfloat16, 64, (9, 0), False),
        ("cuda", torch.float32, 64, (9, 0), False),
        ("cuda", torch.bfloat16, 64, (9, 0), True),
        ("cuda", torch.bfloat16, 64, (7, 5), False),
        ("cuda", torch.bfloat16, 12, (9, 0), False),
        ("cuda", torch.float16, 264, (9, 0), False),
    ],
)
def test_where_the_kernel_is(monkeypatch, device, dtype, d_head, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert has_packed_kernel(torch.device(device), dtype, d_head) is expected


def test_packed_form_on_cuda_takes_the_kernel(monkeypatch):
    """The branch for a GPU, on a device without numbers: shapes and types that reach the kernel."""
    seen = {}

    def kernel(q, k, v, *where):
        seen.update(shapes=[x.shape for x in (q, k, v)], dtypes={x.dtype for x in (q, k, v)}, where=where)
        return torch.empty_like(q)

    monkeypatch.setattr(_packed, "_kernel", lambda: kernel)
    with torch.device("meta"):
        attention = SelfAttention(d_model=64, n_heads=4, dropout=0.0).bfloat16()
        x = torch.empty(8, 64, dtype=torch.bfloat16)
    out = attention.packed(x, _segments([3, 5]))
    assert out.shape == x.shape
    assert seen["shapes"] == [(8, 4, 16)] * 3
    assert seen["dtypes"] == {torch.bfloat16}
    assert seen["where"][2:] == (5, 5)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("dtype", "kernel"), [(torch.bfloat16, "_FLASH"), (torch.float32, "_BIASED")])
def test_arguments_fit_the_fused_kernels(dtype, kernel, padded):
    """The kernels for CUDA are called as their signatures want it; shapes are worked out without a GPU."""
    fused = getattr(_fused, "_BIASED" if padded else kernel)
    qkv = torch.empty(3, 37, 3, 2, 16, dtype=dtype, device="meta").permute(2, 0, 3, 1, 4)
    q, k, v = (x.detach().requires_grad_() for x in qkv)
    bias = torch.zeros(3, 20, dtype=dtype, device="meta")[:, None, None].expand(-1, 1, 37, -1) if padded else None
    out = _attention._KnownPlusSelf.apply(fused, q, k, v, 20, bias)
    assert out.shape == q.shape
    out.backward(out.detach())
    assert all(x.grad.shape == x.shape and x.grad.dtype == dtype for x in (q, k, v))


@pytest.mark.parametrize(
    ("device", "dtype", "d_head", "biased", "expected"),
    [
        ("cuda", torch.bfloat16, 64, False, _fused._FLASH),
        ("cuda", torch.bfloat16, 64, True, _fused._BIASED),
        ("cuda", torch.float32, 64, False, _fused._BIASED),
        ("cuda", torch.float64, 64, False, None),
        ("cuda", torch.bfloat16, 12, False, None),
        ("mps", torch.float32, 64, False, None),
    ],
)
def test_which_fused_kernel(monkeypatch, device, dtype, d_head, biased, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 0))
    q = SimpleNamespace(device=torch.device(device), dtype=dtype, shape=(1, 2, 3, d_head))
    bias = torch.zeros(1, 1, 3, 3) if biased else None
    assert _fused.find_fused(q, bias) is expected
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 5))
    assert _fused.find_fused(q, bias) is None


def test_no_kernel_that_plans_for_each_shape():
    before = torch.backends.cuda.cudnn_sdp_enabled()
    with _attention._kernels_for(torch.device("cuda"), torch.bfloat16):
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        assert torch.backends.cuda.flash_sdp_enabled()
        assert torch.backends.cuda.mem_efficient_sdp_enabled()
    assert torch.backends.cuda.cudnn_sdp_enabled() == before
