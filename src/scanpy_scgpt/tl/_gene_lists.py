"""Which genes of an AnnData are meant, by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scanpy_scgpt._logging import get_logger
from scanpy_scgpt._validate import check_key, nearest

if TYPE_CHECKING:
    from anndata import AnnData

logger = get_logger(__name__)
_VARIABLE = "highly_variable"
_MOST = 0.5  # share of names that look alike


def chosen_genes(
    adata: AnnData,
    genes: Sequence[str] | str | None,
    *,
    verb: str,
    least: int = 2,
    gene_symbols: str | None = None,
) -> np.ndarray:
    """Positions of genes in `var`, in its order.

    Parameters
    ----------
    adata
        Cells.
    genes
        Names, or a column of `.var` with True and False, or None: `highly_variable` where there is that column, else
        all genes.
    verb
        Who asks.
    least
        Fewest genes.
    gene_symbols
        Column of `.var` with further names of the genes.

    Returns
    -------
    Positions, int64, each once.

    Raises
    ------
    KeyError
        When there is no such column.
    ValueError
        When the column has something else, or fewer than `least` genes are there.
    """
    names = adata.var_names
    if not names.is_unique:
        twice = names[names.duplicated()][0]
        msg = f"adata.var_names has {twice!r} twice: adata.var_names_make_unique()."
        raise ValueError(msg)
    if genes is None and _VARIABLE in adata.var:
        genes = _VARIABLE
    if genes is None:
        return np.arange(adata.n_vars)
    if isinstance(genes, str):
        return _of_column(adata, genes, verb=verb, least=least)
    wanted = pd.Index([str(gene) for gene in genes]).unique()
    at = names.get_indexer(wanted)
    if gene_symbols is not None and gene_symbols in adata.var:
        other = pd.Series(np.arange(adata.n_vars), index=adata.var[gene_symbols].astype(str))
        other = other[~other.index.duplicated()].reindex(wanted, fill_value=-1).to_numpy()
        at = np.where(at < 0, other, at)
    lost = wanted[at < 0]
    if len(wanted) - len(lost) < least:
        left = f"{len(wanted) - len(lost)} of {len(wanted)} genes are left"
        msg = f"{verb}: {_absent(lost, names)}; {left}, and it needs at least {least}. "
        msg += advice(list(lost), list(names)) if len(lost) else "Name more."
        raise ValueError(msg)
    if len(lost):
        logger.warning("%s: %s and left out.", verb, _absent(lost, names))
    return np.unique(at[at >= 0])


def _absent(lost: pd.Index, names: pd.Index) -> str:
    if not len(lost):
        return "too few genes were named"
    first = []
    for gene in lost[:5]:
        near = nearest(gene, names, cutoff=0.7)
        first.append(repr(gene) + (f" (did you mean {near!r}?)" if near else ""))
    more = f" and {len(lost) - 5:,} more" if len(lost) > len(first) else ""
    return f"{', '.join(first)}{more} {'is' if len(lost) == 1 else 'are'} not in adata.var_names"


def _of_column(adata: AnnData, column: str, *, verb: str, least: int) -> np.ndarray:
    if column not in adata.var and column in adata.var_names:
        msg = f"genes={column!r} is one gene: {verb} needs several, genes=[{column!r}, ...]."
        raise ValueError(msg)
    check_key(adata.var, column, where="adata.var")
    values = adata.var[column]
    if values.dtype.kind != "b":
        msg = f"adata.var[{column!r}] has values of type {values.dtype}, not True and False. Name a list of genes."
        raise ValueError(msg)
    found = np.flatnonzero(values.to_numpy())
    if len(found) < least:
        msg = f"{verb}: adata.var[{column!r}] is True for {len(found)} genes, and it needs at least {least}."
        raise ValueError(msg)
    return found


def naming_of(names: Sequence[str]) -> str:
    """What most of some names look like: `Ensembl ids`, `numbers`, `mouse symbols` or `symbols`."""
    sample = pd.Series([str(name) for name in list(names)[:500]], dtype=str)
    if not len(sample):
        return "symbols"
    tests = {
        "Ensembl ids": sample.str.match(r"ENS[A-Z]*[GT]\d{6,}"),
        "numbers": sample.str.isdigit(),
        "mouse symbols": sample.str.match(r"[A-Z][a-z0-9]*[a-z][a-z0-9-]*$"),
    }
    return next((kind for kind, found in tests.items() if found.mean() > _MOST), "symbols")


def advice(first: Sequence[str], second: Sequence[str]) -> str:
    """What to do when the names of `first` are not among those of `second`, the genes of the cells."""
    kinds = naming_of(first), naming_of(second)
    if kinds[0] == kinds[1]:
        return f"The genes of the cells have names such as {', '.join(map(repr, list(second)[:3]))}."
    text = f"The first are {kinds[0]}, the genes of the cells {kinds[1]}. "
    if kinds == ("mouse symbols", "symbols"):
        return f"{text}Write them in capitals: [gene.upper() for gene in genes]."
    if kinds[0] == "symbols":
        return f"{text}Give the cells symbols: adata.var_names = adata.var['<column with symbols>']."
    return f"{text}Give them the names that adata.var_names has."
