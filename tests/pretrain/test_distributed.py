"""Two processes (gloo, CPU) train what one trains."""

from __future__ import annotations

import lightning.pytorch as lp
import pandas as pd
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy

from scanpy_scgpt import io
from scanpy_scgpt.pretrain._loop import trainer_of

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
    settings = {"max_steps": 8, "dropout": 0.0, "lr": 1e-3, "panel_share": 0.3}
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
    assert two.info["mean_bin_mse"] == pytest.approx(one.info["mean_bin_mse"])
    metrics = [pd.read_csv(tmp_path / name / "metrics.csv") for name in ("one", "two")]
    pd.testing.assert_frame_equal(metrics[1][sorted(metrics[0])], metrics[0][sorted(metrics[0])], rtol=1e-4)
    written = {path.name for path in (tmp_path / "two").iterdir()}
    assert written == {path.name for path in (tmp_path / "one").iterdir()}


def test_a_model_that_cannot_be_written_ends_all_processes(start_run, tmp_path):
    (tmp_path / "model").write_text("not a folder")
    started = start_run(tmp_path, devices=2, max_steps=1)
    try:
        errors = started.communicate(timeout=120)[1]
    finally:
        started.kill()
    assert started.returncode != 0
    assert "FileExistsError" in errors
    assert f"RuntimeError: Another process could not make the model in {tmp_path / 'model'}; its error" in errors


def test_more_processes_than_cells_of_a_step(run_here, tmp_path):
    with pytest.raises(ValueError, match=r"batch_size=3 is .* over all processes, .* 4 processes\. Use batch_size=4"):
        run_here(tmp_path, batch_size=3, devices=4)
    with pytest.raises(ValueError, match=r"\d+ cells for training and 3 for validation are too few for 4 processes"):
        run_here(tmp_path, validation_share=0.01, devices=4)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", DDPStrategy(find_unused_parameters=True)])
def test_the_strategy_reaches_lightning(strategy, monkeypatch, tmp_path):
    seen = {}
    monkeypatch.setattr(lp, "Trainer", lambda **given: seen.update(given))
    trainer_of(
        tmp_path, max_steps=1, epoch_steps=1, prompt_after=0, precision="32-true", accelerator="cuda", devices=8,
        strategy=strategy, num_nodes=2,
    )  # fmt: skip
    assert seen["strategy"] is strategy
    assert (seen["accelerator"], seen["devices"], seen["num_nodes"]) == ("cuda", 8, 2)
    assert "gradient_clip_val" not in seen  # the plan clips
    assert not any(tmp_path.iterdir())
