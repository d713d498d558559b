"""K steps of generation: the same as one cell after the other by hand, in any batch; what it refuses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from scanpy_scgpt import io
from scanpy_scgpt._batch import CellBatch, GenerativeBatch
from scanpy_scgpt.model import Embedder, GeneLists, Generator, Predicted
from scanpy_scgpt.module import PretrainModule
from scanpy_scgpt.nn import TransformerConfig
from scanpy_scgpt.tokenizer import GeneVocab, TokenizerConfig, Tokens, cell_keys

VOCAB = GeneVocab([f"G{i}" for i in range(97)])
N_CELLS, N_BINS, WIDTH = 30, 51, 24
CONFIG = TransformerConfig(n_tokens=100, pad_id=VOCAB.pad_id, d_model=WIDTH, n_heads=3, n_layers=2, d_ff=20)


def make_checkpoint(*, distribution=True, max_length=200, info=None, **changes):
    """A network of random weights, large enough that its answers differ from gene to gene."""
    config = replace(CONFIG, **changes)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        module = PretrainModule(config, distribution=distribution)
        for name, tensor in module.named_parameters():
            with torch.no_grad():
                tensor.add_(0.3 * torch.randn(tensor.shape))
            if name == "expression_head.network.4.bias":
                tensor.data.fill_(25.0)
    return io.Checkpoint(
        "tiny", config, TokenizerConfig(max_length=max_length), VOCAB, module.state_dict(), info=info or {}
    )


@pytest.fixture(scope="module")
def checkpoint():
    return make_checkpoint()


@pytest.fixture(scope="module")
def without_head():
    return make_checkpoint(distribution=False)


def ragged(lists):
    lengths = [len(x) for x in lists]
    return np.concatenate([[0], np.cumsum(lengths)]), np.concatenate([np.asarray(x, dtype=np.int32) for x in lists])


@pytest.fixture(scope="module")
def cells():
    """Known genes with digits, genes that are asked for, and keys; among them cells without any of the two."""
    rng = np.random.default_rng(0)
    orders = [rng.permutation(97) for _ in range(N_CELLS)]
    n_known, n_asked = rng.integers(0, 40, N_CELLS), rng.integers(0, 50, N_CELLS)
    n_known[:3], n_asked[:3] = (0, 0, 20), (0, 7, 0)
    indptr, gene_ids = ragged([order[:n] for order, n in zip(orders, n_known, strict=True)])
    known = Tokens(indptr, gene_ids, rng.integers(1, N_BINS, len(gene_ids)).astype(np.uint8))
    asked = GeneLists(*ragged([order[60 : 60 + n] for order, n in zip(orders, np.minimum(n_asked, 37), strict=True)]))
    return known, asked, cell_keys([f"cell{i}" for i in range(N_CELLS)], seed=0)


def take(known, asked, keys, which):
    parts = [asked.gene_ids[asked.indptr[i] : asked.indptr[i + 1]] for i in which]
    return known.take(which), GeneLists(*ragged(parts)), keys[which]


def split(found, asked):
    """Values and spread of each cell."""
    bounds = zip(asked.indptr[:-1], asked.indptr[1:], strict=True)
    return [(found.values[a:b], found.spread[a:b]) for a, b in bounds]


def module_of(checkpoint, *, distribution=True):
    module = PretrainModule(checkpoint.transformer, distribution=distribution).eval()
    module.load_state_dict(checkpoint.weights)
    return module


def predict_one(module, gene_ids, values, asked, cell=None):
    """Mean and standard deviation of the digits of one cell's genes, one pass of the plain network."""
    known = CellBatch(
        torch.tensor([[VOCAB.cls_id, *gene_ids]]), torch.tensor([[-2.0, *values]], dtype=torch.float32), None
    )
    ids = torch.tensor([asked])
    batch = GenerativeBatch(known, ids, torch.zeros(ids.shape), torch.zeros(ids.shape, dtype=torch.bool))
    with torch.no_grad():
        out = module.generate(batch, cell=None if cell is None else torch.tensor(cell)[None])
    chance = torch.softmax(out.logits[0, :, 1:].double(), dim=-1)
    digits = torch.arange(1, N_BINS, dtype=torch.float64)
    mean = chance @ digits
    return mean.numpy(), torch.sqrt(chance @ digits**2 - mean**2).numpy()


