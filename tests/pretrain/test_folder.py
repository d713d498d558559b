"""The folder of a run: nothing of the user is lost there, and one run at a time writes."""

from __future__ import annotations

import json

import pytest

from scanpy_scgpt import io, pretrain
from scanpy_scgpt.pretrain._folder import alone_in, require_own

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:.*GPU available but not used.*"),
]


@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("checkpoints/best.ckpt", "checkpoints"),
        ("checkpoints/last.ckpt", "checkpoints"),
        ("checkpoints", "checkpoints"),
        ("metrics.csv", r"metrics\.csv"),
        ("run.json", r"run\.json"),
    ],
)
def test_files_of_others_are_refused_before_any_work(run_here, tmp_path, monkeypatch, path, found, resume):
    monkeypatch.setattr("scanpy_scgpt.pretrain._run.trainer_of", None)
    mine = tmp_path / path
    mine.parent.mkdir(exist_ok=True)
    mine.write_text('{"format": "mine"}')
    with pytest.raises(ValueError, match=rf"holds {found}, but no run\.json of a pretraining run.* another folder"):
        run_here(tmp_path, max_steps=1, resume=resume)
    assert mine.read_text() == '{"format": "mine"}'
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [mine]


def test_a_model_folder_of_others_is_refused_before_any_work(run_here, tmp_path, monkeypatch):
    monkeypatch.setattr("scanpy_scgpt.pretrain._run.trainer_of", None)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "thesis.tex").touch()
    with pytest.raises(ValueError, match=r"model holds thesis\.tex, which is no part of a checkpoint .*another folder"):
        run_here(tmp_path, max_steps=1)
    with pytest.raises(ValueError, match=r"thesis\.tex is a file, and a run needs a folder\. Choose another path"):
        run_here(tmp_path / "model" / "thesis.tex", max_steps=1)
    assert [file.name for file in tmp_path.rglob("*")] == ["model", "thesis.tex"]


def test_what_a_run_wrote_may_be_replaced(checkpoint, tmp_path):
    require_own(tmp_path / "new")
    (tmp_path / "checkpoints").mkdir()
    require_own(tmp_path)  # an empty folder holds nothing
    (tmp_path / "run.json").write_text(json.dumps({"format": 3, "config": {}}))
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    (tmp_path / "metrics.csv").touch()
    io.write_checkpoint(checkpoint, tmp_path / "model")
    require_own(tmp_path)


def test_a_new_start_deletes_nothing_but_its_checkpoint(run_here, tmp_path):
    run_here(tmp_path, max_steps=4)
    (tmp_path / "checkpoints" / "kept.ckpt").write_text("mine")
    before = (tmp_path / "checkpoints" / "last.ckpt").read_bytes()
    run_here(tmp_path, max_steps=4, resume=False, lr=1e-3)
    assert (tmp_path / "checkpoints" / "kept.ckpt").read_text() == "mine"
    assert (tmp_path / "checkpoints" / "last.ckpt").read_bytes() != before


def test_one_run_at_a_time(run_here, tmp_path):
    """Locks hold between open files, so this process stands in for two; the other processes of a run take none."""
    with alone_in(tmp_path, first=True):
        with pytest.raises(ValueError, match="Another process trains in .*Wait until it has ended, or choose another"):
            run_here(tmp_path, max_steps=1)
        with alone_in(tmp_path, first=False):
            pass
    assert [path.name for path in tmp_path.iterdir()] == [".run.lock"]
    with alone_in(tmp_path, first=True):
        pass


def test_the_folder_of_a_refused_call_is_free_again(run_here, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nope\.tokens: there is no such file or token store"):
        pretrain.run(tmp_path / "nope.tokens", tmp_path, accelerator="cpu")
    assert run_here(tmp_path, max_steps=1).info["n_cells"] == 200
