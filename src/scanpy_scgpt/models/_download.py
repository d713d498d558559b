"""Checkpoints from elsewhere: offline first, resumed, verified, placed whole."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from scanpy_scgpt._logging import get_logger
from scanpy_scgpt.io import CheckpointError, checkpoint_files

from . import _archive, _catalogue, _hub, _records
from ._address import from_address, put_back
from ._records import Record
from ._source import Wanted, wanted_of

logger = get_logger(__name__)
_YES = {"1", "true", "yes", "on"}


def download(
    source: str,
    *,
    revision: str | None = None,
    checksum: str | Mapping[str, str] | None = None,
    name: str | None = None,
    force: bool = False,
    offline: bool | None = None,
) -> Path:
    """Download a checkpoint once; afterwards :func:`load` knows it by name, without a network.

    What is there and intact is not asked for again. What arrives is written beside its place, goes on there after an
    interruption, and gets its place when size and checksum are right. Two processes that want the same wait for each
    other.

    Parameters
    ----------
    source
        A name out of :func:`available`; a repository of a hub, `"org/name"` or `"org/name@revision"` (needs the extra
        `hub`, and lands in the hub's own cache); or an address: of an archive (`.zip`, `.tar.gz`) with one checkpoint,
        or of a folder with the files of a checkpoint, ours or of the original release.
    revision
        Of a repository: branch, tag or commit. The commit is recorded; it stays until `force=True`.
    checksum
        SHA-256, 64 hexadecimal digits: of the archive, of the weights of a folder, or `{file: digits}`. An address
        needs one; for repositories the hub's own are checked as well. What is there already must have it too.
    name
        Name for :func:`load`; by default the name, the repository as given, or the last part of the address.
    force
        Download again, also what is there. That is replaced last: when something fails, it stays.
    offline
        Do not open any connection; by default only when the environment says so (`HF_HUB_OFFLINE=1`).

    Returns
    -------
    Folder of the checkpoint.

    Raises
    ------
    ValueError
        When the source is none of these, the checksum is missing or none, or the name means another checkpoint. When
        the source is an original that its drive gives to browsers only; the text says how to get it by hand.
    CheckpointError
        When what arrives has another checksum, or is no checkpoint; it gets no place then. When what is there already
        has another checksum than `checksum`, or one that nobody knows.
    ConnectionError
        When the source cannot be reached or refuses, or `offline` and it is not there. The text says how to get it by
        hand.
    OSError
        When the disk is full, or the cache cannot be written to. What arrived stays, and the next call goes on.

    Examples
    --------
    >>> import scanpy_scgpt as scgpt
    >>> scgpt.models.download("whole-human")  # doctest: +SKIP
    >>> scgpt.tl.embed(adata, "whole-human")  # doctest: +SKIP
    """
    if source in _catalogue.BUNDLED:
        return _catalogue.bundled_folder(source)
    wanted = wanted_of(source, revision, checksum, name)
    offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in _YES if offline is None else offline
    if not force and (there := _there(wanted)) is not None:
        return there
    if _catalogue.is_drive(wanted.source):
        step = _catalogue.manual_step(wanted.name, wanted.source, _records.place_of(wanted.name))
        msg = f"{wanted.name!r} lies on a drive that gives files to browsers only. {step}"
        raise ValueError(msg)
    with _records.alone(wanted.name):
        put_back(wanted.name)  # what a call that was killed was about to replace
        if not force and (there := _there(wanted, quiet=True)) is not None:
            return there  # another process was faster
        if _hub.is_repo(wanted.source):
            return _from_hub(wanted, force=force, offline=offline)
        return from_address(wanted, offline=offline)


def _there(wanted: Wanted, *, quiet: bool = False) -> Path | None:
    """Folder of what is wanted when it is on this machine and intact."""
    record = _records.find(wanted.name)
    if record is None:
        return None
    if record.source not in {"", wanted.label} and not _catalogue.is_drive(wanted.source):
        msg = (
            f"The name {wanted.name!r} stands for {record.source}. Choose another with name=, or pass force=True to "
            "give it to the new one."
        )
        raise ValueError(msg)
    damaged = record.damaged()
    if damaged:
        if not quiet:
            logger.warning("download: %s of %s is damaged and is downloaded again", ", ".join(damaged), wanted.name)
        return None
    _check_sums(wanted, record)
    return Path(record.folder)


def _check_sums(wanted: Wanted, record: Record) -> None:
    """What is there must be what the checksums of the user are of."""
    for file, digits in wanted.checksums.items():
        if wanted.archive and file in {"", wanted.archive}:
            what, found = wanted.archive, record.archive
        else:
            what = file or _weights(record)
            found = record.sum_of(what)
        if not found:
            msg = (
                f"checksum= cannot be compared: of {wanted.name!r} there is no {what} on this machine. "
                f"scgpt.models.load({wanted.name!r}) uses what is there unchecked, force=True downloads it again."
            )
            raise CheckpointError(msg)
        if found != digits:
            msg = (
                f"{what} of {wanted.name!r} on this machine has the SHA-256 {found}, not {digits}. "
                "Pass force=True to download it again."
            )
            raise CheckpointError(msg)


def _weights(record: Record) -> str:
    """Name of the file of weights in the folder of a record."""
    names = checkpoint_files(path.name for path in Path(record.folder).iterdir())
    return next(name for name in names if name.endswith(_archive.WEIGHTS))


def _from_hub(wanted: Wanted, *, force: bool, offline: bool) -> Path:
    sums = {**wanted.pinned, **wanted.checksums}
    former = _records.find(wanted.name)
    force = force or (former is not None and bool(former.damaged()))  # the hub's cache looks at names alone
    folder, commit, found = _hub.from_hub(wanted.source, wanted.revision, sums, force=force, offline=offline)
    _records.write(wanted.name, Record("cached", str(folder), wanted.label, commit, found))
    logger.info("download: %s@%s → models.load(%r)", wanted.source, commit[:12], wanted.name)
    if "vocab.json" not in found:
        logger.warning(
            "download: %s has no vocab.json. Take that of the original release, and say where it is: "
            "scgpt.models.register(%r, %r, vocab='path/to/vocab.json', overwrite=True)",
            wanted.source,
            wanted.name,
            str(folder),
        )
    return folder
