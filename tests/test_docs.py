"""The documentation builds without a warning, and its API pages list every public name."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import scanpy_scgpt

DOCS = Path(__file__).parents[1] / "docs"
NAMESPACES = sorted({*scanpy_scgpt.__all__, "nn", "tokenizer"} - {"__version__", "settings"})


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_api_page_lists_every_public_name(namespace: str) -> None:
    words = (DOCS / "api" / f"{namespace}.md").read_text(encoding="utf-8").split()
    public = set(importlib.import_module(f"scanpy_scgpt.{namespace}").__all__)
    assert public <= set(words)


def test_api_index_lists_every_namespace() -> None:
    index = (DOCS / "api" / "index.md").read_text(encoding="utf-8")
    for namespace in [*NAMESPACES, "settings"]:
        assert f"[{namespace}]({namespace}.md)" in index


@pytest.mark.slow
def test_docs_build_without_a_warning(tmp_path: Path) -> None:
    source = tmp_path / "docs"  # a copy, as stubs of the API are written beside the pages
    shutil.copytree(DOCS, source, ignore=shutil.ignore_patterns("_build", "generated"))
    environment = {name: value for name, value in os.environ.items() if name != "SCANPY_SCGPT_DOCS_INTERSPHINX"}
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", source, tmp_path / "html"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for page in ("index", "quickstart", "api/generated/scanpy_scgpt.tl.embed"):
        assert (tmp_path / "html" / f"{page}.html").is_file()