def generate_one(module, gene_ids, values, asked, *, n_steps, cell=None):
    """The K steps, gene by gene as the publication tells them."""
    gene_ids, values, open_, found = list(gene_ids), list(values), list(asked), {}
    for step in range(1, n_steps + 1):
        n_now = int(np.ceil(len(asked) * step / n_steps)) - len(found)
        if not n_now:
            continue
        mean, spread = predict_one(module, gene_ids, values, open_, cell)
        best = np.argsort(spread)[:n_now]
        found |= {open_[i]: (mean[i], spread[i]) for i in best}
        gene_ids += [open_[i] for i in best]
        values += [mean[i] for i in best]
        open_ = [gene for i, gene in enumerate(open_) if i not in set(best)]
    return np.array([found[gene] for gene in asked]).reshape(-1, 2).T


@pytest.mark.parametrize("n_steps", [1, 3, 5])
@pytest.mark.parametrize("prompted", [False, True])
def test_steps_are_those_of_one_cell_by_hand(checkpoint, cells, n_steps, prompted):
    known, asked, keys = cells
    prompts = np.random.default_rng(1).normal(size=(N_CELLS, WIDTH)).astype(np.float32) if prompted else None
    found = Generator(checkpoint, device="cpu").generate(known, asked, keys=keys, cell=prompts, n_steps=n_steps)
    module = module_of(checkpoint)
    for i, (values, spread) in enumerate(split(found, asked)):
        own = slice(known.indptr[i], known.indptr[i + 1])
        genes = asked.gene_ids[asked.indptr[i] : asked.indptr[i + 1]].tolist()
        if genes:
            cell = None if prompts is None else prompts[i]
            shown = known.gene_ids[own].tolist(), known.values[own].astype(float).tolist()
            expected = generate_one(module, *shown, genes, n_steps=n_steps, cell=cell)
            np.testing.assert_allclose(values, expected[0], atol=2e-3)
            np.testing.assert_allclose(spread, expected[1], atol=2e-3)


def test_steps_matter(checkpoint, cells):
    """Else the test above would hold of a generator that ignores the number of steps."""
    known, asked, keys = cells
    generator = Generator(checkpoint, device="cpu")
    once, thrice = (generator.generate(known, asked, keys=keys, n_steps=n).values for n in (1, 3))
    first = once == thrice  # the genes of the first step are those of one pass
    np.testing.assert_allclose(first.mean(), 1 / 3, atol=0.05)
    assert np.abs(once - thrice)[~first].max() > 0.1
    assert np.ptp(once) > 5


@pytest.mark.parametrize("max_tokens", [1, 40, 10**6])
@pytest.mark.parametrize("order", ["confidence", "random"])
def test_order_and_batch_change_nothing(checkpoint, cells, max_tokens, order):
    known, asked, keys = cells
    settings = {"n_steps": 3, "order": order, "draw": order == "random"}
    whole = split(Generator(checkpoint, device="cpu").generate(known, asked, keys=keys, **settings), asked)
    shuffled = np.random.default_rng(1).permutation(N_CELLS)
    generator = Generator(checkpoint, device="cpu", max_tokens=max_tokens)
    for which in (shuffled[:11], shuffled[11:]):
        some, lists, own = take(known, asked, keys, which)
        got = split(generator.generate(some, lists, keys=own, **settings), lists)
        for i, (values, spread) in zip(which, got, strict=True):
            np.testing.assert_allclose(values, whole[i][0], atol=1e-3)
            np.testing.assert_allclose(spread, whole[i][1], atol=1e-3)


