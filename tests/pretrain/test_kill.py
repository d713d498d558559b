"""A run that is killed without warning goes on as if nothing had happened."""

from __future__ import annotations

import signal
import time

import pandas as pd
import pytest
import torch

from scanpy_scgpt import io
from scanpy_scgpt.pretrain._curves import SPEED

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:.*GPU available but not used.*"),
]

SETTINGS = {
    "max_steps": 24, "dropout": 0.2, "epoch_steps": 4, "batch_size": 48, "max_tokens": 400, "task": "both",
    "balance": "study", "step_from": "study",
}  # fmt: skip


def test_kill_9_changes_nothing(start_run, run_here, tmp_path):
    """Killed before step 10, two steps after a checkpoint; nothing but a kill lets another run into the folder.

    Every run is a process of its own: products of matrices may round differently after other work in a process.
    """
    killed = start_run(tmp_path / "parts", stand_at=10, **SETTINGS)
    try:
        while not (tmp_path / "parts" / "standing").exists() and killed.poll() is None:
            time.sleep(0.02)  # however long it takes: the run waits, or ends with an error
        with pytest.raises(ValueError, match=r"Another process trains in .*parts\. Wait until it has ended, or choose"):
            run_here(tmp_path / "parts", **SETTINGS)
    finally:
        killed.send_signal(signal.SIGKILL)
        errors = killed.communicate()[1]
    assert killed.returncode == -signal.SIGKILL, errors
    last = torch.load(tmp_path / "parts" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 8
    assert not (tmp_path / "parts" / "model").exists()
    for name in ("parts", "whole"):
        run = start_run(tmp_path / name, **SETTINGS)
        errors = run.communicate()[1]
        assert run.returncode == 0, errors
    resumed, whole = (io.read_checkpoint(tmp_path / name / "model") for name in ("parts", "whole"))
    assert resumed.info["losses"] == whole.info["losses"]
    assert all(torch.equal(resumed.weights[name], tensor) for name, tensor in whole.weights.items())
    metrics = [pd.read_csv(tmp_path / name / "metrics.csv").drop(columns=list(SPEED)) for name in ("whole", "parts")]
    pd.testing.assert_frame_equal(metrics[1][sorted(metrics[0])], metrics[0][sorted(metrics[0])])
