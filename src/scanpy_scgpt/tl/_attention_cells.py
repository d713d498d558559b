"""What `tl.attention_network` looks at: genes, groups of cells, binned values."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse

from scanpy_scgpt._logging import get_logger
from scanpy_scgpt._validate import check_key, check_one_of, nearest
from scanpy_scgpt.model import CellTokens
from scanpy_scgpt.tokenizer import GeneTable, match_genes

from ._layers import gene_ids, listed

if TYPE_CHECKING:
    from anndata import AnnData

logger = get_logger(__name__)
SETTINGS = ("difference", "perturbed", "control")
_FEW_TFS = 50  # so many are shown to the network besides the variable genes; of a longer list those among them
_SAMPLED = 20_000  # cells in which variable genes are looked for
_TOTAL = 1e4


class Panel(NamedTuple):
    """Genes that the network is shown.

    Attributes
    ----------
    ids, names
        Vocabulary ids, int64, and names as the cells have them, object; shape `(n_genes,)`.
    chosen
        Whether a gene is one of `tfs`; bool, shape `(n_genes,)`, all True without a list.
    """

    ids: np.ndarray
    names: np.ndarray
    chosen: np.ndarray


class Comparison(NamedTuple):
    """One network: the cells of `name`, less those of `control` where there is one."""

    name: str
    cells: np.ndarray
    control: str | None = None
    control_cells: np.ndarray | None = None


def panel(
    cells: CellTokens, genes: Sequence[str] | int, tfs: Sequence[str] | None, gene_table: pd.DataFrame | None
) -> Panel:
    """Genes by name, or the most variable ones, and which of them are named in `tfs`."""
    first = pd.Series(cells.match.names, index=cells.match.ids)
    first = first[(first.index >= 0) & ~first.index.duplicated()]
    factors = None if tfs is None else _known(tfs, cells, gene_table)
    if isinstance(genes, int | np.integer):
        if genes < 1:
            msg = f"genes={genes}: names of genes, or how many of the most variable ones, at least 1."
            raise ValueError(msg)
        ids = _variable(cells, first.index.to_numpy(), int(genes))
        if factors is not None and len(factors) <= _FEW_TFS:
            ids = np.union1d(ids, factors)
    else:
        ids = np.sort(gene_ids(genes, cells, argument="genes", gene_table=gene_table))
    if len(ids) < 2:  # noqa: PLR2004 - an edge has two ends
        msg = f"genes= leaves {len(ids)} gene of the vocabulary; a network needs two. Name more, or leave genes out."
        raise ValueError(msg)
    chosen = np.ones(len(ids), dtype=bool) if factors is None else np.isin(ids, factors)
    if not chosen.any():
        msg = (
            f"None of the {len(factors):,} genes of tfs= that are in the cells is among the {len(ids):,} genes of the "
            "network. Name them in genes= too, or raise the number in genes=."
        )
        raise ValueError(msg)
    return Panel(ids.astype(np.int64), first[ids].to_numpy(dtype=object), chosen)


def _known(tfs: Sequence[str], cells: CellTokens, gene_table: pd.DataFrame | None) -> np.ndarray:
    """Ids of the transcription factors that the cells have; of a general list most are missing, which is no error."""
    names = [tfs] if isinstance(tfs, str) else list(dict.fromkeys(map(str, tfs)))
    own = pd.Series(cells.match.ids, index=cells.match.names)
    ids = own[~own.index.duplicated()].reindex(names, fill_value=-1).to_numpy()
    other = np.flatnonzero(ids < 0)
    table = None if gene_table is None else GeneTable(gene_table)
    ids[other] = match_genes([names[i] for i in other], cells.checkpoint.vocab, gene_table=table).ids
    found = np.isin(ids, cells.match.ids) & (ids >= 0)
    if not found.any():
        near = [found for name in names[:20] if (found := nearest(name, cells.match.names))]
        hint = f" Near: {listed(near)}." if near else ""
        msg = (
            f"None of the {len(names):,} genes of tfs= ({listed(names)}) is among the genes of {cells.source.where} "
            f"that {cells.checkpoint.label} knows.{hint} Give symbols as in adata.var_names, or leave tfs out."
        )
        raise ValueError(msg)
    if not found.all():
        lost = [name for name, there in zip(names, found, strict=True) if not there]
        logger.info("grn: %s of %s genes of tfs= are not in the cells: %s.", len(lost), len(names), listed(lost))
    return np.unique(ids[found])


def _variable(cells: CellTokens, ids: np.ndarray, n: int) -> np.ndarray:
    """Ids of the `n` most variable of these genes in log-normalised values; all of them when there are no more."""
    if len(ids) <= n:
        return np.sort(ids)
    import scanpy as sc
    from anndata import AnnData

    source = cells.source
    counts = sparse.csr_matrix(source.rows(0, min(source.n_obs, _SAMPLED)), dtype=np.float32)
    total = np.asarray(counts.sum(axis=1)).ravel()
    columns = pd.Series(np.arange(len(cells.match.ids)), index=cells.match.ids)
    columns = columns[~columns.index.duplicated()][ids].to_numpy()
    values = counts[:, columns]
    if source.kind() != "log-normalised values":
        factor = np.divide(_TOTAL, total, out=np.zeros_like(total), where=total > 0)
        values = sparse.csr_matrix(sparse.diags(factor) @ values).log1p()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = sc.pp.highly_variable_genes(AnnData(values), n_top_genes=n, inplace=False)
    return np.sort(ids[table["highly_variable"].to_numpy()])


def digits_of(cells: CellTokens, ids: np.ndarray) -> sparse.csr_matrix:
    """Binned values of some genes, CSR of uint8, shape `(n_obs, n_genes)`; bins are of all genes of a cell."""
    place = np.full(len(cells.checkpoint.vocab), -1, dtype=np.int64)
    place[ids] = np.arange(len(ids))
    parts = [sparse.csr_matrix((0, len(ids)), dtype=np.uint8)]
    for start, stop in cells.row_blocks():
        rows, names = cells.source.rows(start, stop), cells.names[start:stop]
        tokens = cells.tokenizer.bins(rows, cells.match.ids, names, seed=cells.seed)
        tokens = tokens.masked(place[tokens.gene_ids] >= 0)
        shape = (len(tokens), len(ids))
        parts.append(sparse.csr_matrix((tokens.values, place[tokens.gene_ids], tokens.indptr), shape=shape))
    return sparse.vstack(parts, format="csr")


def comparisons(
    adata: AnnData,
    *,
    groupby: str | None,
    control: str | None,
    contrast: tuple[str, str] | None,
    setting: str,
    min_cells: int,
) -> list[Comparison]:
    """The networks that are asked for, each with its cells."""
    check_one_of(setting, SETTINGS, name="setting")
    if groupby is None:
        if control is not None or contrast is not None:
            given = "control" if contrast is None else "contrast"
            msg = f"{given}= names groups of cells, but groupby= does not say where: groupby='condition', say."
            raise ValueError(msg)
        return [Comparison("all", _enough(np.arange(adata.n_obs), "all", "adata", min_cells))]
    check_key(adata.obs, groupby, where="adata.obs")
    column = adata.obs[groupby]
    labels = np.where(column.isna(), None, column.astype(str))
    where = f"obs[{groupby!r}]"
    sizes = pd.Series(labels).value_counts()
    if contrast is not None:
        if control is not None:
            msg = "contrast= names its control already, the second of the two. Leave control= out."
            raise ValueError(msg)
        if isinstance(contrast, str) or len(contrast) != 2 or str(contrast[0]) == str(contrast[1]):  # noqa: PLR2004
            msg = f"contrast={contrast!r}: two different groups of {where}, such as ({_pair(sizes)})."
            raise ValueError(msg)
        pairs = [tuple(map(str, contrast))]
    elif control is not None:
        pairs = [(name, str(control)) for name in sizes.index if name != str(control)]
        if not pairs:
            msg = (
                f"{where} has one group alone, {str(control)!r}: nothing differs from it. Use a column with two groups."
            )
            raise ValueError(msg)
    else:
        pairs = [(name, None) for name in sizes.index]
    for name in dict.fromkeys(name for pair in pairs for name in pair if name is not None):
        if name not in sizes.index:
            check_one_of(name, sizes.index, name=f"a group of {where}")
    return _with_cells(pairs, labels, where=where, setting=setting, min_cells=min_cells, named=contrast is not None)


def _pair(sizes: pd.Series) -> str:
    return ", ".join(map(repr, (*sizes.index[:2], "other")[:2]))


def _with_cells(
    pairs: list[tuple[str, str | None]], labels: np.ndarray, *, where: str, setting: str, min_cells: int, named: bool
) -> list[Comparison]:
    out, small = [], []
    for name, control in pairs:
        own = np.flatnonzero(labels == name)
        if len(own) < min_cells and not named and len(pairs) > 1:
            small.append(f"{name!r} ({len(own)})")
            continue
        _enough(own, name, where, min_cells)
        if control is None:
            out.append(Comparison(name, own))
            continue
        against = _enough(np.flatnonzero(labels == control), control, where, min_cells)
        if setting == "difference":
            out.append(Comparison(name, own, control, against))
        elif setting == "perturbed":
            out.append(Comparison(name, own))
        elif not out:
            out.append(Comparison(control, against))
    if not out:
        msg = f"No group of {where} has min_cells={min_cells} cells: {', '.join(small[:5])}. Lower min_cells."
        raise ValueError(msg)
    if small:
        text = "grn: groups of %s with fewer than min_cells=%s cells are left out: %s."
        logger.warning(text, where, min_cells, ", ".join(small[:10]))
    return out


def _enough(cells: np.ndarray, name: str, where: str, min_cells: int) -> np.ndarray:
    if len(cells) >= max(min_cells, 1):
        return cells
    msg = (
        f"Group {name!r} of {where} has {len(cells)} cells, fewer than min_cells={min_cells}: their mean says little. "
        "Join it to another group, or lower min_cells."
    )
    raise ValueError(msg)
