"""Made-up counts, small settings, and a way to run pretraining in processes of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
from scipy import sparse

from scanpy_scgpt import io, pretrain
from scanpy_scgpt.tokenizer import GeneVocab

VOCAB = GeneVocab([f"G{j}" for j in range(60)])
SCRIPT = Path(__file__).with_name("script.py")
SMALL = {
    "d_model": 16, "n_heads": 2, "n_layers": 2, "d_ff": 16, "max_length": 40, "batch_size": 24, "epoch_steps": 4,
    "warmup_steps": 2, "prompt_after": 4, "validation_share": 0.2,
}  # fmt: skip


@pytest.fixture(scope="session")
def corpus_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with counts of two cell types whose markers go together; the depth of cells differs."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    for i in range(2):
        kind = rng.integers(2, size=100)
        rate = np.where((np.arange(60) % 2)[None, :] == kind[:, None], 4.0, 0.4) * rng.lognormal(0, 0.7, size=(100, 1))
        adata = ad.AnnData(sparse.csr_matrix(rng.poisson(rate).astype(np.int32)))
        adata.var_names = [f"G{j}" for j in range(60)]
        adata.obs_names = [f"cell{i}-{j}" for j in range(100)]
        adata.write_h5ad(folder / f"part{i}.h5ad")
    return folder


@pytest.fixture(scope="session")
def start_run(corpus_folder: Path) -> Callable[..., subprocess.Popen]:
    """Function `(out, **settings)`: starts a run in a process of its own, which may start others."""

    def start(out: Path, **changes: object) -> subprocess.Popen:
        environment = {name: value for name, value in os.environ.items() if name not in {"LOCAL_RANK", "WORLD_SIZE"}}
        return subprocess.Popen(
            [sys.executable, str(SCRIPT), str(out), str(corpus_folder), json.dumps({**SMALL, **changes})],
            env={**environment, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.fixture(scope="session")
def run_here(corpus_folder: Path) -> Callable[..., io.Checkpoint]:
    """Function `(out, **settings)`: the same run in this process."""
    files = sorted(corpus_folder.glob("*.h5ad"))
    given = {"vocab": VOCAB, "accelerator": "cpu", **SMALL}
    return lambda out, **changes: pretrain.run(changes.pop("data", files), out, **{**given, **changes})
