"""Checkpoints at an address: an archive, or a folder with the files of one."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from scanpy_scgpt._logging import get_logger
from scanpy_scgpt.disk import write_file
from scanpy_scgpt.io import CheckpointError, checkpoint_files

from . import _archive, _records
from ._fetch import NotThereError, fetch, without_query
from ._records import Record
from ._source import Wanted

logger = get_logger(__name__)
_OURS = ("config.json", "vocab.json", "weights.safetensors")  # settings first, weights last
_ORIGINAL = ("args.json", "vocab.json", "best_model.pt")
_CARD = "card.md"
_SOURCE, _FILES, _REPLACED = "source.json", "files", "replaced"  # in the folder of a download in the making


def from_address(wanted: Wanted, *, offline: bool) -> Path:
    """Download an archive or the files of a folder, and put the checkpoint into its place in the cache."""
    place, shown = _records.place_of(wanted.name), without_query(wanted.source)
    if offline:
        msg = (
            f"{shown} is not in the cache, and offline no connection is opened. Download it with a browser elsewhere, "
            f"put the files of the checkpoint into {place}, and load them: scgpt.models.load({wanted.name!r})."
        )
        raise ConnectionError(msg)
    draft = _draft_of(wanted.name)
    files = _begin(draft, wanted)
    names, archive = (_get_archive if wanted.archive else _get_files)(wanted, draft, files)
    sums = {name: _records.sha256(files / name) for name in names}
    _check(wanted, sums, draft)
    _exchange(wanted.name, Record("cached", str(place), shown, "", sums, archive=archive))
    logger.info("download: %s → models.load(%r)", shown, wanted.name)
    return place


def _check(wanted: Wanted, sums: Mapping[str, str], draft: Path) -> None:
    """Each file whose checksum is given is there and has it; else all of the download is dropped."""
    for file, right in wanted.checksums.items():
        if file in {"", wanted.archive} or sums.get(file) == right:
            continue
        shutil.rmtree(draft)
        fault = f"has the SHA-256 {sums[file]}, {right} is right" if file in sums else "is not there"
        msg = (
            f"{file} of {without_query(wanted.source)} {fault}, and nothing was kept. It has {', '.join(sums)}; ask "
            "the publisher for the checksums of these."
        )
        raise CheckpointError(msg)


def _draft_of(name: str) -> Path:
    place = _records.place_of(name)
    return place.with_name(f"{place.name}.part")


def _exchange(name: str, record: Record) -> None:
    """Give new files the place of the former ones, and keep the record; after an error all is as it was."""
    place, draft = _records.place_of(name), _draft_of(name)
    files = draft / _FILES
    with _records.explained():
        try:
            if place.exists():
                os.replace(place, draft / _REPLACED)
            os.replace(files, place)
            _records.write(name, record)
        except BaseException:
            if not files.exists():
                os.replace(place, files)
            put_back(name)
            raise
        shutil.rmtree(draft)


def put_back(name: str) -> None:
    """Undo a replacement that ended half-way: when the place of a name is empty, what was there returns.

    Parameters
    ----------
    name
        Name of the checkpoint.
    """
    place, old = _records.place_of(name), _draft_of(name) / _REPLACED
    if old.exists() and not place.exists():
        os.replace(old, place)


def _begin(draft: Path, wanted: Wanted) -> Path:
    """The folder for the files of a download in the making; what was begun for another source is dropped."""
    note = json.dumps({"source": without_query(wanted.source), "checksums": dict(wanted.checksums)}).encode()
    if draft.exists() and not ((draft / _SOURCE).is_file() and (draft / _SOURCE).read_bytes() == note):
        shutil.rmtree(draft)
    _records.make_folder(draft / _FILES)
    shutil.rmtree(draft / _REPLACED, ignore_errors=True)  # by a call that was killed when its files had their place
    with _records.explained():
        write_file(draft / _SOURCE, [note])
    return draft / _FILES


def _get_archive(wanted: Wanted, draft: Path, files: Path) -> tuple[list[str], str]:
    """Names of the files, and the SHA-256 of the archive."""
    right = wanted.checksums.get("") or wanted.checksums.get(wanted.archive)
    if right is None:
        msg = f"checksum= has none for {wanted.archive!r}, the archive. Pass its SHA-256 as a text."
        raise ValueError(msg)
    archive = draft / f"{wanted.name}.archive"
    if not archive.is_file():
        fetch(wanted.source, archive, checksum=right)
    try:
        _archive.unpack(archive, files)
    except CheckpointError:
        shutil.rmtree(draft)
        raise
    return checkpoint_files(path.name for path in files.iterdir()), right


def _get_files(wanted: Wanted, _: Path, files: Path) -> tuple[list[str], str]:
    """Names of the files, and nothing for the archive that there is not."""
    address, _, query = wanted.source.partition("?")
    end = f"?{query}" if query else ""
    at = {name: f"{address.rstrip('/')}/{name}{end}" for name in (*_OURS, *_ORIGINAL, _CARD)}
    layout = _layout(wanted, files, at)
    weights = layout[-1]
    right = {**wanted.checksums, weights: wanted.checksums.get(weights) or wanted.checksums.get("")}
    if right[weights] is None:
        msg = f"checksum= has none for {weights!r}, the weights. Pass {{{weights!r}: '...'}}."
        raise ValueError(msg)
    for name in layout:
        if not (files / name).is_file():
            fetch(at[name], files / name, checksum=right.get(name))
    has_card = layout == _OURS and _got(at[_CARD], files / _CARD, right.get(_CARD))
    return [*layout, *([_CARD] if has_card else [])], ""


def _layout(wanted: Wanted, files: Path, at: Mapping[str, str]) -> tuple[str, ...]:
    """Which files lie at an address: the settings tell, our own asked for first."""
    for layout in (_OURS, _ORIGINAL):
        if _got(at[layout[0]], files / layout[0], wanted.checksums.get(layout[0])):
            return layout
    msg = (
        f"{without_query(wanted.source)} has neither {_OURS[0]} nor {_ORIGINAL[0]}: no checkpoint lies there, or it "
        "was moved. Look for it in a browser, and pass the new address: "
        "scgpt.models.download('https://...', checksum='...')."
    )
    raise NotThereError(errno.ENOENT, msg)


def _got(url: str, target: Path, checksum: str | None) -> bool:
    """Download a file unless it is there; False when the server has none."""
    try:
        if not target.is_file():
            fetch(url, target, checksum=checksum)
    except NotThereError:
        return False
    return True
