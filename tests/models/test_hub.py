"""Repositories of a hub, against a server on this machine that speaks as one."""

from __future__ import annotations

import dataclasses
import json
import socket

import pytest

from scanpy_scgpt import io, models
from scanpy_scgpt.io import CheckpointError
from scanpy_scgpt.models import _catalogue

SHA = "a" * 40
WRONG = "0" * 64


def test_a_repository_is_pinned_and_then_needs_no_network(hub, files, checkpoint, monkeypatch):
    hub.commits("lab/net", sha=SHA, files={**files, "README.md": b"x", ".gitattributes": b"x", "best_model.pt": b"x"})
    folder = models.download("lab/net")
    assert folder.name == SHA
    assert sorted(path.name for path in folder.iterdir()) == sorted(files)
    loaded = models.load("lab/net")
    assert (loaded.name, loaded.vocab) == ("lab/net", checkpoint.vocab)
    row = models.available().loc["lab/net"]
    assert (row["kind"], row["source"]) == ("cached", f"lab/net@{SHA}")

    def refuse(*_, **__):
        pytest.fail("a connection was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    assert models.download("lab/net") == folder
    assert models.download("lab/net", revision=SHA, name="pinned", offline=True) == folder
    assert models.load("pinned").name == "pinned"
    with pytest.raises(
        ConnectionError, match=r"lab/other is not in the cache of the hub.*hf download lab/other --local-dir"
    ):
        models.download("lab/other", offline=True)


def test_the_commit_stays_until_it_is_forced(hub, files):
    hub.commits("lab/net", sha=SHA, files=files)
    models.download("lab/net")
    hub.commits("lab/net", sha="b" * 40, files={**files, "card.md": b"new"})
    assert models.download("lab/net").name == SHA
    assert models.download("lab/net", force=True).name == "b" * 40
    assert models.load("lab/net").card == "new"
    assert models.download(f"lab/net@{SHA}").name == SHA
    assert {"lab/net", f"lab/net@{SHA}"} <= set(models.available().index)


def test_a_name_means_one_revision(hub, files):
    hub.commits("lab/net", sha=SHA, files=files)
    models.download("lab/net", name="mine")
    with pytest.raises(ValueError, match="The name 'mine' stands for lab/net. Choose another"):
        models.download(f"lab/net@{SHA}", name="mine")
    models.download(f"lab/net@{SHA}", name="mine", force=True)
    assert models.available().loc["mine", "source"] == f"lab/net@{SHA}"


def test_a_damaged_file_of_the_hub_cache_is_downloaded_again(hub, files, caplog):
    hub.commits("lab/net", sha=SHA, files=files)
    folder = models.download("lab/net")
    (folder / "weights.safetensors").resolve().write_bytes(b"damaged")
    models.download("lab/net")
    assert "weights.safetensors of lab/net is damaged and is downloaded again" in caplog.text
    assert (folder / "weights.safetensors").read_bytes() == files["weights.safetensors"]


def test_a_repository_that_is_not_there_yet_is_named():
    with pytest.raises(
        ValueError, match=r"No model 'lab/net'.* repository of a hub: scgpt.models.download\('lab/net'\)"
    ):
        models.load("lab/net")


def test_checksums_of_a_repository(hub, files):
    hub.commits("lab/net", sha=SHA, files=files)
    with pytest.raises(CheckpointError, match=rf"weights.safetensors of lab/net@{SHA} has the SHA-256 \w+, {WRONG} is"):
        models.download("lab/net", checksum={"weights.safetensors": WRONG})
    with pytest.raises(CheckpointError, match="has no file 'model.bin', whose checksum is given"):
        models.download("lab/net", checksum={"model.bin": WRONG})
    with pytest.raises(ValueError, match="A repository has several files. Say which one"):
        models.download("lab/net", checksum=WRONG)
    assert "lab/net" not in models.available().index
    models.download("lab/net")
    with pytest.raises(CheckpointError, match=r"weights.safetensors of 'lab/net' on this machine has .*force=True"):
        models.download("lab/net", checksum={"weights.safetensors": WRONG})


def test_a_large_file_that_is_not_what_the_hub_states(hub, files):
    hub.commits("lab/net", sha=SHA, files=files)
    content = hub.files[f"/lab/net/resolve/{SHA}/weights.safetensors"]
    hub.files[f"/lab/net/resolve/{SHA}/weights.safetensors"] = content[:-1] + bytes([content[-1] ^ 1])
    with pytest.raises(CheckpointError, match="it was changed or damaged, and no name was given to it"):
        models.download("lab/net")


def test_file_names_that_leave_the_folder_are_not_asked_for(hub, files, tmp_path):
    hub.commits("lab/net", sha=SHA, files=files, listed=("../../evil.json", "/etc/vocab.json", "a/config.json"))
    models.download("lab/net")
    asked = {path.rpartition("/")[2] for path, _ in hub.asked if "/resolve/" in path}
    assert asked == set(files)
    assert list(tmp_path.rglob("evil*")) == []


def test_repositories_that_are_not_there_or_hold_nothing(hub):
    with pytest.raises(
        ConnectionError, match=r"lab/none cannot be downloaded .*models.register\('my-model', 'FOLDER'\)"
    ):
        models.download("lab/none")
    hub.commits("lab/text", sha=SHA, files={"README.md": b"x"})
    with pytest.raises(CheckpointError, match="There are no weights"):
        models.download("lab/text")
    with pytest.raises(ValueError, match="names the revision 'v1', and revision='v2' is given too"):
        models.download("lab/net@v1", revision="v2")


def test_without_the_package_of_the_hub(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(
        ImportError, match=r"models.download\('lab/net'\) needs `huggingface_hub`: pip install 'scanpy-scgpt\[hub\]"
    ):
        models.download("lab/net")


def test_whole_human_comes_from_its_pinned_mirror(hub, files, monkeypatch, caplog, tmp_path):
    """The name leads to the pinned commit, and what arrives there must have the known checksum."""
    mirror = _catalogue.ORIGINALS["whole-human"].mirror
    config = json.dumps({"nhead": 8, "norm_scheme": "post", "vocab_size": 3}).encode()
    hub.commits(mirror.repo, sha=mirror.revision, files={"hf_pytorch_model.bin": b"x" * 2000, "config.json": config})
    with pytest.raises(CheckpointError, match=next(iter(mirror.checksums.values()))):
        models.download("whole-human")
    monkeypatch.setattr(
        _catalogue,
        "ORIGINALS",
        {
            "whole-human": dataclasses.replace(
                _catalogue.ORIGINALS["whole-human"], mirror=dataclasses.replace(mirror, checksums={})
            )
        },
    )
    folder = models.download("whole-human")
    assert folder.name == mirror.revision
    assert (
        "tdc/scGPT has no vocab.json. Take that of the original release, and say where it is: "
        f"scgpt.models.register('whole-human', '{folder}', vocab='path/to/vocab.json', overwrite=True)"
    ) in caplog.text
    with pytest.raises(CheckpointError, match="has no vocabulary"):
        models.load("whole-human")


def test_push_and_download_are_a_round_trip(hub, checkpoint, files, decode_commit):
    described = dataclasses.replace(checkpoint, card="# tiny\n\nFor tests.\n")
    address = models.push(described, "lab/net", token="hf_secret", licence="mit", message="first")
    assert address == f"{hub.address}/lab/net/commit/{'c' * 40}"
    made = json.loads(dict(hub.posted)["/api/repos/create"])
    assert made["name"] == "net"
    assert made["organization"] == "lab"
    assert made.get("private") is True or made.get("visibility") == "private"
    body = next(body for path, body in hub.posted if "/commit/" in path)
    pushed = decode_commit(body)
    assert sorted(pushed) == ["README.md", "card.md", "config.json", "vocab.json", "weights.safetensors"]
    assert pushed["README.md"].decode() == (
        "---\nlicense: mit\nlibrary_name: scanpy-scgpt\ntags:\n- scgpt\n- single-cell\n- biology\n- scanpy\n---\n\n"
        "# tiny\n\nFor tests.\n"
    )
    assert not any(b"hf_secret" in body for _, body in hub.posted)
    hub.commits("lab/net", sha=SHA, files=pushed)
    back = io.read_checkpoint(models.download("lab/net"))
    assert (back.transformer, back.vocab, back.card) == (checkpoint.transformer, checkpoint.vocab, described.card)


def test_push_to_a_branch_and_what_stops_it(hub, checkpoint, checkpoint_folder):
    models.push(checkpoint_folder, "lab/net", token="t", revision="v1")
    paths = [path for path, _ in hub.posted]
    assert "/api/models/lab/net/branch/v1" in paths
    assert "/api/models/lab/net/commit/v1" in paths
    with pytest.raises(ValueError, match="repo='net': write 'org/name'"):
        models.push(checkpoint, "net")
    hub.refuse_posts = 403
    with pytest.raises(ConnectionError, match=r"lab/net cannot be written to \(.*403.*hf auth login"):
        models.push(checkpoint, "lab/net", token="t")


def test_push_says_whether_it_was_refused_or_not_heard(hub, checkpoint, monkeypatch):
    """Without a network, and while the hub has trouble, another token is of no use."""
    constants = pytest.importorskip("huggingface_hub.constants")
    hub.refuse_posts = 501
    with pytest.raises(ConnectionError, match=r"the hub has trouble of its own \(.*501.*Repeat the call later") as busy:
        models.push(checkpoint, "lab/net", token="t")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(ConnectionError, match=r"the hub cannot be reached \(.*\). Check the network, the") as deaf:
            models.push(checkpoint, "lab/net", token="t")
    for caught in (busy, deaf):
        assert "lab/net was not pushed" in str(caught.value)
        assert "hf auth login" not in str(caught.value)
