"""Predictors without a network, to compare a model with."""

from __future__ import annotations

import numpy as np

from scanpy_scgpt.data import GenerativeBatches
from scanpy_scgpt.disk import TokenStore
from scanpy_scgpt.tokenizer import Tokens

from ._loop import VALIDATION_STEPS

_MOST, _AT_A_TIME = 1_000_000, 100_000  # cells whose digits are averaged: the other processes wait meanwhile


def mean_bin_error(
    tokens: Tokens | TokenStore, training: np.ndarray, validation: GenerativeBatches, *, rng: int
) -> dict[str, float]:
    """Mean squared error of two predictors without a network on the batches of the validation loss.

    `constant`: the mean digit of the training cells; `per_gene`: the mean digit of each gene there.

    Parameters
    ----------
    tokens
        All cells.
    training
        Positions of the training cells, int, shape `(n,)`; of more than a million a random million is looked at.
    validation
        Steps of validation.
    rng
        Seed of that choice.
    """
    if len(training) > _MOST:
        training = np.sort(np.random.default_rng(rng).choice(training, _MOST, replace=False))
    n = validation.n_tokens
    count, total = np.zeros(n), np.zeros(n)
    for start in range(0, len(training), _AT_A_TIME):
        seen = tokens.take(training[start : start + _AT_A_TIME])
        count += np.bincount(seen.gene_ids, minlength=n)
        total += np.bincount(seen.gene_ids, weights=seen.values, minlength=n)
    overall = float(total.sum() / count.sum())
    mean = np.where(count > 0, total / np.maximum(count, 1), overall)
    errors = {"constant": 0.0, "per_gene": 0.0}
    for step in range(VALIDATION_STEPS):
        for batch, shares in zip(*validation[step], strict=True):
            counted = ~batch.unknown_padding.numpy()
            target, genes = batch.targets.numpy()[counted], batch.unknown_ids.numpy()[counted]
            share = shares["targets"] / max(len(target), 1) / VALIDATION_STEPS
            errors["constant"] += float(np.square(target - overall).sum()) * share
            errors["per_gene"] += float(np.square(target - mean[genes]).sum()) * share
    return errors
