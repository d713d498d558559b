"""A server of files on this machine that can be told to misbehave, and an empty cache."""

from __future__ import annotations

import base64
import hashlib
import http.server
import io
import json
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch

from scanpy_scgpt import settings
from scanpy_scgpt.models import _fetch


class FileServer:
    """What it serves, how, and what it was asked for."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.cut: dict[str, list[int]] = {}  # path -> bytes after which the connection is closed, for each request
        self.moved: dict[str, str] = {}
        self.status: dict[str, list[int]] = {}  # path -> errors before it answers
        self.slow: dict[str, int] = {}  # path -> bytes after which it waits for a while
        self.ranges = True
        self.etags = True
        self.headers: dict[str, str] = {}
        self.asked: list[tuple[str, str | None]] = []  # path and Range
        self.refuse_posts = 0
        self.posted: list[tuple[str, bytes]] = []
        self.address = ""

    def commits(self, repo: str, *, sha: str, files: dict[str, bytes], listed: tuple[str, ...] = ()) -> None:
        """Serve a repository as a hub does."""
        names = [{"rfilename": name} for name in listed]
        for name, content in files.items():
            self.files[f"/{repo}/resolve/{sha}/{name}"] = content
            digest = hashlib.sha256(content).hexdigest()
            lfs = {"lfs": {"sha256": digest, "size": len(content), "pointerSize": 9}} if len(content) > 999 else {}
            names.append({"rfilename": name, "size": len(content), **lfs})
        info = json.dumps({"id": repo, "sha": sha, "siblings": names}).encode()
        for revision in (sha, "main"):
            self.files[f"/api/models/{repo}/revision/{revision}"] = info
        self.files[f"/api/models/{repo}"] = info
        self.headers["X-Repo-Commit"] = sha


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def told(self) -> FileServer:
        return self.server.told

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **self.told.headers, **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        path = self.path.partition("?")[0]
        cuts = self.told.cut.get(path, [])
        if self.command == "GET" and cuts and body:
            self.wfile.write(body[: cuts.pop(0)])
            self.close_connection = True
        elif self.command == "GET" and path in self.told.slow:
            self.wfile.write(body[: self.told.slow[path]])
            self.wfile.flush()
            time.sleep(5)
            self.close_connection = True
        elif self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.told.asked.append((path, self.headers.get("Range")))
        if errors := self.told.status.get(path):
            self._answer(errors.pop(0))
            return
        if path in self.told.moved:
            self._answer(302, Location=self.told.moved[path])
            return
        if path not in self.told.files:
            self._answer(404)
            return
        body = self.told.files[path]
        tag = f'"{hashlib.sha256(body).hexdigest()}"'
        headers = {"ETag": tag} if self.told.etags else {}
        wanted = self.headers.get("Range")
        same = self.headers.get("If-Range", tag) == tag
        if wanted and self.told.ranges and same:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(body):
                self._answer(416, Content_Range=f"bytes */{len(body)}")
            else:
                part = body[start:]
                self._answer(206, part, Content_Range=f"bytes {start}-{len(body) - 1}/{len(body)}", **headers)
            return
        self._answer(200, body, **headers)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.told.posted.append((self.path, body))
        if self.told.refuse_posts:
            self._answer(self.told.refuse_posts)
        elif self.path == "/api/repos/create":
            made = json.loads(body)
            self._json({"url": f"{self.told.address}/{made['organization']}/{made['name']}"})
        elif "/preupload/" in self.path:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self._json({"files": files})
        elif self.path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif "/branch/" in self.path:
            self._json({})
        elif "/commit/" in self.path:
            sha = "c" * 40
            self._json({"success": True, "commitUrl": f"{self.told.address}/lab/net/commit/{sha}", "commitOid": sha})
        else:
            self._answer(404)

    def _json(self, content: object) -> None:
        self._answer(200, json.dumps(content).encode(), Content_Type="application/json")


@pytest.fixture
def server() -> Iterator[FileServer]:
    told = FileServer()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as running:
        running.told = told
        running.daemon_threads = True
        told.address = f"http://127.0.0.1:{running.server_port}"
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield told
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache; attempts follow each other at once; no proxy."""
    monkeypatch.setattr(_fetch, "PAUSES", (0.0, 0.0))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with settings.override(cache_dir=tmp_path / "cache"):
        yield tmp_path / "cache"


@pytest.fixture
def hub(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FileServer:
    """The server in the place of the hub, and an empty cache of the hub."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    return server


@pytest.fixture(scope="session")
def decode_commit():
    """Function: files of a commit that was posted."""

    def decode(body: bytes) -> dict[str, bytes]:
        lines = [json.loads(line) for line in body.splitlines()]
        return {x["value"]["path"]: base64.b64decode(x["value"]["content"]) for x in lines if x["key"] == "file"}

    return decode


@pytest.fixture
def files(checkpoint_folder: Path) -> dict[str, bytes]:
    """The files of the tiny checkpoint."""
    return {path.name: path.read_bytes() for path in checkpoint_folder.iterdir()}


@pytest.fixture(scope="session")
def zipped() -> Callable[..., bytes]:
    """Function: an archive of files."""
    return _zipped


def _zipped(files: Mapping[str, bytes], *, folder: str = "tiny/") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(f"{folder}{name}", content)
    return buffer.getvalue()


@pytest.fixture
def archive(server: FileServer, files: dict[str, bytes]) -> tuple[str, bytes, str]:
    """Address, content and checksum of an archive."""
    content = _zipped(files)
    server.files["/tiny.zip"] = content
    return f"{server.address}/tiny.zip", content, hashlib.sha256(content).hexdigest()


@pytest.fixture(scope="session")
def write_original() -> Callable[..., Path]:
    """Function: write a folder as the original release has them, of its shape; all weights are one number."""
    return _write_original


def _write_original(folder: Path, *, genes: int = 36_571, width: int = 512, layers: int = 12) -> Path:
    shapes = {
        "encoder.embedding.weight": (genes + 3, width),
        "encoder.enc_norm.weight": (width,),
        "encoder.enc_norm.bias": (width,),
        "value_encoder.linear1.weight": (width, 1),
        "value_encoder.linear1.bias": (width,),
        "value_encoder.linear2.weight": (width, width),
        "value_encoder.linear2.bias": (width,),
        "value_encoder.norm.weight": (width,),
        "value_encoder.norm.bias": (width,),
    }
    for i in range(layers):
        layer = f"transformer_encoder.layers.{i}."
        for name, rows in (("self_attn.in_proj_", 3), ("self_attn.out_proj.", 1), ("linear1.", 1), ("linear2.", 1)):
            shapes[f"{layer}{name}weight"], shapes[f"{layer}{name}bias"] = (rows * width, width), (rows * width,)
        for norm in ("norm1", "norm2"):
            shapes[f"{layer}{norm}.weight"] = shapes[f"{layer}{norm}.bias"] = (width,)
    folder.mkdir(parents=True)
    number = torch.ones(1)  # a view of it takes no room in the file
    torch.save({name: number.expand(shape) for name, shape in shapes.items()}, folder / "best_model.pt")
    (folder / "args.json").write_text('{"nheads": 8}')
    tokens = [*(f"G{i}" for i in range(genes)), "<pad>", "<cls>", "<eoc>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    return folder
