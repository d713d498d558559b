"""Tokens to batches."""

from ._collate import DigitBatch, batches_by_length, collate_digits
from ._generative import as_panel, split_generative, split_sizes
from ._labelled import InOrder, LabelledCells, Part, ShuffledBatches, batch_loader
from ._loader import CellLoader, TokenBatch, TokenSource
from ._order import PassOrder
from ._pack import PackedBatch, pack_digits
from ._steps import GenerativeBatches, StepSampler

__all__ = [
    "CellLoader",
    "DigitBatch",
    "GenerativeBatches",
    "InOrder",
    "LabelledCells",
    "PackedBatch",
    "Part",
    "PassOrder",
    "ShuffledBatches",
    "StepSampler",
    "TokenBatch",
    "TokenSource",
    "as_panel",
    "batch_loader",
    "batches_by_length",
    "collate_digits",
    "pack_digits",
    "split_generative",
    "split_sizes",
]
