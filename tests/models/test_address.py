"""Addresses: archives and folders, verified, hostile, replaced whole. Against a server on this machine."""

from __future__ import annotations

import errno
import hashlib
import io as memory
import os
import re
import tarfile
import zipfile
from pathlib import Path

import pytest

from scanpy_scgpt import models, settings
from scanpy_scgpt.io import CheckpointError
from scanpy_scgpt.models import _records


def sha256(content):
    return hashlib.sha256(content).hexdigest()


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


@pytest.fixture(params=["zip", "tar.gz"])
def pack(request, zipped):
    """Function: an archive of either kind."""
    return zipped if request.param == "zip" else tarred


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


def test_force_replaces(archive, server, files, zipped):
    address, _, digits = archive
    models.download(address, checksum=digits)
    new = zipped({**files, "card.md": b"new"})
    server.files["/tiny.zip"] = new
    assert (models.download(address, checksum=sha256(new), force=True) / "card.md").read_bytes() == b"new"


def test_what_is_there_must_have_the_checksum_that_is_given(archive, server, files, cache, zipped):
    """Of an archive that of the archive, else of the weights; a file whose sum was not kept is read."""
    address, _, digits = archive
    place = models.download(address, checksum=digits)
    new = zipped({**files, "card.md": b"new"})
    server.files["/tiny.zip"] = new
    for other in (sha256(new), "0" * 64):
        text = f"tiny.zip of 'tiny' on this machine has the SHA-256 {digits}, not {other}. Pass force=True"
        for given in (other, {"tiny.zip": other}):
            with pytest.raises(CheckpointError, match=text):
                models.download(address, checksum=given)
    inner = {"": digits, "vocab.json": sha256(files["vocab.json"])}
    assert models.download(address, checksum=inner) == place
    with pytest.raises(CheckpointError, match="vocab.json of 'tiny' on this machine has the SHA-256"):
        models.download(address, checksum={**inner, "vocab.json": "0" * 64})
    place.rename(cache / "checkpoints" / "by-hand")
    text = (
        "checksum= cannot be compared: of 'by-hand' there is no tiny.zip on this machine. "
        "scgpt.models.load('by-hand') uses what is there unchecked, force=True downloads it again."
    )
    with pytest.raises(CheckpointError, match=re.escape(text)):
        models.download(address, checksum=digits, name="by-hand")
    server.files.update({f"/a/{name}": content for name, content in files.items()})
    folder, weights = f"{server.address}/a/", sha256(files["weights.safetensors"])
    for name in ("by-hand", "downloaded"):
        for _ in range(2):
            assert models.download(folder, checksum=weights, name=name) == cache / "checkpoints" / name
        text = f"weights.safetensors of '{name}' on this machine has the SHA-256 {weights}, not 00"
        with pytest.raises(CheckpointError, match=text):
            models.download(folder, checksum="0" * 64, name=name)


def test_checksums_of_the_files_of_an_archive(archive, cache):
    address, _, digits = archive
    for file, fault in (("vocab.json", "has the SHA-256 .*, 0{64} is right"), ("x.json", "is not there")):
        text = f"{file} of {address} {fault}, and nothing was kept. It has card.md, config.json, vocab.json, weights"
        with pytest.raises(CheckpointError, match=text):
            models.download(address, checksum={"": digits, file: "0" * 64})
    assert list((cache / "checkpoints").iterdir()) == []


@pytest.mark.parametrize(
    ("there", "fails"), [(True, "former"), (True, "new"), (True, "record"), (False, "new"), (False, "record")]
)
def test_a_replacement_that_fails_leaves_what_was_there(
    archive, server, files, cache, monkeypatch, there, fails, zipped
):
    """The former folder and its record stay, and nothing has to be asked for again."""
    address, _, digits = archive
    place = cache / "checkpoints" / "tiny"
    if there:
        models.download(address, checksum=digits)
    new = zipped({**files, "card.md": b"new"})
    server.files["/tiny.zip"] = new
    replace = os.replace

    def full(source, target):
        name = {"former": "replaced", "new": "tiny", "record": "tiny.json"}[fails]
        if Path(target).name == name and not (fails == "new" and Path(source).name == "replaced"):
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OSError, match="No space left on device"):
            models.download(address, checksum=sha256(new), force=True)
    assert place.exists() == there
    if there:
        assert models.load("tiny").name == "tiny"
        assert models.download(address, checksum=digits, offline=True) == place
    asked = len(server.asked)
    assert (models.download(address, checksum=sha256(new), force=True) / "card.md").read_bytes() == b"new"
    assert len(server.asked) == asked
    assert [path.name for path in place.parent.iterdir()] == ["tiny"]


class Killed(BaseException):
    """Stands in for a kill: nothing may be tidied up after it."""


@pytest.mark.parametrize("again", ["same", "new", "offline"])
def test_a_kill_in_the_middle_of_a_replacement_loses_nothing(archive, server, files, cache, monkeypatch, again, zipped):
    address, _, digits = archive
    place = models.download(address, checksum=digits)
    new = zipped({**files, "card.md": b"new"})
    server.files["/tiny.zip"] = new
    replace = os.replace

    def killed(source, target):
        if Path(target) == place:
            raise Killed
        replace(source, target)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(os, "replace", killed)
        models.download(address, checksum=sha256(new), force=True)
    assert not place.exists()
    with pytest.raises(ValueError, match="The folder of 'tiny', .*, is gone. Bring it back, or: "):
        models.load("tiny")
    if again == "new":
        assert (models.download(address, checksum=sha256(new), force=True) / "card.md").read_bytes() == b"new"
    else:
        assert models.download(address, checksum=digits, offline=again == "offline") == place
        assert (place / "card.md").read_bytes() == files["card.md"]
    assert models.load("tiny").name == "tiny"


def test_a_download_of_something_else_keeps_what_a_killed_one_was_about_to_replace(archive, server, files, cache):
    address, _, digits = archive
    place = models.download(address, checksum=digits)
    draft = place.with_name("tiny.part")
    draft.mkdir()
    place.rename(draft / "replaced")
    with pytest.raises(OSError, match="is not there"):
        models.download(f"{server.address}/gone.zip", checksum=digits, name="tiny", force=True)
    assert models.download(address, checksum=digits, offline=True) == place


HOSTILE = {
    "up": ("../out.json", "would be written outside of its folder"),
    "root": ("/out.json", "would be written outside of its folder"),
    "inside": ("a/../../out.json", "would be written outside of its folder"),
    "windows": ("..\\out.json", "would be written outside of its folder"),
    "drive": ("C:/out.json", "would be written outside of its folder"),
}


@pytest.mark.parametrize(("name", "why"), HOSTILE.values(), ids=HOSTILE)
def test_an_archive_that_leaves_its_folder_is_refused_whole(server, files, cache, tmp_path, pack, name, why):
    content = pack({**files, name: b"{}"}, folder="")
    server.files["/bad.zip"] = content
    with pytest.raises(CheckpointError, match=f"the member '.*out.json' {why}"):
        models.download(f"{server.address}/bad.zip", checksum=sha256(content))
    assert list(tmp_path.rglob("*.json")) == []


def test_a_link_in_an_archive_is_refused(server, files, tmp_path, zipped):
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


def test_archives_without_one_checkpoint(server, files, zipped):
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
