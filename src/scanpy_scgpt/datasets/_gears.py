"""Files of GEARS, without GEARS."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData, read_h5ad

from scanpy_scgpt._perturbations import parse_perturbations
from scanpy_scgpt._validate import check_key

_FILE = "perturb_processed.h5ad"
_DE = {"rank_genes_groups_cov_all": "de_genes", "top_non_dropout_de_20": "non_dropout_de_20"}


def read_gears(path: str | PathLike) -> AnnData:
    """Read a data set in the layout of GEARS :cite:p:`Roohani2024`.

    Parameters
    ----------
    path
        `perturb_processed.h5ad`, or the folder that holds it.

    Returns
    -------
    The cells, log-normalised as they are in the file. `.var_names`: the symbols of `var["gene_name"]`, made unique.
    `.obs["perturbation"]`: canonical name of the condition, `control` for a control. `.uns["gears"]`: for each
    condition its changed genes by symbol, most changed first, as far as the file has them (`de_genes`,
    `non_dropout_de_20`).

    Raises
    ------
    FileNotFoundError
        When there is no such file.
    KeyError
        Without `obs["condition"]`.
    ValueError
        When the columns `condition` and `control` disagree.
    """
    file = Path(path)
    file = file / _FILE if file.is_dir() else file
    if not file.is_file():
        msg = f"There is no file {file}. GEARS writes {_FILE} into the folder of a data set; give one of the two."
        raise FileNotFoundError(msg)
    adata = read_h5ad(file)
    check_key(adata.obs, "condition", where=f"obs of {file.name}")
    symbols = adata.var["gene_name"].astype(str) if "gene_name" in adata.var else pd.Series(adata.var_names)
    ids = pd.Series(symbols.to_numpy(), index=adata.var_names.astype(str))
    if "gene_name" in adata.var:
        adata.var["gene_id"] = adata.var_names.astype(str)
        adata.var_names = symbols.to_numpy()
    adata.var_names_make_unique()
    found = parse_perturbations(adata.obs["condition"], genes=adata.var_names)
    _check_controls(adata, found.codes == -1, file.name)
    adata.obs["perturbation"] = found.labels()
    adata.uns["gears"] = {
        ours: _by_condition(adata, theirs, ids) for theirs, ours in _DE.items() if theirs in adata.uns
    }
    return adata


def _check_controls(adata: AnnData, control: np.ndarray, name: str) -> None:
    if "control" not in adata.obs:
        return
    stated = adata.obs["control"].astype(int).to_numpy() == 1
    if (stated != control).any():
        example = str(adata.obs["condition"].iloc[int(np.flatnonzero(stated != control)[0])])
        msg = (
            f"{name}: {int((stated != control).sum()):,} cells are control by one of obs['condition'] and "
            f"obs['control'] only, first {example!r}. Correct the file."
        )
        raise ValueError(msg)


def _by_condition(adata: AnnData, key: str, symbols: pd.Series) -> dict[str, np.ndarray]:
    """Tables of GEARS are by `condition_name`, such as `A549_A+ctrl_1+1`, and hold gene ids."""
    names = pd.Series([str(name) for name in adata.uns[key]])
    found = parse_perturbations(names, genes=adata.var_names, needs_control=False)
    out = {}
    for code, genes in zip(found.codes, adata.uns[key].values(), strict=True):
        if code >= 0:
            ids = pd.Index([str(gene) for gene in genes])
            out[found.conditions[code]] = symbols.reindex(ids).fillna(pd.Series(ids, index=ids)).to_numpy(dtype=str)
    return out
