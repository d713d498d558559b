"""A run that is killed without warning goes on as if nothing had happened."""

from __future__ import annotations

import signal
import time

import pandas as pd
import pytest
import torch

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:.*GPU available but not used.*"),
]

SETTINGS = {"max_steps": 120, "dropout": 0.2, "epoch_steps": 4, "batch_size": 48, "max_tokens": 400}


def test_kill_9_changes_nothing(start_run, run_here, tmp_path):
    killed = start_run(tmp_path / "parts", **SETTINGS)
    last = tmp_path / "parts" / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 60
    while not last.is_file() and killed.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.1)  # into the steps after it, or into writing the next one
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    stood = torch.load(last, weights_only=True)["global_step"]
    assert 0 < stood < SETTINGS["max_steps"]
    assert stood % SETTINGS["epoch_steps"] == 0
    assert not (tmp_path / "parts" / "model").exists()
    resumed, whole = (run_here(tmp_path / name, **SETTINGS) for name in ("parts", "whole"))
    assert resumed.info["losses"] == whole.info["losses"]
    assert all(torch.equal(resumed.weights[name], tensor) for name, tensor in whole.weights.items())
    metrics = [pd.read_csv(tmp_path / name / "metrics.csv") for name in ("whole", "parts")]
    pd.testing.assert_frame_equal(metrics[1][sorted(metrics[0])], metrics[0][sorted(metrics[0])])
