"""`tl.generate`: what it writes, what it looks at, and what it refuses."""

from __future__ import annotations

import logging
from dataclasses import replace

import anndata as ad
import numpy as np
import pytest
from scipy import sparse

from scanpy_scgpt import tl
from scanpy_scgpt.model import GeneLists, Generator
from scanpy_scgpt.tokenizer import Tokenizer, cell_keys

LAYER, SPREAD = "scgpt_generated", "scgpt_generated_sd"
SETTINGS = {"device": "cpu", "min_genes": 1}


@pytest.fixture
def few(counts):
    """40 real cells with integers in X."""
    return counts[:40].copy()


@pytest.fixture
def genes(few, checkpoint):
    """Five genes of the vocabulary."""
    return [name for name in few.var_names if name in checkpoint.vocab][10:60:10]


def generated(adata, model, genes, **kwargs):
    """Generated values of the genes, dense, `(n_obs, n_genes)`; the cells are left alone."""
    done = tl.generate(adata, model, genes=genes, copy=True, **{**SETTINGS, **kwargs})
    return done[:, genes].layers[LAYER].toarray()


def changed(adata, names, factor=3):
    """The cells with other counts of these genes, zeros among them."""
    adata = adata.copy()
    dense = adata.X.toarray()
    columns = adata.var_names.get_indexer(names)
    dense[:, columns] = factor * np.random.default_rng(0).integers(0, 9, (adata.n_obs, len(columns)))
    adata.X = sparse.csr_matrix(dense)
    return adata


def test_what_is_written(few, generative, genes, fingerprint, caplog):
    before = fingerprint(few)
    with caplog.at_level(logging.INFO, logger="scanpy_scgpt"):
        assert tl.generate(few, generative, genes=genes, **SETTINGS) is None
    after = fingerprint(few)
    assert {slot: after[slot] for slot in before} == before
    new = {slot for slot in after.keys() - before.keys() if not slot.startswith("uns/scgpt/generate/")}
    assert new == {f"layers/{LAYER}", f"layers/{SPREAD}"}
    columns = few.var_names.get_indexer(genes)
    for name in (LAYER, SPREAD):
        layer = few.layers[name]
        assert isinstance(layer, sparse.csr_matrix)
        assert layer.dtype == np.float32
        assert layer.shape == few.shape
        assert layer.has_sorted_indices
        assert set(layer.indices) == set(columns)
        assert layer.nnz == few.n_obs * len(genes)
    values = few.layers[LAYER].data
    assert 1 <= values.min() < values.max() <= 50
    record = few.uns["scgpt"]["generate"]
    assert record["model"] == "random"
    assert (record["n_cells"], record["n_generated"], record["n_empty_cells"]) == (40, 5, 0)
    assert (record["n_steps"], record["order"], record["draw"], record["prompt"]) == (3, "confidence", False, "genes")
    assert record["key"] == LAYER
    assert "5 genes from known genes in 3 steps by confidence · random · cpu fp32" in caplog.text
    assert f"→ layers['{LAYER}'], layers['{SPREAD}']" in caplog.text


def test_values_are_those_of_the_generator(few, generative, genes):
    """Tokens without the genes that are asked for, then K steps."""
    ids = np.where(few.var_names.isin(genes), -1, generative.vocab.ids(list(few.var_names)))
    names = few.obs_names.to_numpy()
    known = Tokenizer(generative.vocab, generative.tokenizer).encode(few.X, ids, names)
    asked = GeneLists.repeated(generative.vocab.ids(genes), few.n_obs)
    keys = cell_keys(names, seed=0, purpose="generate")
    found = Generator(generative, device="cpu").generate(known, asked, keys=keys)
    np.testing.assert_allclose(generated(few, generative, genes).ravel(), found.values, atol=1e-4)
    np.testing.assert_allclose(
        tl.generate(few, generative, genes=genes, copy=True, **SETTINGS)[:, genes].layers[SPREAD].toarray().ravel(),
        found.spread,
        atol=1e-4,
    )


def test_what_is_asked_for_is_not_looked_at(few, generative, genes):
    other = changed(few, genes)
    assert (other.X != few.X).nnz > 100
    np.testing.assert_array_equal(generated(few, generative, genes), generated(other, generative, genes))
    seen = [name for name in few.var_names if name in generative.vocab and name not in genes]
    assert np.abs(generated(few, generative, genes) - generated(changed(few, seen), generative, genes)).max() > 0.5


def test_only_known_genes_are_looked_at(few, generative, genes):
    names = [name for name in few.var_names if name in generative.vocab and name not in genes]
    known, others = names[:100], names[100:]
    some = generated(few, generative, genes, known=known)
    np.testing.assert_array_equal(some, generated(changed(few, others), generative, genes, known=known))
    assert np.abs(some - generated(changed(few, known), generative, genes, known=known)).max() > 0.5
    assert np.abs(some - generated(few, generative, genes)).max() > 0.5


