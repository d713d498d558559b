"""What users of scvi-tools rely on, for every model class."""

from __future__ import annotations

import json
import logging
import os
import pickle
import shutil
import subprocess
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

import anndata as ad
import lightning.pytorch as lp
import mudata
import numpy as np
import pandas as pd
import pytest
import scvi
import torch
from scipy import sparse
from torch.utils.data import DataLoader

import scanpy_scgpt as scgpt
from scanpy_scgpt import model as models
from scanpy_scgpt.io import CheckpointError

CLASSES = ("SCGPT", "SCGPTAnnotator")
each_class = pytest.mark.parametrize("name", CLASSES)


@pytest.fixture(autouse=True)
def _quiet_scvi():
    level = scvi.settings.verbosity
    scvi.settings.verbosity = logging.ERROR
    yield
    scvi.settings.verbosity = level


def _weights(model):
    return {name: x.detach().clone() for name, x in model.module.state_dict().items()}


def _changed(model, before):
    return {name for name, x in model.module.state_dict().items() if not torch.equal(x, before[name])}


# ---- cells of the model


def test_setup_writes_what_scvi_tools_writes(trained, capsys):
    adata = trained.adata
    assert {"_scvi_uuid", "_scvi_manager_uuid"} <= set(adata.uns)
    assert adata.obs["_scvi_labels"].tolist() == [trained.labels_.index(x) for x in adata.obs["cell_type"]]
    assert adata.obs["_scvi_batch"].tolist() == [trained.batches_.index(x) for x in adata.obs["donor"]]
    stats = trained.summary_stats
    assert (stats.n_cells, stats.n_vars, stats.n_labels, stats.n_batch) == (90, 765, 3, 2)
    assert list(trained.get_var_names()) == list(adata.var_names)
    assert trained.adata_manager.adata is adata
    assert trained.registry["setup_args"]["labels_key"] == "cell_type"
    assert trained.data_registry("labels").shape[0] == 90
    repr(trained)  # scvi-tools prints
    assert f"{type(trained).__name__} from tiny: 3 labels, 2 batches, objectives cls" in capsys.readouterr().out


def test_views_of_the_registry_print(trained, saved, capsys):
    trained.view_anndata_setup()
    trained.adata_manager.view_registry()
    type(trained).view_setup_args(saved)
    assert "cell_type" in capsys.readouterr().out


def test_training_leaves_history_and_indices(trained):
    assert trained.is_trained
    assert {"train_loss", "validation_loss", "cls_train", "cls_validation", "macro_f1_validation"} <= set(
        trained.history
    )
    assert all(isinstance(table, pd.DataFrame) and len(table) == 1 for table in trained.history.values())
    parts = [trained.train_indices, trained.validation_indices, trained.test_indices]
    assert sorted(np.concatenate(parts)) == list(range(90))
    assert len(trained.train_indices) == 63


@each_class
def test_history_grows(name, cells, make):
    model = make(name, cells)
    for n in (1, 2, 3):
        model.train(max_epochs=1)
        assert len(model.history["train_loss"]) == n
    assert model.history["train_loss"].index.tolist() == [0, 1, 2]


@each_class
def test_a_layer_is_taken(name, cells, make):
    expected = make(name, cells.copy()).get_latent_representation()
    cells.layers["raw"] = cells.X
    cells.X = np.zeros(cells.shape, np.float32)
    np.testing.assert_allclose(make(name, cells, setup={"layer": "raw"}).get_latent_representation(), expected)


@each_class
def test_training_repeats(name, cells, make):
    found = []
    for _ in range(2):
        torch.rand(3)
        model = make(name, cells.copy(), dropout=0.2)
        model.train(max_epochs=1)
        found.append(model.predict(soft=True))
    pd.testing.assert_frame_equal(*found)


# ---- arrays


