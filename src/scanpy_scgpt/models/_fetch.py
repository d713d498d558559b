"""One file over HTTP: streamed to `<file>.part`, resumed, verified, and only then given its name."""

from __future__ import annotations

import errno
import http.client
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from email.message import Message
from pathlib import Path
from typing import Any

from scanpy_scgpt._logging import get_logger
from scanpy_scgpt._progress import track
from scanpy_scgpt._version import __version__
from scanpy_scgpt.io import CheckpointError

from ._records import sha256

logger = get_logger(__name__)
TIMEOUT = 30.0  # seconds without any byte
PAUSES = (1.0, 4.0, 16.0)  # seconds before the second, third, ... attempt
_BLOCK = 1 << 20
_SERVER_ERROR, _TOO_MANY, _RANGE_NOT_THERE, _PARTIAL = 500, 429, 416, 206
_GONE = (404, 410)
_HANDLERS = (  # http and https alone: an address cannot lead to a file of this machine
    urllib.request.ProxyHandler,  # of the environment: HTTPS_PROXY, NO_PROXY
    urllib.request.HTTPHandler,
    urllib.request.HTTPSHandler,
    urllib.request.HTTPRedirectHandler,
    urllib.request.HTTPErrorProcessor,
    urllib.request.HTTPDefaultErrorHandler,
    urllib.request.UnknownHandler,
)


class NotThereError(OSError):
    """The server has no such file."""


class _InterruptedError(Exception):
    """Worth another attempt."""


def fetch(url: str, target: Path, *, checksum: str | None = None) -> None:
    """Download a file; what a former call got is not downloaded again.

    Parameters
    ----------
    url
        Address, `http` or `https`; redirects are followed. Proxies are those of the environment.
    target
        Place of the file. Until it is complete and verified, `<target>.part` and `<target>.part.json` (which version
        of the file it is a part of) stand beside it.
    checksum
        SHA-256 that it must have.

    Raises
    ------
    NotThereError
        When the server says that there is no such file.
    ConnectionError
        When it cannot be reached, or the connection breaks again and again; the part stays.
    CheckpointError
        When the checksum is another one; the part is removed.
    OSError
        When the disk is full; the part stays.
    """
    part, shown = target.with_name(f"{target.name}.part"), without_query(url)
    for pause in (*PAUSES, None):
        try:
            _attempt(url, part)
            break
        except _InterruptedError as error:
            if pause is None:
                raise ConnectionError(_no_connection(shown, part, error)) from error
            logger.debug("download: %s; again in %s s", error, pause)
            time.sleep(pause)
    found = sha256(part)
    if checksum is not None and found != checksum:
        _forget(part)
        msg = (
            f"{shown} has the SHA-256 {found}, {checksum} is right: it was changed or damaged, and nothing was kept. "
            "Repeat the call; if it stays so, ask the publisher for the address and the checksum."
        )
        raise CheckpointError(msg)
    os.replace(part, target)
    _forget(part)


def without_query(url: str) -> str:
    """The address to show and to keep: what follows the question mark may be a signature."""
    return url.partition("?")[0]


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _note(part).unlink(missing_ok=True)


