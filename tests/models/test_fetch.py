"""Addresses: interrupted, changed, moved, hostile. Against a server on this machine."""

from __future__ import annotations

import errno
import hashlib
import io as memory
import os
import signal
import socket
import subprocess
import sys
import tarfile
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from scanpy_scgpt import models, settings
from scanpy_scgpt.io import CheckpointError
from scanpy_scgpt.models import _fetch, _records


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def zipped(files, *, folder="tiny/"):
    buffer = memory.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(f"{folder}{name}", content)
    return buffer.getvalue()


def tarred(files, *, folder="tiny/", links=()):
    buffer = memory.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(f"{folder}{name}")
            info.size = len(content)
            archive.addfile(info, memory.BytesIO(content))
        for name, target in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
    return buffer.getvalue()


@pytest.fixture
def archive(server, files):
    """Address, content and checksum of an archive."""
    content = zipped(files)
    server.files["/tiny.zip"] = content
    return f"{server.address}/tiny.zip", content, sha256(content)


@pytest.mark.parametrize("pack", [zipped, tarred])
@pytest.mark.parametrize("folder", ["", "./", "a/b/"])
def test_an_archive_becomes_a_name(server, files, checkpoint, cache, pack, folder):
    content = pack({**files, "notes.txt": b"not a part of it"}, folder=folder)
    server.files["/x/my.model.tar.gz"] = content
    place = models.download(f"{server.address}/x/my.model.tar.gz", checksum=sha256(content).upper())
    assert place == cache / "checkpoints" / "my.model"
    assert sorted(path.name for path in place.iterdir()) == sorted(files)
    assert sorted(path.name for path in place.parent.iterdir()) == ["my.model"]  # nothing is left beside it
    loaded = models.load("my.model")
    assert (loaded.name, loaded.vocab) == ("my.model", checkpoint.vocab)
    row = models.available().loc["my.model"]
    assert (row["kind"], row["path"], row["source"]) == ("cached", str(place), f"{server.address}/x/my.model.tar.gz")


def test_the_files_of_a_folder_become_a_name(server, files, checkpoint):
    server.files.update({f"/a/tiny/{name}": content for name, content in files.items()})
    address = f"{server.address}/a/tiny/"
    place = models.download(address, checksum=sha256(files["weights.safetensors"]), name="mine")
    assert sorted(path.name for path in place.iterdir()) == sorted(files)
    assert models.load("mine").vocab == checkpoint.vocab
    del server.files["/a/tiny/card.md"]
    sums = {name: sha256(content) for name, content in files.items() if name != "card.md"}
    assert not (models.download(address, checksum=sums, name="without") / "card.md").exists()


def test_a_folder_of_the_original_release(server):
    content = {"args.json": b'{"nheads": 2}', "vocab.json": b"{}", "best_model.pt": b"weights"}
    server.files.update({f"/blood/{name}": x for name, x in content.items()})
    server.cut["/blood/best_model.pt"] = [3, 0, 0]
    address, sums = f"{server.address}/blood?key=hidden", {"best_model.pt": sha256(b"weights")}
    with pytest.raises(ConnectionError, match="3 bytes are safe"):
        models.download(address, checksum=sums, force=True)
    server.asked.clear()
    place = models.download(address, checksum=sums, force=True)  # the same call goes on
    assert server.asked == [("/blood/config.json", None), ("/blood/best_model.pt", "bytes=3-")]
    assert {path.name: path.read_bytes() for path in place.iterdir()} == content


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


def test_a_file_that_changed_meanwhile_starts_anew(archive, server, files):
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


def test_a_wrong_checksum_gets_no_place(archive, cache):
    address, _, digits = archive
    wrong = "0" * 64
    with pytest.raises(CheckpointError, match=f"has the SHA-256 {digits}, {wrong} is right: it was changed or damaged"):
        models.download(address, checksum=wrong)
    assert list((cache / "checkpoints").glob("**/*archive*")) == []
    assert not (cache / "names").exists()


