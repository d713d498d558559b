"""Affine maps through oneDNN against `torch.nn.functional.linear`."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from scanpy_scgpt.nn import Linear, _linear

needs_onednn = pytest.mark.skipif(_linear._onednn is None, reason="no oneDNN product on this processor")


@pytest.fixture(autouse=True)
def no_size_is_small(monkeypatch):
    monkeypatch.setattr(_linear, "_SMALL", 0)


@pytest.fixture
def calls(monkeypatch):
    """Shapes of the products that went through oneDNN."""
    seen = []

    def counted(x, weight, bias=None, *, product=_linear.product):
        seen.append((tuple(x.shape), tuple(weight.shape)))
        return product(x, weight, bias)

    monkeypatch.setattr(_linear, "product", counted)
    return seen


def _random(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def _layer(n_in, n_out, *, bias=True, dtype=torch.float32):
    layer = Linear(n_in, n_out, bias=bias, dtype=dtype)
    with torch.no_grad():
        for i, parameter in enumerate(layer.parameters()):
            parameter.copy_(_random(*parameter.shape, dtype=dtype, seed=i + 1))
    return layer


SHAPES = [(5,), (1, 5), (7, 5), (0, 5), (3, 0, 5), (2, 3, 4, 5), (64, 1), (1, 33)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("n_out", [1, 3, 64])
@pytest.mark.parametrize("bias", [True, False])
def test_value_and_gradients(shape, n_out, bias):
    results = []
    for function in (lambda layer, x: layer(x), lambda layer, x: F.linear(x, layer.weight, layer.bias)):
        layer, x = _layer(shape[-1], n_out, bias=bias), _random(*shape).requires_grad_()
        out = function(layer, x)
        (out.square() * torch.linspace(-1, 1, n_out)).sum().backward()
        results.append([out.detach(), x.grad, *(parameter.grad for parameter in layer.parameters())])
    for got, expected in zip(*results, strict=True):
        assert got.shape == expected.shape
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-5)


@needs_onednn
def test_any_strides(calls):
    layer, wide, bias = _layer(6, 4), _random(9, 12), _random(8)
    layer.weight = nn.Parameter(_random(12, 4).t()[:, ::2])
    layer.bias = nn.Parameter(bias[::2])
    expected = wide[:, ::2] @ layer.weight.t() + layer.bias
    with torch.no_grad():
        for x, wanted in ((wide[:, ::2], expected), (wide[:1, ::2].expand(5, 6), expected[:1].expand(5, 4))):
            torch.testing.assert_close(layer(x), wanted)
    layer(wide[:, ::2]).sum().backward()  # a gradient without strides of its own
    torch.testing.assert_close(layer.weight.grad, wide[:, ::2].sum(0).expand(4, 6))
    assert len(calls) == 4  # two forward only, one forward and its product for the weight


@needs_onednn
def test_backward_makes_only_what_is_asked_for(calls):
    layer = _layer(5, 4).requires_grad_(requires_grad=False)
    x = _random(3, 5).requires_grad_()
    layer(x).sum().backward()
    assert calls == [((3, 5), (4, 5)), ((3, 4), (5, 4))]
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(3, 5))


def test_gradient_check_in_double_precision(calls):
    layer, x = _layer(5, 4, dtype=torch.float64), _random(2, 3, 5, dtype=torch.float64).requires_grad_()
    weight, bias = (parameter.detach().requires_grad_() for parameter in layer.parameters())
    call = torch.func.functional_call

    def function(x, weight, bias):
        return call(layer, {"weight": weight, "bias": bias}, (x,))

    assert torch.autograd.gradcheck(function, (x, weight, bias))
    assert torch.autograd.gradgradcheck(function, (x, weight, bias))
    assert calls == []


def test_second_derivatives():
    results = []
    for function in (lambda layer, x: layer(x), lambda layer, x: F.linear(x, layer.weight, layer.bias)):
        layer, x = _layer(5, 4), _random(3, 5).requires_grad_()
        (gradient,) = torch.autograd.grad(function(layer, x).square().sum(), x, create_graph=True)
        gradient.square().sum().backward()
        results.append([x.grad, layer.weight.grad])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-3)


def _autocast(layer, x):
    with torch.autocast("cpu", torch.bfloat16):
        return layer(x)


def _switched_off(layer, x):
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        return layer(x)
    finally:
        torch._C._set_mkldnn_enabled(before)


OTHERS = {
    "autocast": (_autocast, torch.bfloat16),
    "switched off": (_switched_off, torch.float32),
    "half": (lambda layer, x: layer.bfloat16()(x.bfloat16()), torch.bfloat16),
    "vmap": (lambda layer, x: torch.vmap(layer)(x), torch.float32),
}


@pytest.mark.parametrize("name", OTHERS)
def test_all_else_is_plain(calls, name):
    function, dtype = OTHERS[name]
    out = function(_layer(5, 4), _random(3, 5))
    assert out.dtype == dtype
    assert calls == []
    torch.testing.assert_close(out.float(), _layer(5, 4)(_random(3, 5)), atol=0.1, rtol=0.02)


def test_without_the_operator(monkeypatch, calls):
    monkeypatch.setattr(_linear, "_onednn", None)
    layer, x = _layer(5, 4), _random(3, 5)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))
    assert calls == []


@needs_onednn
def test_small_products_are_plain(monkeypatch, calls):
    monkeypatch.setattr(_linear, "_SMALL", 80)
    layer = _layer(5, 4)
    with torch.no_grad():
        layer(_random(3, 5))
        assert calls == []
        layer(_random(4, 5))
        assert len(calls) == 1


def test_names_copies_and_files_are_those_of_torch():
    layer = _layer(5, 4)
    assert list(layer.state_dict()) == list(nn.Linear(5, 4).state_dict())
    x = _random(3, 5)
    torch.testing.assert_close(copy.deepcopy(layer)(x), layer(x))
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    torch.testing.assert_close(torch.load(file, weights_only=False)(x), layer(x))


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
def test_a_traced_layer_is_a_plain_graph(calls):
    layer, x = _layer(5, 4).eval(), _random(3, 5)
    with torch.no_grad():
        graph = torch.jit.trace(layer, x, check_trace=False)
    assert calls == []
    assert "aten::linear" in str(graph.graph)
