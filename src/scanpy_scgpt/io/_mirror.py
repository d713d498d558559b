"""Mirrors of the original weights: a bare state dict beside a config of another kind. The shapes tell the network."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from . import _legacy
from ._checkpoint import CARD, FILES, Checkpoint, CheckpointError, read_vocab

SUFFIXES = (".safetensors", ".bin", ".pt")
_FIRST = "encoder.embedding.weight"  # the gene table: every scGPT model has it
_HEADS = ("nheads", "nhead", "n_heads", "num_attention_heads")
_USUAL_HEADS = {512: 8}  # width: heads of every checkpoint of the original release
_CONFIGS = ("args.json", "config.json")


def checkpoint_files(names: Iterable[str]) -> list[str]:
    """The files that make a checkpoint, out of the names that a folder or an archive has.

    Parameters
    ----------
    names
        Names of files, without folders.

    Returns
    -------
    Names of the weights and of the settings, vocabulary and card that are there: of our format where it is complete,
    else of the original release, else of a mirror with one file of weights.

    Raises
    ------
    CheckpointError
        When there are no weights, or several files of weights of which none has a known name.
    """
    there = set(names)
    for layout in (FILES, _legacy.FILES):
        if set(layout) <= there:
            return sorted({*layout, CARD} & there)
    weights = weights_file(there)
    return sorted({weights, *_CONFIGS, "vocab.json"} & there)


def weights_file(names: Iterable[str]) -> str:
    """The one file of weights among the names of a folder."""
    found = sorted(name for name in names if name.endswith(SUFFIXES))
    known = [name for name in (FILES[-1], _legacy.WEIGHTS_FILE) if name in found]
    of_tensors = [name for name in found if name.endswith(".safetensors")]
    for choice in (known[:1], found, of_tensors):
        if len(choice) == 1:
            return choice[0]
    if not found:
        listed = ", ".join(sorted(names)[:5]) or "nothing"
        msg = f"There are no weights ({', '.join(f'*{suffix}' for suffix in SUFFIXES)}) among these files: {listed}."
    else:
        msg = f"Several files may be the weights: {', '.join(found[:5])}. Keep one of them in a folder of its own."
    raise CheckpointError(msg)


def read_mirror(folder: Path, *, n_heads: int | None = None, vocab: str | os.PathLike[str] | None = None) -> Checkpoint:
    """Read a folder with a bare state dict; `n_heads` and `vocab` stand in for what it does not have."""
    path = folder / weights_file(file.name for file in folder.iterdir())
    settings = next((folder / name for name in _CONFIGS if (folder / name).is_file()), None)
    args = {} if settings is None else _legacy.read_args(settings)
    vocab_path = folder / "vocab.json" if vocab is None else Path(vocab).expanduser()
    if not vocab_path.is_file():
        msg = (
            f"{folder} has no vocabulary, and without it no gene finds its row. There is no file {vocab_path}: give "
            "the vocab.json of the original release, "
            f"scgpt.io.read_checkpoint({str(folder)!r}, vocab='path/to/vocab.json')."
        )
        raise CheckpointError(msg)
    state = _without_prefix(_read_state(path))
    if _FIRST not in state:
        msg = (
            f"{path}: no tensor is named {_FIRST!r}, so this is no scGPT model (or its names are of an unknown kind). "
            f"First names: {', '.join(list(state)[:4])}."
        )
        raise CheckpointError(msg)
    heads, where = _heads(args, n_heads, width=state[_FIRST].shape[-1], path=path, settings=settings)
    args = {**args, "nheads": heads, "pre_norm": args.get("pre_norm", args.get("norm_scheme") == "pre")}
    info = {"format": "mirror of the original release", "args": args, "heads_from": where}
    return _legacy.assemble(path, state, args, read_vocab(vocab_path), info=info)


def _read_state(path: Path) -> dict[str, Tensor]:
    if path.suffix != ".safetensors":
        return _legacy.read_tensors(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        msg = f"{path} is damaged ({error}). Copy or download it again from its source."
        raise CheckpointError(msg) from error


def _without_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names without what a wrapper put in front of all of them (`model.`, `module.`, ...)."""
    first = next((name for name in state if f".{name}".endswith(f".{_FIRST}")), _FIRST)
    prefix = first.removesuffix(_FIRST)
    return {name.removeprefix(prefix): tensor for name, tensor in state.items()}


def _heads(
    args: dict[str, Any], n_heads: int | None, *, width: int, path: Path, settings: Path | None
) -> tuple[int, str]:
    """Number of attention heads and where it is from; no tensor tells it."""
    named = next((args[key] for key in _HEADS if args.get(key) is not None), None)
    for found, where in ((n_heads, "n_heads="), (named, str(settings and settings.name))):
        if found is not None:
            return int(found), where
    if width in _USUAL_HEADS:
        return _USUAL_HEADS[width], f"every original of width {width}"
    msg = (
        f"{path}: no tensor tells the number of attention heads, and {settings or 'a config.json'} does not give it. "
        f"Say it: scgpt.io.read_checkpoint({str(path.parent)!r}, n_heads=4), if there are 4 (it divides {width})."
    )
    raise CheckpointError(msg)
