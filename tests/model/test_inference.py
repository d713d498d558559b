"""The forward-only loop: exact rewrites, batching, devices."""

from __future__ import annotations

import gc
import threading
import weakref
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from scanpy_scgpt import io
from scanpy_scgpt.model import Embedder, _devices, _engines, _workers, choose_device
from scanpy_scgpt.module import initial_weights
from scanpy_scgpt.nn import CellPool, CellTransformer, TransformerConfig, pool
from scanpy_scgpt.tokenizer import GeneVocab, TokenizerConfig, Tokens

VOCAB = GeneVocab([f"G{i}" for i in range(97)])


def _checkpoint(**changes):
    config = TransformerConfig(n_tokens=100, pad_id=VOCAB.pad_id, d_model=24, n_heads=3, n_layers=3, d_ff=20, **changes)
    weights = {
        name: tensor + 0.3 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(len(name)))
        for name, tensor in initial_weights(config, seed=0).items()
    }
    return io.Checkpoint("tiny", config, TokenizerConfig(), VOCAB, weights)


@pytest.fixture(scope="module")
def tokens():
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 60, 80)
    lengths[:3] = 0, 1, 59
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    genes = np.concatenate([rng.permutation(97)[:n] for n in lengths]).astype(np.int32)
    return Tokens(indptr, genes, rng.integers(1, 51, indptr[-1]).astype(np.uint8))


def _pooled(network, ids, values, how):
    """One vector of a cell, layer after layer where all count."""
    hidden = network.encoder(ids, values)
    seen = [hidden]
    for layer in network.layers:
        hidden = layer(hidden, None)
        seen.append(hidden)
    if how != "layers":
        return pool(hidden, how=how, values=values)[0]
    sums = [(values[0, :, None] * x[0]).sum(dim=0) for x in seen]
    total = sum(x / x.norm() for x in sums)
    return total / total.norm()


def _one_by_one(checkpoint, tokens, how):
    """The plain network on each cell alone."""
    network = CellTransformer(checkpoint.transformer).eval()
    io.load_component(network, checkpoint, "transformer")
    vectors = []
    for start, stop in zip(tokens.indptr[:-1], tokens.indptr[1:], strict=True):
        ids = torch.tensor([[VOCAB.cls_id, *tokens.gene_ids[start:stop].tolist()]])
        values = torch.tensor([[-2.0, *tokens.values[start:stop].tolist()]])
        with torch.no_grad():
            vectors.append(_pooled(network, ids, values, how))
    return torch.stack(vectors).numpy()


@pytest.mark.parametrize("pooling", ["cls", "mean", "weighted", "layers"])
@pytest.mark.parametrize("scheme", ["post", "pre", "legacy_pre"])
def test_vectors_are_those_of_the_plain_network(tokens, pooling, scheme):
    checkpoint = _checkpoint(norm_scheme=scheme)
    got = Embedder(checkpoint, device="cpu", pooling=pooling).embed_tokens(tokens)
    expected = _one_by_one(checkpoint, tokens, pooling)
    np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("pooling", ["mean", "weighted", "layers"])
def test_the_first_token_weighs_alike_whatever_the_encoding(tokens, pooling):
    """A table of bins has another row for `<cls>`, not another weight in the sum."""
    checkpoint = _checkpoint(value_encoding="category")
    got = Embedder(checkpoint, device="cpu", pooling=pooling).embed_tokens(tokens)
    network = CellTransformer(checkpoint.transformer).eval()
    io.load_component(network, checkpoint, "transformer")
    for i in (2, 5):
        start, stop = tokens.indptr[i : i + 2]
        ids = torch.tensor([[VOCAB.cls_id, *tokens.gene_ids[start:stop].tolist()]])
        rows = torch.tensor([[float(checkpoint.tokenizer.n_bins), *tokens.values[start:stop].tolist()]])
        values = torch.tensor([[-2.0, *tokens.values[start:stop].tolist()]])
        cells = CellPool(pooling, values=values)
        with torch.no_grad():
            network(ids, rows, watch=cells)
        np.testing.assert_allclose(got[i], cells.result()[0].numpy(), atol=1e-5 * np.abs(got[i]).max())


@pytest.mark.parametrize("encoding", ["scaling", "category"])
def test_value_encodings(tokens, encoding):
    checkpoint = _checkpoint(value_encoding=encoding)
    got = Embedder(checkpoint, device="cpu").embed_tokens(tokens)
    assert np.isfinite(got).all()
    if encoding == "scaling":  # the category table has no row for the negative mark of <cls>
        np.testing.assert_allclose(got, _one_by_one(checkpoint, tokens, "cls"), atol=1e-5 * np.abs(got).max())


