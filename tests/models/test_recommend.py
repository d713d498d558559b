"""Which checkpoint fits, and why."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from scanpy_scgpt import models, settings
from scanpy_scgpt.models import _recommend


@pytest.mark.parametrize(
    ("column", "value", "name"),
    [
        ("tissue", "Blood", "blood"),
        ("tissue_general", "bone marrow", "blood"),
        ("organ", "heart left ventricle", "heart"),
        ("tissue", "cerebral cortex", "brain"),
        ("tissue", "kidney", "kidney"),
        ("tissue", "lung parenchyma", "lung"),
        ("disease", "lung adenocarcinoma", "pan-cancer"),
        ("tissue", "lung tumour", "pan-cancer"),
    ],
)
def test_the_tissue_leads_to_its_model(pbmc, column, value, name):
    pbmc.obs[column] = value
    table = models.recommend(pbmc)
    assert list(table.index) == [name, "whole-human", "continual", "mini"]
    assert list(table["local"]) == [False, False, False, True]
    assert f"obs[{column!r}] says {value!r} for 100% of the cells" in table.loc[name, "reason"]
    assert table.loc[name, "how"] == f"by hand: scgpt.models.load({name!r}) says how"
    assert table.loc["whole-human", "how"] == "scgpt.models.download('whole-human')"
    assert table.loc["mini", "how"] == "scgpt.tl.embed(adata, 'mini')"
    assert 0.9 < table.loc["mini", "gene_match"] <= 1
    assert "for trying out" in table.loc["mini", "reason"]
    assert np.isnan(table.loc[name, "gene_match"])
    phrase = models.better_than_default(pbmc)
    assert phrase.startswith(f"mini is a demonstration; better for results: {name}, ")
    assert phrase.endswith(f"(by hand: scgpt.models.load({name!r}) says how)")


def test_disease_goes_before_tissue_and_normal_does_not(pbmc):
    pbmc.obs["tissue"] = "lung"
    pbmc.obs["disease"] = "normal"
    assert models.recommend(pbmc).index[0] == "lung"
    pbmc.obs["disease"] = "melanoma"
    assert models.recommend(pbmc).index[0] == "pan-cancer"


def test_cells_of_several_or_no_tissues_lead_to_whole_human(pbmc):
    table = models.recommend(pbmc)
    assert table.index[0] == "whole-human"
    assert (
        "obs names no tissue (tissue_general, tissue, organ): 33,000,000 normal human cells" in table["reason"].iloc[0]
    )
    pbmc.obs["tissue"] = np.where(np.arange(pbmc.n_obs) % 2, "lung", "liver")
    table = models.recommend(pbmc)
    assert table.index[0] == "whole-human"
    assert "no original is of the tissues of obs['tissue'] ('liver', 'lung') alone" in table["reason"].iloc[0]
    for other in ("adrenal gland", "blood vessel", None):
        pbmc.obs["tissue"] = other
        assert models.recommend(pbmc).index[0] == "whole-human"
    pbmc.obs["my_tissue"] = "kidney"
    assert models.recommend(pbmc, tissue_key="my_tissue").index[0] == "kidney"
    with pytest.raises(KeyError, match="adata.obs has no column 'tisue'; did you mean 'tissue'"):
        models.recommend(pbmc, tissue_key="tisue")
    with pytest.raises(KeyError, match="adata.var has no column 'symbl'"):
        models.recommend(pbmc, gene_symbols="symbl")
    with pytest.raises(TypeError, match="models.recommend takes an AnnData"):
        models.recommend("cells.h5ad")


def test_what_is_on_this_machine_is_said(pbmc, checkpoint_folder, cache):
    pbmc.obs["tissue"] = "blood"
    shutil.copytree(checkpoint_folder, cache / "checkpoints" / "blood")
    models.register("mine", checkpoint_folder)
    table = models.recommend(pbmc)
    assert list(table.index) == ["blood", "whole-human", "continual", "mine", "mini"]
    assert list(table["local"]) == [True, False, False, True, True]
    assert table.loc["blood", "how"] == "scgpt.tl.embed(adata, 'blood')"
    assert table.loc["blood", "gene_match"] == table.loc["mine", "gene_match"] == pytest.approx(2 / 3, abs=0.02)
    assert models.better_than_default(pbmc).endswith("(model='blood')")


def test_genes_of_another_species(pbmc, checkpoint, checkpoint_folder):
    pbmc.var_names = pbmc.var_names.str.capitalize()
    table = models.recommend(pbmc)
    assert list(table.index) == ["whole-human"]
    assert "few of these ('Hes4', 'Tnfrsf4', 'Ssu72', ...) are: rename them to their human" in table["reason"].iloc[0]
    assert "scgpt.pretrain.run" in table["reason"].iloc[0]


def test_names_of_genes_in_a_column(pbmc):
    pbmc.var["symbol_here"] = pbmc.var_names.to_numpy()
    pbmc.var_names = [f"gene{i}" for i in range(pbmc.n_vars)]
    assert list(models.recommend(pbmc).index) == ["whole-human"]
    assert "mini" in models.recommend(pbmc, gene_symbols="symbol_here").index


def test_what_the_bundled_model_was_trained_on_comes_from_its_record(pbmc, monkeypatch):
    def reason(**info):
        monkeypatch.setattr(_recommend, "info_of", lambda _: {"n_training_cells": 9000, "n_cells": 10_000, **info})
        return models.recommend(pbmc).loc["mini", "reason"]

    text = "in the package, for trying out: a small network, trained on 9,000 cells"
    assert reason() == text
    studies = {"a": 4000, "b": 6000}
    assert reason(studies=studies) == f"{text} of 2 studies"
    assert reason(studies=studies, tissues={"lung": 3000, "blood": 7000}) == f"{text} of 2 studies, most of them blood"
    for tissues in ({"lung": 4000, "blood": 5000, "liver": 1000}, {"unknown": 9000, "blood": 1000}, {}):
        assert reason(studies=studies, tissues=tissues) == f"{text} of 2 studies"


def test_nothing_is_written(pbmc, fingerprint):
    before = fingerprint(pbmc)
    models.recommend(pbmc)
    models.better_than_default(pbmc)
    assert fingerprint(pbmc) == before


def test_another_default_is_not_commented_on(pbmc):
    assert "whole-human" in models.better_than_default()
    with settings.override(model="other"):
        assert models.better_than_default(pbmc) is None
