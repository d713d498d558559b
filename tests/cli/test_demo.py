"""The command line."""

from __future__ import annotations

import re

import anndata as ad
import pytest

from scanpy_scgpt import cli, models


def test_the_demo_beats_an_untrained_network(tmp_path, capsys):
    """The whole path with the bundled model: figure, file and summary are there, and pretraining shows."""
    assert cli.main(["demo", "--out", str(tmp_path / "demo")]) == 0
    printed = capsys.readouterr().out
    written = (tmp_path / "demo" / "summary.md").read_text()
    assert written in printed
    rows = re.findall(r"^\| (\S+).* \| (0\.\d+) \((0\.\d+) to (0\.\d+)\) \| (0\.\d+) \|$", written, flags=re.MULTILINE)
    figures = {name.split("@")[0]: [float(x) for x in numbers] for name, *numbers in rows}
    assert set(figures) == {"mini", "PCA", "untrained"}
    assert figures["mini"][1] > figures["untrained"][2]  # intervals apart
    assert figures["mini"][0] > figures["PCA"][1]  # not below the interval of PCA
    image = (tmp_path / "demo" / "demo.png").read_bytes()
    assert image.startswith(b"\x89PNG")
    assert len(image) > 20_000
    adata = ad.read_h5ad(tmp_path / "demo" / "demo.h5ad")
    assert adata.obsm["X_scgpt"].shape == (700, models.load("mini").transformer.d_model)
    assert adata.uns["scgpt"]["embed"]["model"] == "mini"
    assert adata.obsm["X_scgpt_umap"].shape == (700, 2)


def test_models_and_errors(capsys):
    assert cli.main(["models"]) == 0
    assert re.search(r"^ *mini +bundled", capsys.readouterr().out, re.MULTILINE)
    assert cli.main(["demo", "--model", "minni"]) == 1
    assert "No model 'minni'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main([])
