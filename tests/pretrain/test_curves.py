"""Curves: where they go, what they hold, and a run that stops when a loss is not finite."""

from __future__ import annotations

import math
import sys

import pandas as pd
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from scanpy_scgpt.pretrain._curves import SPEED, loggers_of
from scanpy_scgpt.train import NonFiniteError, TrainingPlan

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:.*GPU available but not used.*"),
]


def test_loggers_by_name_and_as_objects(tmp_path, monkeypatch):
    own = CSVLogger(tmp_path / "own")
    found = loggers_of(["tensorboard", own], tmp_path, name="blood")
    assert [type(each) for each in found] == [CSVLogger, TensorBoardLogger, CSVLogger]
    assert found[2] is own
    with pytest.raises(ValueError, match="a logger='tensorbord': use one of .* did you mean 'tensorboard'"):
        loggers_of(["tensorbord"], tmp_path, name="blood")
    monkeypatch.setitem(sys.modules, "wandb", None)
    text = r"loggers='wandb' needs `wandb`: pip install 'scanpy-scgpt\[wandb\]'"
    with pytest.raises(ImportError, match=text):
        loggers_of(["wandb"], tmp_path, name="blood")
    assert not any(tmp_path.iterdir()), "nothing is written before training"


def test_every_epoch_has_its_speed(run_here, tmp_path):
    done = run_here(tmp_path, max_steps=8, loggers=["tensorboard"], lr=1e-3)
    table = pd.read_csv(tmp_path / "metrics.csv")
    trained = table.dropna(subset="train_loss")
    assert trained.step.tolist() == [3, 7]
    assert (trained.cells_per_second > 0).all()
    assert (trained.tokens_per_second > 5 * trained.cells_per_second).all()
    assert trained.data_wait.between(0, 1).all()
    expected = [0.5e-3 * (1 + math.cos(math.pi * step / 8)) for step in (4, 8)]
    assert trained.lr.tolist() == pytest.approx(expected, abs=1e-9)
    assert {"distribution_train", "distribution_validation", *SPEED} <= set(table)
    assert done.info["cells_per_second"] == pytest.approx(trained.cells_per_second.median())
    assert any((tmp_path / "tensorboard").iterdir())
    assert table.step.max() == 8, "the errors at single shares are in no curve"


def test_a_run_whose_loss_is_not_finite_stops_and_goes_on(run_here, tmp_path, monkeypatch):
    """The seventh step fails: the checkpoint of the fourth is whole, and the repaired run is one without a failure."""
    whole = run_here(tmp_path / "whole", max_steps=8, lr=1e-3)
    step = TrainingPlan.training_step

    def overflow(plan: TrainingPlan, batch: object, i: int) -> None:
        if plan.global_step == 6:
            with torch.no_grad():  # what a learning rate that is far too high does
                plan.module.expression_head.network[-1].bias.fill_(torch.inf)
        step(plan, batch, i)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingPlan, "training_step", overflow)
        with pytest.raises(NonFiniteError, match=r"Step 7: gep=inf, prompt=inf is not finite \(lr=0\.000146"):
            run_here(tmp_path / "parts", max_steps=8, lr=1e-3)
    last = torch.load(tmp_path / "parts" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 4
    assert all(tensor.isfinite().all() for tensor in last["state_dict"].values())
    assert not (tmp_path / "parts" / "model").exists()
    resumed = run_here(tmp_path / "parts", max_steps=8, lr=1e-3)
    for name, tensor in whole.weights.items():
        torch.testing.assert_close(resumed.weights[name], tensor, rtol=0, atol=1e-6)
