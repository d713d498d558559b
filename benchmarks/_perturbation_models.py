"""Methods of the benchmark of perturbation: the model with and without the network, the original recipe, GEARS."""

from __future__ import annotations

from functools import partial
from typing import Any

import pandas as pd

from scanpy_scgpt._optional import is_installed
from scanpy_scgpt.model import SCGPTPerturber

from ._gears import gears
from ._perturbation_tasks import Task

EPOCHS, LEGACY_EPOCHS, LEGACY_CELLS = 3, 5, 100


def predicted(task: Task, **settings: Any) -> pd.DataFrame:
    """Effects of the wanted conditions by a model on the cells, or the table, of a task."""
    epochs, per_epoch = settings.pop("max_epochs", 0), settings.pop("per_epoch", 16)
    held_out = set(task.grade.values()) == {"other level"}
    if task.cells is None or (held_out and not epochs):
        model = SCGPTPerturber.from_effects(task.effects, task.targets, **settings)
    else:
        columns = {"batch_key": None if held_out else task.covariate, "size_key": task.size_key}
        model = SCGPTPerturber(task.cells, "perturbation", **columns, **settings)
        if epochs:
            model.train(epochs, per_epoch=per_epoch)
    conditions = model.conditions(list(task.wanted))
    columns = pd.Index(model.screen_.genes)
    found = pd.DataFrame(model.changes(conditions), index=list(task.wanted), columns=columns)
    return found.reindex(columns=task.effects.deltas.columns)


MODELS = {
    "model": partial(predicted, anchor="ridge"),
    "model, with network": partial(predicted, anchor="ridge", max_epochs=EPOCHS),
    "model, network alone": partial(predicted, anchor=None, max_epochs=EPOCHS),
    "original recipe": partial(predicted, legacy=True, max_epochs=LEGACY_EPOCHS, per_epoch=LEGACY_CELLS),
}
if is_installed("gears"):
    MODELS["GEARS"] = gears
SLOW = tuple(one for one in MODELS if one != "model")  # they train a network for each split
