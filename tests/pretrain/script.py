"""A pretraining run as a user starts it: `python script.py OUT FILES '{"setting": value}'`.

With `stand_at` in the settings it makes the file `OUT/standing` before that step and waits there to be killed; with
`break_at` the loss of the last process is infinite in that step; with `block` a file takes the place of the model.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path

import torch

from scanpy_scgpt import pretrain, settings
from scanpy_scgpt._batch import GenerativeStep
from scanpy_scgpt.tokenizer import GeneVocab
from scanpy_scgpt.train import TrainingPlan


def stand(plan: TrainingPlan, *_: object) -> None:
    if plan.global_step >= stand_at:
        (out / "standing").touch()
        time.sleep(3600)


def overflow(plan: TrainingPlan, batch: GenerativeStep, *_: object) -> None:
    if plan.global_step == break_at and plan.global_rank == plan.trainer.world_size - 1:
        for part in batch.batches:
            part.targets.fill_(torch.inf)


def block(_plan: TrainingPlan, *_: object) -> None:
    (out / "model").write_text("not a folder")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    settings.progress_bar = False
    out, folder, changes = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    stand_at = changes.pop("stand_at", None)
    if stand_at is not None:
        TrainingPlan.on_train_batch_start = stand
    if changes.pop("block", False):
        TrainingPlan.on_train_batch_start = block
    break_at = changes.pop("break_at", None)
    if break_at is not None:
        TrainingPlan.on_train_batch_start = overflow
    vocab = GeneVocab([f"G{j}" for j in range(60)])
    pretrain.run(sorted(folder.glob("*.h5ad")), out, vocab=vocab, accelerator="cpu", **changes)