def test_a_cell_longer_than_a_batch_comes_in_few_parts(checkpoint, monkeypatch):
    """What is known is computed again for each part, so a part is no shorter than that."""
    known = Tokens(np.array([0, 9]), np.arange(9, dtype=np.int32), np.full(9, 7, np.uint8))
    asked = GeneLists.repeated(np.arange(10, 97), 1)
    generator = Generator(checkpoint, device="cpu", max_tokens=1)
    plain, widths = generator._network.module.generate, []

    def counted(batch, *, cell):
        widths.append(batch.unknown_ids.shape[1])
        return plain(batch, cell=cell)

    monkeypatch.setattr(generator._network.module, "generate", counted)
    generator.generate(known, asked, keys=np.zeros(1, np.uint64), n_steps=1)
    assert widths == [10] * 8 + [7]
    widths.clear()
    generator._network._budget.max_tokens = 60
    generator.generate(known, asked, keys=np.zeros(1, np.uint64), n_steps=1)
    assert widths == [50, 37]


def test_draws_follow_the_distribution(checkpoint):
    """Many cells that are alike but for their keys."""
    n = 4000
    known = Tokens(np.arange(n + 1), np.full(n, 3, np.int32), np.full(n, 40, np.uint8))
    asked = GeneLists.repeated(np.array([5, 6]), n)
    keys = cell_keys(range(n), seed=0)
    generator = Generator(checkpoint, device="cpu")
    mean = generator.generate(known, asked, keys=keys, n_steps=1)
    drawn = generator.generate(known, asked, keys=keys, n_steps=1, draw=True).values
    assert (drawn == np.rint(drawn)).all()
    assert 1 <= drawn.min() <= drawn.max() <= N_BINS - 1
    for gene in (0, 1):
        spread = mean.spread[gene]
        assert abs(drawn[gene::2].mean() - mean.values[gene]) < 4 * spread / np.sqrt(n)
        assert abs(drawn[gene::2].std() - spread) < 0.05 * spread
    assert abs(np.corrcoef(drawn[::2], drawn[1::2])[0, 1]) < 0.07


def test_random_order_depends_on_the_key_alone(checkpoint, cells):
    known, asked, keys = cells
    generator = Generator(checkpoint, device="cpu")

    def values(own):
        return generator.generate(known, asked, keys=own, order="random").values

    np.testing.assert_array_equal(values(keys), values(keys))
    assert np.abs(values(keys) - values(keys + np.uint64(1))).max() > 0.1


def test_a_vector_of_the_embedder_is_the_prompt_of_pretraining(checkpoint, cells):
    known, asked, keys = cells
    vectors = Embedder(checkpoint, device="cpu").embed_tokens(known)
    generator = Generator(checkpoint, device="cpu")
    got = generator.generate(known, asked, keys=keys, cell=vectors, n_steps=1)
    module = module_of(checkpoint)
    i = int(np.argmax(asked.lengths))
    own = slice(known.indptr[i], known.indptr[i + 1])
    shown = CellBatch(
        torch.tensor([[VOCAB.cls_id, *known.gene_ids[own]]]),
        torch.tensor([[-2.0, *known.values[own].astype(np.float32)]]),
        None,
    )
    ids = torch.tensor(asked.gene_ids[asked.indptr[i] : asked.indptr[i + 1]][None].astype(np.int64))
    batch = GenerativeBatch(shown, ids, torch.zeros(ids.shape), torch.zeros(ids.shape, dtype=torch.bool))
    with torch.no_grad():
        cell = module.generate(batch).cell
        chance = torch.softmax(module.generate(batch, cell=cell).logits[0, :, 1:], dim=-1)
    np.testing.assert_allclose(split(got, asked)[i][0], chance @ torch.arange(1.0, N_BINS), atol=1e-3)