@pytest.mark.parametrize("max_tokens", [1, 100, 10**6])
def test_batching_changes_nothing(tokens, max_tokens):
    checkpoint = _checkpoint()
    whole = Embedder(checkpoint, device="cpu").embed_blocks([tokens], n_obs=80)
    order = np.random.default_rng(1).permutation(80)
    shuffled = tokens.take(order)
    parts = [shuffled.take(np.arange(i, min(i + 13, 80))) for i in range(0, 80, 13)]
    got = Embedder(checkpoint, device="cpu", max_tokens=max_tokens).embed_blocks(parts, n_obs=80)
    np.testing.assert_allclose(got, whole[order], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("n_threads", [1, 3])
def test_threads_change_nothing_and_are_given_back(tokens, n_threads):
    checkpoint = _checkpoint()
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        got = Embedder(checkpoint, device="cpu", max_tokens=100).embed_tokens(tokens)
        assert torch.get_num_threads() == n_threads
    finally:
        torch.set_num_threads(before)
    expected = _one_by_one(checkpoint, tokens, "cls")
    np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())


class _Waiting:
    """An engine whose batches wait until told; it notes how many threads PyTorch uses for them."""

    collate_ahead, n_threads, max_padding = False, 2, 1.0

    def __init__(self):
        self.begun, self.go, self.seen = threading.Event(), threading.Event(), []

    def collate(self, tokens, cells):
        return cells

    def start(self, cells):
        self.seen.append(torch.get_num_threads())
        self.begun.set()
        assert self.go.wait(10)
        return lambda: np.zeros((len(cells), 1), np.float32)

    def release(self):
        pass


def test_calls_that_overlap_leave_the_number_of_threads(tokens):
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    engines, found = [_Waiting(), _Waiting()], []

    def call(engine):
        budget, out = _workers.Budget(100), np.empty((len(tokens), 1), np.float32)
        _workers.run([engine], tokens, budget, out)
        found.append(torch.get_num_threads())

    calls = [threading.Thread(target=call, args=(engine,)) for engine in engines]
    try:
        for thread, engine in zip(calls, engines, strict=True):
            thread.start()
            assert engine.begun.wait(10)
        for thread, engine in zip(calls, engines, strict=True):  # the first ends before the second
            engine.go.set()
            thread.join(10)
        later = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        later.start()
        later.join(10)
        assert found == [3, 3, 3]
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert {n for engine in engines for n in engine.seen} == {1}


def test_threads_that_cannot_be_started_are_an_error(tokens, monkeypatch):
    engine, submit = _Waiting(), _workers.ThreadPoolExecutor.submit
    engine.n_threads = 3

    def full(pool, *args):
        if pool._threads:
            raise RuntimeError("can't start new thread")
        return submit(pool, *args)

    monkeypatch.setattr(_workers.ThreadPoolExecutor, "submit", full)
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="can't start new thread"):
        _workers.run([engine], tokens, _workers.Budget(100), np.empty((len(tokens), 1), np.float32))
    assert torch.get_num_threads() == before


def test_gene_vectors_are_the_normalised_table():
    checkpoint = _checkpoint()
    vectors = Embedder(checkpoint, device="cpu").gene_vectors(np.array([3, -1, 50]))
    network = CellTransformer(checkpoint.transformer)
    io.load_component(network, checkpoint, "transformer")
    expected = network.encoder.genes.table().detach().numpy()
    np.testing.assert_allclose(vectors[[0, 2]], expected[[3, 50]], atol=1e-6)
    assert np.isnan(vectors[1]).all()


def test_device_that_is_not_there():
    assert choose_device("cpu").type == "cpu"
    with pytest.raises(ValueError, match=r"device='nonsense' is not available .*device='auto'"):
        choose_device("nonsense")


def test_weights_are_never_random():
    checkpoint = _checkpoint()
    weights = {k: v for k, v in checkpoint.weights.items() if "in_proj" not in k}
    broken = io.Checkpoint("x", checkpoint.transformer, checkpoint.tokenizer, VOCAB, weights)
    with pytest.raises(io.CheckpointMismatchError, match="6 of 12 attention tensors"):
        Embedder(broken, device="cpu")


