"""Checkpoint folders of every kind."""

from __future__ import annotations

from pathlib import Path

from . import _legacy
from ._checkpoint import FILES, Checkpoint, CheckpointError, put_back, read_own


def read_checkpoint(folder: str | Path) -> Checkpoint:
    """Read a checkpoint folder: our format, or that of the original scGPT release in any of its name variants.

    Parameters
    ----------
    folder
        Folder with `config.json`, `vocab.json`, `weights.safetensors`; or with `best_model.pt`, `args.json`,
        `vocab.json`. No object other than tensors is unpickled (`torch.load` with `weights_only=True`).

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
    """
    folder = Path(folder).expanduser()
    put_back(folder.resolve())
    if not folder.is_dir():
        msg = f"There is no folder {str(folder)!r}. A checkpoint is a folder with {', '.join(FILES)}."
        raise FileNotFoundError(msg)
    if any((folder / name).is_file() for name in ("config.json", "weights.safetensors")):
        return read_own(folder)
    if any((folder / name).is_file() for name in _legacy.FILES):
        return _legacy.read_legacy(folder)
    listed = ", ".join(sorted(path.name for path in folder.iterdir())[:5]) or "nothing"
    msg = (
        f"{folder} is no checkpoint folder (it holds {listed}). Expected {', '.join(FILES)}, "
        f"or {', '.join(_legacy.FILES)} of the original release."
    )
    raise CheckpointError(msg)
