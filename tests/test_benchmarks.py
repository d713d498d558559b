"""Every benchmark still imports and says how to use it."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if path.stem != "__init__")
PARTS = {name for name in MODULES if name.startswith("_")}


def imported(name, monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    return importlib.import_module(f"benchmarks.{name}")


@pytest.mark.parametrize("name", MODULES)
def test_it_imports(name, monkeypatch):
    assert Path(imported(name, monkeypatch).__file__).parent == ROOT / "benchmarks"


@pytest.mark.parametrize("name", sorted(set(MODULES) - PARTS))
def test_it_says_how_to_use_it(name, monkeypatch, capsys):
    module = imported(name, monkeypatch)
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == 0
    assert module.__doc__.split()[0] in capsys.readouterr().out


def test_all_runs_benchmarks_that_are_there(monkeypatch):
    assert set(imported("all", monkeypatch).NAMES) <= set(MODULES) - PARTS


@pytest.mark.slow
def test_mapping_runs_with_few_vectors(monkeypatch, capsys, tmp_path):
    """The codebooks of few vectors are as large as their codes: the bar of memory is for a million."""
    module = imported("mapping", monkeypatch)
    if not (importlib.import_module("benchmarks._cells").data_folder() / f"{module.QUICK[0]}.h5ad").is_file():
        pytest.skip("no folder with real cells; set SCANPY_SCGPT_DATA to its path")
    monkeypatch.setattr(importlib.import_module("benchmarks._harness"), "ROOT", tmp_path)
    arguments = ["--quick", "--cells", "20000", "--queries", "200", "--methods", "exact", "pq"]
    monkeypatch.setattr(sys, "argv", ["mapping", *arguments])
    assert module.main() == 0
    assert "pq, shortlist 400" in capsys.readouterr().out