@pytest.mark.parametrize("settings", [{}, {"draw": True, "order": "random"}, {"prompt": "both"}])
def test_order_and_subset_change_nothing(few, generative, genes, settings):
    whole = generated(few, generative, genes, **settings)
    rows = np.random.default_rng(0).permutation(40)[:17]
    got = generated(few[rows].copy(), generative, genes[::-1], max_tokens=500, **settings)
    np.testing.assert_allclose(got, whole[rows][:, ::-1], atol=1e-3)


def test_seed_of_draws(few, generative, genes):
    first, second = (generated(few, generative, genes, draw=True, rng=rng) for rng in (0, 1))
    assert (first == np.rint(first)).all()
    assert (first != second).mean() > 0.5


def test_small_blocks_change_nothing(few, generative, genes, monkeypatch):
    whole = generated(few, generative, genes)
    monkeypatch.setattr(tl._layers, "_ENTRIES", 5 * 7)
    np.testing.assert_allclose(generated(few, generative, genes), whole, atol=1e-4)


def test_prompt_of_the_cell_is_its_vector(few, generative, genes):
    """Computed from the other genes by default, or taken from a slot."""
    plain = few[:, ~few.var_names.isin(genes)].copy()
    tl.embed(plain, generative, pooling="cls", normalize=False, key_added="raw", device="cpu", min_genes=1)
    few.obsm["raw"] = plain.obsm["raw"]
    for prompt in ("cell", "both"):
        own = generated(few, generative, genes, prompt=prompt)
        np.testing.assert_allclose(own, generated(few, generative, genes, prompt=prompt, embedding="raw"), atol=1e-3)
    alone, both, without = (generated(few, generative, genes, prompt=prompt) for prompt in ("cell", "both", "genes"))
    for first, second in ((alone, both), (both, without), (alone, without)):
        assert np.abs(first - second).max() > 0.02


def test_vectors_that_are_given_are_taken_as_they_are(few, generative, genes, caplog):
    """Those of cells with the genes asked for have seen them, and the receipt says so; computed ones have not."""

    def values(cells, prompt, **kwargs):
        tl.embed(cells, generative, pooling="cls", normalize=False, key_added="raw", device="cpu", min_genes=1)
        return generated(cells, generative, genes, prompt=prompt, **kwargs)

    other = changed(few, genes)
    for prompt in ("cell", "both"):
        np.testing.assert_array_equal(values(few, prompt), values(other, prompt))
        assert "may have seen" not in caplog.text
        caplog.clear()
        assert np.abs(values(few, prompt, embedding="raw") - values(other, prompt, embedding="raw")).max() > 1e-4
        assert " · obsm['raw'] may have seen these genes: it was taken as it is · random" in caplog.text
        caplog.clear()


@pytest.mark.parametrize(("after", "steps"), [(None, 100), (100, 100), (101, 100)])
def test_a_model_that_never_saw_cell_prompts_is_used_with_a_warning(few, generative, genes, caplog, after, steps):
    model = replace(generative, info={"settings": {"prompt_after": after, "max_steps": steps}})
    text = (
        f"generate: random was never trained to predict from cell vectors (prompt_after={after}, max_steps={steps}), "
        "so prompt={0!r} gives values that mean little. Pass prompt='genes'."
    )
    for prompt in ("cell", "both"):
        expected = generated(few, generative, genes, prompt=prompt)
        assert "never trained" not in caplog.text
        np.testing.assert_array_equal(generated(few, model, genes, prompt=prompt), expected)
        assert [x.getMessage() for x in caplog.records if x.levelno == logging.WARNING] == [text.format(prompt)]
        caplog.clear()
    generated(few, model, genes)
    trained = replace(generative, info={"settings": {"prompt_after": 99, "max_steps": 100}})
    generated(few, trained, genes, prompt="cell")
    assert "never trained" not in caplog.text


def test_from_a_vector_alone_no_count_is_looked_at(few, generative, genes):
    few.obsm["raw"] = np.random.default_rng(0).normal(size=(40, 16))
    values = generated(few, generative, genes, prompt="cell", embedding="raw")
    seen = [name for name in few.var_names if name in generative.vocab]
    np.testing.assert_array_equal(
        values, generated(changed(few, seen), generative, genes, prompt="cell", embedding="raw")
    )
    everything = generated(few, generative, seen, prompt="cell", embedding="raw", n_steps=1)
    assert everything.shape == (40, len(seen))
    few.obsm["raw"] = few.obsm["raw"][::-1]
    assert np.abs(values - generated(few, generative, genes, prompt="cell", embedding="raw")).max() > 0.1


