"""GEARS as a method of the benchmark of perturbation, where the package `cell-gears` is installed.

It asks a server for its table of GO terms; here the table is made of a GMT file, so nothing is downloaded. The release
0.1.2 indexes a sparse matrix with a column of pandas, which current SciPy refuses: it is given a dense one there.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import pickle
import tempfile
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
from scipy import sparse

from ._cells import data_folder
from ._perturbation_tasks import Task

EPOCHS = 5
TERMS = "go_bp_2022.gmt.gz"


def gears(task: Task) -> pd.DataFrame | None:
    """Effects of the wanted conditions; of genes that it has no terms for the mean effect. None without cells."""
    if task.cells is None or set(task.grade.values()) == {"other level"}:
        return None
    from gears import GEARS, PertData

    cells = _cells(task)
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        root = Path(folder)
        (root / "gene2go_all.pkl").write_bytes(pickle.dumps(_terms(data_folder() / "knowledge" / TERMS)))
        (root / "data").mkdir()
        os.chdir(root)  # it writes its graph below the working directory
        try:
            data = PertData(str(root), default_pert_graph=False)
            data.new_data_process("screen", adata=cells)
            known = [name for name in cells.obs["condition"].unique() if name != "ctrl"]
            valid = [_named(task.targets[one]) for one in task.valid] or known[:2]
            split = {"train": ["ctrl", *(x for x in known if x not in valid)], "val": valid, "test": valid}
            (root / "split.pkl").write_bytes(pickle.dumps(split))
            data.prepare_split("custom", seed=task.seed, split_dict_path=str(root / "split.pkl"))
            data.get_dataloader(32, 128)
            values = data.adata.X
            data.adata.X = values.toarray()
            model = GEARS(data, device="cpu")
            data.adata.X = values
            model.model_initialize(hidden_size=64)
            model.train(epochs=EPOCHS, lr=1e-3)
            return _changes(task, model)
        finally:
            os.chdir(here)


def _changes(task: Task, model: object) -> pd.DataFrame:
    level = task.effects.control
    out = pd.DataFrame([task.effects.deltas.mean()] * len(task.wanted), index=list(task.wanted))
    asked = {one: list(task.targets[one]) for one in task.wanted}
    asked = {one: genes for one, genes in asked.items() if genes and all(gene in model.pert_list for gene in genes)}
    if asked:
        found = model.predict(list(asked.values()))
        for one, genes in asked.items():
            out.loc[one] = pd.Series(found["_".join(genes)], index=model.gene_list) - level
    return out[task.effects.deltas.columns]


def _named(genes: tuple[str, ...]) -> str:
    return "+".join(genes) if len(genes) > 1 else f"{genes[0]}+ctrl"


def _cells(task: Task) -> ad.AnnData:
    """Log-normalised cells in its layout."""
    found = task.perturbations
    names = np.array(["ctrl", *(_named(x) if x else "ctrl" for x in found.targets)])
    kept = np.asarray(found.codes) >= -1
    cells = ad.AnnData(sparse.csr_matrix(task.cells.X[kept], dtype=np.float32), var=task.cells.var[[]].copy())
    if task.size_key is None:
        sc.pp.normalize_total(cells, target_sum=1e4)
    else:
        size = task.cells.obs[task.size_key].to_numpy(dtype=np.float64)[kept]
        cells.X = sparse.csr_matrix(sparse.diags(1e4 / size) @ cells.X, dtype=np.float32)
    sc.pp.log1p(cells)
    cells.obs["condition"] = pd.Categorical(names[np.asarray(found.codes)[kept] + 1])
    cells.obs["cell_type"] = "cell"
    cells.var["gene_name"] = cells.var_names
    return cells


def _terms(path: Path) -> dict[str, set[str]]:
    """GO terms of each gene."""
    out: dict[str, set[str]] = {}
    with gzip.open(path, "rt") as lines:
        for line in lines:
            term, _, *genes = line.rstrip("\n").split("\t")
            for gene in genes:
                out.setdefault(gene, set()).add(term)
    return out