def test_long_cells_show_a_sample_of_their_genes(cells):
    """What is shown depends on the cell alone, and measured genes leave no place for generated ones."""
    known, asked, keys = cells
    short = Generator(make_checkpoint(max_length=11), device="cpu")
    once = short.generate(known, asked, keys=keys, n_steps=1)
    full = np.repeat(known.lengths >= 10, asked.lengths)
    thrice = short.generate(known, asked, keys=keys, n_steps=3)
    np.testing.assert_allclose(once.values[full], thrice.values[full], atol=1e-3)
    assert np.abs(once.values[~full] - thrice.values[~full]).max() > 0.1
    other = short.generate(known, asked, keys=keys + np.uint64(7), n_steps=1)
    changed = np.abs(once.values - other.values) > 1e-3
    assert changed[np.repeat(known.lengths > 10, asked.lengths)].mean() > 0.9
    assert not changed[np.repeat(known.lengths <= 10, asked.lengths)].any()
    which = np.arange(N_CELLS)[::-1]
    some, lists, own = take(known, asked, keys, which)
    turned = split(short.generate(some, lists, keys=own, n_steps=1), lists)
    for i, (values, _) in zip(which, turned, strict=True):
        np.testing.assert_allclose(values, split(once, asked)[i][0], atol=1e-3)


def test_without_a_distribution_the_expression_head_answers(without_head, cells):
    known, asked, keys = cells
    generator = Generator(without_head, device="cpu")
    assert not generator.knows_spread
    assert generator.record()["values_from"] == "expression head"
    found = generator.generate(known, asked, keys=keys, n_steps=1)
    assert np.isnan(found.spread).all()
    assert np.ptp(found.values) > 1
    assert 1 <= found.values.min() <= found.values.max() <= N_BINS - 1
    stepwise = generator.generate(known, asked, keys=keys, n_steps=3, order="random")
    assert np.abs(stepwise.values - found.values).max() > 0.1


def test_the_original_release_keeps_its_form_of_attention(cells):
    known, asked, keys = cells
    ours, theirs = (make_checkpoint(info=info) for info in ({}, {"legacy_generation": True}))
    values = [Generator(x, device="cpu").generate(known, asked, keys=keys, n_steps=1).values for x in (ours, theirs)]
    assert np.abs(values[0] - values[1]).max() > 0.1


def test_bf16_is_near(checkpoint, cells):
    known, asked, keys = cells
    exact, half = (
        Generator(checkpoint, device="cpu", precision=precision).generate(known, asked, keys=keys, n_steps=1).values
        for precision in ("fp32", "bf16")
    )
    assert 0 < np.abs(exact - half).max() < 2


def test_a_batch_that_does_not_fit_is_halved(checkpoint, cells, monkeypatch):
    known, asked, keys = cells
    expected = Generator(checkpoint, device="cpu").generate(known, asked, keys=keys)
    generator = Generator(checkpoint, device="cpu")
    plain, sizes = generator._network.module.generate, []

    def small(batch, *, cell):
        sizes.append(len(batch.unknown_ids))
        if len(batch.unknown_ids) > 2:
            raise torch.cuda.OutOfMemoryError("full")
        return plain(batch, cell=cell)

    monkeypatch.setattr(generator._network.module, "generate", small)
    got = generator.generate(known, asked, keys=keys)
    assert max(sizes) > 2
    np.testing.assert_allclose(got.values, expected.values, atol=1e-3)

    def fails(batch, *, cell):
        raise torch.cuda.OutOfMemoryError("full")

    monkeypatch.setattr(generator._network.module, "generate", fails)
    with pytest.raises(MemoryError, match="A single cell of .* does not fit into memory"):
        generator.generate(known, asked, keys=keys)
    monkeypatch.setattr(generator._network.module, "generate", lambda batch, *, cell: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        generator.generate(known, asked, keys=keys)


def test_no_cells(checkpoint):
    none = Tokens(np.zeros(1, np.int64), np.zeros(0, np.int32), np.zeros(0, np.uint8))
    found = Generator(checkpoint, device="cpu").generate(
        none, GeneLists.repeated(np.array([1, 2]), 0), keys=np.zeros(0, np.uint64)
    )
    assert isinstance(found, Predicted)
    assert found.values.shape == found.spread.shape == (0,)


def test_global_random_state_is_left_alone(checkpoint, cells):
    known, asked, keys = cells
    before = torch.get_rng_state().clone()
    Generator(checkpoint, device="cpu").generate(known, asked, keys=keys, order="random", draw=True)
    assert torch.equal(before, torch.get_rng_state())


def refused(generator, cells, **changes):
    known, asked, keys = cells
    settings = {"known": known, "asked": asked, "keys": keys, **changes}
    with pytest.raises(ValueError, match=r"\w") as caught:
        generator.generate(settings.pop("known"), settings.pop("asked"), **settings)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"n_steps": 0}, "n_steps=0: a whole number of at least 1 (the publication shows 3)."),
        ({"n_steps": True}, "n_steps=True: a whole number of at least 1 (the publication shows 3)."),
        ({"order": "best"}, "order='best': use one of 'confidence', 'random'."),
        ({"keys": np.zeros(3, np.uint64)}, "keys is of 3 cells, known of 30: give one entry per cell."),
        (
            {"cell": np.zeros((N_CELLS, 7))},
            "cell has shape (30, 7): give finite vectors of tiny, shape (30, 24).",
        ),
        (
            {"cell": np.full((N_CELLS, WIDTH), np.nan)},
            "cell has NaN or infinite numbers: give finite vectors of tiny, shape (30, 24).",
        ),
        (
            {"asked": GeneLists.repeated(np.arange(97), 2)},
            "asked is of 2 cells, known of 30: give one entry per cell.",
        ),
    ],
)
def test_arguments_that_do_not_fit(checkpoint, cells, changes, text):
    assert refused(Generator(checkpoint, device="cpu"), cells, **changes) == text


