"""Arguments of the wrong kind: the text says what to pass, before any work."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from scipy import sparse

from scanpy_scgpt import pretrain
from scanpy_scgpt.pretrain._curves import loggers_of

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:.*GPU available but not used.*"),
]
FILTERS = r"filters is a dict, not a QualityFilters\. Pass filters=pretrain\.QualityFilters\(min_genes=3\)\."
NAMES = r"vocab is a list, not a GeneVocab\. Pass vocab=tokenizer\.GeneVocab\(\[\.\.\.\]\)\."
READ = r"vocab is a \w+, not a GeneVocab\. Pass vocab=tokenizer\.GeneVocab\.read\('v\.json'\)\."


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({"filters": {"min_genes": 3}}, TypeError, FILTERS),
        ({"filters": 200}, TypeError, r"filters is a int, .*Pass filters=pretrain\.QualityFilters\(min_genes=200\)"),
        ({"config": {"lr": 1}}, TypeError, r"config is a dict.*Pass config=pretrain\.PretrainConfig\(lr=1\)\."),
        ({"vocab": ["CD3D"]}, TypeError, NAMES),
        ({"vocab": "v.json"}, TypeError, READ),
        ({"vocab": Path("v.json")}, TypeError, READ),
        ({"weights": [1]}, ValueError, r"weights=\[1\]: name the terms, as in weights=\{'gep': 1\.0"),
        ({"lrr": 3}, ValueError, r"a setting of pretraining='lrr': use one of 'd_model', .*; did you mean 'lr'\."),
        ({"resume": "no"}, ValueError, r"resume='no': use one of True, False\."),
        ({"half": "yes"}, ValueError, r"half='yes': use one of True, False\."),
    ],
)
def test_kinds(run_here, tmp_path, given, error, text):
    with pytest.raises(error, match=text):
        run_here(tmp_path, **given)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "text"),
    [({"filters": {"min_genes": 3}}, FILTERS), ({"vocab": ["CD3D"]}, NAMES), ({"vocab": "v.json"}, READ)],
)
def test_kinds_in_prepare(corpus_folder, tmp_path, given, text):
    with pytest.raises(TypeError, match=text):
        pretrain.prepare(corpus_folder / "part0.h5ad", tmp_path / "x.tokens", **given)


def test_one_logger_needs_no_list(tmp_path):
    assert [type(each) for each in loggers_of("tensorboard", tmp_path, name="blood")] == [CSVLogger, TensorBoardLogger]
    own = CSVLogger(tmp_path / "own")
    assert loggers_of(own, tmp_path, name="blood")[1] is own


def test_cells_that_nothing_can_be_asked_of_are_counted(run_here, tmp_path, caplog):
    rng = np.random.default_rng(0)
    matrix = rng.poisson(2.0, size=(60, 60)) + 1
    matrix[50:, 1:] = 0  # one gene
    cells = ad.AnnData(sparse.csr_matrix(matrix.astype(np.int32)))
    cells.var_names = [f"G{j}" for j in range(60)]
    cells.write_h5ad(tmp_path / "a.h5ad")
    with caplog.at_level("WARNING", logger="scanpy_scgpt"):
        done = run_here(tmp_path / "out", max_steps=1, data=tmp_path / "a.h5ad")
    assert "10 cells have fewer than two genes of the vocabulary and are on neither side" in caplog.text
    assert done.info["n_unused_cells"] == 10
    assert done.info["n_training_cells"] + done.info["n_validation_cells"] == 50
    assert run_here(tmp_path / "whole", max_steps=1).info["n_unused_cells"] == 0
