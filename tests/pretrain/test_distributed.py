"""Two processes (gloo, CPU) train what one trains."""

from __future__ import annotations

import lightning.pytorch as lp
import pandas as pd
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy

from scanpy_scgpt import io
from scanpy_scgpt.pretrain import PretrainConfig
from scanpy_scgpt.pretrain._curves import SPEED
from scanpy_scgpt.pretrain._loop import Clock, trainer_of

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:.*GPU available but not used.*"),
]


def test_two_processes_train_what_one_trains(start_run, run_here, tmp_path):
    """Eight steps, four of them with the cell prompt; panels; micro-batches in the two processes alone.

    In single precision. The bias of the keys is left out: it moves all scores of a query alike, so its gradient is
    nothing but rounding, which Adam blows up to the learning rate.
    """
    settings = {
        "max_steps": 8, "dropout": 0.0, "lr": 1e-3, "panel_share": 0.3, "task": "both", "balance": "study",
        "step_from": "study",
    }  # fmt: skip
    started = start_run(tmp_path / "two", devices=2, max_tokens=200, **settings)
    one = run_here(tmp_path / "one", **settings)
    errors = started.communicate(timeout=120)[1]
    assert started.returncode == 0, errors
    two = io.read_checkpoint(tmp_path / "two" / "model")
    for name, whole in one.weights.items():
        expected, found = whole, two.weights[name]
        if name.endswith("in_proj.bias"):
            (q, _, v), (found_q, _, found_v) = expected.chunk(3), found.chunk(3)
            expected, found = torch.cat([q, v]), torch.cat([found_q, found_v])
        assert (found - expected).norm() <= 1e-5 * expected.norm(), name
    assert two.info["losses"] == pytest.approx(one.info["losses"], rel=1e-5)
    for ratio, found in one.info["errors"].items():
        assert two.info["errors"][ratio] == pytest.approx(found, rel=1e-5)
    metrics = [pd.read_csv(tmp_path / name / "metrics.csv").drop(columns=list(SPEED)) for name in ("one", "two")]
    pd.testing.assert_frame_equal(metrics[1][sorted(metrics[0])], metrics[0][sorted(metrics[0])], rtol=1e-4)
    written = {path.name for path in (tmp_path / "two").iterdir()}
    assert written == {path.name for path in (tmp_path / "one").iterdir()}


def test_masked_genes_alone_in_two_processes(start_run, run_here, tmp_path):
    settings = {"max_steps": 4, "dropout": 0.0, "task": "pcpt"}
    started = start_run(tmp_path / "two", devices=2, **settings)
    one = run_here(tmp_path / "one", **settings)
    errors = started.communicate(timeout=120)[1]
    assert started.returncode == 0, errors
    assert io.read_checkpoint(tmp_path / "two" / "model").info["losses"] == pytest.approx(one.info["losses"], rel=1e-5)


def test_a_model_that_cannot_be_written_ends_all_processes(start_run, tmp_path):
    started = start_run(tmp_path, devices=2, max_steps=1, block=True)
    try:
        errors = started.communicate(timeout=120)[1]
    finally:
        started.kill()
    assert started.returncode != 0
    assert "FileExistsError" in errors
    assert f"RuntimeError: Another process could not make the model in {tmp_path / 'model'}; its error" in errors


def test_a_loss_that_is_not_finite_in_one_process_ends_all(start_run, tmp_path):
    """Both name the step; the one whose own losses are fine says so."""
    started = start_run(tmp_path, devices=2, max_steps=6, break_at=5, distribution=False)
    try:
        errors = started.communicate(timeout=120)[1]
    finally:
        started.kill()
    assert started.returncode != 0
    assert "NonFiniteError: Step 6: gep=inf, gepc=inf, prompt=inf is not finite" in errors
    assert "NonFiniteError: Step 6: no loss of this process, but the gradient is not finite" in errors
    last = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 4
    assert not (tmp_path / "model").exists()


def test_more_processes_than_cells_of_a_step(run_here, tmp_path):
    with pytest.raises(ValueError, match=r"batch_size=3 is .* over all processes, .* 4 processes\. Use batch_size=4"):
        run_here(tmp_path, batch_size=3, devices=4)
    with pytest.raises(ValueError, match=r"\d+ cells for training and 3 for validation are too few for 4 processes"):
        run_here(tmp_path, validation_share=0.01, devices=4)
    assert not (tmp_path / "run.json").exists()


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", DDPStrategy(find_unused_parameters=True)])
def test_the_strategy_reaches_lightning(strategy, monkeypatch, tmp_path):
    seen = {}
    monkeypatch.setattr(lp, "Trainer", lambda **given: seen.update(given))
    config = PretrainConfig(max_steps=1)
    trainer_of(
        tmp_path, config, loggers=[], clock=Clock(), accelerator="cuda", devices=8, strategy=strategy, num_nodes=2
    )
    assert seen["strategy"] is strategy
    assert (seen["accelerator"], seen["devices"], seen["num_nodes"]) == ("cuda", 8, 2)
    assert "gradient_clip_val" not in seen  # the plan clips
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("where", "text"),
    [
        ({"devices": 0}, r"No trainer for accelerator='cpu', devices=0, .*: .*not a valid input.*\d+ CPU cores\. Use"),
        ({"devices": "2x"}, r"devices='2x', .*should be an int > 0\. This machine has \d+ CUDA devices, \d+ CPU"),
        (
            {"accelerator": "gpuu"},
            r"accelerator='gpuu', .*accelerator='auto' and devices=1, or a number of devices that",
        ),
        ({"strategy": "fsdp"}, r"strategy='fsdp', num_nodes=1: The strategy `fsdp` requires a GPU accelerator"),
    ],
)
def test_what_the_machine_lacks(run_here, tmp_path, where, text):
    with pytest.raises(ValueError, match=text):
        run_here(tmp_path, **where)
    assert not any(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(run_here, tmp_path):
    with pytest.raises(ValueError, match=r"accelerator='cuda', devices=1, .*This machine has 0 CUDA devices"):
        run_here(tmp_path, accelerator="cuda")
