"""What a download is asked for: a name, a repository or an address, made into one form."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from . import _archive, _catalogue, _hub, _records
from ._fetch import without_query

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Wanted:
    """What to get: address or repository, and the name that it shall have.

    Attributes
    ----------
    name
        For :func:`load`.
    source, revision
        Address or repository, and what is wanted of a repository.
    checksums
        SHA-256 as the user gave them, by file; `""` for the archive or the weights.
    pinned
        Those that this release knows of the source.
    """

    name: str
    source: str
    revision: str | None
    checksums: Mapping[str, str]
    pinned: Mapping[str, str] = field(default_factory=dict)

    @property
    def archive(self) -> str:
        """File name of the archive that the address is of; empty where it is of none."""
        last = urlsplit(self.source).path.rpartition("/")[2]
        return last if _archive.is_archive(last) and not _hub.is_repo(self.source) else ""

    @property
    def label(self) -> str:
        """The source as records keep it."""
        return f"{self.source}@{self.revision}" if self.revision else without_query(self.source)


def wanted_of(source: str, revision: str | None, checksum: str | Mapping[str, str] | None, name: str | None) -> Wanted:
    if name is not None:
        _records.check_name(name)
        if name in _catalogue.BUNDLED:
            msg = f"name={name!r} is the bundled model. Choose another name."
            raise ValueError(msg)
    sums = _checksums(checksum)
    if _catalogue.is_drive(source):
        return Wanted(name or _catalogue.name_of_drive_folder(source) or "my-model", without_query(source), None, sums)
    if source in _catalogue.ORIGINALS:
        mirror = _catalogue.ORIGINALS[source].mirror
        if mirror is None:
            return Wanted(name or source, _catalogue.ORIGINALS[source].address, None, sums)
        pinned = mirror.checksums if revision in {None, mirror.revision} else {}
        return Wanted(name or source, mirror.repo, revision or mirror.revision, _by_file(sums), pinned)
    repo, _, at = source.partition("@")
    if _hub.is_repo(repo):
        if revision is not None and at and at != revision:
            msg = f"{source!r} names the revision {at!r}, and revision={revision!r} is given too. Leave one out."
            raise ValueError(msg)
        at = revision or at
        return Wanted(name or (f"{repo}@{at}" if at else repo), repo, at or None, _by_file(sums))
    return _of_address(source, revision, sums, name)


def _of_address(source: str, revision: str | None, sums: Mapping[str, str], name: str | None) -> Wanted:
    parts = urlsplit(source)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        msg = (
            f"{source!r} is nothing that can be downloaded: use one of {', '.join(map(repr, _catalogue.ORIGINALS))}, a "
            "repository 'org/name', or an address that begins with https://."
        )
        raise ValueError(msg)
    if parts.username is not None or parts.password is not None:
        msg = f"The address at {parts.hostname} holds a user name. Leave it out: addresses are written to records."
        raise ValueError(msg)
    if revision is not None:
        msg = f"revision={revision!r} is for repositories of a hub; an address has none. Leave it out."
        raise ValueError(msg)
    if not sums:
        msg = (
            f"{without_query(source)} needs checksum=, the SHA-256 of the archive or of the weights as its publisher "
            "gives it (on a copy that you trust: sha256sum FILE). Without it nobody can tell what arrives."
        )
        raise ValueError(msg)
    if name is None:
        last = parts.path.rstrip("/").rpartition("/")[2]
        name = next((last[: -len(end)] for end in _archive.SUFFIXES if last.lower().endswith(end)), last)
        _records.check_name(name)
    return Wanted(name, source, None, sums)


def _by_file(sums: Mapping[str, str]) -> Mapping[str, str]:
    """Checksums of a repository; one without the name of a file is of nothing."""
    if "" in sums:
        msg = (
            "A repository has several files. Say which one the checksum is of: checksum={'weights.safetensors': '...'}."
        )
        raise ValueError(msg)
    return sums


def _checksums(checksum: str | Mapping[str, str] | None) -> dict[str, str]:
    given = {"": checksum} if isinstance(checksum, str) else dict(checksum or {})
    sums = {file: digits.strip().lower() for file, digits in given.items()}
    for digits in sums.values():
        if not _SHA256.fullmatch(digits):
            msg = f"checksum={digits!r}: a SHA-256 has 64 hexadecimal digits (0-9, a-f)."
            raise ValueError(msg)
    return sums
