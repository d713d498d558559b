"""Programs of genes, their scores, and the sets that they hit, as tables."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scanpy_scgpt._keys import UNS, ProgramKeys
from scanpy_scgpt._validate import check_key, check_one_of

if TYPE_CHECKING:
    from anndata import AnnData


def gene_programs(
    adata: AnnData, *, resolution: float | None = None, key: str = ProgramKeys.table
) -> dict[str, list[str]]:
    """Programs of genes by name.

    Parameters
    ----------
    adata
        Cells, after :func:`scanpy_scgpt.tl.gene_programs`.
    resolution
        Programs of one resolution alone.
    key
        Its `key_added`.

    Returns
    -------
    Genes by name of the program, the largest program of a resolution first.

    Raises
    ------
    KeyError
        When there are no programs.
    ValueError
        When there is no such resolution.
    """
    table = _table(adata, ProgramKeys.named(_added(key)).table, key, "gene_programs")
    if resolution is not None:
        check_one_of(float(resolution), list(dict.fromkeys(table["resolution"])), name="resolution")
        table = table[table["resolution"] == float(resolution)]
    return {str(name): list(genes) for name, genes in table.groupby("program", sort=False)["gene"]}


def program_scores(
    adata: AnnData,
    *,
    groupby: str | None = None,
    resolution: float | None = None,
    scaled: bool | None = None,
    key: str = ProgramKeys.table,
) -> pd.DataFrame:
    """Scores of programs, by cell or by group of cells.

    Parameters
    ----------
    adata
        Cells, after :func:`scanpy_scgpt.tl.gene_programs`.
    groupby
        Column of `.obs`: the mean over the cells of each of its groups.
    resolution
        Programs of one resolution alone.
    scaled
        Bring each program to the range from 0 to 1 over the cells, as :cite:t:`Cui2024` does; by default with
        `groupby`.
    key
        Its `key_added`.

    Returns
    -------
    Table of float, cells (or groups) x programs.

    Raises
    ------
    KeyError
        When there are no scores, or no such column.
    ValueError
        When there is no such resolution.
    """
    keys = ProgramKeys.named(_added(key))
    kept = list(gene_programs(adata, resolution=resolution, key=key))
    record = adata.uns.get(UNS, {}).get(keys.uns, {})
    if keys.scores not in adata.obsm or "programs" not in record:
        msg = f"adata.obsm has no scores {keys.scores!r}. Make them: scgpt.tl.gene_programs(adata, scores=True)."
        raise KeyError(msg)
    names = [str(name) for name in record["programs"]]
    scores = pd.DataFrame(np.asarray(adata.obsm[keys.scores]), index=adata.obs_names, columns=names)[kept]
    if (groupby is not None) if scaled is None else scaled:
        low, high = scores.min(), scores.max()
        scores = (scores - low) / (high - low).where(high > low, 1.0)
    if groupby is None:
        return scores
    check_key(adata.obs, groupby, where="adata.obs")
    return scores.groupby(adata.obs[groupby], observed=True).mean()


def enrichment(
    adata: AnnData,
    *,
    resolution: float | None = None,
    network: str | None = None,
    hits: bool = False,
    key: str = ProgramKeys.table,
) -> pd.DataFrame:
    """Tests of programs against sets of genes.

    Parameters
    ----------
    adata
        Cells, after :func:`scanpy_scgpt.tl.enrich`.
    resolution, network
        Tests of one resolution, or of one kind of programs, alone.
    hits
        Hits alone.
    key
        Its `key_added`.

    Returns
    -------
    Table of :func:`scanpy_scgpt.tl.enrich`, the smallest p value first.

    Raises
    ------
    KeyError
        When nothing was tested.
    ValueError
        When there is no such resolution or kind.
    """
    table = _table(adata, ProgramKeys.named(_added(key)).tests, key, "enrich")
    for name, value in (("resolution", resolution), ("network", network)):
        if value is not None:
            check_one_of(value, list(dict.fromkeys(table[name])), name=name)
            table = table[table[name] == value]
    table = table[table["hit"].astype(bool)] if hits else table
    return table.sort_values("p", kind="stable", ignore_index=True)


def _added(key: str) -> str | None:
    return None if key == ProgramKeys.table else key


def _table(adata: AnnData, name: str, key: str, verb: str) -> pd.DataFrame:
    table = adata.uns.get(name)
    if not isinstance(table, pd.DataFrame):
        near = difflib.get_close_matches(name, map(str, adata.uns), n=1)
        hint = f"; did you mean {near[0]!r}" if near and near[0] != name else ""
        given = ", 'sets.gmt'" if verb == "enrich" else ""
        added = "" if _added(key) is None else f", key_added={key!r}"
        msg = f"adata.uns has no table {name!r}{hint}. Make it first: scgpt.tl.{verb}(adata{given}{added})."
        raise KeyError(msg)
    return table
