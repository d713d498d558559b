"""Hypergeometric tests of lists of genes against sets of genes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, get_args

import numpy as np
import pandas as pd
from scipy import sparse, stats

from scanpy_scgpt._validate import check_one_of

Correction = Literal["bonferroni", "sets", "bh"]
_COLUMNS = ["program", "gene_set", "overlap", "program_size", "set_size", "universe", "fold", "p", "p_adjusted"]


def enrichment(
    programs: Mapping[str, Sequence[str]],
    gene_sets: Mapping[str, Iterable[str]],
    *,
    universe: Iterable[str],
    correction: Correction = "bonferroni",
    alpha: float = 0.05,
    min_set_size: int = 5,
    max_set_size: int | None = None,
) -> pd.DataFrame:
    """Which sets of genes lists of genes overlap with more than by chance.

    Parameters
    ----------
    programs
        Lists of genes by name.
    gene_sets
        Sets of genes by name.
    universe
        Genes that a list could have had. What is outside counts nowhere.
    correction
        `"bonferroni"`: p values times lists times sets, the rule of :cite:t:`Cui2024`; `"sets"`: times sets, as if each
        list stood alone; `"bh"`: false discovery rate of Benjamini and Hochberg over lists and sets.
    alpha
        A corrected p value below it is a hit.
    min_set_size, max_set_size
        Sets with fewer, or more, genes of the universe are not tested and do not count in the correction.

    Returns
    -------
    A row for each list and set that share a gene, the smallest p value first: `program`, `gene_set`, `overlap`,
    `program_size`, `set_size` and `universe` (numbers of genes, inside the universe), `fold` (overlap by that expected
    by chance), `p` (hypergeometric, of an overlap at least as large), `p_adjusted`, `hit`, and `genes` (shared, joined
    by `;`). Its `attrs` tell `n_tests` and `n_sets`.

    Raises
    ------
    ValueError
        When the universe is empty or no set has enough genes in it.
    """
    check_one_of(correction, get_args(Correction), name="correction")
    genes = pd.Index(dict.fromkeys(map(str, universe)))
    if not len(genes):
        msg = "universe is empty: give the genes that a program could have had, such as adata.var_names."
        raise ValueError(msg)
    sets, names = _incidence(gene_sets, genes), list(gene_sets)
    sizes = np.asarray(sets.sum(axis=1)).ravel()
    tested = (sizes >= max(min_set_size, 1)) & (sizes <= (np.inf if max_set_size is None else max_set_size))
    if not tested.any():
        msg = (
            f"None of the {len(names):,} gene sets has {min_set_size} of the {len(genes):,} genes of the universe; the "
            f"most is {int(sizes.max(initial=0))}. Lower min_set_size, or see whether both use the same names."
        )
        raise ValueError(msg)
    sets, sizes, names = sets[tested], sizes[tested], [name for name, good in zip(names, tested, strict=True) if good]
    lists = _incidence(programs, genes)
    lengths = np.asarray(lists.sum(axis=1)).ravel()
    shared = (lists @ sets.T).tocoo()
    i, j, k = shared.row, shared.col, shared.data.astype(np.int64)
    n_tests = len(names) * (1 if correction == "sets" else len(lengths))
    p = stats.hypergeom.sf(k - 1, len(genes), sizes[j], lengths[i])
    table = pd.DataFrame(
        {
            "program": np.array([str(name) for name in programs], dtype=object)[i],
            "gene_set": np.array([str(name) for name in names], dtype=object)[j],
            "overlap": k,
            "program_size": lengths[i].astype(np.int64),
            "set_size": sizes[j].astype(np.int64),
            "universe": len(genes),
            "fold": k * len(genes) / (sizes[j] * lengths[i]),
            "p": p,
            "p_adjusted": _adjusted(p, n_tests, correction),
        },
        columns=_COLUMNS,
    )
    table["hit"] = table["p_adjusted"] < alpha
    table["genes"] = _shared_names(lists, sets, i, j, genes)
    table = table.sort_values(["p", "program", "gene_set"], kind="stable", ignore_index=True)
    table.attrs.update(n_tests=n_tests, n_sets=len(names))
    return table


def _incidence(lists: Mapping[str, Iterable[str]], genes: pd.Index) -> sparse.csr_matrix:
    """Which list has which gene of the universe, int32, shape `(n_lists, n_genes)`."""
    at = [np.unique(genes.get_indexer(list(map(str, own)))) for own in lists.values()]
    at = [own[own >= 0] for own in at]
    indptr = np.concatenate([[0], np.cumsum([len(own) for own in at])])
    indices = np.concatenate([np.zeros(0, dtype=np.int64), *at])
    return sparse.csr_matrix((np.ones(len(indices), dtype=np.int32), indices, indptr), shape=(len(at), len(genes)))


def _adjusted(p: np.ndarray, n_tests: int, correction: Correction) -> np.ndarray:
    """Corrected p values; the tests that are not there have p = 1."""
    if correction != "bh":
        return np.minimum(p * n_tests, 1.0)
    order = np.argsort(p, kind="stable")
    scaled = p[order] * n_tests / np.arange(1, len(p) + 1)
    out = np.empty_like(p)
    out[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return out


def _shared_names(
    lists: sparse.csr_matrix, sets: sparse.csr_matrix, i: np.ndarray, j: np.ndarray, genes: pd.Index
) -> list[str]:
    both = lists[i].multiply(sets[j]).tocsr()
    both.sort_indices()
    names = genes.to_numpy(dtype=object)
    return [";".join(names[both.indices[a:b]]) for a, b in zip(both.indptr[:-1], both.indptr[1:], strict=True)]