@pytest.mark.parametrize("batch_size", [1, 7, 500])
def test_batches_change_nothing(trained, batch_size):
    whole = trained.get_latent_representation()
    assert (whole.shape, whole.dtype) == ((90, 16), np.float32)
    np.testing.assert_allclose(np.linalg.norm(whole, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(trained.get_latent_representation(batch_size=batch_size), whole, atol=1e-5)
    soft = trained.predict(soft=True)
    np.testing.assert_allclose(trained.predict(soft=True, batch_size=batch_size), soft, atol=1e-5)


@pytest.mark.parametrize(
    "indices", [[5, 3, 88], [-1, 0], [4, 4], [], np.arange(90) % 4 == 0, np.zeros(90, bool), pd.Index([7, 2])]
)
def test_cells_are_chosen_in_the_order_asked_for(trained, indices):
    positions = np.arange(90)[np.asarray(indices, dtype=None if len(indices) else int)]
    whole = trained.get_latent_representation()
    np.testing.assert_allclose(trained.get_latent_representation(indices=indices), whole[positions], atol=1e-5)
    soft = trained.predict(indices=indices, soft=True)
    assert soft.index.tolist() == trained.adata.obs_names[positions].tolist()
    np.testing.assert_allclose(soft, trained.predict(soft=True).iloc[positions], atol=1e-5)
    assert trained.predict(indices=indices).tolist() == trained.predict()[positions].tolist()


@pytest.mark.parametrize(
    ("indices", "text"),
    [
        ([0, 90], "indices go up to 90, and there are 90 cells"),
        (np.ones(89, bool), "indices has 89 entries of True and False, and there are 90 cells"),
    ],
)
def test_cells_that_are_not_there(trained, indices, text):
    for method in (trained.get_latent_representation, trained.predict):
        with pytest.raises(IndexError, match=text):
            method(indices=indices)


def _reordered(adata):
    return adata[:, np.random.default_rng(0).permutation(adata.n_vars)].copy()


def _with_more(adata):
    extra = ad.AnnData(
        sparse.csr_matrix(np.ones((adata.n_obs, 3), np.float32)),
        obs=adata.obs[[]],
        var=pd.DataFrame(index=["extra1", "NOT_A_GENE", "extra3"]),
    )
    both = ad.concat([extra, adata], axis=1)
    both.obs = adata.obs.copy()
    return both


def test_genes_in_another_order_change_nothing(trained, cells):
    np.testing.assert_allclose(
        trained.get_latent_representation(_reordered(cells)), trained.get_latent_representation(), atol=1e-5
    )
    np.testing.assert_allclose(trained.predict(_reordered(cells), soft=True), trained.predict(soft=True), atol=1e-4)


def test_genes_that_the_vocabulary_lacks_change_nothing(trained, cells):
    np.testing.assert_allclose(
        trained.get_latent_representation(_with_more(cells)), trained.get_latent_representation(), atol=1e-5
    )


def test_genes_may_be_missing_and_columns_too(trained, cells):
    few = cells[:, ::2].copy()
    few.obs = few.obs[[]]
    vectors = trained.get_latent_representation(few)
    assert np.isfinite(vectors).all()
    table = trained.predict(few, soft=True)
    np.testing.assert_allclose(table.sum(axis=1), 1, atol=1e-5)
    assert np.abs(vectors - trained.get_latent_representation()).max() > 1e-3


def test_a_view_and_cells_in_another_order(trained, cells):
    order = np.random.default_rng(1).permutation(90)[:40]
    got = trained.predict(cells[order], soft=True)
    assert got.index.tolist() == cells.obs_names[order].tolist()
    np.testing.assert_allclose(got, trained.predict(soft=True).iloc[order], atol=1e-5)


def test_predictions_are_labels(trained):
    soft, hard = trained.predict(soft=True), trained.predict()
    assert soft.columns.tolist() == trained.labels_ == sorted(set(trained.adata.obs["cell_type"]))
    np.testing.assert_allclose(soft.sum(axis=1), 1, atol=1e-5)
    assert hard.tolist() == soft.idxmax(axis=1).tolist()


def test_vectors_of_genes(trained):
    vocab = trained._checkpoint.vocab
    table = trained.get_gene_embeddings()
    assert table.shape == (len(vocab.genes), 16)
    chosen = trained.get_gene_embeddings([vocab.genes[3], "NOT_A_GENE", vocab.genes[1]])
    np.testing.assert_array_equal(chosen.iloc[[0, 2]], table.iloc[[3, 1]])
    assert chosen.loc["NOT_A_GENE"].isna().all()


@pytest.mark.parametrize("layer", [0, -1])
def test_attention_is_what_the_layer_computes(trained, layer):
    """The weights of one cell, times its values, are the output of the layer's attention."""
    cell = trained._cells()
    genes = [trained._checkpoint.vocab.genes[i] for i in cell.tokens.take(np.array([4])).gene_ids]
    entered = []
    batch = cell.batch(np.array([4]))
    network = trained.module.transformer
    with torch.no_grad():
        network(batch["gene_ids"], batch["values"], batch["padding"], watch=entered.append)
        attention = network.layers[layer].attention
        x = entered[range(2)[layer]]
        weights = trained._weights_of(batch, range(2)[layer], attention)
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones_like(weights[..., 0]))
        value = attention.in_proj(x).unflatten(-1, (3, attention.n_heads, -1))[:, :, 2]
        mixed = torch.einsum("bhqk,bkhd->bqhd", weights, value).flatten(2)
        torch.testing.assert_close(attention.out_proj(mixed), attention(x, batch["padding"]), rtol=0, atol=1e-5)
    for head in (0, None):
        got = trained.get_attention(indices=[4], genes=genes, layer=layer, head=head)
        expected = weights[0].mean(dim=0) if head is None else weights[0, head]
        np.testing.assert_allclose(got, expected[1:, 1:].numpy(), atol=1e-5)


def test_attention_is_a_mean_over_cells_that_have_both(trained):
    genes = trained._checkpoint.vocab.genes[:6]
    got = trained.get_attention(genes=[*genes, genes[0]], batch_size=5)
    assert got.index.tolist() == got.columns.tolist() == list(genes)
    alone = np.stack([trained.get_attention(indices=[i], genes=genes) for i in range(0, 90, 3)])
    some = trained.get_attention(indices=np.arange(0, 90, 3), genes=genes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        np.testing.assert_allclose(some, np.nanmean(alone, axis=0), atol=1e-5)
    with pytest.raises(ValueError, match="NOT_A_GENE: not in the vocabulary of tiny"):
        trained.get_attention(genes=["NOT_A_GENE", genes[0]])
    with pytest.raises(ValueError, match="layer=2: use one of -2, -1, 0, 1"):
        trained.get_attention(genes=genes, layer=2)


@each_class
def test_an_untrained_model_gives_the_vectors_of_tl_embed(name, cells, make, checkpoint):
    vectors = make(name, cells.copy(), max_length=1200).get_latent_representation()
    scgpt.tl.embed(cells, checkpoint, min_genes=20)
    np.testing.assert_allclose(vectors, cells.obsm["X_scgpt"], atol=1e-5)


# ---- files


@pytest.mark.parametrize("how", ["saved cells", "no cells", "cells", "other genes"])
def test_a_model_comes_back(trained, saved, cells, how):
    given = {"saved cells": None, "no cells": False, "cells": cells, "other genes": _with_more(_reordered(cells))}[how]
    model = type(trained).load(saved, adata=given)
    expected = trained.predict(soft=True)
    got = model.predict(cells if given is False else None, soft=True)
    atol = 1e-4 if how == "other genes" else 1e-6
    np.testing.assert_allclose(got, expected, atol=atol)
    assert got.index.tolist() == expected.index.tolist()
    np.testing.assert_allclose(model.get_latent_representation(), trained.get_latent_representation(), atol=1e-5)
    assert model.is_trained
    assert (model.labels_, model.batches_) == (trained.labels_, trained.batches_)
    assert model.init_params_["non_kwargs"].keys() == trained.init_params_["non_kwargs"].keys()
    for name, table in trained.history.items():
        pd.testing.assert_frame_equal(model.history[name].astype(float), table.astype(float), check_index_type=False)
    assert np.asarray(model.train_indices).tolist() == trained.train_indices.tolist()
    assert not model.module.training


def test_all_settings_come_back(make, cells, tmp_path):
    settings = {
        "objectives": ("cls", "gep", "ecs"), "pooling": "mean", "max_length": 77, "mask_ratio": 0.2,
        "ecs_threshold": 0.5, "weights": {"gep": 3.0}, "smoothing": 0.1, "head_layers": 2, "dropout": 0.15,
        "min_genes": 30, "rng": 5, "from_scratch": True,
    }  # fmt: skip
    for name in CLASSES:
        model = make(name, cells.copy(), **settings)
        model.train(max_epochs=1, train_size=0.7)
        model.save(tmp_path / name)
        back = type(model).load(tmp_path / name, adata=cells.copy())
        for key in ("objectives", "pooling", "mask_ratio", "ecs_threshold", "weights", "smoothing"):
            assert getattr(back.module, key) == getattr(model.module, key), key
        assert back.module.transformer.config == model.module.transformer.config
        assert (back.max_length_, back.min_genes_, back.rng_, back.pooling_) == (77, 30, 5, "mean")
        assert len(back.module.class_head.hidden) == 1
        assert not _changed(back, _weights(model))
        np.testing.assert_allclose(back.predict(soft=True), model.predict(soft=True), atol=1e-6)
        back.train(max_epochs=1)
        assert len(back.history["train_loss"]) == 2


def test_a_loaded_model_trains_with_dropout(saved, trained):
    model = type(trained).load(saved)
    modes = []
    model.module.transformer.register_forward_hook(lambda module, *_: modes.append(module.training))
    model.train(max_epochs=1)
    assert True in modes
    assert not model.module.training


def test_the_folder_is_a_checkpoint_for_the_functions(trained, saved, cells):
    assert {"config.json", "vocab.json", "weights.safetensors", "card.md", "model.json", "model.pt"} <= {
        path.name for path in saved.iterdir()
    }
    scgpt.tl.embed(cells, saved, min_genes=20)
    np.testing.assert_allclose(cells.obsm["X_scgpt"], trained.get_latent_representation(), atol=1e-5)


def test_a_folder_is_not_overwritten_unasked(trained, tmp_path):
    trained.save(tmp_path / "m")
    before = (tmp_path / "m" / "weights.safetensors").read_bytes()
    with pytest.raises(FileExistsError, match=r"m exists. Choose another folder, or pass overwrite=True to replace"):
        trained.save(tmp_path / "m")
    trained.save(tmp_path / "m", overwrite=True)
    assert (tmp_path / "m" / "weights.safetensors").read_bytes() == before
    trained.save(tmp_path / "m", prefix="part", overwrite=True)
    assert type(trained).load(tmp_path / "m", adata=False, prefix="part").is_trained
    assert [path.name for path in tmp_path.iterdir()] == ["m"], "no draft is left"


def test_nothing_of_the_model_that_was_there_is_left(cells, make, tmp_path):
    first = make("SCGPTAnnotator", cells.copy())
    first.train(max_epochs=1, train_size=0.7)
    first.save(tmp_path / "m")
    make("SCGPTAnnotator", cells, anchor=False).save(tmp_path / "m", overwrite=True)
    back = models.SCGPTAnnotator.load(tmp_path / "m", adata=False)
    assert (back._bins, back._genes, back._calibration, back._reference) == (None,) * 4
    assert not back.uses_anchor_


def test_the_registry_is_read_without_the_model(trained, saved):
    registry = type(trained).load_registry(saved)
    assert registry["setup_args"]["batch_key"] == "donor"
    assert registry["model_name"] == type(trained).__name__
    names = registry["field_registries"]["X"]["state_registry"]["column_names"]
    assert names.tolist() == trained.adata.var_names.tolist()


class _Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_model_pt_is_never_unpickled(trained, saved, cells, tmp_path):
    folder, mark = tmp_path / "m", tmp_path / "exploded"
    shutil.copytree(saved, folder)
    (folder / "model.pt").write_bytes(pickle.dumps(_Bomb(mark)))
    kind = type(trained)
    model = kind.load(folder, adata=False)
    kind.load(folder)
    kind.load_registry(folder)
    kind.view_setup_args(folder)
    kind.load_query_data(cells, folder)
    assert not mark.exists()
    (folder / "model.pt").unlink()
    np.testing.assert_allclose(model.predict(cells, soft=True), trained.predict(soft=True), atol=1e-6)
    kind.load(folder, adata=False)


def test_folders_that_cannot_be_read(trained, saved, tmp_path):
    kind, folder = type(trained), tmp_path / "m"
    shutil.copytree(saved, folder)
    told = json.loads((folder / "model.json").read_text())
    for number in (2, None, "1"):
        (folder / "model.json").write_text(json.dumps({**told, "format_version": number}))
        with pytest.raises(
            CheckpointError, match=rf"format_version {number!r}, this release reads 1\..*pip install -U"
        ):
            kind.load(folder)
    (folder / "model.json").write_text(json.dumps(told)[:500])
    with pytest.raises(CheckpointError, match=r"no valid JSON .* The file is damaged: copy the folder again"):
        kind.load(folder)
    (folder / "model.json").unlink()
    with pytest.raises(
        CheckpointError, match=r"lacks model.json, which model.save\(folder\) writes.*which is a pickle"
    ):
        kind.load(folder)
    with pytest.raises(CheckpointError, match="lacks config.json, vocab.json, weights.safetensors, model.json"):
        kind.load(tmp_path / "nowhere")
    other = next(name for name in CLASSES if name != kind.__name__)
    with pytest.raises(
        CheckpointError, match=rf"holds a {kind.__name__}, not a {other}: scgpt\.model\.{kind.__name__}"
    ):
        getattr(models, other).load(saved)
    allowed = getattr(models, other).load(saved, adata=False, allowed_classes_names_list=[kind.__name__])
    assert type(allowed).__name__ == other
    with pytest.raises(ValueError, match=r"backup_url: download the folder first"):
        kind.load(saved, backup_url="https://example.org")


def test_a_model_without_cells_says_so(trained, saved):
    model = type(trained).load(saved, adata=False)
    for method in (model.predict, model.get_latent_representation, model.train):
        with pytest.raises(ValueError, match=rf"This {type(trained).__name__} holds no cells: pass them \(adata=...\)"):
            method()


def test_another_process_predicts_the_same(make, cells, tmp_path):
    expected = {}
    for name in CLASSES:
        model = make(name, cells.copy())
        model.train(max_epochs=1)
        model.save(tmp_path / name, save_anndata=True)
        expected[name] = model.predict(soft=True)
    code = f"""
import warnings; warnings.simplefilter("ignore")
from scanpy_scgpt import model
for name in {CLASSES}:
    back = getattr(model, name).load({str(tmp_path)!r} + "/" + name)
    back.predict(soft=True).to_csv({str(tmp_path)!r} + "/p" + name)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(scgpt.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    for name, table in expected.items():
        np.testing.assert_allclose(pd.read_csv(tmp_path / f"p{name}", index_col=0), table, atol=1e-6)


def test_the_hub_of_scvi_tools_reads_the_folder(saved, trained):
    from scvi.hub import HubMetadata

    found = HubMetadata.from_dir(str(saved), anndata_version=version("anndata"))
    assert found.model_cls_name == type(trained).__name__
    assert found.scvi_version == scvi.__version__


# ---- training


PARTS = {
    "genes": ["transformer.encoder.genes."],
    "values": ["transformer.encoder.values."],
    "encoder": ["transformer.encoder."],
    "layers": ["transformer.layers."],
    "transformer": ["transformer."],
    "heads": ["expression_head.", "cell_to_gene_head."],
}


@each_class
@pytest.mark.parametrize("part", PARTS)
def test_a_frozen_part_stays_and_the_rest_moves(name, part, cells, make):
    model = make(name, cells, objectives=("cls", "gep", "gepc"))
    before = _weights(model)
    model.train(max_epochs=1, freeze=[part], keep_best=False)
    frozen = {key for key in before if key.startswith(tuple(PARTS[part])) or key == "transformer.encoder.unknown"}
    still = {key for key in before if key.endswith("cell_to_gene_head.query.bias")}
    assert _changed(model, before) & frozen == set()
    assert set(before) - frozen - _changed(model, before) <= still
    asked = {key for key, parameter in model.module.named_parameters() if not parameter.requires_grad}
    assert asked == {"transformer.encoder.unknown"}  # free again afterwards


def test_parts_that_are_none_and_all_parts(cells, make):
    model = make("SCGPT", cells)
    with pytest.raises(ValueError, match="a part in freeze='layer': use one of .*; did you mean 'layers'"):
        model.train(freeze=["layer"])
    before = _weights(model)
    model.train(max_epochs=1, freeze="transformer", keep_best=False)
    assert {key.split(".")[0] for key in _changed(model, before)} == {"class_head", "adversary_head"}
    bare = make("SCGPT", cells.copy(), objectives=("ecs",))
    with pytest.raises(ValueError, match="Nothing is left to train: every part is frozen"):
        bare.train(max_epochs=1, freeze=["transformer"])


@each_class
def test_low_rank(name, cells, make):
    model = make(name, cells)
    before, asked = _weights(model), {key: p.requires_grad for key, p in model.module.named_parameters()}
    model.train(max_epochs=1, lora_rank=2, keep_best=False, freeze=["encoder"])
    assert sorted(model.module.state_dict()) == sorted(before)
    for key in ("attention.in_proj", "attention.out_proj", "feed_forward.linear1", "feed_forward.linear2"):
        full = f"transformer.layers.1.{key}.weight"
        change = (model.module.state_dict()[full] - before[full]).double()
        assert torch.linalg.matrix_rank(change, rtol=1e-3) <= 2
        assert change.abs().max() > 0
    assert {key: p.requires_grad for key, p in model.module.named_parameters()} == asked


def test_rates_fall_with_the_layers(cells, make):
    model = make("SCGPT", cells)
    rates = model._rates((), 0.5, {})
    assert rates == {"transformer.layers.0.": 0.25, "transformer.layers.1.": 0.5, "transformer.encoder": 0.125}
    assert model._rates(("genes",), 1.0, {"transformer.encoder": 0.3})["transformer.encoder"] == 0.3
    before = _weights(model)
    model.train(max_epochs=1, layer_decay=0.5, keep_best=False, plan_kwargs={"schedule": "constant", "warmup": 0})
    moved = {i: (model.module.state_dict()[f"transformer.layers.{i}.attention.in_proj.weight"]
                 - before[f"transformer.layers.{i}.attention.in_proj.weight"]).abs().max() for i in (0, 1)}  # fmt: skip
    assert moved[0] < 0.8 * moved[1]


@each_class
@pytest.mark.parametrize(
    "objectives", [("gep", "gepc", "ecs", "dar"), ("cls", "gep", "gepc", "ecs", "dar"), ("gepc",), ("cls", "ecs")]
)
def test_objectives_go_together(name, objectives, cells, make):
    model = make(name, cells, objectives=objectives)
    model.train(max_epochs=1)
    assert {f"{term}_{stage}" for term in objectives for stage in ("train", "validation")} <= set(model.history)
    assert np.isfinite(model.history["train_loss"].to_numpy(float)).all()
    assert np.isfinite(model.get_latent_representation()).all()


def test_usual_objectives_follow_the_columns(cells, make):
    found = {
        (labels, batch): make("SCGPT", cells.copy(), setup={"labels_key": labels, "batch_key": batch}).module.objectives
        for labels in (None, "cell_type")
        for batch in (None, "donor")
    }
    assert found == {
        (None, None): ("gep", "gepc"),
        (None, "donor"): ("gep", "gepc", "dar"),
        ("cell_type", None): ("cls",),
        ("cell_type", "donor"): ("cls", "dar"),
    }


@each_class
def test_zeros_enter(name, cells, make, tmp_path):
    plain, model = make(name, cells.copy(), max_length=400), make(name, cells, include_zeros=True, max_length=400)
    tokens = model._cells().tokens
    assert (tokens.values == 0).any()
    assert (tokens.lengths == 399).all()
    assert np.abs(plain.get_latent_representation() - model.get_latent_representation()).max() > 1e-4
    model.train(max_epochs=1)
    model.save(tmp_path / "m")
    back = type(model).load(tmp_path / "m", adata=cells[::-1, ::-1].copy())
    np.testing.assert_allclose(back.get_latent_representation(), model.get_latent_representation()[::-1], atol=1e-5)


def test_from_scratch_has_other_weights_and_the_same_shape(cells, make, checkpoint):
    model = make("SCGPT", cells, from_scratch=True, rng=3)
    assert model.module.transformer.config == checkpoint.transformer
    key = "transformer.encoder.genes.embedding.weight"
    assert not torch.equal(model.module.state_dict()[key], checkpoint.weights[key])
    same = make("SCGPT", cells.copy(), from_scratch=True, rng=3)
    assert not _changed(same, _weights(model))


@each_class
def test_settings_of_the_trainer_pass(name, cells, make):
    seen = []

    class Watch(lp.Callback):
        def on_train_start(self, trainer, _plan):
            settings = (trainer.precision, trainer.gradient_clip_val, trainer.accumulate_grad_batches)
            seen.append((*settings, trainer.logger is None, trainer.max_epochs))

    model = make(name, cells)
    model.train(
        2, precision="bf16-mixed", gradient_clip_val=0.5, accumulate_grad_batches=2, callbacks=[Watch()], logger=False
    )
    assert seen == [("bf16-mixed", 0.5, 2, True, 2)]
    assert model.is_trained
    assert np.isfinite(model.predict(soft=True)).all(axis=None)
    model.train(max_epochs=1, callbacks=None)
    model.train(max_epochs=1, callbacks=Watch())
    assert len(seen) == 2


@each_class
def test_configurations_pass_and_arguments_win(name, cells, make):
    model = make(name, cells)
    model.train(
        plan_config={"lr": 7e-4, "schedule": "constant"},
        plan_kwargs={"schedule": "step"},
        trainer_config={"max_epochs": 9, "gradient_clip_val": 0.25, "early_stopping": True},
        max_epochs=1,
        datasplitter_kwargs={"drop_last": True, "balance_power": 0.0},
    )
    plan = model.trainer.lightning_module
    assert (plan.lr, plan.schedule, model.trainer.gradient_clip_val) == (7e-4, "step", 0.25)
    assert model.trainer.max_epochs == 1


@each_class
def test_early_stopping(name, cells, make, capsys):
    model = make(name, cells)
    model.train(max_epochs=30, early_stopping=True, early_stopping_patience=2, plan_kwargs={"lr": 1e-9})
    assert len(model.history["train_loss"]) == 3
    assert "macro_f1_validation did not improve" in capsys.readouterr().out
    model = make(name, cells.copy())
    with pytest.raises(ValueError, match="early_stopping needs validation cells, and there are none: validation_size"):
        model.train(train_size=1.0, early_stopping=True)


@each_class
def test_an_untrained_model_is_saved_and_no_epoch_keeps_the_start(name, cells, make, tmp_path):
    model = make(name, cells)
    model.save(tmp_path / "m")
    back = type(model).load(tmp_path / "m", adata=cells.copy())
    assert not back.is_trained
    with pytest.raises(RuntimeError, match="random weights"):
        back.predict()
    before = _weights(back)
    back.train(max_epochs=0, train_size=0.7)
    assert {key.split(".")[0] for key in _changed(back, before)} <= {"class_head"}
    assert len(back.predict()) == 90


@each_class
def test_all_cells_may_be_trained_on(name, cells, make):
    model = make(name, cells)
    model.train(max_epochs=1, train_size=1.0)
    assert len(model.train_indices) == 90
    assert len(model.predict()) == 90


@each_class
def test_a_split_of_your_own(name, cells, make):
    model = make(name, cells)
    parts = [np.arange(0, 60), np.arange(60, 90)]
    model.train(max_epochs=1, datasplitter_kwargs={"external_indexing": parts})
    assert model.train_indices.tolist() == list(range(60))
    assert model.validation_indices.tolist() == list(range(60, 90))
    cells.obs.loc[cells.obs_names[:60], "cell_type"] = None
    model = make(name, cells.copy())
    with pytest.raises(ValueError, match="No training cell has a label, which the objective 'cls' learns from"):
        model.train(max_epochs=1, datasplitter_kwargs={"external_indexing": parts})
    with pytest.raises(ValueError, match="early_stopping needs validation cells with labels, and there are none"):
        model.train(early_stopping=True, datasplitter_kwargs={"external_indexing": parts[::-1]})


_TWO_PROCESSES = """
import sys, warnings; warnings.simplefilter("ignore")
import anndata as ad
from scanpy_scgpt import model
name, folder = sys.argv[1:]
adata = ad.read_h5ad(folder + "/cells.h5ad")
kind = getattr(model, name)
kind.setup_anndata(adata, labels_key="cell_type", batch_key="donor")
made = kind(adata, model=folder + "/tiny", min_genes=20, max_length=80, objectives=("cls", "gep", "dar"))
made.train(max_epochs=2, train_size=0.7, batch_size=16, accelerator="cpu", devices=2, strategy="ddp", keep_best=False)
weights = {key: x.double().sum().item() for key, x in made.module.state_dict().items()}
import json, os, pathlib
told = {"weights": weights, "losses": made.history["train_loss"]["train_loss"].tolist() if made.history else []}
pathlib.Path(folder, "rank" + os.environ.get("LOCAL_RANK", "0") + ".json").write_text(json.dumps(told))
"""


@pytest.mark.slow
def test_two_processes_train_one_network(cells, checkpoint_folder, write_cells, tmp_path):
    write_cells(cells, tmp_path / "cells.h5ad")
    shutil.copytree(checkpoint_folder, tmp_path / "tiny")
    (tmp_path / "train.py").write_text(_TWO_PROCESSES)
    environment = {**os.environ, "PYTHONPATH": str(Path(scgpt.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(tmp_path / "train.py"), "SCGPTAnnotator", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=200)
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert first["weights"] == second["weights"]
    assert len(first["losses"]) == 2
    assert np.isfinite(first["losses"]).all()


@each_class
def test_checkpoints_of_scvi_tools(name, cells, make, tmp_path):
    callback = scvi.train.SaveCheckpoint(
        dirpath=str(tmp_path), monitor="validation_loss", load_best_on_end=True, save_top_k=-1
    )
    model = make(name, cells, dropout=0.3)
    model.train(max_epochs=3, callbacks=[callback], enable_checkpointing=True, lora_rank=2)
    best = type(model).load(callback.best_model_path, adata=cells.copy())
    losses = model.history["validation_loss"]["validation_loss"].astype(float)
    assert f"epoch={int(losses.to_numpy().argmin())}-" in callback.best_model_path
    for key, weight in _weights(model).items():
        torch.testing.assert_close(best.module.state_dict()[key], weight, rtol=1e-5, atol=1e-6)


# ---- batches of others


class _Counts(lp.LightningDataModule):
    """Batches of counts, as a data module of scvi-tools gives them: the model sees a registry alone."""

    def __init__(self, adata, *, stream=False):
        super().__init__()
        self.counts = adata.X.toarray()
        self.labels, self.batches = (np.unique(adata.obs[key].astype(str)) for key in ("cell_type", "donor"))
        self.codes = {
            "labels": np.searchsorted(self.labels, adata.obs["cell_type"].astype(str)),
            "batch": np.searchsorted(self.batches, adata.obs["donor"].astype(str)),
        }
        self.stream, self.var_names = stream, np.asarray(adata.var_names)
        self.n_obs, self.n_vars = adata.shape
        self.n_labels, self.n_batch = len(self.labels), len(self.batches)

    @property
    def registry(self):
        def field(name, state, stats):
            where = {"attr_name": "obs", "attr_key": name}
            return {"data_registry": where, "state_registry": state, "summary_stats": stats}

        counts = {"n_obs": self.n_obs, "n_vars": self.n_vars, "column_names": self.var_names}
        return {
            "scvi_version": scvi.__version__,
            "model_name": "SCGPT",
            "setup_args": {"labels_key": "cell_type", "batch_key": "donor"},
            "setup_method_name": "setup_datamodule",
            "field_registries": {
                "X": field("X", counts, {"n_vars": self.n_vars, "n_cells": self.n_obs}),
                "labels": field("labels", {"categorical_mapping": self.labels}, {"n_labels": self.n_labels}),
                "batch": field("batch", {"categorical_mapping": self.batches}, {"n_batch": self.n_batch}),
            },
        }

    def _batches(self, cells):
        kinds = (lambda x: x, sparse.csr_matrix, torch.from_numpy, lambda x: torch.from_numpy(x).to_sparse_csr())
        for number, start in enumerate(range(0, len(cells), 16)):
            rows = cells[start : start + 16]
            codes = {name: torch.from_numpy(x[rows])[:, None] for name, x in self.codes.items()}
            kind = kinds[number % 4] if self.stream else torch.from_numpy
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # sparse tensors are in beta
                yield {"X": kind(self.counts[rows]), **codes}

    def _loader(self, cells):
        batches = list(self._batches(cells))
        return DataLoader(_Stream(batches) if self.stream else batches, batch_size=None)

    def train_dataloader(self):
        return self._loader(np.arange(60))

    def val_dataloader(self):
        return self._loader(np.arange(60, 90))

    def inference_dataloader(self):
        return self._loader(np.arange(90))


class _Stream(torch.utils.data.IterableDataset):
    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


@each_class
@pytest.mark.parametrize("stream", [False, True])
def test_a_data_module_in_place_of_cells(name, stream, cells, checkpoint, make, tmp_path):
    module = _Counts(cells, stream=stream)
    kind = getattr(models, name)
    model = kind(registry=module.registry, model=checkpoint, min_genes=20, max_length=1200)
    before = _weights(model)
    model.train(max_epochs=1, datamodule=module, keep_best=False)
    assert "class_head.out.weight" in _changed(model, before)
    assert np.isfinite(model.history["validation_loss"].to_numpy(float)).all()
    vectors = model.get_latent_representation(dataloader=module.inference_dataloader())
    scgpt.tl.embed(cells, model.to_checkpoint(), min_genes=20, max_length=1200)
    assert (vectors * cells.obsm["X_scgpt"]).sum(axis=1).min() > 0.99  # ties are drawn by position, not by name
    soft = model.predict(dataloader=module.inference_dataloader(), soft=True)
    assert soft.shape == (90, 3)
    np.testing.assert_allclose(soft.sum(axis=1), 1, atol=1e-5)
    model.save(tmp_path / "m")
    back = kind.load(tmp_path / "m", adata=False)
    np.testing.assert_allclose(back.predict(dataloader=module.inference_dataloader(), soft=True), soft, atol=1e-5)
    with pytest.raises(ValueError, match="dataloader excludes adata and indices: it names the cells itself"):
        model.get_latent_representation(cells, dataloader=module.inference_dataloader())


@each_class
@pytest.mark.parametrize("include_zeros", [False, True])
def test_batches_and_cells_have_the_same_answers(name, include_zeros, cells, make):
    model = make(name, cells, include_zeros=include_zeros, max_length=1200)
    model.train(max_epochs=1, train_size=0.7)
    expected = model.predict(soft=True)
    tokens = model._make_data_loader(batch_size=13)
    answer = model.predict(dataloader=tokens, soft=True)
    if name == "SCGPTAnnotator":  # tokens hold no counts: the classifier of expression has no say
        known = model._cells()
        members, _ = model._seen(known, np.arange(len(known)))
        expected_of_tokens = model._calibration.probabilities([members["network"], members["bins"]])
        np.testing.assert_allclose(answer, expected_of_tokens, atol=1e-5)
    else:
        np.testing.assert_allclose(answer, expected, atol=1e-5)
    vectors = model.get_latent_representation(dataloader=tokens)
    np.testing.assert_allclose(vectors, model.get_latent_representation(), atol=1e-5)
    counts = model.predict(dataloader=_Counts(cells).inference_dataloader(), soft=True)
    difference = np.abs(counts.to_numpy() - expected.to_numpy()).mean()
    assert difference < 0.05  # ties are drawn by position, not by name


def test_an_annotator_with_cells_may_be_trained_on_a_data_module(cells, make):
    model = make("SCGPTAnnotator", cells)
    model.train(max_epochs=1, train_size=0.7)
    model.train(max_epochs=1, datamodule=_Counts(cells))
    with pytest.raises(RuntimeError, match=r"The model is not calibrated: call model.calibrate\(indices\) with cells"):
        model.predict()
    with pytest.raises(RuntimeError, match=r"on a data module: name held-out cells, model.calibrate\(indices\)"):
        model.calibrate()
    model.calibrate(np.arange(60, 90))
    assert len(model._calibration.scores) == 30
    assert len(model.predict()) == 90


def test_zeros_need_cells(cells, checkpoint):
    module = _Counts(cells)
    model = models.SCGPT(registry=module.registry, model=checkpoint, include_zeros=True)
    with pytest.raises(ValueError, match="include_zeros needs cells to choose the genes from"):
        model.train(max_epochs=1, datamodule=module)


# ---- queries


@each_class
@pytest.mark.parametrize("source", ["model", "folder"])
@pytest.mark.parametrize("genes", ["same", "others"])
def test_a_query_adapts_what_it_may(name, source, genes, cells, make, tmp_path):
    reference = make(name, cells[:60].copy(), objectives=("cls", "gep", "dar"))
    reference.train(max_epochs=1)
    kept = _weights(reference)
    query = cells[60:].copy()
    query.obs["donor"] = np.where(np.arange(30) % 2, "d2", "new")
    del query.obs["cell_type"]
    query = query if genes == "same" else _with_more(_reordered(query[:, ::2].copy()))
    reference.save(tmp_path / "m")
    model = type(reference).load_query_data(query, reference if source == "model" else tmp_path / "m")
    assert model.batches_ == ["d1", "d2", "new"]
    for key, weight in model.module.state_dict().items():
        known = kept[key]
        assert torch.equal(weight[: len(known)], known), key
    np.testing.assert_allclose(model.predict(soft=True), reference.predict(query, soft=True), atol=1e-5)
    before = _weights(model)
    model.train(max_epochs=1, keep_best=False)
    changed = _changed(model, before)
    allowed = ("expression_head.", "adversary_head.")
    assert any(".norm1." in key for key in changed)
    assert all(".norm" in key or key.startswith(allowed) for key in changed), changed
    assert not _changed(reference, kept)
    assert len(model.predict()) == 30
    model.save(tmp_path / "q")
    back = type(model).load(tmp_path / "q", adata=query.copy())
    np.testing.assert_allclose(back.predict(soft=True), model.predict(soft=True), atol=1e-5)


@each_class
def test_a_query_may_train_everything_or_the_classifier(name, cells, make):
    reference = make(name, cells[:60].copy())
    reference.train(max_epochs=1)
    kind = type(reference)
    model = kind.load_query_data(cells[60:].copy(), reference, unfrozen=True, freeze_classifier=False)
    before = _weights(model)
    model.train(max_epochs=1, keep_best=False)
    assert {"transformer.layers.0.attention.in_proj.weight", "class_head.out.weight"} <= _changed(model, before)
    model = kind.load_query_data(cells[60:].copy(), reference, freeze_classifier=False)
    before = _weights(model)
    model.train(max_epochs=1, keep_best=False)
    changed = _changed(model, before)
    assert "class_head.out.weight" in changed
    assert "transformer.layers.0.attention.in_proj.weight" not in changed
    bare = kind.load_query_data(cells[60:].copy(), make(name, cells[:60].copy(), setup={"batch_key": None}))
    assert bare.module.objectives == ("gep", "gepc")


@each_class
def test_reference_and_query_may_be_one_object(name, cells, make):
    reference = make(name, cells)
    reference.train(max_epochs=1)
    expected = reference.predict(soft=True)
    model = type(reference).load_query_data(cells, reference)
    pd.testing.assert_frame_equal(reference.predict(soft=True), expected)
    pd.testing.assert_frame_equal(model.predict(soft=True), expected)


def test_nothing_needs_to_be_prepared(trained, cells):
    kind = type(trained)
    assert kind.prepare_query_anndata(cells, trained) is None
    copy = kind.prepare_query_anndata(cells, trained, inplace=False)
    assert copy is not cells
    assert kind.prepare_query_mudata(_mudata(cells), trained) is None
    with pytest.raises(ValueError, match="load_query_data takes the query cells as they are: leave registry"):
        kind.load_query_data(cells, trained, inplace_subset_query_vars=True)


# ---- multi-modal data


def _mudata(cells, *, first="rna"):
    other = ad.AnnData(np.ones((cells.n_obs, 2), np.float32), obs=cells.obs[[]], var=pd.DataFrame(index=["p_a", "p_b"]))
    parts = {"rna": cells, "prot": other} if first == "rna" else {"prot": other[::-1].copy(), "rna": cells}
    with mudata.set_options(pull_on_update=False):
        return mudata.MuData(parts)


@each_class
def test_mudata(name, cells, make, checkpoint, tmp_path):
    kind, mdata = getattr(models, name), _mudata(cells.copy())
    kind.setup_mudata(mdata, labels_key="cell_type", batch_key="donor", modalities={"rna_layer": "rna"})
    model = kind(mdata, model=checkpoint, min_genes=20, max_length=120)
    plain = make(name, cells)
    np.testing.assert_allclose(model.get_latent_representation(), plain.get_latent_representation(), atol=1e-6)
    for each in (model, plain):
        each.train(max_epochs=1)
    np.testing.assert_allclose(model.predict(soft=True), plain.predict(soft=True), atol=1e-5)
    model.save(tmp_path / "m", save_anndata=True)
    back = kind.load(tmp_path / "m")
    np.testing.assert_allclose(back.predict(soft=True), model.predict(soft=True), atol=1e-5)
    query = kind.load_query_data(_mudata(cells[:20].copy()), model)
    assert len(query.predict()) == 20


def test_mudata_that_does_not_fit(cells, checkpoint):
    kind = models.SCGPT
    with pytest.raises(KeyError, match=r"There is no modality 'gex'. Modalities: 'rna', 'prot'. Say it: modalities="):
        kind.setup_mudata(_mudata(cells.copy()), modalities={"rna_layer": "gex"})
    mdata = _mudata(cells.copy(), first="prot")
    kind.setup_mudata(mdata, labels_key="cell_type")
    text = r"cells of mdata.mod\['rna'\] are not in the order of those of mdata.*mdata = mdata\[mdata.mod\['rna'\]"
    model = kind(mdata, model=checkpoint, min_genes=20)
    with pytest.raises(ValueError, match=text):
        model.get_latent_representation()
    with pytest.raises(TypeError, match="takes one AnnData, this is a MuData with the modalities 'rna', 'prot'"):
        kind.setup_anndata(_mudata(cells.copy()))


# ---- bad input


def test_objects_that_are_refused(cells, make, checkpoint):
    with pytest.raises(ValueError, match=r"Please run `adata = adata.copy\(\)`"):
        models.SCGPT.setup_anndata(cells[:50])
    with pytest.raises(TypeError, match="SCGPT.setup_anndata takes an AnnData, this is a str"):
        models.SCGPT.setup_anndata("cells.h5ad")
    with pytest.raises(ValueError, match=r"SCGPTAnnotator needs cells or a registry: SCGPTAnnotator.setup_anndata"):
        models.SCGPTAnnotator()
    with pytest.raises(ValueError, match=r"Please set up your AnnData with SCGPT.setup_anndata first"):
        models.SCGPT(cells, model=checkpoint)
    make("SCGPT", cells)
    cells.uns["_scvi_adata_minify_type"] = "latent_posterior_parameters"
    with pytest.raises(NotImplementedError, match="The SCGPT model currently does not support minified data."):
        models.SCGPT(cells, model=checkpoint)


@each_class
def test_columns_that_are_not_there(name, cells):
    kind = getattr(models, name)
    with pytest.raises(
        KeyError, match="adata.obs has no column 'celltype'; did you mean 'cell_type'. Columns: cell_type"
    ):
        kind.setup_anndata(cells, labels_key="celltype")
    with pytest.raises(KeyError, match="adata.obs has no column 'donors'; did you mean 'donor'"):
        kind.setup_anndata(cells, batch_key="donors")
    with pytest.raises(KeyError, match="counts"):
        kind.setup_anndata(cells, layer="counts")
    cells.obs["none"] = np.nan
    with pytest.raises(ValueError, match=r"obs\['none'\] has no value at all. Name a column with labels."):
        kind.setup_anndata(cells, labels_key="none")


@each_class
@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"pooling": "median"}, "pooling='median': use one of None, 'cls', 'mean', 'weighted', 'layers'"),
        ({"mask_ratio": 0}, "mask_ratio=0: a share between 0 and 1, such as 0.4."),
        ({"smoothing": 1.0}, "smoothing=1.0: a share from 0 to below 1, such as 0.1."),
        ({"head_layers": 0}, "head_layers=0: a number of affine maps, such as 3."),
        ({"max_length": 1}, "max_length=1: it counts <cls>, so at least 2"),
        ({"weights": {"mvc": 1.0}}, "an objective in weights='mvc': use one of 'cls', 'gep', 'gepc', 'ecs', 'dar'"),
    ],
)
def test_settings_out_of_range(name, settings, text, cells, make):
    with pytest.raises(ValueError, match=text):
        make(name, cells, **settings).get_latent_representation()


def test_training_out_of_range(cells, make):
    model = make("SCGPT", cells)
    with pytest.raises(ValueError, match="lora_rank=0: a rank of at least 1, such as 8, or None to train the weights"):
        model.train(lora_rank=0)
    with pytest.raises(ValueError, match="adata has no cells. Look at the filter that it comes out of."):
        model.get_latent_representation(cells[:0].copy())


@each_class
def test_one_label_alone(name, cells, make):
    cells.obs["cell_type"] = "B"
    with pytest.raises(ValueError, match="The objective 'cls' tells labels apart, and there is 1."):
        make(name, cells)


@each_class
def test_labels_that_are_missing_rare_or_numbers(name, cells, make, caplog):
    cells.obs["cell_type"] = np.where(cells.obs["cell_type"] == "Dendritic", 3, 12).astype(float)
    cells.obs.iloc[::4, 0] = np.nan
    cells.obs.iloc[1, 0] = 7  # a label of one cell
    with caplog.at_level(logging.INFO, "scanpy_scgpt"):
        model = make(name, cells)
    assert "note: obs['cell_type'] holds numbers; they are taken as names of labels." in caplog.messages
    assert model.labels_ == ["12", "3", "7"]
    assert (cells.obs["_scvi_labels"] == -1).sum() == 23
    model.train(max_epochs=1, train_size=0.6)
    assert 1 in model.train_indices
    assert set(model.predict()) <= {"12", "3", "7"}
    assert len(model.predict()) == 90


@each_class
def test_batches_that_are_missing_or_numbers(name, cells, make, caplog):
    cells.obs["donor"] = np.arange(90) % 2 + 1.0
    cells.obs.loc[cells.obs_names[:5], "donor"] = np.nan
    model = make(name, cells, objectives=("cls", "dar"))
    assert model.batches_ == ["1", "2", "unknown_batch"]
    assert "obs['donor'] has 5 missing values; they become 'unknown_batch'." in caplog.messages
    model.train(max_epochs=1)


def test_a_query_of_other_genes(trained, cells):
    strange = cells[:, :30].copy()
    strange.var_names = [f"LOC{i}" for i in range(30)]
    with pytest.raises(ValueError, match="0 of 30"):
        trained.predict(strange)
    model = type(trained).load_query_data(strange, trained)
    with pytest.raises(ValueError, match="0 of 30"):
        model.train(max_epochs=1)


@each_class
def test_labels_that_were_not_learned(name, cells, make):
    """A head that no term of the loss trained has random weights, however long the rest was trained."""
    model = make(name, cells, objectives=("gep",))
    model.train(max_epochs=1)
    with pytest.raises(RuntimeError, match="random weights: call model.train.. first, with 'cls' among the objectives"):
        model.predict()
    query = type(model).load_query_data(cells[:20].copy(), model)
    query.train(max_epochs=1)
    with pytest.raises(RuntimeError, match="random weights"):
        query.predict()


@each_class
@pytest.mark.parametrize("kinds", [["B", "T"], ["u", "v", "w"]])
def test_a_fine_tuned_folder_is_a_start_for_other_labels(name, kinds, trained, saved, cells, make):
    cells.obs["cell_type"] = np.array(kinds)[np.arange(90) % len(kinds)]
    cells.obs["donor"] = np.array(["x", "y", "z"])[np.arange(90) % 3]
    model = make(name, cells, model=saved, objectives=("cls", "dar"))
    assert model.labels_ == kinds
    for key, weight in trained.module.state_dict().items():
        if not key.startswith(("class_head", "adversary_head")):
            assert torch.equal(model.module.state_dict()[key], weight)
    with pytest.raises(RuntimeError, match="random weights"):
        model.predict()
    if len(kinds) == 3:
        assert not torch.equal(model.module.class_head.out.weight, trained.module.class_head.out.weight)


def test_labels_before_training(cells, make):
    for name in CLASSES:
        with pytest.raises(
            RuntimeError, match=r"The head of the labels has random weights: call model.train\(\) first"
        ):
            make(name, cells.copy()).predict()
    with pytest.raises(RuntimeError, match=r"This SCGPT knows no labels. Name their column when the cells are set up"):
        make("SCGPT", cells, setup={"labels_key": None}).predict()


def test_the_annotator_says_what_it_knows(cells, make, caplog):
    model = make("SCGPTAnnotator", cells)
    with pytest.raises(RuntimeError, match="The head of the labels has random weights"):
        model.assess()
    model.train(max_epochs=1, train_size=0.95)
    assert caplog.messages == []
    assert len(model._calibration.scores) == 90, "every labelled cell is left out once"
    found = model.assess(target_error=0.2)
    pd.testing.assert_frame_equal(found.probabilities, model.predict(soft=True))
    assert found.sets.shape == (90, 3)
    assert found.novelty.between(0, 1).all()
    with pytest.raises(ValueError, match="target_error=0: a share between 0 and 1, such as 0.1"):
        model.assess(target_error=0)
    few = model.assess(indices=[3, 1])
    assert few.distance.index.tolist() == cells.obs_names[[3, 1]].tolist()
    assert found.doubt.between(0, 1).all()
    model.calibrate(np.arange(0, 90, 2))
    assert len(model._calibration.scores) == 45
    model.calibrate(np.arange(15))
    assert "15 labelled cells are too few to calibrate on; the confidence is taken as it is" in caplog.text


@each_class
def test_a_query_is_not_trained_against_its_batches_alone(name, cells, make):
    """With nothing but the adversary, all cells could go to one vector."""
    reference = make(name, cells[:60].copy(), objectives=("cls", "dar"))
    query = type(reference).load_query_data(cells[60:].copy(), reference)
    assert query.module.objectives == ("gep", "gepc", "dar")
