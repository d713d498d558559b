"""Sets of genes as users have them: a GMT file, a mapping, or a table."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from scanpy_scgpt.io import read_gmt

from ._gene_lists import advice

_FEW = 0.05  # share of the genes of the sets that the cells have, below which the names are of another kind


def as_gene_sets(gene_sets: Any) -> dict[str, list[str]]:
    """Genes by name of the set.

    Parameters
    ----------
    gene_sets
        Path of a GMT file; or a mapping; or a table with `source` (set) and `target` (gene), as decoupler has.

    Raises
    ------
    ValueError
        For an empty file or mapping, or a table without these columns.
    TypeError
        For anything else.
    """
    if isinstance(gene_sets, str | os.PathLike):
        return read_gmt(gene_sets)
    if isinstance(gene_sets, pd.DataFrame):
        if not {"source", "target"} <= set(gene_sets):
            listed = ", ".join(map(str, gene_sets.columns)) or "none"
            msg = (
                f"gene_sets has the columns {listed}; it needs 'source' (the set) and 'target' (the gene). Rename them."
            )
            raise ValueError(msg)
        grouped = gene_sets.groupby("source", sort=False, observed=True)["target"]
        gene_sets = {str(name): list(dict.fromkeys(map(str, genes))) for name, genes in grouped}
    if not isinstance(gene_sets, Mapping):
        msg = (
            f"gene_sets is a {type(gene_sets).__name__}: give the path of a GMT file, a dict of names and genes, or a "
        )
        raise TypeError(msg + "table with 'source' and 'target'.")
    sets = {str(name): [str(gene) for gene in genes] for name, genes in gene_sets.items()}
    if not any(sets.values()):
        msg = "gene_sets holds no gene. Give sets with genes: {'T cells': ['CD3D', 'CD3E']}."
        raise ValueError(msg)
    return sets


def check_naming(gene_sets: Mapping[str, Iterable[str]], universe: Iterable[str], names: Iterable[str]) -> None:
    """Sets must use the names that the cells use.

    Parameters
    ----------
    gene_sets, universe
        What is to be tested, and the genes that count.
    names
        All genes of the cells.

    Raises
    ------
    ValueError
        When hardly any gene of the sets is in the universe, nor among all genes of the cells.
    """
    own = {str(gene) for genes in gene_sets.values() for gene in genes}
    universe, names = set(map(str, universe)), list(map(str, names))
    n_there = len(own & set(names))
    if len(own & universe) and n_there >= min(_FEW * len(own), _FEW * len(names)):
        return
    if n_there and not own & universe:
        msg = (
            f"None of the {len(own):,} genes of gene_sets is among the {len(universe):,} genes of the universe, which "
            f"are those that were grouped; {n_there:,} are among all {len(names):,} genes of the cells. Group these "
            "too: scgpt.tl.gene_programs(adata, genes=[...])."
        )
        raise ValueError(msg)
    msg = f"{n_there:,} of the {len(own):,} genes of gene_sets are among the {len(names):,} genes of the cells, "
    msg += f"{len(own & universe):,} in the universe. The sets have names such as "
    msg += f"{', '.join(map(repr, sorted(own)[:3]))}. {advice(sorted(own), names)}"
    raise ValueError(msg)
