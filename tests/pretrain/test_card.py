"""The card of a run: what it saw, how it did, wins and losses."""

from __future__ import annotations

import warnings
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scanpy_scgpt import io, pretrain
from scanpy_scgpt.pretrain._card import model_card
from scanpy_scgpt.pretrain._comparison import wins
from scanpy_scgpt.tokenizer import GeneVocab

SMALL = {
    "d_model": 16, "n_heads": 2, "n_layers": 1, "d_ff": 16, "dropout": 0.0, "max_length": 60, "batch_size": 32,
    "max_steps": 2, "epoch_steps": 2, "warmup_steps": 0, "accelerator": "cpu",
}  # fmt: skip
ERRORS = {
    "0.25": {"gep": 5.04, "gepc": 9.0, "mean_digit": 20.0, "gene_mean": 8.0, "ridge": 6.0},
    "0.5": {"gep": 7.0, "gepc": 9.5, "mean_digit": 20.0, "gene_mean": 8.0, "ridge": 6.5},
}
INFO = {
    "version": "1", "n_cells": 1000, "n_training_cells": 900, "n_validation_cells": 90, "notes": "", "licence": "",
    "n_repeated_cells": 7, "compared_cells": {"held_out": 64, "ridge": 512},
    "parent": None, "data": "0a1b", "studies": {"a": 600, "b": 400}, "tissues": {"blood": 1000},
    "corpus": {"files": {}, "filters": {"min_genes": None}, "skipped": {}, "duplicates": []},
    "losses": {"validation_loss": 12.0, "distribution_validation": 3.21}, "errors": ERRORS,
    "settings": asdict(pretrain.PretrainConfig()), "seconds": 5.4, "cells_per_second": 123.4,
}  # fmt: skip
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:.*GPU available but not used.*"),
]


def test_wins_and_losses_are_said_plainly():
    assert [(ratio, name, rival, round(gap, 2)) for ratio, name, rival, gap in wins(ERRORS)] == [
        ("0.25", "gep", "ridge", -0.96), ("0.25", "gepc", "ridge", 3.0),
        ("0.5", "gep", "ridge", 0.5), ("0.5", "gepc", "ridge", 3.0),
    ]  # fmt: skip
    card = model_card("blood", INFO, vocab=GeneVocab(["G1"]), n_parameters=1_500_000)
    assert "Better than the best predictor without a network: `gep` at 25%." in card
    assert "**Not better** than the best predictor without a network: `gepc` at 25%, 50%, `gep` at 50%." in card
    assert "| prediction | 25% unknown | 50% unknown |" in card
    assert "| `gep`: from the known genes | 5.0 | 7.0 |" in card
    assert "| ridge regression on the known genes | 6.0 | 6.5 |" in card
    assert "- distribution, cross entropy of the bins in nats: 3.21" in card
    assert "- cells a second while training: 123" in card
    assert "From 64 of the 90 held-out cells;\nthe ridge regression learned from 512 of the 900 training cells." in card
    assert "7 cells with the counts of a training cell were neither trained on nor held out." in card
    for absent in ("intended use", "licence:", "trained on from", "contrast, a", "masked_gep:"):
        assert absent not in card
    better = {ratio: {**found, "gep": 1.0, "gepc": 1.0} for ratio, found in ERRORS.items()}
    card = model_card("blood", {**INFO, "errors": better}, vocab=GeneVocab(["G1"]), n_parameters=1)
    assert "Not better" not in card
    assert "counts of" not in model_card("a", {**INFO, "n_repeated_cells": 0}, vocab=GeneVocab(["G1"]), n_parameters=1)
    card = model_card("a", {**INFO, "n_repeated_cells": None}, vocab=GeneVocab(["G1"]), n_parameters=1)
    assert "is not known: the token store does not tell." in card


def test_the_card_of_a_run(counts, vocab, tmp_path):
    files = []
    for name, part in (("a", counts[:400].copy()), ("b", counts[350:].copy())):
        part.X = sparse.csr_matrix(part.X).astype(np.int32)
        part.obs = pd.DataFrame({"tissue": "blood"} if name == "a" else {}, index=part.obs_names)
        part.write_h5ad(tmp_path / f"{name}.h5ad")
        files.append(tmp_path / f"{name}.h5ad")
    (tmp_path / "broken.h5ad").write_bytes(b"no cells")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        done = pretrain.run(
            [*files, tmp_path / "broken.h5ad"], tmp_path / "out", vocab=vocab, name="blood", on_error="skip",
            duplicates="drop", filters=pretrain.QualityFilters(min_genes=100), notes="a demonstration", licence="CC0",
            validation_by="study", validation_studies=["b"], balance="tissue", **SMALL,
        )  # fmt: skip
    assert done.card == io.read_checkpoint(tmp_path / "out" / "model").card
    info, report = done.info, done.info["corpus"]
    assert info["n_validation_cells"] == info["studies"]["b"]
    assert info["n_training_cells"] == info["studies"]["a"] == info["tissues"]["blood"]
    removed = report["files"]["b.h5ad"]["removed"]
    assert removed["duplicates"] > 40
    assert (
        info["n_cells"]
        == sum(entry["kept"] for entry in report["files"].values())
        == 750 - sum(sum(entry["removed"].values()) for entry in report["files"].values())
    )
    for text in (
        "# blood\n", "- intended use: a demonstration\n- licence: CC0", f"digest of the token store `{info['data']}`",
        "Filters: min_genes 100.", "by duplicates", "left out: broken.h5ad", f"| b | {info['studies']['b']} |",
        f"| blood | {info['tissues']['blood']} |", "| mean bin of the gene |", "- balance: tissue",
    ):  # fmt: skip
        assert text in done.card, text
    assert set(info["errors"]["0.25"]) == {"gep", "gepc", "distribution", "mean_digit", "gene_mean", "ridge"}
    assert "`prompt`" not in done.card, "it starts after the last step"
    assert "prompt_validation" not in info["losses"]
    assert info["n_repeated_cells"] == 0
    compared = info["compared_cells"]
    assert compared == {"held_out": min(8 * 32, info["n_validation_cells"] // 32 * 32), "ridge": 256}
    assert f"From {compared['held_out']} of the {info['n_validation_cells']} held-out cells;" in done.card