def test_a_damaged_file_is_downloaded_again(archive, caplog):
    address, _, digits = archive
    place = models.download(address, checksum=digits)
    (place / "vocab.json").write_text("{}")
    models.download(address, checksum=digits)
    assert "vocab.json of tiny is damaged and is downloaded again" in caplog.text
    assert len(models.load("tiny").vocab) > 3


def test_force_replaces(archive, server, files):
    address, _, digits = archive
    models.download(address, checksum=digits)
    new = zipped({**files, "card.md": b"new"})
    server.files["/tiny.zip"] = new
    assert (models.download(address, checksum=sha256(new), force=True) / "card.md").read_bytes() == b"new"


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


HOSTILE = {
    "up": ("../out.json", "would be written outside of its folder"),
    "root": ("/out.json", "would be written outside of its folder"),
    "inside": ("a/../../out.json", "would be written outside of its folder"),
    "windows": ("..\\out.json", "would be written outside of its folder"),
    "drive": ("C:/out.json", "would be written outside of its folder"),
}


@pytest.mark.parametrize("pack", [zipped, tarred])
@pytest.mark.parametrize(("name", "why"), HOSTILE.values(), ids=HOSTILE)
def test_an_archive_that_leaves_its_folder_is_refused_whole(server, files, cache, tmp_path, pack, name, why):
    content = pack({**files, name: b"{}"}, folder="")
    server.files["/bad.zip"] = content
    with pytest.raises(CheckpointError, match=f"the member '.*out.json' {why}"):
        models.download(f"{server.address}/bad.zip", checksum=sha256(content))
    assert list(tmp_path.rglob("*.json")) == []


def test_a_link_in_an_archive_is_refused(server, files, tmp_path):
    link = zipfile.ZipInfo("tiny/vocab.json")
    link.external_attr = 0o120777 << 16
    buffer = memory.BytesIO(zipped({name: x for name, x in files.items() if name != "vocab.json"}))
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    for content in (tarred(files, links=[("tiny/card.md", "/etc/passwd")]), buffer.getvalue()):
        server.files["/bad.zip"] = content
        with pytest.raises(CheckpointError, match="is a link or a device, no file"):
            models.download(f"{server.address}/bad.zip", checksum=sha256(content))
    assert list(tmp_path.rglob("*.safetensors")) == []


def test_archives_without_one_checkpoint(server, files):
    two = zipped({**{f"a/{n}": x for n, x in files.items()}, **{f"b/{n}": x for n, x in files.items()}}, folder="")
    contents = {
        "two.zip": (two, "has 2 folders with weights; one checkpoint is expected"),
        "none.zip": (zipped({"a.txt": b"x"}), "has 0 folders with weights.* tiny/a.txt"),
        "broken.tar.gz": (tarred(files)[:-2000], "is damaged or no archive"),
        "text.zip": (b"no archive", "is damaged or no archive"),
    }
    for name, (content, text) in contents.items():
        server.files[f"/{name}"] = content
        with pytest.raises(CheckpointError, match=text):
            models.download(f"{server.address}/{name}", checksum=sha256(content))
    assert "two" not in models.available().index


def test_the_name_that_a_server_gives_is_not_used(archive, server, tmp_path):
    address, _, digits = archive
    server.headers["Content-Disposition"] = 'attachment; filename="../../evil.zip"'
    models.download(address, checksum=digits)
    assert list(tmp_path.rglob("evil*")) == []
    for bad in ("../x", "a/b", ".hidden", "", "mini", "x.part"):
        with pytest.raises(ValueError, match="name="):
            models.download(address, checksum=digits, name=bad)


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


