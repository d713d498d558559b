"""Tokens to batches."""

from ._collate import DigitBatch, batches_by_length, collate_digits
from ._generative import GenerativeBatches, StepSampler, split_generative

__all__ = [
    "DigitBatch",
    "GenerativeBatches",
    "StepSampler",
    "batches_by_length",
    "collate_digits",
    "split_generative",
]
