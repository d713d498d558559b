"""Files in the layout of GEARS."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scanpy_scgpt import datasets

GENES = ["STAT1", "IRF1", "KLF1"]
IDS = ["ENSG1", "ENSG2", "ENSG3"]


@pytest.fixture
def folder(tmp_path, write_cells):
    condition = ["ctrl"] * 25 + ["STAT1+ctrl", "ctrl+IRF1", "STAT1+IRF1"]
    cells = ad.AnnData(np.random.default_rng(0).random((28, 3), dtype=np.float32))
    cells.var = pd.DataFrame({"gene_name": GENES}, index=IDS)
    cells.obs["condition"] = condition
    cells.obs["control"] = [int(name == "ctrl") for name in condition]
    cells.obs["condition_name"] = ["A549_ctrl_1" if name == "ctrl" else f"A549_{name}_1+1" for name in condition]
    cells.uns["rank_genes_groups_cov_all"] = {
        "A549_STAT1+ctrl_1+1": np.array(["ENSG2", "ENSG1"]),
        "A549_STAT1+IRF1_1+1": np.array(["ENSG3"]),
    }
    write_cells(cells, tmp_path / "perturb_processed.h5ad")
    return tmp_path


def test_conditions_symbols_and_changed_genes(folder):
    for path in (folder, folder / "perturb_processed.h5ad"):
        cells = datasets.read_gears(path)
        assert list(cells.var_names) == GENES
        assert list(cells.var["gene_id"]) == IDS
        assert list(cells.obs["perturbation"][24:]) == ["control", "STAT1", "IRF1", "IRF1+STAT1"]
        de = {name: list(genes) for name, genes in cells.uns["gears"]["de_genes"].items()}
        assert de == {"STAT1": ["IRF1", "STAT1"], "IRF1+STAT1": ["KLF1"]}


def test_bad_files(folder, write_cells, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no file .*nowhere. GEARS writes perturb_processed.h5ad"):
        datasets.read_gears(tmp_path / "nowhere")
    cells = ad.read_h5ad(folder / "perturb_processed.h5ad")
    cells.obs["control"] = 0
    write_cells(cells, tmp_path / "other.h5ad")
    with pytest.raises(ValueError, match="25 cells are control by one of .*, first 'ctrl'"):
        datasets.read_gears(tmp_path / "other.h5ad")
    del cells.obs["condition"]
    write_cells(cells, tmp_path / "lacking.h5ad")
    with pytest.raises(KeyError, match="obs of lacking.h5ad has no column 'condition'"):
        datasets.read_gears(tmp_path / "lacking.h5ad")
