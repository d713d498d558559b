"""Checkpoints by name."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from scanpy_scgpt._settings import settings
from scanpy_scgpt.io import Checkpoint, checkpoint_files, read_checkpoint
from scanpy_scgpt.module import initial_weights

from . import _records
from ._catalogue import (
    BUNDLED,
    ORIGINAL_FILES,
    ORIGINAL_SHAPE,
    ORIGINALS,
    bundled_folder,
    get_line,
    manual_step,
)
from ._hub import is_repo
from ._records import Record

_COLUMNS = ("kind", "trained_on", "cells", "licence", "source", "size", "path", "how")


def available() -> pd.DataFrame:
    """Every checkpoint by name: inside the package, on this machine, and of the original release.

    Any other folder with a checkpoint loads by its path, or gets a name with :func:`register`.

    Returns
    -------
    A table whose index are the names for :func:`load`, with the columns

    `kind`
        `bundled`, `registered` (a folder of yours), `cached` (downloaded), or `original` (not on this machine).
    `trained_on`, `cells`
        The cells, and their number (missing where nobody gives it).
    `licence`, `source`
        Of the weights, and where they are from.
    `size`
        Bytes, missing where unknown.
    `path`
        Folder on this machine, None without one.
    `how`
        The line that loads it, or gets it, or says how to get it by hand.

    A folder with the name of an original is described as that original, unless its own settings say otherwise.
    """
    rows = {name: _row("bundled", bundled_folder(name), how=_load_line(name)) for name in BUNDLED}
    for name, record in _records.known().items():
        rows[name] = _row(record.kind, Path(record.folder), how=_load_line(name), source=_source(record))
    for name, original in ORIGINALS.items():
        facts = {"trained_on": original.trained_on, "cells": original.cells, "licence": original.licence}
        if name in rows:
            if not _is_of_its_own(Path(rows[name]["path"])):
                rows[name].update({**facts, "source": rows[name]["source"] or original.address})
            continue
        mirror = original.mirror
        size = None if mirror is None else mirror.size
        where = {"source": original.address, "size": size, "path": None, "how": get_line(name)}
        rows[name] = {"kind": "original", **facts, **where}
    table = pd.DataFrame.from_dict(rows, orient="index", columns=list(_COLUMNS)).rename_axis("name")
    return table.astype({"cells": "Int64", "size": "Int64"})


def _load_line(name: str) -> str:
    return f"scgpt.models.load({name!r})"


def _source(record: Record) -> str:
    return f"{record.source.partition('@')[0]}@{record.revision}" if record.revision else record.source


def info_of(folder: Path) -> Mapping[str, Any]:
    """What the settings of a folder in our format say about its training; empty where there is nothing to read."""
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # no folder of ours, or damaged: load says so
    info = content.get("info", {}) if isinstance(content, dict) else {}
    return info if isinstance(info, Mapping) else {}


def _is_of_its_own(folder: Path) -> bool:
    """Whether a folder with the name of an original says that it is something else: our format, trained by itself."""
    info = info_of(folder)
    converted = info.get("legacy_generation") and not info.get("n_training_cells")
    return not converted and (folder / "weights.safetensors").is_file() and (folder / "config.json").is_file()


def _row(kind: str, folder: Path, *, how: str, source: str = "") -> dict[str, Any]:
    """What a folder tells about itself without reading its weights."""
    info, size = info_of(folder), None
    with suppress(OSError, ValueError):  # no checkpoint: load says so
        size = sum((folder / name).stat().st_size for name in checkpoint_files(p.name for p in folder.iterdir()))
    studies = info.get("studies", ())
    return {
        "kind": kind,
        "trained_on": f"{len(studies)} studies" if studies else "",
        "cells": info.get("n_training_cells"),
        "licence": "BSD-3-Clause" if kind == "bundled" else "",
        "source": "inside the package" if kind == "bundled" else source,
        "size": size,
        "path": str(folder),
        "how": how,
    }


def load(model: str | os.PathLike[str] | Checkpoint | None = None) -> Checkpoint:
    """Checkpoint by name or folder. Nothing is downloaded.

    Parameters
    ----------
    model
        Name out of :func:`available`, path of a checkpoint folder, a checkpoint that was read before, or `None` for
        `settings.model`. A name goes before a folder; write `./name` for the folder.

    Returns
    -------
    Settings, vocabulary and weights of the model.

    Raises
    ------
    ValueError
        When there is neither such a name nor such a folder, or the model of that name is not on this machine; the text
        says how to get it.
    CheckpointError
        When the folder is incomplete or damaged.
    """
    if isinstance(model, Checkpoint):
        return model
    wanted = os.fspath(settings.model if model is None else model)
    if wanted in BUNDLED:
        return read_checkpoint(bundled_folder(wanted))
    record = _records.find(wanted)
    if record is not None:
        checkpoint = read_checkpoint(record.folder, n_heads=record.n_heads, vocab=record.vocab)
        return replace(checkpoint, name=wanted)
    try:
        return read_checkpoint(wanted)
    except FileNotFoundError:
        pass  # neither a name nor a folder: said below
    raise ValueError(_no_model(wanted))


def _no_model(wanted: str) -> str:
    lost = _records.recorded(wanted)
    if lost is not None:
        again = f"scgpt.models.download({lost.source!r}, name={wanted!r}, ...)"
        if lost.kind == "registered":
            again = f"scgpt.models.register({wanted!r}, 'path/to/folder', overwrite=True)"
        return f"The folder of {wanted!r}, {lost.folder}, is gone. Bring it back, or: {again}."
    if wanted in ORIGINALS:
        mirror = ORIGINALS[wanted].mirror
        if mirror is None:
            step = manual_step(wanted, ORIGINALS[wanted].address, _records.place_of(wanted))
            return f"{wanted!r} is not on this machine. {step}"
        return (
            f"{wanted!r} is not on this machine, and nothing is downloaded unasked. Get it ({mirror.size / 1e6:.0f} "
            f"MB, once): {get_line(wanted)}."
        )
    names = [*BUNDLED, *_records.known(), *(name for name in ORIGINALS if _records.find(name) is None)]
    near = difflib.get_close_matches(wanted, names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    if is_repo(wanted):
        hint += f" If it is a repository of a hub: scgpt.models.download({wanted!r})."
    return (
        f"No model {wanted!r}: it is neither a name ({', '.join(map(repr, names))}) nor a folder with a checkpoint, "
        f"such as {', '.join(ORIGINAL_FILES)} of the original release.{hint} scgpt.models.available() says how to get "
        "each."
    )


def register(
    name: str,
    folder: str | os.PathLike[str],
    *,
    n_heads: int | None = None,
    vocab: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
) -> Checkpoint:
    """Give a folder a name that :func:`load` knows from now on, in later sessions too.

    Parameters
    ----------
    name
        The name; that of an original for its folder and no other, or a new one.
    folder
        Checkpoint in any layout that :func:`scanpy_scgpt.io.read_checkpoint` reads. It stays where it is.
    n_heads, vocab
        What a mirror of the original lacks; see :func:`scanpy_scgpt.io.read_checkpoint`.
    overwrite
        Give a name that stands for something else to this folder.

    Returns
    -------
    The checkpoint: it is read, so that a name never stands for a folder that does not load.

    Raises
    ------
    ValueError
        When the name is taken, or cannot be one; or is that of an original, and the folder is not of its shape.
    FileNotFoundError
        When there is no such folder.
    CheckpointError
        When it holds no checkpoint, or a damaged one.
    """
    _records.check_name(name)
    if name in BUNDLED:
        msg = f"{name!r} is the bundled model. Choose another name."
        raise ValueError(msg)
    path, taken = Path(folder).expanduser().resolve(), _records.find(name)
    if taken is not None and not overwrite and Path(taken.folder) != path:
        msg = f"{name!r} stands for {taken.folder}. Choose another name, or pass overwrite=True."
        raise ValueError(msg)
    vocab_path = None if vocab is None else str(Path(vocab).expanduser().resolve())
    checkpoint = read_checkpoint(path, n_heads=n_heads, vocab=vocab_path)
    if name in ORIGINALS:
        _check_original(name, checkpoint, path)
    _records.write(name, Record("registered", str(path), n_heads=n_heads, vocab=vocab_path))
    return replace(checkpoint, name=name)


def _check_original(name: str, checkpoint: Checkpoint, folder: Path) -> None:
    """What is shown about an original must not be said of another model."""
    shape, n_tokens = checkpoint.transformer, ORIGINALS[name].n_tokens
    found = {"width": shape.d_model, "layers": shape.n_layers, "tokens": shape.n_tokens}
    right = {**ORIGINAL_SHAPE, "tokens": n_tokens or shape.n_tokens}
    faults = [f"{key} {found[key]:,}, not {right[key]:,}" for key in right if found[key] != right[key]]
    if not checkpoint.info.get("legacy_generation"):
        faults.append("it was not made from a folder of the original release")
    if faults:
        msg = (
            f"{folder} is not {name!r}, an original: {'; '.join(faults)}. Choose another name: "
            f"scgpt.models.register({f'my-{name}'!r}, {str(folder)!r})."
        )
        raise ValueError(msg)


def unregister(name: str) -> None:
    """Forget a name. The folder that it stands for is left alone.

    Parameters
    ----------
    name
        Name that was given with :func:`register` or by :func:`download`.

    Raises
    ------
    ValueError
        When there is no such name; or its folder lies in the cache, where it would still be found.
    """
    record = _records.recorded(name)
    place = _records.place_of(name)
    if record is None and not (name not in BUNDLED and _records.find(name)):
        names = ", ".join(map(repr, _records.known())) or "none"
        msg = f"{name!r} is no name that was registered. Registered and downloaded: {names}."
        raise ValueError(msg)
    if record is not None:
        _records.remove(name)
    if place.is_dir() and (record is None or Path(record.folder) == place):
        msg = f"{name!r} lies in the cache and is found by its folder. Delete the folder {place}."
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
    distribution = any(name.startswith("distribution_head.") for name in checkpoint.weights)
    weights = initial_weights(checkpoint.transformer, seed=rng, distribution=distribution)
    name = f"untrained {checkpoint.name}"
    info = {key: value for key, value in checkpoint.info.items() if key in {"pooling", "legacy_generation"}}
    return replace(checkpoint, name=name, weights=weights, digest="", card="", info=info, ignored={})
