"""Steps of fine-tuning on CPU: forward, backward, clipping, the optimiser; and what 2,600 cells and 10 epochs take.

The rival trains the same network as the original does: `torch.nn.TransformerEncoder`, every batch padded to the longest
cell of all, cells in the order of the data, dropout on the attention weights too, three affine maps as the head, AdamW.
Ours is what a run does: batches of cells of similar length, fast attention, one fused projection. "400 genes a step"
shows a longer cell by genes that are drawn anew at each step, the default of :func:`scanpy_scgpt.tl.annotate`. Weights
are those of the bundled model; every variant takes steps in turn.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import torch
from torch import Tensor, nn

from scanpy_scgpt import models
from scanpy_scgpt.data import InOrder, LabelledCells, ShuffledBatches, batch_loader
from scanpy_scgpt.model import CellTokens
from scanpy_scgpt.module.finetune import FineTuneModule
from scanpy_scgpt.nn import ClassHead
from scanpy_scgpt.tokenizer import Tokens

from . import _harness as harness

BATCH, N_CELLS, EPOCHS, N_LABELS = 32, 2600, 10, 9
ORIGINAL, OURS, SHORT = "as the original", "scanpy_scgpt, all genes", "scanpy_scgpt, 400 genes a step"


class Original(nn.Module):
    """The classifier of the original on the same gene and value encoders."""

    def __init__(self, checkpoint: models.Checkpoint) -> None:
        super().__init__()
        config = checkpoint.transformer
        base = FineTuneModule(config, objectives=("cls",), n_labels=N_LABELS)
        self.encoder = base.transformer.encoder
        layer = nn.TransformerEncoderLayer(
            config.d_model, config.n_heads, config.d_ff, config.dropout, batch_first=True
        )
        self.layers = nn.TransformerEncoder(layer, config.n_layers, enable_nested_tensor=False)
        self.head = ClassHead(d_model=config.d_model, n_classes=N_LABELS, n_layers=3)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        x = self.encoder(batch["gene_ids"], batch["values"])
        x = self.layers(x, src_key_padding_mask=batch["padding"])
        return nn.functional.cross_entropy(self.head(x[:, 0]), batch["labels"].flatten())


def stepper(module: nn.Module, loss_of: Callable[[dict], Tensor], batches: Callable[[], dict]) -> Callable[[], None]:
    """A function that takes one step."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-5)

    def run() -> None:
        loss = loss_of(batches())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()

    return run


def padded(batch: dict[str, Tensor], length: int, pad_id: int) -> dict[str, Tensor]:
    """A batch padded to a length, as the original pads all its cells."""
    more = length - batch["gene_ids"].shape[1]
    fill = {"gene_ids": pad_id, "values": -2.0, "padding": True}
    return {name: nn.functional.pad(x, (0, more), value=fill[name]) if name in fill else x for name, x in batch.items()}


def measure(cells: LabelledCells, checkpoint: models.Checkpoint, *, steps: int) -> dict[str, harness.Timing]:
    """CPU seconds of a step of each variant."""
    everyone = np.arange(len(cells))
    length = int(cells.tokens.lengths.max()) + 1
    original = Original(checkpoint).train()
    in_order = iter(batch_loader(cells, InOrder(everyone, batch_size=BATCH)))
    variants = {
        ORIGINAL: stepper(original, original, lambda: padded(next(in_order), length, cells.pad_id)),
    }
    for name, most in ((OURS, None), (SHORT, 400)):
        module = FineTuneModule(
            checkpoint.transformer, objectives=("cls",), n_labels=N_LABELS, head_layers=1, pooling="layers"
        ).train()
        shuffled = ShuffledBatches(cells, everyone, batch_size=BATCH, balance=cells.codes["labels"], power=0.5)
        drawn = iter(batch_loader(cells, shuffled, most=most))
        variants[name] = stepper(
            module, lambda batch, module=module: module(batch)[2].loss, lambda drawn=drawn: next(drawn)
        )
    for run in variants.values():
        run()
    return harness.interleave(variants, rounds=steps)


def pbmc(data: Path, checkpoint: models.Checkpoint) -> LabelledCells:
    """The 2,638 cells of pbmc3k."""
    adata = ad.read_h5ad(data / "pbmc3k_10x.h5ad")
    tokens = Tokens.concatenate(list(CellTokens(adata, checkpoint, checkpoint.tokenizer)))
    labels = np.unique(adata.obs["cell_type"].astype(str), return_inverse=True)[1]
    vocab = checkpoint.vocab
    return LabelledCells(tokens, {"labels": labels}, vocab.pad_id, vocab.cls_id, checkpoint.tokenizer.cls_value)


def full(checkpoint: models.Checkpoint, *, n: int = 640) -> LabelledCells:
    """Cells of 1,199 genes."""
    rng, vocab = np.random.default_rng(0), checkpoint.vocab
    genes = vocab.ids(vocab.genes)
    ids = np.concatenate([rng.permutation(genes)[:1199] for _ in range(n)]).astype(np.int32)
    tokens = Tokens(np.arange(n + 1) * 1199, ids, rng.integers(1, 51, len(ids)).astype(np.uint8))
    labels = {"labels": rng.integers(0, N_LABELS, n)}
    return LabelledCells(tokens, labels, vocab.pad_id, vocab.cls_id, checkpoint.tokenizer.cls_value)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fine_tune", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("SCANPY_SCGPT_DATA", "../shared/data")))
    parser.add_argument("--steps", type=int, default=5)
    args = parser.parse_args()
    harness.single_thread()
    checkpoint, found = models.load("mini"), {}
    for title, cells in (("pbmc3k", pbmc(args.data, checkpoint)), ("1,200 tokens each", full(checkpoint))):
        timings = measure(cells, checkpoint, steps=args.steps)
        found[title] = {name: timing.seconds for name, timing in timings.items()}
        rows = [
            (
                name,
                timing.median,
                timing.median * -(-N_CELLS // BATCH) * EPOCHS / 60,
                timing.times_faster(timings[ORIGINAL]),
            )
            for name, timing in timings.items()
        ]
        header = ("variant", "CPU-s a step", f"CPU-min, {N_CELLS:,} cells, {EPOCHS} epochs", "times faster")
        harness.print_table(f"{title}: steps of {BATCH} cells", header, rows)
    return harness.conclude("fine_tune", found, [])


if __name__ == "__main__":
    sys.exit(main())
