"""Models by name."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pandas as pd
import pytest
import torch

from scanpy_scgpt import io, models, settings
from scanpy_scgpt.io import CheckpointError, load_component
from scanpy_scgpt.nn import CellTransformer

ORIGINALS = ["whole-human", "continual", "brain", "blood", "heart", "lung", "kidney", "pan-cancer"]


def test_the_bundled_model_loads_and_is_small():
    assert models.available().index[0] == "mini"
    mini = models.load("mini")
    assert mini.name == "mini"
    assert mini.vocab["CD3D"] >= 0
    assert not load_component(CellTransformer(mini.transformer), mini, "transformer").initialised
    n_bytes = 2 * sum(tensor.numel() for tensor in mini.weights.values())
    assert n_bytes < 10e6
    assert "Training data" in mini.card


def test_its_errors_are_below_those_of_linear_predictors():
    errors = models.load("mini").info["errors"]
    assert set(errors) == {"0.25", "0.5", "0.75"}
    for found in errors.values():
        assert max(found["gep"], found["prompt"]) < found["ridge"] < found["gene_mean"] < found["mean_digit"]
        assert found["gepc"] < found["gene_mean"]


def test_none_means_the_setting(tmp_path):
    with settings.override(model=str(tmp_path / "nowhere")), pytest.raises(ValueError, match="nowhere"):
        models.load()
    checkpoint = models.load("mini")
    assert models.load(checkpoint) is checkpoint


def test_untrained_has_the_shape_and_other_weights():
    mini, random = models.load("mini"), models.untrained("mini")
    assert random.name == "untrained mini"
    assert {k: v.shape for k, v in random.weights.items()} == {k: v.shape for k, v in mini.weights.items()}
    name = "transformer.layers.0.attention.in_proj.weight"
    assert not torch.allclose(random.weights[name], mini.weights[name])
    assert torch.equal(random.weights[name], models.untrained("mini").weights[name])


def test_the_table_of_models(checkpoint_folder):
    models.register("mine", checkpoint_folder)
    table = models.available()
    assert list(table.index) == ["mini", "mine", *ORIGINALS]
    assert list(table.columns) == ["kind", "trained_on", "cells", "licence", "source", "size", "path", "how"]
    assert list(table["kind"]) == ["bundled", "registered", *["original"] * 8]
    info = models.load("mini").info
    mini = table.loc["mini"]
    assert mini["cells"] == info["n_training_cells"]
    assert mini["trained_on"] == f"{len(info['studies'])} studies"
    assert 1e6 < mini["size"] < 10e6
    assert table.loc["mine", "size"] == sum(path.stat().st_size for path in checkpoint_folder.iterdir())
    assert table.loc["mine", "how"] == "scgpt.models.load('mine')"
    whole = table.loc["whole-human"]
    assert (whole["cells"], whole["licence"], whole["size"]) == (33_000_000, "MIT (repository)", 203_273_199)
    assert whole["how"] == "scgpt.models.download('whole-human')"
    for name in ORIGINALS[1:]:  # what lies on a drive cannot be downloaded by a line
        assert table.loc[name, "how"] == f"by hand: scgpt.models.load({name!r}) says how"
    assert table.loc[ORIGINALS, "source"].str.startswith("https://drive.google.com/drive/folders/").all()
    assert table.loc[ORIGINALS, "source"].is_unique
    assert table.loc[ORIGINALS, "path"].isna().all()
    assert pd.isna(table.loc["continual", "cells"])


def test_a_registered_name_is_known_in_later_sessions(checkpoint_folder, cache, checkpoint):
    assert models.register("mine", checkpoint_folder).name == "mine"
    record = json.loads((cache / "names" / "mine.json").read_text())  # all that a later session has
    assert record["record"]["folder"] == str(checkpoint_folder)
    loaded = models.load("mine")
    assert (loaded.name, loaded.vocab) == ("mine", checkpoint.vocab)
    models.register("mine", checkpoint_folder)  # the same again is no change
    models.unregister("mine")
    assert checkpoint_folder.is_dir()
    assert "mine" not in models.available().index
    with pytest.raises(ValueError, match="'mine' is no name that was registered. Registered and downloaded: none"):
        models.unregister("mine")


def test_a_taken_name_is_refused(checkpoint_folder, tmp_path):
    models.register("mine", checkpoint_folder)
    other = shutil.copytree(checkpoint_folder, tmp_path / "other")
    with pytest.raises(ValueError, match=r"'mine' stands for .*tiny. Choose another name, or pass overwrite=True"):
        models.register("mine", other)
    models.register("mine", other, overwrite=True)
    assert models.available().loc["mine", "path"] == str(other)
    with pytest.raises(ValueError, match="'mini' is the bundled model. Choose another name"):
        models.register("mini", other, overwrite=True)
    with pytest.raises(ValueError, match="name='a b': use letters"):
        models.register("a b", other)
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        models.register("new", tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="is no checkpoint folder"):
        models.register("new", tmp_path)
    assert "new" not in models.available().index


def test_a_folder_that_is_gone(checkpoint_folder, tmp_path):
    folder = shutil.copytree(checkpoint_folder, tmp_path / "other")
    models.register("mine", folder)
    shutil.rmtree(folder)
    with pytest.raises(ValueError, match=r"The folder of 'mine', .*other, is gone.*models.register\('mine'"):
        models.load("mine")
    assert "mine" not in models.available().index
    models.unregister("mine")


def test_an_original_that_is_not_here_says_how_to_get_it(cache):
    with pytest.raises(
        ValueError, match=r"'whole-human' is not on this machine.*203 MB.*models.download\('whole-human'\)"
    ):
        models.load("whole-human")
    step = (
        r"Open https://drive.google.com/drive/folders/1kkug5C7NjvXIwQGGaGoqXTk_Lb_pDrBU in a browser, download "
        rf"best_model.pt, args.json, vocab.json, put the three files into {cache}/checkpoints/blood, and load them: "
        r"scgpt.models.load\('blood'\)"
    )
    with pytest.raises(ValueError, match=f"'blood' is not on this machine. {step}"):
        models.load("blood")
    for source in ("blood", "https://drive.google.com/drive/folders/1kkug5C7NjvXIwQGGaGoqXTk_Lb_pDrBU?usp=sharing"):
        with pytest.raises(ValueError, match=f"'blood' lies on a drive that gives files to browsers only. {step}"):
            models.download(source)
    with pytest.raises(ValueError, match="No model 'bloood': .* Did you mean 'blood'"):
        models.load("bloood")


def test_the_manual_step_works(write_original, cache):
    """The files in the folder that the text names are found, listed, and not asked for again."""
    folder = write_original(cache / "checkpoints" / "blood")
    assert len(models.load("blood").vocab) == 36_574
    row = models.available().loc["blood"]
    assert (row["kind"], row["path"], row["cells"]) == ("cached", str(folder), 10_300_000)
    assert models.download("blood") == folder
    with pytest.raises(ValueError, match=r"'blood' lies in the cache .*Delete the folder"):
        models.unregister("blood")
    (folder / "vocab.json").unlink()
    with pytest.raises(CheckpointError, match="lacks vocab.json"):
        models.load("blood")


def test_an_original_elsewhere_gets_its_name(write_original, tmp_path):
    folder = write_original(tmp_path / "elsewhere")
    models.register("lung", folder)
    assert models.download("lung") == folder
    assert models.load("lung").name == "lung"
    assert models.available().loc["lung", "cells"] == 2_100_000
    assert list(models.available().index).count("lung") == 1


def test_the_name_of_an_original_is_for_its_folder_alone(write_original, checkpoint_folder, tmp_path):
    organ, whole = write_original(tmp_path / "organ"), write_original(tmp_path / "whole", genes=60_694)
    small = write_original(tmp_path / "small", genes=9, width=16, layers=2)
    faults = {
        ("whole-human", organ): "tokens 36,574, not 60,697",
        ("blood", small): "width 16, not 512; layers 2, not 12",
        ("whole-human", small): "width 16, not 512; layers 2, not 12; tokens 12, not 60,697",
        ("blood", checkpoint_folder): "not 12; it was not made from a folder of the original release",
    }
    for (name, folder), fault in faults.items():
        mend = rf"Choose another name: scgpt.models.register\('my-{name}', '{folder}'\)"
        with pytest.raises(ValueError, match=f"{folder} is not {name!r}, an original: .*{fault}. {mend}"):
            models.register(name, folder)
        assert models.available().loc[name, "kind"] == "original"
    assert models.register("whole-human", whole).name == "whole-human"
    assert models.available().loc["whole-human", "cells"] == 33_000_000
    assert models.register("my-blood", small).name == "my-blood"


def test_a_folder_that_describes_itself_is_not_described_as_an_original(checkpoint, cache):
    """Put into the cache by hand: a model of its own, one continued from an original, and an original converted."""
    place = cache / "checkpoints" / "blood"
    trained = {"n_training_cells": 900, "studies": {"a": 500, "b": 400}}
    for info in ({}, trained, {**trained, "legacy_generation": True}, {"legacy_generation": True}):
        io.write_checkpoint(replace(checkpoint, info=info), place, overwrite=True)
        row = models.available().loc["blood"]
        if info == {"legacy_generation": True}:
            assert (row["trained_on"], row["cells"], row["licence"]) == (
                "blood and bone-marrow cells",
                10_300_000,
                "not stated (repository: MIT)",
            )
            assert row["source"].startswith("https://drive.google.com/")
        else:
            cells = info.get("n_training_cells")
            assert (row["trained_on"], row["licence"], row["source"]) == ("2 studies" if cells else "", "", "")
            assert pd.isna(row["cells"]) if cells is None else row["cells"] == cells


def test_the_bundled_model_is_never_downloaded():
    assert io.read_checkpoint(models.download("mini")).name == "mini"


class Bomb:
    """Runs code when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (open, (str(self.mark), "w"))


@pytest.mark.parametrize("layout", ["original", "mirror"])
def test_a_pickle_bomb_does_not_go_off(tmp_path, layout):
    mark, folder = tmp_path / "mark", tmp_path / "bad"
    folder.mkdir()
    weights = {"original": "best_model.pt", "mirror": "pytorch_model.bin"}[layout]
    torch.save({"encoder.embedding.weight": Bomb(mark)}, folder / weights)
    (folder / "args.json").write_text('{"nheads": 2}')
    (folder / "vocab.json").write_text('{"<pad>": 0, "<cls>": 1, "<eoc>": 2}')
    for read in (models.load, io.read_checkpoint, lambda path: models.register("bad", path)):
        with pytest.raises(
            CheckpointError, match="objects other than tensors, which are never loaded because they could run"
        ):
            read(str(folder))
    assert not mark.exists()
    torch.load(folder / weights, weights_only=False)["encoder.embedding.weight"].close()
    assert mark.exists()  # it was a bomb
