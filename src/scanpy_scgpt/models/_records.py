"""Names of checkpoints on this machine: one small file for each in the cache, and the folders they stand for."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.parse import quote, unquote

from scanpy_scgpt._settings import settings
from scanpy_scgpt.disk import alone_with, write_file
from scanpy_scgpt.io import CheckpointError

_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*", re.ASCII)
_KEY = re.compile(r"[A-Za-z0-9][\w.+/@-]*", re.ASCII)  # names, and repositories of a hub such as org/name@revision


@dataclass(frozen=True)
class Record:
    """What a name stands for.

    Attributes
    ----------
    kind
        `"registered"` by the user, or `"cached"`: downloaded, or put into the cache by hand.
    folder
        The checkpoint.
    source, revision
        Where it was downloaded from, and the commit for a hub.
    checksums
        SHA-256 of each file as it was downloaded.
    archive
        SHA-256 of the archive that they came in; empty for files that came one by one.
    n_heads, vocab
        What a mirror lacks; see :func:`scanpy_scgpt.io.read_checkpoint`.
    """

    kind: str
    folder: str
    source: str = ""
    revision: str = ""
    checksums: Mapping[str, str] = field(default_factory=dict)
    n_heads: int | None = None
    vocab: str | None = None
    archive: str = ""

    @property
    def is_there(self) -> bool:
        """Whether the folder exists."""
        return Path(self.folder).is_dir()

    def sum_of(self, file: str) -> str:
        """SHA-256 of a file of the folder, the recorded one if there is one; empty without such a file."""
        path = Path(self.folder) / file
        return self.checksums.get(file) or (sha256(path) if path.is_file() else "")

    def damaged(self) -> list[str]:
        """Names of files that are missing or whose SHA-256 is not the recorded one."""
        paths = {name: Path(self.folder) / name for name in self.checksums}
        return [name for name, path in paths.items() if not path.is_file() or sha256(path) != self.checksums[name]]


def sha256(path: Path) -> str:
    """SHA-256 of a file, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache() -> Path:
    """The folder of the cache; it may not exist yet."""
    try:
        return Path(settings.cache_dir).expanduser()
    except RuntimeError:  # no home: nothing is found there, and nothing can be put there
        return Path(os.devnull) / "scanpy_scgpt"


def place_of(name: str) -> Path:
    """Folder in the cache for the checkpoint of this name."""
    return cache() / "checkpoints" / name


def check_name(name: str) -> None:
    """A name must be fit for a file."""
    if not _NAME.fullmatch(name) or name.endswith(".part"):
        msg = f"name={name!r}: use letters, digits and `.`, `_`, `+`, `-`, a letter or digit first, no `.part` last."
        raise ValueError(msg)


def _file_of(name: str) -> Path:
    return cache() / "names" / f"{quote(name, safe='')}.json"


def recorded(name: str) -> Record | None:
    """The record of a name, though its folder may be gone; None without one."""
    if not _KEY.fullmatch(name):
        return None
    path = _file_of(name)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Record(**content["record"])
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
    except (ValueError, KeyError, TypeError) as error:
        msg = f"{path} is damaged ({error}). Delete it, and register or download {name!r} again."
        raise CheckpointError(msg) from error


def find(name: str) -> Record | None:
    """What a name stands for on this machine: its record, or the folder put into the cache by hand."""
    record = recorded(name)
    if record is not None and record.is_there:
        return record
    if _NAME.fullmatch(name) and place_of(name).is_dir():
        return Record("cached", str(place_of(name)))
    return None


def known() -> dict[str, Record]:
    """Every name with a folder on this machine, sorted."""
    found = {}
    for path in (cache() / "names").glob("*.json"):
        name = unquote(path.name.removesuffix(".json"))
        found[name] = find(name)
    for folder in (cache() / "checkpoints").glob("*"):
        if _NAME.fullmatch(folder.name) and not folder.name.endswith(".part"):
            found.setdefault(folder.name, find(folder.name))
    return {name: record for name, record in sorted(found.items()) if record is not None}


def write(name: str, record: Record) -> None:
    """Keep a record, whole or not at all."""
    make_folder(_file_of(name).parent)
    with explained():
        write_file(_file_of(name), [json.dumps({"name": name, "record": asdict(record)}, indent=1).encode()])


def remove(name: str) -> None:
    """Forget a record; the folder stays."""
    with explained():
        _file_of(name).unlink()


@contextmanager
def explained() -> Iterator[None]:
    """Say what to do when the cache cannot be written to."""
    try:
        yield
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        msg = (
            f"The cache {cache()} cannot be written to ({error.strerror}). Choose another folder: "
            "scgpt.settings.cache_dir = 'path', or the environment variable SCANPY_SCGPT_CACHE."
        )
        raise PermissionError(error.errno, msg) from error


def make_folder(folder: Path) -> None:
    """Make a folder of the cache."""
    with explained():
        folder.mkdir(parents=True, exist_ok=True)


@contextmanager
def alone(name: str) -> Iterator[None]:
    """One process at a time works on a name, another waits; a killed one holds nothing."""
    path = cache() / "locks" / f"{quote(name, safe='')}.lock"
    make_folder(path.parent)
    with explained():
        path.touch()
    with alone_with(path, wait=True):
        yield
