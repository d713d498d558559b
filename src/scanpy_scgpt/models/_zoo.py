"""Checkpoints by name."""

from __future__ import annotations

import difflib
import os
from dataclasses import replace
from importlib import resources

from scanpy_scgpt._settings import settings
from scanpy_scgpt.io import Checkpoint, read_checkpoint
from scanpy_scgpt.module import initial_weights

BUNDLED = ("mini",)


def available() -> list[str]:
    """Names that :func:`load` knows: the checkpoints inside the package.

    Any folder with a checkpoint, ours or of the original release, loads by its path.

    Returns
    -------
    The names.
    """
    return list(BUNDLED)


def load(model: str | os.PathLike[str] | Checkpoint | None = None) -> Checkpoint:
    """Checkpoint by name or folder.

    Parameters
    ----------
    model
        Name out of :func:`available`, path of a checkpoint folder, a checkpoint that was read before, or `None` for
        `settings.model`.

    Returns
    -------
    Settings, vocabulary and weights of the model.

    Raises
    ------
    ValueError
        When there is neither such a name nor such a folder; the text lists the names.
    CheckpointError
        When the folder is incomplete or damaged.
    """
    if isinstance(model, Checkpoint):
        return model
    wanted = os.fspath(settings.model if model is None else model)
    if wanted in BUNDLED:
        with resources.as_file(resources.files(__package__) / wanted) as folder:
            return read_checkpoint(folder)
    try:
        return read_checkpoint(wanted)
    except FileNotFoundError:
        pass  # neither a name nor a folder: said below
    near = difflib.get_close_matches(wanted, BUNDLED, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    msg = (
        f"No model {wanted!r}: it is neither one of {', '.join(map(repr, BUNDLED))} nor a folder.{hint} "
        "For weights of the original scGPT release, download their folder (best_model.pt, args.json, vocab.json) "
        "and pass its path."
    )
    raise ValueError(msg)


def untrained(model: str | os.PathLike[str] | Checkpoint | None = None, *, rng: int = 0) -> Checkpoint:
    """The network of a checkpoint with random weights: what the shape alone achieves.

    Parameters
    ----------
    model
        As in :func:`load`.
    rng
        Seed of the weights. Global random state is left as it was.

    Returns
    -------
    A checkpoint with the same settings and vocabulary.
    """
    checkpoint = load(model)
    weights = initial_weights(checkpoint.transformer, seed=rng)
    name = f"untrained {checkpoint.name}"
    info = {key: value for key, value in checkpoint.info.items() if key == "pooling"}
    return replace(checkpoint, name=name, weights=weights, digest="", card="", info=info, ignored={})