class _Small:
    """An encoder with room for `room` tokens: the real one behind an error."""

    def __init__(self, encoder, room, error):
        self.encoder, self.room, self.error, self.sizes = encoder, room, error, []

    def packed(self, gene_ids, digits, starts, longest):
        self.sizes.append((len(starts) - 1) * longest)
        if len(gene_ids) > self.room:
            raise self.error
        return self.encoder.packed(gene_ids, digits, starts, longest)


OUT_OF_MEMORY = {
    "cuda": torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "cpu": RuntimeError("[enforce fail at alloc_cpu.cpp] . DefaultCPUAllocator: can't allocate memory: you tried"),
    "python": MemoryError("no room"),
    "pinned": RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
}


def _with_room(room, error, **options):
    embedder = Embedder(_checkpoint(), **{"device": "cpu", **options})
    for engine in embedder.engines:
        engine.encoder = _Small(engine.encoder, room, error)
    return embedder


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
@pytest.mark.parametrize("ahead", [False, True])
def test_a_batch_that_does_not_fit_is_halved(tokens, caplog, monkeypatch, error, ahead):
    expected = Embedder(_checkpoint(), device="cpu").embed_tokens(tokens)
    embedder = _with_room(150, OUT_OF_MEMORY[error])
    for engine in embedder.engines:
        monkeypatch.setattr(engine, "collate_ahead", ahead)
    with caplog.at_level("WARNING", logger="scanpy_scgpt"):
        for _ in range(2):
            np.testing.assert_allclose(embedder.embed_tokens(tokens), expected, atol=1e-5)
    (record,) = caplog.records
    assert "does not fit into memory: going on with at most" in record.getMessage()
    assert "max_tokens=" in record.getMessage()
    small = embedder.engines[0].encoder
    assert embedder.max_tokens == 4096  # what was asked for
    failed = [size for size in small.sizes if size > 150]
    assert len(failed) < 12  # later batches, those of the second call too, are small from the start


@pytest.mark.parametrize("ahead", [False, True])
def test_a_batch_that_cannot_be_put_together_is_halved(tokens, monkeypatch, ahead):
    embedder = Embedder(_checkpoint(), device="cpu")
    expected = embedder.embed_tokens(tokens)
    engine, released = embedder.engines[0], []
    collate = engine.collate

    def pinned(tokens, cells):
        if tokens.lengths[cells].sum() > 150:
            raise OUT_OF_MEMORY["pinned"]
        return collate(tokens, cells)

    monkeypatch.setattr(engine, "collate_ahead", ahead)
    monkeypatch.setattr(engine, "collate", pinned)
    monkeypatch.setattr(engine, "release", lambda: released.append(True))
    np.testing.assert_allclose(embedder.embed_tokens(tokens), expected, atol=1e-5)
    assert released


def test_memory_is_given_back_when_nothing_holds_it(tokens, monkeypatch):
    """A traceback holds what the functions in it have allocated: it must be gone when the cache is emptied."""
    embedder = Embedder(_checkpoint(), device="cpu")
    engine, held, alive = embedder.engines[0], [], []
    start = engine.start

    def short(batch):
        activations = torch.zeros(3)
        held.append(weakref.ref(activations))
        if len(held) == 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return start(batch)

    monkeypatch.setattr(engine, "start", short)
    monkeypatch.setattr(engine, "release", lambda: alive.append(held[0]() is not None))
    gc.disable()
    try:
        embedder.embed_tokens(tokens)
    finally:
        gc.enable()
    assert alive == [False]


def test_memory_is_pinned_for_the_gpu_of_the_engine(tokens, monkeypatch):
    current, pinned = [torch.device("cuda", 0)], []

    @contextmanager
    def device(gpu):
        current.append(gpu)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: pinned.append(current[-1]) or x)
    encoder, gpu = Embedder(_checkpoint(), device="cpu").encoder, torch.device("cuda", 1)
    marks = _engines.Marks(VOCAB.pad_id, VOCAB.cls_id, 51)
    _engines.TorchEngine(encoder, gpu, marks, packed=True).collate(tokens, np.arange(5))
    assert set(pinned) == {gpu}


def test_a_cell_that_does_not_fit(tokens):
    embedder = _with_room(50, OUT_OF_MEMORY["cuda"])
    text = r"A single cell of 60 tokens does not fit into memory \(CUDA out of memory.*max_length=30"
    with pytest.raises(MemoryError, match=text):
        embedder.embed_tokens(tokens)


@pytest.mark.parametrize("n_devices", [1, 2])
def test_other_errors_come_through(tokens, n_devices):
    with pytest.raises(RuntimeError, match="something else"):
        _with_room(50, RuntimeError("something else"), device=["cpu"] * n_devices).embed_tokens(tokens)


