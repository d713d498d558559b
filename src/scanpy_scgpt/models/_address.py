"""Checkpoints at an address: an archive, or a folder with the files of one."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

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
_SOURCE = "source.json"


def from_address(wanted: Wanted, *, offline: bool) -> Path:
    """Download an archive or the files of a folder, and put the checkpoint into its place in the cache."""
    place, shown = _records.place_of(wanted.name), without_query(wanted.source)
    if offline:
        msg = (
            f"{shown} is not in the cache, and offline no connection is opened. Download it with a browser elsewhere, "
            f"put the files of the checkpoint into {place}, and load them: scgpt.models.load({wanted.name!r})."
        )
        raise ConnectionError(msg)
    draft = place.with_name(f"{place.name}.part")
    files = _begin(draft, wanted)
    get = _get_archive if _archive.is_archive(urlsplit(wanted.source).path) else _get_files
    sums = {name: _records.sha256(files / name) for name in get(wanted, draft, files)}
    old = draft / "replaced"
    with _records.explained():
        if place.exists():
            os.replace(place, old)
        _records.write(wanted.name, Record("cached", str(place), shown, "", sums))
        os.replace(files, place)
        shutil.rmtree(draft)
    logger.info("download: %s → models.load(%r)", shown, wanted.name)
    return place


def _begin(draft: Path, wanted: Wanted) -> Path:
    """The folder for the files of a download in the making; what was begun for another source is dropped."""
    note = json.dumps({"source": without_query(wanted.source), "checksums": dict(wanted.checksums)}).encode()
    if draft.exists() and not ((draft / _SOURCE).is_file() and (draft / _SOURCE).read_bytes() == note):
        shutil.rmtree(draft)
    _records.make_folder(draft / "files")
    shutil.rmtree(draft / "replaced", ignore_errors=True)  # by a call that was killed in the middle
    with _records.explained():
        write_file(draft / _SOURCE, [note])
    return draft / "files"


def _get_archive(wanted: Wanted, draft: Path, files: Path) -> list[str]:
    last = urlsplit(wanted.source).path.rpartition("/")[2]
    right = wanted.checksums.get("") or wanted.checksums.get(last)
    if right is None:
        msg = f"checksum= has none for {last!r}, the archive. Pass its SHA-256 as a text."
        raise ValueError(msg)
    archive = draft / f"{wanted.name}.archive"
    if not archive.is_file():
        fetch(wanted.source, archive, checksum=right)
    try:
        _archive.unpack(archive, files)
    except CheckpointError:
        shutil.rmtree(draft)
        raise
    return checkpoint_files(path.name for path in files.iterdir())


def _get_files(wanted: Wanted, _: Path, files: Path) -> list[str]:
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
    return [*layout, _CARD] if has_card else list(layout)


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
