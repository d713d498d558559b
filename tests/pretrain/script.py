"""A pretraining run as a user starts it: `python script.py OUT FILES '{"setting": value}'`."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import torch

from scanpy_scgpt import pretrain, settings
from scanpy_scgpt.tokenizer import GeneVocab

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    settings.progress_bar = False
    out, folder, changes = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    vocab = GeneVocab([f"G{j}" for j in range(60)])
    pretrain.run(sorted(folder.glob("*.h5ad")), out, vocab=vocab, accelerator="cpu", **changes)