def test_devices_share_the_cells(tokens):
    expected = Embedder(_checkpoint(), device="cpu").embed_tokens(tokens)
    embedder = Embedder(_checkpoint(), device=["cpu", "cpu"], max_tokens=100)
    assert len({id(engine.encoder) for engine in embedder.engines}) == 2
    np.testing.assert_allclose(embedder.embed_tokens(tokens), expected, atol=1e-6 * np.abs(expected).max())
    assert embedder.record()["device"] == "cpu,cpu"


def test_every_gpu_is_taken(monkeypatch):
    monkeypatch.setattr(_devices, "choose_device", torch.device)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert list(map(str, _devices.choose_devices("cuda"))) == ["cuda:0", "cuda:1", "cuda:2"]
    assert list(map(str, _devices.choose_devices("cuda:1"))) == ["cuda:1"]
    with pytest.raises(ValueError, match=r"device=\[\]: give the name of a device"):
        _devices.choose_devices([])
    for wrong in (None, 0, ["cpu", 1]):
        with pytest.raises(ValueError, match="give the name of a device"):
            _devices.choose_devices(wrong)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"device='meta' is not available"):
        _devices.choose_devices("meta")


def test_blocks_are_made_ahead_in_order():
    assert list(_workers.ahead(iter("abc"))) == ["a", "b", "c"]

    def broken():
        yield "a"
        raise ValueError("of the block")

    blocks = _workers.ahead(broken())
    assert next(blocks) == "a"
    with pytest.raises(ValueError, match="of the block"):
        next(blocks)


@pytest.mark.parametrize("pooling", ["cls", "mean", "weighted", "layers"])
def test_half_precision(tokens, pooling):
    exact = Embedder(_checkpoint(), device="cpu", pooling=pooling)
    half = Embedder(_checkpoint(), device="cpu", pooling=pooling, precision="bf16")
    a, b = (embedder.embed_blocks([tokens], n_obs=80) for embedder in (exact, half))
    assert b.dtype == np.float32
    assert (a * b).sum(1).min() >= 0.999
    assert np.abs(a - b).max() > 0
    assert (exact.record()["precision"], half.record()["precision"]) == ("fp32", "bf16")
    ids = np.array([1, -1, 4])
    np.testing.assert_array_equal(half.gene_vectors(ids), exact.gene_vectors(ids))


@pytest.mark.parametrize(
    ("capabilities", "expected"), [({0: (9, 0), 1: (8, 0)}, "bf16"), ({0: (9, 0), 1: (7, 5)}, "fp32")]
)
def test_precision_that_suits_the_gpus(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capabilities[device.index])
    gpus = [torch.device("cuda", i) for i in capabilities]
    assert _devices.choose_precision("auto", gpus) == expected
    assert _devices.choose_precision("fp32", gpus) == "fp32"
    assert _devices.choose_precision("auto", [torch.device("cpu")]) == "fp32"


def test_layout_that_suits_the_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    encoder, cuda = Embedder(_checkpoint(), device="cpu").encoder, torch.device("cuda", 0)
    assert _engines.is_packed(torch.device("cpu"), torch.float32, encoder)
    assert _engines.is_packed(cuda, torch.bfloat16, encoder)
    assert not _engines.is_packed(cuda, torch.float32, encoder)
    assert not _engines.is_packed(torch.device("mps"), torch.bfloat16, encoder)


def test_padded_batches_give_the_same(tokens):
    embedder = Embedder(_checkpoint(), device="cpu", max_tokens=200)
    expected = embedder.embed_tokens(tokens)
    for engine in embedder.engines:
        engine.packed, engine.max_padding = False, 0.1
    np.testing.assert_allclose(embedder.embed_tokens(tokens), expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"precision": "fp16"}, r"precision='fp16': use one of 'auto', 'fp32', 'bf16'; did you mean 'bf16'"),
        ({"backend": "onnx"}, r"backend='onnx': use one of 'auto', 'torch', 'openvino'"),
        ({"max_tokens": 1.5}, r"max_tokens=1.5: a whole number"),
        ({"max_tokens": "many"}, r"max_tokens='many': a whole number"),
        ({"max_tokens": 0}, r"max_tokens=0: a whole number of at least 1; leave it out"),
    ],
)
def test_bad_options(options, text):
    with pytest.raises(ValueError, match=text):
        Embedder(_checkpoint(), device="cpu", **options)
