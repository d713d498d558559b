"""The connection: interrupted, resumed, moved, refused. Against a server on this machine."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from scanpy_scgpt import models
from scanpy_scgpt.io import CheckpointError
from scanpy_scgpt.models import _fetch, _records


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def test_what_is_there_needs_no_network(archive, server, monkeypatch):
    address, _, digits = archive
    place = models.download(address, checksum=digits)
    asked = len(server.asked)

    def refuse(*_, **__):
        pytest.fail("a connection was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    assert models.download(address, checksum=digits) == place
    assert models.download(address, checksum=digits, offline=True) == place
    with pytest.raises(ConnectionError, match=r"is not in the cache, and offline no connection.*put the files"):
        models.download(address, checksum=digits, name="other", offline=True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConnectionError, match="offline"):
        models.download(address, checksum=digits, name="other")
    assert len(server.asked) == asked


def test_a_broken_connection_is_taken_up_where_it_broke(archive, server):
    address, _, digits = archive
    server.cut["/tiny.zip"] = [1000, 500]
    models.download(address, checksum=digits)
    assert [wanted for _, wanted in server.asked] == [None, "bytes=1000-", "bytes=1500-"]


def test_a_part_of_a_former_call_is_used(archive, server, cache):
    address, content, digits = archive
    server.cut["/tiny.zip"] = [1000, 0, 0]
    with pytest.raises(
        ConnectionError, match=r"in 3 attempts \(the connection ended after 1,000 of .* 1,000 bytes are safe"
    ):
        models.download(address, checksum=digits)
    part = cache / "checkpoints" / "tiny.part" / "tiny.archive.part"
    assert part.read_bytes() == content[:1000]
    assert models.available().index.tolist()[1] != "tiny"  # a part is no model
    with pytest.raises(ValueError, match="No model 'tiny'"):
        models.load("tiny")
    server.asked.clear()
    models.download(address, checksum=digits)
    assert server.asked == [("/tiny.zip", "bytes=1000-")]


def test_a_file_that_changed_meanwhile_starts_anew(archive, server, files, zipped):
    address, _, digits = archive
    server.cut["/tiny.zip"] = [1000, 0, 0]
    with pytest.raises(ConnectionError):
        models.download(address, checksum=digits)
    new = zipped({**files, "card.md": b"new"})
    server.files["/tiny.zip"] = new
    with pytest.raises(CheckpointError, match=f"SHA-256 {sha256(new)}, {digits} is right"):
        models.download(address, checksum=digits)
    assert (models.download(address, checksum=sha256(new)) / "card.md").read_bytes() == b"new"


@pytest.mark.parametrize("lacking", ["ranges", "etags"])
def test_a_server_that_cannot_resume_sends_all_again(archive, server, lacking):
    address, _, digits = archive
    setattr(server, lacking, False)
    server.cut["/tiny.zip"] = [1000]
    models.download(address, checksum=digits)
    assert [wanted for _, wanted in server.asked] == [None, "bytes=1000-" if lacking == "ranges" else None]


def test_a_complete_part_is_not_asked_for_again(archive, server, cache):
    address, content, digits = archive
    server.cut["/tiny.zip"] = [len(content) - 1, 0, 0]
    with pytest.raises(ConnectionError):
        models.download(address, checksum=digits)
    part = cache / "checkpoints" / "tiny.part" / "tiny.archive.part"
    part.write_bytes(content)  # killed before it got its name
    server.asked.clear()
    models.download(address, checksum=digits)
    assert server.asked == [("/tiny.zip", f"bytes={len(content)}-")]


def test_a_part_that_is_too_long_is_dropped(archive, server, cache):
    address, content, digits = archive
    server.cut["/tiny.zip"] = [10, 0, 0]
    with pytest.raises(ConnectionError):
        models.download(address, checksum=digits)
    (cache / "checkpoints" / "tiny.part" / "tiny.archive.part").write_bytes(content + b"more")
    server.asked.clear()
    models.download(address, checksum=digits)
    assert [wanted for _, wanted in server.asked] == [f"bytes={len(content) + 4}-", None]


def test_an_opened_server_answers_with_another_range(tmp_path, monkeypatch, server):
    server.files["/x"] = b"0123456789"
    server.cut["/x"] = [4]
    monkeypatch.setattr(_fetch, "_start", lambda headers: 3)
    _fetch.fetch(f"{server.address}/x", tmp_path / "x", checksum=sha256(b"0123456789"))
    assert [wanted for _, wanted in server.asked] == [None, "bytes=4-", None]
    assert _records.sha256(tmp_path / "x") == sha256(b"0123456789")


def test_a_file_that_moved_is_followed_and_a_lost_one_is_explained(archive, server):
    address, _, digits = archive
    server.moved["/old.zip"] = "/between.zip"
    server.moved["/between.zip"] = address
    models.download(f"{server.address}/old.zip", checksum=digits)
    with pytest.raises(
        OSError, match=r"gone.zip is not there \(HTTP 404 Not Found\): it was moved.*models.download\('"
    ):
        models.download(f"{server.address}/gone.zip", checksum=digits)
    with pytest.raises(OSError, match=r"/none/ has neither config.json nor args.json: no checkpoint lies there"):
        models.download(f"{server.address}/none/", checksum=digits)
    server.status["/tiny.zip"] = [403]
    with pytest.raises(PermissionError, match=r"is refused \(HTTP 403 Forbidden\)"):
        models.download(address, checksum=digits, name="other")


def test_a_redirect_to_a_file_of_this_machine_is_not_followed(server, tmp_path):
    (tmp_path / "secret").write_text("secret")
    server.moved["/x.zip"] = f"file://{tmp_path}/secret"
    with pytest.raises(OSError, match="HTTP 302"):
        models.download(f"{server.address}/x.zip", checksum="0" * 64)


def test_a_server_that_is_busy_is_asked_again(archive, server):
    address, _, digits = archive
    server.status["/tiny.zip"] = [503, 429]
    models.download(address, checksum=digits)
    assert len(server.asked) == 3
    server.status["/tiny.zip"] = [500, 500, 500]
    with pytest.raises(ConnectionError, match=r"in 3 attempts \(HTTP 500 .*Check the network, and the proxy"):
        models.download(address, checksum=digits, name="other")


def test_a_server_that_is_not_there():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(ConnectionError, match="could not be downloaded in 3 attempts .*refused"):
            models.download(f"http://127.0.0.1:{port}/x.zip?key=hidden", checksum="0" * 64)


def test_a_proxy_of_the_environment_is_used(archive, server, monkeypatch):
    _, content, digits = archive
    server.files["http://nowhere.invalid/tiny.zip"] = content  # what a proxy is asked for
    monkeypatch.setenv("http_proxy", server.address)
    models.download("http://nowhere.invalid/tiny.zip", checksum=digits)
    assert server.asked == [("http://nowhere.invalid/tiny.zip", None)]


def test_a_signature_in_an_address_is_not_kept(archive, cache):
    address, _, digits = archive
    models.download(f"{address}?key=hidden", checksum=digits)
    assert models.available().loc["tiny", "source"] == address
    assert not [path for path in cache.rglob("*") if path.is_file() and b"hidden" in path.read_bytes()]
    with pytest.raises(ValueError, match="holds a user name. Leave it out") as caught:
        models.download("https://me:hidden@host/x.zip", checksum=digits)
    assert "hidden" not in str(caught.value)


def test_a_disk_that_is_full_keeps_the_part(archive, server, monkeypatch, cache):
    address, _, digits = archive
    opened = Path.open

    class Full:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, block):
            self.file.write(block[:700])
            self.file.flush()
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(
        Path,
        "open",
        lambda path, mode="r", **k: Full(opened(path, mode, **k)) if mode in {"wb", "ab"} else opened(path, mode, **k),
    )
    with pytest.raises(
        OSError, match=r"The disk is full: 700 bytes are safe in .*part. Make room and repeat"
    ) as caught:
        models.download(address, checksum=digits)
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.setattr(Path, "open", opened)
    server.asked.clear()
    models.download(address, checksum=digits)
    assert server.asked == [("/tiny.zip", "bytes=700-")]


GET = """
import sys
from scanpy_scgpt import models
models.download(sys.argv[1], checksum=sys.argv[2])
"""


def test_one_waits_for_the_other_and_takes_up_what_a_killed_one_left(archive, server, cache):
    """A process is in the middle; this one wants the same and waits. The other is killed; this one gets the rest."""
    address, _, digits = archive
    server.slow["/tiny.zip"] = 1000
    environment = {**os.environ, "SCANPY_SCGPT_CACHE": str(cache), "no_proxy": "127.0.0.1"}
    command = [sys.executable, "-c", GET, address, digits]
    other = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    part = cache / "checkpoints" / "tiny.part" / "tiny.archive.part"
    until = time.monotonic() + 60
    while not (part.is_file() and part.stat().st_size == 1000):
        assert time.monotonic() < until
        assert other.poll() is None, other.stderr.read()
        time.sleep(0.02)
    server.slow.clear()
    with ThreadPoolExecutor(1) as threads:
        place = threads.submit(models.download, address, checksum=digits)
        time.sleep(0.3)
        assert not place.done()
        assert len(server.asked) == 1
        other.send_signal(signal.SIGKILL)
        other.communicate()
        assert place.result() == cache / "checkpoints" / "tiny"
    assert server.asked == [("/tiny.zip", None), ("/tiny.zip", "bytes=1000-")]