def _note(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _no_connection(url: str, part: Path, error: Exception) -> str:
    safe = part.stat().st_size if part.is_file() else 0
    kept = f"{safe:,} bytes are safe in {part}; repeat the same call to go on from there. " if safe else ""
    return (
        f"{url} could not be downloaded in {len(PAUSES) + 1} attempts ({error}). {kept}"
        "Check the network, and the proxy if there is one (HTTPS_PROXY)."
    )


def _attempt(url: str, part: Path) -> None:
    """One request; appends to what is there when the server still has the same file."""
    shown = without_query(url)
    version = _version_of(part, shown)
    have = part.stat().st_size if version else 0
    headers = {"User-Agent": f"scanpy-scgpt/{__version__}", "Accept-Encoding": "identity"}
    if have:
        headers.update({"Range": f"bytes={have}-", "If-Range": version})
    try:
        response = _open(urllib.request.Request(url, headers=headers))
    except urllib.error.HTTPError as error:
        with error:
            if error.code == _RANGE_NOT_THERE and _total(error.headers) == have:
                return  # it was complete already
            if error.code == _RANGE_NOT_THERE:
                _forget(part)
            _refuse(shown, error)
    with response:
        resumed = response.status == _PARTIAL
        if resumed and _start(response.headers) != have:
            _forget(part)
            msg = f"the server sent another range than bytes={have}-"
            raise _InterruptedError(msg)
        if not resumed:
            have = 0
            _keep_version(part, shown, response.headers)
        _append(response, part, have=have)


def _open(request: urllib.request.Request) -> Any:
    opener = urllib.request.OpenerDirector()
    for handler in _HANDLERS:
        opener.add_handler(handler())
    try:
        return opener.open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError:
        raise
    except (OSError, http.client.HTTPException) as error:
        raise _InterruptedError(str(error)) from error


def _refuse(url: str, error: urllib.error.HTTPError) -> None:
    if error.code >= _SERVER_ERROR or error.code in {_TOO_MANY, _RANGE_NOT_THERE}:
        msg = f"HTTP {error.code} {error.reason}"
        raise _InterruptedError(msg) from error
    if error.code in _GONE:
        msg = (
            f"{url} is not there (HTTP {error.code} {error.reason}): it was moved, or the address is wrong. Look for "
            "it in a browser, and pass the new address: scgpt.models.download('https://...', checksum='...')."
        )
        raise NotThereError(errno.ENOENT, msg) from error
    msg = f"{url} is refused (HTTP {error.code} {error.reason}). Open it in a browser; it may need an account."
    raise PermissionError(errno.EACCES, msg) from error


def _append(response: Any, part: Path, *, have: int) -> None:
    length = response.headers.get("Content-Length")
    total = None if length is None else have + int(length)
    with (
        part.open("ab" if have else "wb") as file,
        track(f"download {part.stem}", total=total or 0) as advance,
    ):
        advance(have)
        for block in _blocks(response):
            try:
                file.write(block)
                file.flush()
            except OSError as error:
                raise _disk_error(error, part) from error
            advance(len(block))
        os.fsync(file.fileno())
    size = part.stat().st_size
    if total is not None and size < total:
        msg = f"the connection ended after {size:,} of {total:,} bytes"
        raise _InterruptedError(msg)


def _blocks(response: Any) -> Iterator[bytes]:
    while True:
        try:
            block = response.read1(_BLOCK)
        except (OSError, http.client.HTTPException) as error:
            msg = f"the connection broke: {error or type(error).__name__}"
            raise _InterruptedError(msg) from error
        if not block:
            return
        yield block


def _disk_error(error: OSError, part: Path) -> OSError:
    if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
        return error
    msg = (
        f"The disk is full: {part.stat().st_size:,} bytes are safe in {part}. Make room and repeat the same call; it "
        "goes on from there."
    )
    return OSError(error.errno, msg)


def _keep_version(part: Path, url: str, headers: Message) -> None:
    """Note which version of the file the part belongs to; a server that names none is asked for all of it again."""
    _forget(part)
    tag = headers.get("ETag")
    version = tag if tag and not tag.startswith("W/") else headers.get("Last-Modified")
    if version:
        _note(part).write_text(json.dumps({"url": url, "version": version}), encoding="utf-8")


def _version_of(part: Path, url: str) -> str | None:
    """Version of the file that a part belongs to; None without a part, or of another address."""
    if not part.is_file():
        return None
    try:
        note = json.loads(_note(part).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return note.get("version") if isinstance(note, dict) and note.get("url") == url else None


def _start(headers: Message) -> int:
    found = re.fullmatch(r"bytes (\d+)-\d+/(?:\d+|\*)", headers.get("Content-Range", ""))
    return int(found[1]) if found else -1


def _total(headers: Message) -> int:
    found = re.fullmatch(r"bytes \*/(\d+)", headers.get("Content-Range", ""))
    return int(found[1]) if found else -1
