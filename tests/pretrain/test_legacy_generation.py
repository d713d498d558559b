"""Training on from a checkpoint of the original release keeps its form of attention."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scanpy_scgpt import pretrain
from scanpy_scgpt.pretrain import PretrainConfig
from scanpy_scgpt.pretrain._start import network, shape_from


@pytest.mark.parametrize("legacy", [True, False])
def test_the_form_of_attention_is_that_of_the_checkpoint(checkpoint, legacy):
    parent = replace(checkpoint, info={"legacy_generation": legacy})
    config = shape_from(parent, PretrainConfig(), {})
    module = network(None, np.arange(0), parent.vocab, config, parent=parent, seed=0)
    assert module.legacy_generation is legacy


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*")
def test_the_finished_model_says_so(counts, checkpoint, tmp_path):
    counts.X = sparse.csr_matrix(counts.X).astype(np.int32)
    counts.obs = pd.DataFrame(index=counts.obs_names)
    counts.write_h5ad(tmp_path / "cells.h5ad")
    settings = {"max_length": 60, "batch_size": 32, "max_steps": 1, "epoch_steps": 1, "warmup_steps": 0}
    for legacy in (True, False):
        parent = replace(checkpoint, info={"legacy_generation": legacy})
        out = tmp_path / str(legacy)
        done = pretrain.run(tmp_path / "cells.h5ad", out, continue_from=parent, accelerator="cpu", **settings)
        assert done.info.get("legacy_generation", False) is legacy
