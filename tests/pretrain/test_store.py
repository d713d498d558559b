"""Pretraining from a token store: the run of the files it was made of."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

import scanpy_scgpt as scgpt
from scanpy_scgpt import pretrain
from scanpy_scgpt.pretrain._corpus import store_corpus
from scanpy_scgpt.pretrain._data import split

SMALL = {
    "d_model": 16,
    "n_heads": 2,
    "n_layers": 1,
    "d_ff": 16,
    "dropout": 0.0,
    "max_length": 40,
    "batch_size": 32,
    "max_steps": 8,
    "epoch_steps": 4,
    "lr": 5e-3,
    "warmup_steps": 2,
    "prompt_after": 4,
    "validation_share": 0.2,
}
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:.*GPU available but not used.*"),
]


@pytest.fixture
def files(counts, tmp_path):
    """Real cells in two files with different genes; one names its study."""
    first, second = counts[:300, :600].copy(), counts[300:, 100:].copy()
    first.obs = pd.DataFrame({"study": ["Zheng 2017"] * 300}, index=first.obs_names)
    for part, name in ((first, "a"), (second, "b")):
        part.X = sparse.csr_matrix(part.X).astype(np.int32)
        part.write_h5ad(tmp_path / f"{name}.h5ad")
    return [tmp_path / "a.h5ad", tmp_path / "b.h5ad"]


@pytest.fixture
def store(files, vocab, tmp_path):
    return scgpt.pp.tokenize(files, vocab, ties="mid", min_genes=1, out=tmp_path / "cells.tokens")


def test_a_store_trains_as_its_files_do(files, store, vocab, tmp_path):
    from_files = pretrain.run(files, tmp_path / "files", vocab=vocab, accelerator="cpu", **SMALL)
    from_store = pretrain.run(store, tmp_path / "store", accelerator="cpu", **SMALL)
    assert from_store.info["studies"] == from_files.info["studies"] == {"Zheng 2017": 300, "b": 400}
    assert from_store.info["losses"] == from_files.info["losses"]
    assert from_store.info["errors"] == from_files.info["errors"]
    for name, tensor in from_files.weights.items():
        torch.testing.assert_close(from_store.weights[name], tensor, rtol=0, atol=0)
    again = pretrain.run(store, tmp_path / "store", accelerator="cpu", **SMALL)
    assert again.info["losses"] == from_store.info["losses"], "the run is known again by the store"


def test_what_is_held_of_each_cell_of_a_store(files, store, tmp_path, monkeypatch):
    """Neither names nor row pointers of all cells; the split is that of the files."""
    held = store_corpus(scgpt.disk.TokenStore(store))
    names = np.concatenate([f"{path.stem}/" + ad.read_h5ad(path).obs_names.to_numpy(object) for path in files])
    whole = pretrain.Corpus(held.tokens, [names], held.study, held.tissue)
    for here, there in zip(held.split(share=0.3, rng=4), whole.split(share=0.3, rng=4), strict=True):
        np.testing.assert_array_equal(here, there)
    np.testing.assert_array_equal(np.concatenate(list(held.names)), names)
    assert held.study.tolist() == ["Zheng 2017"] * 300 + ["b"] * 400
    assert held.study.codes.dtype == np.int8
    assert not {"names", "indptr"} & set(vars(held.tokens))

    def refuse(_store):
        raise AssertionError

    monkeypatch.setattr(scgpt.disk.TokenStore, "indptr", property(refuse))
    pretrain.run(store, tmp_path / "out", accelerator="cpu", panel_share=0.5, **SMALL)


def test_stores_that_do_not_fit(files, store, vocab, tmp_path):
    with pytest.raises(FileNotFoundError, match="nope.tokens: there is no such file or token store"):
        pretrain.run(tmp_path / "nope.tokens", tmp_path / "out", **SMALL)
    with pytest.raises(ValueError, match=r"is a token store: give it alone. pretrain.prepare\(\[...\], out\)"):
        pretrain.run([store, files[0]], tmp_path / "out", **SMALL)
    with pytest.raises(ValueError, match=r"made with n_bins=51, ties='mid'; the run asks for n_bins=31, ties='mid'"):
        pretrain.run(store, tmp_path / "out", n_bins=31, **SMALL)
    other = scgpt.tokenizer.GeneVocab(vocab.genes[:100])
    with pytest.raises(ValueError, match="vocabulary"):
        pretrain.run(store, tmp_path / "out", vocab=other, **SMALL)
    with pytest.raises(ValueError, match="is a token store, whose cells were chosen. Leave it out"):
        pretrain.run(store, tmp_path / "out", filters=pretrain.QualityFilters(min_genes=5), **SMALL)
    for name, value in (("duplicates", "drop"), ("on_error", "skip")):
        with pytest.raises(ValueError, match=f"^{name}='{value}': .*cells.tokens is a token store, whose cells were"):
            pretrain.run(store, tmp_path / "out", **{name: value}, **SMALL)


def test_held_out_cells_repeat_no_training_cell(counts, vocab, tmp_path, caplog, monkeypatch):
    """Half of the cells stand twice, under other names and in other files; a store without keys does not tell."""
    monkeypatch.setattr("scanpy_scgpt.pretrain._preparation._SHARD", 100)
    again = counts[:350].copy()
    again.obs_names = [f"again-{name}" for name in again.obs_names]
    for part, name in ((counts, "a"), (again, "b")):
        part.write_h5ad(tmp_path / f"{name}.h5ad")
    files = [tmp_path / "a.h5ad", tmp_path / "b.h5ad"]
    corpus = store_corpus(pretrain.prepare(files, tmp_path / "keys.tokens", vocab=vocab))
    config = pretrain.PretrainConfig(validation_share=0.3)
    with caplog.at_level("INFO"):
        found = split(corpus, config, rng=1)
    before = corpus.split(share=0.3, rng=1)
    np.testing.assert_array_equal(found.training, before[0])
    everyone = np.vstack([counts.X.toarray(), again.X.toarray()])
    shown = {row.tobytes() for row in everyone[found.training]}
    kept = [i for i in before[1] if everyone[i].tobytes() not in shown or (everyone[i] > 0).sum() < 10]
    np.testing.assert_array_equal(found.validation, kept)
    assert found.repeated == len(before[1]) - len(kept) > 90
    assert (
        f"pretraining: {found.repeated} cells are neither trained on nor held out: training cells have" in caplog.text
    )
    share = 100 * len(kept) / (len(kept) + len(before[0]))
    assert f"{len(kept)} are held out ({share:.1f} %; validation_share=0.3)" in caplog.text
    scgpt.pp.tokenize(files, vocab, ties="mid", min_genes=1, out=tmp_path / "plain.tokens")
    unknown = split(store_corpus(scgpt.disk.TokenStore(tmp_path / "plain.tokens")), config, rng=1)
    assert unknown.repeated is None
    assert len(unknown.validation) == len(before[1])
    again.obs["study"], counts.obs["study"] = "b", "a"
    for part, name in ((counts, "a"), (again, "b")):
        part.write_h5ad(tmp_path / f"{name}.h5ad")
    corpus = store_corpus(pretrain.prepare(files, tmp_path / "studies.tokens", vocab=vocab))
    text = r"0 for validation \(\d+ that have the counts of a training cell are in neither\): no validation cells\."
    with pytest.raises(ValueError, match=text):
        split(corpus, pretrain.PretrainConfig(validation_by="study", validation_studies=("b",)), rng=0)
