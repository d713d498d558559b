"""Checkpoints on disk."""

from ._checkpoint import (
    Checkpoint,
    CheckpointError,
    CheckpointMismatchError,
    LoadReport,
    load_component,
    require_replaceable,
    write_checkpoint,
)
from ._gmt import read_gmt
from ._mirror import checkpoint_files
from ._read import read_checkpoint

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "CheckpointMismatchError",
    "LoadReport",
    "checkpoint_files",
    "load_component",
    "read_checkpoint",
    "read_gmt",
    "require_replaceable",
    "write_checkpoint",
]
