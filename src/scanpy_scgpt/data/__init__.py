"""Tokens to batches."""

from ._collate import DigitBatch, batches_by_length, collate_digits
from ._generative import GenerativeBatches, StepSampler, as_panel, split_generative

__all__ = [
    "DigitBatch",
    "GenerativeBatches",
    "StepSampler",
    "as_panel",
    "batches_by_length",
    "collate_digits",
    "split_generative",
]