def test_a_trained_network_knows_the_type_of_the_cell(two_types, learned):
    """Of cells that it did not see: a marker is high where the other markers are, low elsewhere."""
    cells = two_types[200:].copy()
    first = cells.obs["kind"].to_numpy() == 0
    for prompt in ("genes", "both"):
        even, odd = generated(cells, learned, ["G0", "G1"], prompt=prompt).T
        assert even[first].mean() > even[~first].mean() + 8, prompt
        assert odd[~first].mean() > odd[first].mean() + 8, prompt


def test_genes_by_other_names(few, generative, genes):
    """As columns of `var` or as the vocabulary calls them; a name given twice counts once."""
    expected = generated(few, generative, genes)
    few.var["symbol"] = few.var_names
    renamed = few.copy()
    renamed.var_names = [f"x{i}" for i in range(few.n_vars)]
    own = renamed.var_names[few.var_names.get_indexer(genes)].tolist()
    for names in (genes, own, [genes[0], *own]):
        done = tl.generate(renamed, generative, genes=names, copy=True, **SETTINGS)
        np.testing.assert_allclose(done[:, own].layers[LAYER].toarray(), expected, atol=1e-4)
    one = tl.generate(few, generative, genes=genes[0], copy=True, **SETTINGS)
    assert one.uns["scgpt"]["generate"]["n_generated"] == 1


def test_several_columns_of_a_gene(few, generative, genes):
    """The first holds the values; none of them is looked at."""
    extra = few[:, genes[:2]].copy()
    few.var["symbol"], extra.var["symbol"] = few.var_names, extra.var_names
    extra.var_names = ["again", "and again"]
    two = ad.concat([few, extra], axis=1)
    done = tl.generate(two, generative, genes=genes, copy=True, **SETTINGS)
    columns = few.var_names.get_indexer(genes)
    assert set(done.layers[LAYER].indices) == set(columns)
    np.testing.assert_allclose(done.layers[LAYER][:, columns].toarray(), generated(few, generative, genes), atol=1e-4)


def test_other_places_of_the_result(few, generative, genes):
    tl.generate(few, generative, genes=genes, key_added="mine", **SETTINGS)
    assert list(few.layers) == ["mine", "mine_sd"]
    assert few.uns["scgpt"]["generate_mine"]["key"] == "mine"
    with pytest.raises(ValueError, match="a name with a slash cannot be written to a file. Leave the slash out."):
        tl.generate(few, generative, genes=genes, key_added="a/b", **SETTINGS)


def test_a_model_without_a_distribution_leaves_no_old_spread(few, generative, checkpoint, genes):
    tl.generate(few, generative, genes=genes, **SETTINGS)
    tl.generate(few, checkpoint, genes=genes, n_steps=1, **SETTINGS)
    assert list(few.layers) == [LAYER]
    assert few.uns["scgpt"]["generate"]["values_from"] == "expression head"
    with pytest.raises(ValueError, match="in 3 steps needs a value distribution, and tiny has none"):
        tl.generate(few, checkpoint, genes=genes, **SETTINGS)


def test_cells_on_disk(few, generative, genes, tmp_path, write_cells):
    expected = generated(few, generative, genes)
    backed = ad.read_h5ad(write_cells(few, tmp_path / "cells.h5ad"), backed="r")
    tl.generate(backed, generative, genes=genes, **SETTINGS)
    columns = few.var_names.get_indexer(genes)
    np.testing.assert_allclose(backed.layers[LAYER][:, columns].toarray(), expected, atol=1e-4)
    backed.file.close()


def test_dense_cells(few, generative, genes):
    expected = generated(few, generative, genes)
    few.X = few.X.toarray()
    np.testing.assert_allclose(generated(few, generative, genes), expected, atol=1e-4)


def test_cells_without_genes(few, generative, genes, caplog):
    dense = few.X.toarray()
    dense[3], dense[7] = 0, 0
    few.X = sparse.csr_matrix(dense)
    tl.generate(few, generative, genes=genes, order="random", **SETTINGS)
    assert few.uns["scgpt"]["generate"]["n_empty_cells"] == 2
    assert "2 cells show no gene that may be seen; they all got the same values, those of an empty cell." in caplog.text
    assert np.isfinite(few.layers[LAYER].data).all()
    none = few[:0].copy()
    tl.generate(none, generative, genes=genes, **SETTINGS)
    assert none.layers[LAYER].shape == (0, few.n_vars)


def refused(adata, model, error, **kwargs):
    before = list(adata.layers), list(adata.uns)
    with pytest.raises(error) as caught:
        tl.generate(adata, model, **{**SETTINGS, **kwargs})
    assert (list(adata.layers), list(adata.uns)) == before
    return caught.value.args[0]