def test_a_cache_that_cannot_be_written_to(archive, tmp_path, monkeypatch):
    address, _, digits = archive
    (tmp_path / "file").write_text("")
    with (
        settings.override(cache_dir=tmp_path / "file"),
        pytest.raises(PermissionError, match=r"The cache .*file cannot be written to .*SCANPY_SCGPT_CACHE"),
    ):
        models.download(address, checksum=digits)
    with monkeypatch.context() as patch, pytest.raises(PermissionError, match="Not a directory"):
        patch.setattr(Path, "expanduser", lambda _: (_ for _ in ()).throw(RuntimeError("no home")))
        models.download(address, checksum=digits)
    place = models.download(address, checksum=digits)

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert models.download(address, checksum=digits) == place  # what is there is only read
    assert models.load("tiny").name == "tiny"
    with pytest.raises(PermissionError, match="Permission denied.*scgpt.settings.cache_dir = "):
        models.download(address, checksum=digits, name="other")


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


def test_what_is_no_source():
    cases = {
        "blod": "'blod' is nothing that can be downloaded: use one of 'whole-human'",
        "ftp://x/y.zip": "is nothing that can be downloaded",
        "/home/x": "is nothing that can be downloaded",
        "https://x/y.zip": "https://x/y.zip needs checksum=, the SHA-256",
    }
    for source, text in cases.items():
        with pytest.raises(ValueError, match=text):
            models.download(source)
    with pytest.raises(ValueError, match="checksum='abc': a SHA-256 has 64 hexadecimal digits"):
        models.download("https://x/y.zip", checksum="abc")
    with pytest.raises(ValueError, match="revision='v1' is for repositories of a hub"):
        models.download("https://x/y.zip", checksum="0" * 64, revision="v1")


def test_checksums_without_the_one_that_matters(archive, server, files):
    address, _, digits = archive
    with pytest.raises(ValueError, match="has none for 'tiny.zip', the archive"):
        models.download(address, checksum={"weights.safetensors": digits})
    server.files.update({f"/f/{name}": content for name, content in files.items()})
    with pytest.raises(ValueError, match="has none for 'weights.safetensors', the weights"):
        models.download(f"{server.address}/f", checksum={"vocab.json": sha256(files["vocab.json"])})


def test_a_name_means_one_checkpoint(archive, server):
    address, content, digits = archive
    models.download(address, checksum=digits)
    server.files["/b/tiny.zip"] = content
    with pytest.raises(ValueError, match=r"'tiny' stands for http.*tiny.zip. Choose another with name=.*force=True"):
        models.download(f"{server.address}/b/tiny.zip", checksum=digits)
    models.download(f"{server.address}/b/tiny.zip", checksum=digits, force=True)
    assert models.available().loc["tiny", "source"] == f"{server.address}/b/tiny.zip"


def test_a_kill_before_the_files_get_their_place(archive, server, monkeypatch, cache):
    """All is there but the last renaming: the next call asks for nothing."""
    address, _, digits = archive
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(_records, "write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        models.download(address, checksum=digits)
    server.asked.clear()
    assert models.load(models.download(address, checksum=digits)).name == "tiny"
    assert server.asked == []


def test_a_damaged_record_is_named(archive, cache):
    address, _, digits = archive
    models.download(address, checksum=digits)
    path = cache / "names" / "tiny.json"
    path.write_text("{")
    with pytest.raises(
        CheckpointError, match=r"tiny.json is damaged .*Delete it, and register or download 'tiny' again"
    ):
        models.load("tiny")


def test_an_opened_server_answers_with_another_range(tmp_path, monkeypatch, server):
    server.files["/x"] = b"0123456789"
    server.cut["/x"] = [4]
    monkeypatch.setattr(_fetch, "_start", lambda headers: 3)
    _fetch.fetch(f"{server.address}/x", tmp_path / "x", checksum=sha256(b"0123456789"))
    assert [wanted for _, wanted in server.asked] == [None, "bytes=4-", None]
    assert _records.sha256(tmp_path / "x") == sha256(b"0123456789")
