"""The OpenVINO engine gives the vectors of the PyTorch one."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from scanpy_scgpt import io
from scanpy_scgpt._optional import is_installed, require
from scanpy_scgpt.model import Embedder, _devices, _inference, _openvino
from scanpy_scgpt.module import initial_weights
from scanpy_scgpt.nn import TransformerConfig
from scanpy_scgpt.tokenizer import GeneVocab, TokenizerConfig, Tokens

VOCAB = GeneVocab([f"G{i}" for i in range(97)])


@pytest.fixture
def checkpoint():
    return _checkpoint()


def _checkpoint(**changes):
    config = TransformerConfig(n_tokens=100, pad_id=VOCAB.pad_id, d_model=64, n_heads=4, n_layers=2, d_ff=32, **changes)
    weights = {
        name: tensor + 0.2 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(len(name)))
        for name, tensor in initial_weights(config, seed=0).items()
    }
    return io.Checkpoint("tiny", config, TokenizerConfig(), VOCAB, weights)


@pytest.fixture(scope="module")
def tokens():
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 60, 30)
    lengths[:4] = 0, 1, 59, 59
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    genes = np.concatenate([rng.permutation(97)[:n] for n in lengths]).astype(np.int32)
    return Tokens(indptr, genes, rng.integers(1, 51, indptr[-1]).astype(np.uint8))


@pytest.mark.parametrize(
    ("scheme", "pooling", "encoding"),
    [
        ("post", "cls", "continuous"),
        ("post", "mean", "category"),
        ("pre", "weighted", "scaling"),
        ("legacy_pre", "cls", "continuous"),
        ("post", "layers", "continuous"),
    ],
)
def test_vectors_are_those_of_torch(tokens, scheme, pooling, encoding):
    checkpoint = _checkpoint(norm_scheme=scheme, value_encoding=encoding)
    vectors = [
        Embedder(checkpoint, device="cpu", pooling=pooling, backend=backend).embed_tokens(tokens)
        for backend in ("torch", "openvino")
    ]
    np.testing.assert_allclose(vectors[1], vectors[0], atol=1e-5 * np.abs(vectors[0]).max())


def test_half_precision(checkpoint, tokens):
    exact = Embedder(checkpoint, device="cpu", backend="torch").embed_blocks([tokens], n_obs=30)
    embedder = Embedder(checkpoint, device="cpu", backend="openvino", precision="bf16")
    assert (exact * embedder.embed_blocks([tokens], n_obs=30)).sum(1).min() >= 0.999
    record = embedder.record()
    assert (record["precision"], record["backend"]) == ("bf16", "openvino")


def test_threads_and_batches_change_nothing(checkpoint, tokens):
    expected = Embedder(checkpoint, device="cpu", backend="openvino").embed_tokens(tokens)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        got = Embedder(checkpoint, device="cpu", backend="openvino", max_tokens=100).embed_tokens(tokens)
    finally:
        torch.set_num_threads(before)
    np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())


def test_taken_by_itself_for_many_cells(checkpoint, tokens, monkeypatch):
    monkeypatch.setattr(_inference, "_OPENVINO_PAYS", 30)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(_inference.platform, "machine", lambda: "x86_64")
    try:
        embedder = Embedder(checkpoint, device="cpu")
        few = embedder.embed_blocks([tokens.take(np.arange(29))], n_obs=29)
        assert embedder.record()["backend"] == "torch"
        many = embedder.embed_blocks([tokens], n_obs=30)
        assert embedder.record()["backend"] == "openvino"
        np.testing.assert_allclose(many[:29], few, atol=1e-5)
        monkeypatch.setattr(_inference, "is_installed", lambda _: False)
        without = Embedder(checkpoint, device="cpu")
        without.embed_blocks([tokens], n_obs=30)
        assert without.record()["backend"] == "torch"
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("call", ["expect", "embed_blocks"])
def test_vectors_that_are_off_are_an_error(checkpoint, tokens, monkeypatch, caplog, call):
    def spoiled(*_):
        return np.ones((1, 64), dtype=np.float32)

    monkeypatch.setattr(_openvino.OpenVinoEngine, "_infer", spoiled)
    with pytest.raises(RuntimeError, match=r"other vectors than PyTorch: off by .* Use backend='torch'"):
        Embedder(checkpoint, device="cpu", backend="openvino")
    monkeypatch.setattr(Embedder, "_openvino_pays", lambda *_: True)
    embedder = Embedder(checkpoint, device="cpu")
    with caplog.at_level("WARNING", logger="scanpy_scgpt"):
        embedder.expect(30) if call == "expect" else embedder.embed_blocks([tokens], n_obs=30)
    assert "Going on with PyTorch: OpenVINO gives other vectors" in caplog.text
    assert embedder.record()["backend"] == "torch"


def test_missing_package(checkpoint, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    text = r"backend='openvino' needs `openvino`: pip install 'scanpy-scgpt\[openvino\]'"
    with pytest.raises(ImportError, match=text):
        Embedder(checkpoint, device="cpu", backend="openvino")


def test_other_devices(checkpoint, monkeypatch):
    monkeypatch.setattr(_inference, "choose_devices", lambda _: [torch.device("cuda", 0)])
    with pytest.raises(ValueError, match=r"backend='openvino' needs the CPU, not device='cuda'.*device='cpu'"):
        Embedder(checkpoint, device="cuda", backend="openvino")


def test_auto_device_is_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert _devices.choose_device("auto").type == "cuda"
    assert [x.type for x in _devices.choose_devices("cpu")] == ["cpu"]


def test_optional_packages():
    assert require("json", extra="x", needed_for="y").loads("1") == 1
    assert is_installed("json")
    assert not is_installed("no_such_package_here")