def test_genes_that_cannot_be_generated(few, generative, genes):
    first = few.var_names[0]
    assert (
        refused(few, generative, ValueError, genes=[])
        == f"genes is empty: give names of genes, such as genes=['{first}']."
    )
    unknown = [name for name in few.var_names if name not in generative.vocab][:2]
    assert refused(few, generative, ValueError, genes=[*genes, *unknown, "no gene"]) == (
        f"3 of the 8 genes of genes= are not in the vocabulary of random: '{unknown[0]}', '{unknown[1]}', 'no gene'. "
        "Leave them out."
    )
    assert refused(few, generative, ValueError, genes=["INS", *genes]) == (
        "1 of the 6 genes of genes= are not among the genes of X: 'INS'. Leave them out."
    )
    assert refused(few, generative, ValueError, genes=[f"no gene {i}" for i in range(9)]) == (
        "9 of the 9 genes of genes= are not in the vocabulary of random: 'no gene 0', 'no gene 1', 'no gene 2', "
        "'no gene 3', 'no gene 4' and 4 more. Leave them out."
    )
    assert refused(few, generative, ValueError, genes=genes, known=[*genes[:2], few.var_names[0]]) == (
        f"2 genes are in genes= and in known=: '{genes[0]}', '{genes[1]}'. Take them out of one of the two."
    )
    every = [name for name in few.var_names if name in generative.vocab]
    assert refused(few, generative, ValueError, genes=every) == (
        f"genes= names all {len(every)} genes that the cells have in the vocabulary, so none is left to be seen. Ask "
        "for fewer, or give vectors: prompt='cell', embedding='<key of obsm>'."
    )
    few.raw = few
    small = few[:, ~few.var_names.isin(genes[:1])].copy()
    assert refused(small, generative, ValueError, genes=genes, use_raw=True) == (
        f"adata has no column for 1 genes of genes= (raw.X has): '{genes[0]}'. Leave them out, or take "
        "adata.raw.to_adata()."
    )


def test_vectors_that_are_no_prompt(few, generative, checkpoint, genes):
    def text(key, model=generative, error=ValueError, **changes):
        return refused(few, model, error, **{"genes": genes, "prompt": "cell", "embedding": key, **changes})

    mend = (
        "Leave embedding out, or make them: scgpt.tl.embed(adata, model, pooling='cls', normalize=False, "
        "key_added='{0}')."
    )
    few.obsm["X_pca"] = np.ones((40, 7))
    assert (
        text("X_pca") == f"obsm['X_pca'] has shape (40, 7), vectors of random have 16 numbers. {mend.format('X_pca')}"
    )
    assert text("none", error=KeyError) == (
        "There is no obsm['none'] (embedding=). Keys: 'X_pca'. Leave embedding out to compute the vectors."
    )
    few.obsm["bad"] = np.full((40, 16), np.inf)
    assert text("bad") == f"obsm['bad'] has NaN or infinite numbers. {mend.format('bad')}"
    tl.embed(few, generative, **SETTINGS)
    unit = "holds vectors of length 1 (normalize=True), and the network was trained on unscaled ones"
    assert text("X_scgpt") == f"obsm['X_scgpt'] {unit}. {mend.format('X_scgpt')}"
    del few.uns["scgpt"]
    assert text("X_scgpt") == f"obsm['X_scgpt'] {unit}. {mend.format('X_scgpt')}"
    tl.embed(few, generative, pooling="mean", normalize=False, key_added="mean", **SETTINGS)
    assert text("mean") == (
        f"obsm['mean'] was made with pooling='mean', and the prompt is the vector at <cls>. {mend.format('mean')}"
    )
    tl.embed(few, generative, pooling="cls", normalize=False, key_added="other", **SETTINGS)
    few.uns["scgpt"]["embed_other"]["model_hash"] = "abc"
    assert text("other") == f"obsm['other'] was made by random@abc, not by random. {mend.format('other')}"
    assert text("other", prompt="genes") == (
        "embedding='other' is not used with prompt='genes'. Pass prompt='cell' or 'both', or leave it out."
    )


def test_settings_that_do_not_exist(few, generative, genes):
    assert refused(few, generative, ValueError, genes=genes, prompt="gene") == (
        "prompt='gene': use one of 'genes', 'cell', 'both'; did you mean 'genes'."
    )
    assert refused(few, generative, ValueError, genes=genes, n_steps=1.5) == (
        "n_steps=1.5: a whole number of at least 1 (the publication shows 3)."
    )
    assert refused(few, generative, ValueError, genes=genes, order="sure") == (
        "order='sure': use one of 'confidence', 'random'."
    )