def test_a_gene_is_not_known_and_asked_for(checkpoint, cells):
    known, _, _ = cells
    gene = int(known.gene_ids[known.indptr[5]])
    lists = [[] for _ in range(N_CELLS)]
    lists[5] = [gene]
    text = refused(Generator(checkpoint, device="cpu"), cells, asked=GeneLists(*ragged(lists)))
    assert text == (
        f"1 genes are both known and asked for, first 'G{gene}' of cell 5. Take out of known what is to be generated."
    )


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"n_steps": 3}, "order='confidence' in 3 steps needs a value distribution, and tiny has none (no tensors "
         "distribution_head.*). Pass order='random' or n_steps=1, or use a model of scgpt.pretrain.run(..., "
         "distribution=True)."),
        ({"n_steps": 1, "draw": True}, "draw=True needs a value distribution, and tiny has none (no tensors "
         "distribution_head.*). Pass draw=False, or use a model of scgpt.pretrain.run(..., distribution=True)."),
    ],
)  # fmt: skip
def test_what_needs_a_distribution(without_head, cells, changes, text):
    assert refused(Generator(without_head, device="cpu"), cells, **changes) == text


def test_models_that_cannot_generate(checkpoint):
    weights = {name: x for name, x in checkpoint.weights.items() if name != "transformer.encoder.unknown"}
    for other, why in (
        (replace(checkpoint, weights=weights), "it has no tensor transformer.encoder.unknown"),
        (replace(checkpoint, info={"settings": {"task": "pcpt"}}), "its task was 'pcpt'"),
    ):
        with pytest.raises(ValueError, match="was not pretrained") as caught:
            Generator(other, device="cpu")
        assert str(caught.value) == (
            f"tiny was not pretrained generatively ({why}), so it cannot generate. Use model='mini', or a model of "
            "scgpt.pretrain.run(..., task='gen')."
        )
    with pytest.raises(ValueError, match="reads values as categories") as caught:
        Generator(make_checkpoint(value_encoding="category"), device="cpu")
    assert str(caught.value) == (
        "tiny reads values as categories, and generated values are no whole digits. Use a model with "
        "value_encoding='continuous'."
    )
    with pytest.raises(io.CheckpointMismatchError, match="of the expression_head cannot be loaded"):
        Generator(
            replace(checkpoint, weights={k: x for k, x in checkpoint.weights.items() if "expression" not in k}),
            device="cpu",
        )
    with pytest.raises(ValueError, match="max_tokens=0: a whole number of at least 1; leave it out for the default."):
        Generator(checkpoint, device="cpu", max_tokens=0)
