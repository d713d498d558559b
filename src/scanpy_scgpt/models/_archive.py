"""Archives with one checkpoint: only the files of a checkpoint are taken out, under names of our own."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from scanpy_scgpt.io import CheckpointError, checkpoint_files

SUFFIXES = (".zip", ".tar.gz", ".tgz")
WEIGHTS = (".safetensors", ".bin", ".pt")
_LINK = 0o120000  # of the type bits of a file's mode
_TYPE = 0o170000


def is_archive(name: str) -> bool:
    """Whether a file name is that of an archive that :func:`unpack` reads."""
    return name.lower().endswith(SUFFIXES)


def unpack(archive: Path, folder: Path) -> None:
    """Take the one checkpoint of an archive out into a folder.

    Parameters
    ----------
    archive
        `.zip`, `.tar.gz` or `.tgz`. Its members may lie in a folder, of whatever name.
    folder
        Where the files go, under their plain names.

    Raises
    ------
    CheckpointError
        When a member would leave the folder or is a link or a device (nothing is written then), or the archive is
        damaged, or holds no checkpoint, or several.
    """
    try:
        with ExitStack() as stack:
            if zipfile.is_zipfile(archive):
                zipped = stack.enter_context(zipfile.ZipFile(archive))
                infos = [info for info in zipped.infolist() if not info.is_dir()]
                links = [info.filename for info in infos if info.external_attr >> 16 & _TYPE == _LINK]
                _take(archive, {info.filename: partial(zipped.open, info) for info in infos}, links, folder)
            else:
                tar = stack.enter_context(tarfile.open(archive, "r:gz"))
                infos = [info for info in tar.getmembers() if not info.isdir()]
                links = [info.name for info in infos if not info.isfile()]
                _take(archive, {info.name: partial(tar.extractfile, info) for info in infos}, links, folder)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, RuntimeError) as error:
        msg = f"{archive.name} is damaged or no archive ({error}). Download it again from its source."
        raise CheckpointError(msg) from error


def _take(archive: Path, members: dict[str, Callable[[], IO[bytes]]], links: list[str], folder: Path) -> None:
    _refuse(archive, list(members), links)
    by_path = {PurePosixPath(name): opened for name, opened in members.items() if not _hidden(name)}
    homes = sorted({path.parent for path in by_path if path.name.endswith(WEIGHTS)})
    if len(homes) != 1:
        msg = (
            f"{archive.name} has {len(homes)} folders with weights; one checkpoint is expected. Its first files: "
            f"{', '.join(list(members)[:5]) or 'none'}."
        )
        raise CheckpointError(msg)
    for name in checkpoint_files(path.name for path in by_path if path.parent == homes[0]):
        with by_path[homes[0] / name]() as source, (folder / name).open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)


def _hidden(name: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts)


def _refuse(archive: Path, names: list[str], links: list[str]) -> None:
    """An archive with a single bad member is not to be trusted at all."""
    for name in names:
        plain = name.replace("\\", "/")
        bad = plain.startswith("/") or ".." in plain.split("/") or ":" in plain.split("/")[0]
        if bad or name in links:
            why = "would be written outside of its folder" if bad else "is a link or a device, no file"
            msg = (
                f"{archive.name}: the member {name!r} {why}. No archive of a checkpoint has that: nothing was taken "
                "from it. Get the files one by one from a source that you trust."
            )
            raise CheckpointError(msg)
