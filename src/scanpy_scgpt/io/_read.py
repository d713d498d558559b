"""Checkpoint folders of every kind."""

from __future__ import annotations

import os
from pathlib import Path

from . import _legacy
from ._checkpoint import FILES, Checkpoint, CheckpointError, put_back, read_own
from ._mirror import SUFFIXES, read_mirror


def read_checkpoint(
    folder: str | os.PathLike[str], *, n_heads: int | None = None, vocab: str | os.PathLike[str] | None = None
) -> Checkpoint:
    """Read a checkpoint folder: our format, that of the original scGPT release, or a mirror of it.

    Parameters
    ----------
    folder
        Folder with `config.json`, `vocab.json`, `weights.safetensors`; or with `best_model.pt`, `args.json`,
        `vocab.json`; or a mirror: one file of weights by the names of the original (`.safetensors`, `.bin`, `.pt`) and
        `vocab.json`, with a `config.json` or `args.json` of whatever kind. No object other than tensors is unpickled
        (`torch.load` with `weights_only=True`).
    n_heads
        Of a mirror: number of attention heads, which no tensor tells; by default that of its config, or 8 at the
        width 512 of the originals. Everything else about the network is read from the shapes.
    vocab
        Of a mirror without `vocab.json`: path of the vocabulary.

    Returns
    -------
    Settings, vocabulary and weights by our names.

    Notes
    -----
    When :func:`write_checkpoint` was killed while it replaced the folder, and the folder is missing, the one that was
    to be replaced is put back and read.

    Raises
    ------
    FileNotFoundError
        When there is no such folder.
    CheckpointError
        When files are missing, damaged or do not belong together.
    ValueError
        When `n_heads` or `vocab` is given for a folder that has its own.
    """
    folder = Path(folder).expanduser()
    put_back(folder.resolve())
    if not folder.is_dir():
        msg = f"There is no folder {str(folder)!r}. A checkpoint is a folder with {', '.join(FILES)}."
        raise FileNotFoundError(msg)
    names = {path.name for path in folder.iterdir() if path.is_file()}
    if _is_mirror(names):
        return read_mirror(folder, n_heads=n_heads, vocab=vocab)
    if n_heads is not None or vocab is not None:
        msg = f"{folder} is no mirror: it has its own settings and vocabulary. Leave n_heads and vocab out."
        raise ValueError(msg)
    if names & {"config.json", "weights.safetensors"}:
        return read_own(folder)
    if names & set(_legacy.FILES):
        return _legacy.read_legacy(folder)
    listed = ", ".join(sorted(path.name for path in folder.iterdir())[:5]) or "nothing"
    msg = (
        f"{folder} is no checkpoint folder (it holds {listed}). Expected {', '.join(FILES)}, "
        f"or {', '.join(_legacy.FILES)} of the original release."
    )
    raise CheckpointError(msg)


def _is_mirror(names: set[str]) -> bool:
    """Weights under a name that is neither ours nor the original's, or the original's beside another config."""
    if "weights.safetensors" in names:
        return False
    if _legacy.WEIGHTS_FILE in names:
        return "config.json" in names and "args.json" not in names
    return any(name.endswith(SUFFIXES) for name in names)
