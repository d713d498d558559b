"""The final errors of a model at each share of unknown genes, beside predictors without a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import lightning.pytorch as lp
import numpy as np

from scanpy_scgpt.data import GenerativeBatches
from scanpy_scgpt.train import TrainingPlan

from ._baselines import baseline_errors, digit_means, ridge_steps
from ._loop import VALIDATION_STEPS, validated

NETWORK = ("gep", "masked_gep", "gepc", "masked_gepc", "prompt")  # errors on the scale of the bins
RIVALS = ("mean_digit", "gene_mean", "ridge")
_RIDGE_BATCH = 256  # cells that are read together


def errors_by_ratio(
    trainer: lp.Trainer, plan: TrainingPlan, held: GenerativeBatches, ratios: Sequence[float]
) -> dict[str, dict[str, float]]:
    """Losses on the held-out cells at each share of unknown genes, by the share as text; all processes take part."""
    loggers, trainer.loggers = trainer.loggers, []  # the curves hold the losses over all shares
    try:
        found = {str(ratio): validated(trainer, plan, held.asking(ratio)) for ratio in ratios}
    finally:
        trainer.loggers = loggers
    return {
        ratio: {name.removesuffix("_validation"): value for name, value in losses.items() if name != "validation_loss"}
        for ratio, losses in found.items()
    }


def add_rivals(
    errors: Mapping[str, dict[str, float]], shown: GenerativeBatches, held: GenerativeBatches, *, rng: int
) -> dict[str, dict[str, float]]:
    """Put the errors of the predictors without a network beside those of the model, on the same targets.

    Parameters
    ----------
    errors
        What :func:`errors_by_ratio` found.
    shown, held
        Training and held-out cells.
    rng
        Seed of the training cells that are looked at.
    """
    training = _plainly(shown)
    means = digit_means(training, rng=rng)
    return {
        ratio: {
            **network,
            **baseline_errors(
                training.asking(float(ratio)), held.asking(float(ratio)), n_steps=VALIDATION_STEPS, means=means
            ),
        }
        for ratio, network in errors.items()
    }


def compared_cells(shown: GenerativeBatches, held: GenerativeBatches) -> dict[str, int]:
    """How many cells the errors are of: `held_out` cells that are asked about, training cells behind the `ridge`."""
    training = _plainly(shown)
    cells = {
        "held_out": [held.order.step(step) for step in range(VALIDATION_STEPS)],
        "ridge": [training.order.step(step) for step in range(ridge_steps(training))],
    }
    return {name: len(np.unique(np.concatenate(steps))) for name, steps in cells.items()}


def _plainly(shown: GenerativeBatches) -> GenerativeBatches:
    return shown.plainly(batch_size=min(_RIDGE_BATCH, len(shown.order.cells)))


def wins(errors: Mapping[str, Mapping[str, float]]) -> list[tuple[str, str, str, float]]:
    """For each ratio and each prediction of the network: the best rival and the network's error less that of the rival.

    Returns
    -------
    Rows `(ratio, prediction, rival, difference)`; below 0 the network is better.
    """
    rows = []
    for ratio, found in errors.items():
        rival = min(RIVALS, key=found.__getitem__)
        rows += [(ratio, name, rival, found[name] - found[rival]) for name in NETWORK if name in found]
    return rows
