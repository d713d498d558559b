"""Repositories of a hub through `huggingface_hub`, which keeps what it downloads in its own cache."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from scanpy_scgpt._optional import require
from scanpy_scgpt.io import CheckpointError, checkpoint_files

from ._records import sha256

_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)


def is_repo(text: str) -> bool:
    """Whether a text is `org/name`."""
    return _REPO.fullmatch(text) is not None


def hub_of(needed_for: str) -> ModuleType:
    """The package of the hub, with its errors."""
    hub = require("huggingface_hub", extra="hub", needed_for=needed_for)
    require("huggingface_hub.errors", extra="hub", needed_for=needed_for)
    return hub


def from_hub(
    repo: str, revision: str | None, checksums: Mapping[str, str], *, force: bool, offline: bool
) -> tuple[Path, str, dict[str, str]]:
    """Bring a checkpoint of a hub into the hub's own cache.

    Parameters
    ----------
    repo, revision
        `org/name`; branch, tag or commit, None for the main branch.
    checksums
        SHA-256 of files, as far as known; the hub's own are used for the others where it has them.
    force
        Download again what is there.
    offline
        Use what is there.

    Returns
    -------
    The folder, its commit, and the SHA-256 of each file.

    Raises
    ------
    CheckpointError
        When a checksum is another one, or the repository holds no checkpoint.
    ConnectionError
        When the hub cannot be reached, or refuses, or has no such repository or revision.
    """
    hub = hub_of(f"models.download({repo!r})")
    try:
        if offline:
            folder = Path(hub.snapshot_download(repo, revision=revision, local_files_only=True))
            names = checkpoint_files(path.name for path in folder.iterdir())
            commit, expected = folder.name, dict(checksums)
        else:
            api = hub.HfApi()
            info = api.model_info(repo, revision=revision, files_metadata=True)
            sizes = {file.rfilename: file for file in info.siblings or () if "/" not in file.rfilename}
            names = checkpoint_files(sizes)
            commit, expected = info.sha, {**_sums_of(sizes, names), **checksums}
            paths = [api.hf_hub_download(repo, name, revision=commit, force_download=force) for name in names]
            folder = Path(paths[0]).parent
    except (OSError, hub.errors.HTTPError) as error:
        raise ConnectionError(_trouble(repo, revision, error, offline=offline)) from error
    found = {name: sha256(folder / name) for name in names}
    for name, right in expected.items():
        if name not in found:
            msg = f"{repo}@{commit} has no file {name!r}, whose checksum is given. It has {', '.join(names)}."
            raise CheckpointError(msg)
        if found[name] != right:
            msg = (
                f"{name} of {repo}@{commit} has the SHA-256 {found[name]}, {right} is right: it was changed or "
                f"damaged, and no name was given to it. Download it again: scgpt.models.download({repo!r}, force=True)."
            )
            raise CheckpointError(msg)
    return folder, commit, found


def _sums_of(files: Mapping[str, Any], names: list[str]) -> dict[str, str]:
    """SHA-256 that the hub states for large files."""
    return {name: files[name].lfs.sha256 for name in names if files[name].lfs is not None}


def first_line(error: Exception) -> str:
    """The first line of an error's text, or its class."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _trouble(repo: str, revision: str | None, error: Exception, *, offline: bool) -> str:
    first = first_line(error)
    at = f" --revision {revision}" if revision else ""
    wanted = f"{repo}@{revision}" if revision else repo
    why = "is not in the cache of the hub, and offline no other place is asked" if offline else "cannot be downloaded"
    return (
        f"{wanted} {why} ({first}). On a machine with a network: hf download {repo}{at} --local-dir FOLDER; bring "
        "FOLDER here, and name it: scgpt.models.register('my-model', 'FOLDER'). A private repository needs `hf auth "
        "login` first."
    )
