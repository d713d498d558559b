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


@pytest.mark.parametrize("name", ["THP-1, unseen targets", "Jurkat, other stimulation", "LUHMES, unseen targets"])
def test_tasks_of_perturbation_hide_what_they_ask_for(name, monkeypatch, data_dir):
    module = imported("_perturbation_tasks", monkeypatch)
    for task in module.tasks_of(name, data_dir, seed=0):
        assert list(task.truth.index) == list(task.wanted)
        assert not task.truth.isna().any(axis=None)
        if task.cells is not None:
            assert len(task.perturbations.codes) == task.cells.n_obs
            seen = {task.perturbations.conditions[i] for i in set(task.perturbations.codes.tolist()) if i >= 0}
            assert seen == set(task.effects.deltas.index)
        if "unseen targets" in name:
            known = {gene for one in task.effects.deltas.index for gene in task.targets[one]}
            assert not known & {gene for one in task.wanted for gene in task.targets[one]}
        else:
            assert task.cells.obs["condition"].nunique() == 1


def test_another_method_enters_the_table_of_perturbation(monkeypatch, data_dir, tmp_path, capsys):
    module = imported("perturbation", monkeypatch)
    monkeypatch.setitem(module.MODELS, "ours", lambda task: module.simple(task)["mean"] * 2)
    monkeypatch.setattr(module, "KEPT", tmp_path / "kept")
    monkeypatch.setattr(importlib.import_module("benchmarks._harness"), "ROOT", tmp_path)
    arguments = ["--data", str(data_dir), "--sets", "LUHMES, unseen targets", "--seeds", "2"]
    monkeypatch.setattr(sys, "argv", ["perturbation", *arguments, "--out", str(tmp_path / "results.json")])
    module.main()
    printed = capsys.readouterr().out
    assert "pearson_delta: ours less" in printed
    assert (tmp_path / "results.json").is_file()
