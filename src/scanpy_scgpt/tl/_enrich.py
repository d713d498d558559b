"""`tl.enrich`: which pathways programs of genes are, beside programs of co-expression and of chance."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from scanpy_scgpt._keys import UNS, ProgramKeys
from scanpy_scgpt._logging import get_logger
from scanpy_scgpt._validate import check_anndata, check_one_of, copied, seed_of
from scanpy_scgpt._version import __version__
from scanpy_scgpt.baselines import gene_vectors
from scanpy_scgpt.metrics import enrichment

from ._gene_sets import as_gene_sets, check_naming
from ._leiden import GeneGraph, program_name

if TYPE_CHECKING:
    from anndata import AnnData

logger = get_logger(__name__)
OURS, LISTS = "scgpt", "lists"
RIVALS = ("coexpression", "coexpression_matched")


def enrich(
    adata: AnnData,
    gene_sets: str | os.PathLike[str] | Mapping[str, Iterable[str]] | pd.DataFrame,
    *,
    programs: Mapping[str, Sequence[str]] | Sequence[str] | None = None,
    universe: Iterable[str] | None = None,
    correction: Literal["bonferroni", "sets", "bh"] = "bonferroni",
    alpha: float = 0.05,
    min_set_size: int = 5,
    max_set_size: int | None = None,
    compare: Sequence[str] = RIVALS,
    n_random: int = 20,
    layer: str | None = None,
    use_raw: bool | None = None,
    key_added: str | None = None,
    rng: int | np.random.Generator | None = 0,
    copy: bool = False,
) -> AnnData | None:
    """Test programs against sets of genes, beside programs of co-expression and random ones :cite:p:`Cui2024`.

    Hypergeometric tests inside a stated universe (:func:`scanpy_scgpt.metrics.enrichment`). A number of hits says
    little by itself: it depends on how many programs there are and how large they are. So the same is done with
    clusters of co-expression (Pearson correlation of the same genes, same graph, same Leiden): at the same resolution,
    and at that which gives about as many programs of about the same size; and with random programs of exactly the same
    sizes. Nothing is downloaded: sets come by path or object.

    Parameters
    ----------
    adata
        Cells, after :func:`gene_programs`, or with `programs` given.
    gene_sets
        Path of a GMT file (also `.gz`), a mapping of names to genes, or a table with `source` and `target` as
        `decoupler` gives it.
    programs
        Lists of genes by name, or one list, in place of those of :func:`gene_programs`. They are compared with random
        lists alone.
    universe
        Genes that a program could have had: by default those that were grouped, or, with `programs`, all genes of the
        cells.
    correction
        `"bonferroni"` (the paper: by programs times sets), `"sets"` (its notebook: by sets alone), or `"bh"`. Programs
        of one resolution and one kind are corrected together.
    alpha
        A corrected p value below it is a hit.
    min_set_size, max_set_size
        Sets with fewer, or more, genes in the universe are not tested.
    compare
        `"coexpression"` (same resolution), `"coexpression_matched"` (same size), both, or none.
    n_random
        Draws of random programs; 0 for none.
    layer, use_raw
        Where the counts are, for co-expression.
    key_added
        That of :func:`gene_programs`; in `.uns` stand then `<key_added>_enrichment` and `<key_added>_enrichment_hits`.
    rng
        Seed of the random programs, of the graph and of Leiden.
    copy
        Return a copy instead of writing to `adata`.

    Returns
    -------
    `None`, or the copy if `copy=True`. Sets the fields

    `.uns["scgpt_enrichment"]` : :class:`pandas.DataFrame`
        The table of :func:`scanpy_scgpt.metrics.enrichment` with `network` (`scgpt`, `coexpression`,
        `coexpression_matched`, or `lists`) and `resolution`; pairs that share at least two genes.
    `.uns["scgpt_enrichment_hits"]` : :class:`pandas.DataFrame`
        A row for each resolution and kind of program, `random` among them: `n_programs`, `n_genes`, `mean_size`,
        `hits` (sets that some program hits; of `random` the mean over draws), `hits_95` (of `random`: the quantile),
        `programs_hit`, `p_random` (share of draws with at least as many hits, the real one counted as a draw).
    `.uns["scgpt"]["enrich"]` : :class:`dict`
        Settings, size of the universe, number of sets.

    Raises
    ------
    KeyError
        When there are no programs.
    ValueError
        When the sets are empty, name genes in another way than the cells, or none has enough genes in the universe.

    Examples
    --------
    >>> scgpt.tl.gene_programs(adata, resolutions=[5, 20, 40])
    >>> scgpt.tl.enrich(adata, "reactome.gmt")
    >>> scgpt.get.enrichment(adata, hits=True).head()
    """
    started, seed = time.perf_counter(), seed_of(rng)
    check_anndata(adata, function="tl.enrich", copy=copy)
    for name in compare:
        check_one_of(name, RIVALS, name="compare")
    keys = ProgramKeys.named(key_added)
    levels, universe, n_neighbors, min_size = _programs(adata, programs, universe, keys)
    sets = as_gene_sets(gene_sets)
    check_naming(sets, universe, adata.var_names)
    test = {"universe": universe, "correction": correction, "alpha": alpha}
    test |= {"min_set_size": min_set_size, "max_set_size": max_set_size}
    kinds = {(level, OURS if programs is None else LISTS): lists for level, lists in levels.items()}
    if programs is None and compare:
        vectors = gene_vectors(adata, universe, layer=layer, use_raw=use_raw).dropna()
        graph = GeneGraph(vectors.to_numpy(), list(vectors.index), n_neighbors=n_neighbors, seed=seed)
        kinds.update(_rivals(graph, levels, min_size, compare))
    tables = {at: enrichment(lists, sets, **test) for at, lists in kinds.items() if lists}
    summary = [_hits(at, lists, tables.get(at)) for at, lists in kinds.items()]
    generator = np.random.default_rng(seed)
    for (level, kind), lists in list(kinds.items()):
        if n_random and kind in {OURS, LISTS} and lists:
            drawn = _random_hits(lists, sets, test, n_random, generator)
            row = next(row for row in summary if (row["resolution"], row["network"]) == (level, kind))
            row["p_random"] = (1 + (drawn >= row["hits"]).sum()) / (1 + len(drawn))
            quantile = float(np.quantile(drawn, 0.95))
            rest = {"hits": float(drawn.mean()), "hits_95": quantile, "programs_hit": np.nan, "p_random": np.nan}
            summary.append({**row, "network": "random", **rest})
    adata = copied(adata) if copy else adata
    adata.uns[keys.tests], adata.uns[keys.hits] = _joined(tables), _ordered(summary)
    first = next(iter(tables.values())) if tables else pd.DataFrame()
    record = {"correction": correction, "alpha": alpha, "n_universe": len(universe), "n_random": n_random}
    record |= {"n_sets": first.attrs.get("n_sets", 0), "n_sets_given": len(sets), "min_set_size": min_set_size}
    record |= {"gene_sets": str(gene_sets) if isinstance(gene_sets, str | os.PathLike) else type(gene_sets).__name__}
    record |= {"key": keys.tests, "version": __version__, "seconds": time.perf_counter() - started}
    adata.uns[UNS] = {**adata.uns.get(UNS, {}), keys.uns_tests: record}
    _receipt(record, adata.uns[keys.hits])
    return adata if copy else None


def _programs(
    adata: AnnData, programs: Any, universe: Iterable[str] | None, keys: ProgramKeys
) -> tuple[dict[float, dict[str, list[str]]], list[str], int, int]:
    """Programs by resolution (NaN for lists given), universe, number of neighbours, and fewest genes of a program."""
    if programs is not None:
        lists = programs if isinstance(programs, Mapping) else {"genes": programs}
        lists = {str(name): [str(gene) for gene in genes] for name, genes in lists.items()}
        universe = list(adata.var_names if universe is None else universe)
        known = set(universe)
        if lost := [name for name, genes in lists.items() if not known & set(genes)]:
            msg = f"No gene of the list {lost[0]!r} is in the universe: {', '.join(map(repr, lists[lost[0]][:3]))}. "
            raise ValueError(msg + "Use the names of adata.var_names.")
        return {np.nan: lists}, universe, 0, 0
    record = adata.uns.get(UNS, {}).get(keys.uns)
    if keys.table not in adata.uns or record is None:
        msg = f"adata.uns has no programs {keys.table!r}. Make them first: scgpt.tl.gene_programs(adata)."
        raise KeyError(msg)
    levels: dict[float, dict[str, list[str]]] = {float(level): {} for level in record["resolutions"]}
    for (level, name), part in adata.uns[keys.table].groupby(["resolution", "program"], sort=False):
        levels[float(level)][str(name)] = list(part["gene"])
    universe = list(map(str, record["genes"] if universe is None else universe))
    return levels, universe, int(record["n_neighbors"]), int(record["min_size"])


def _rivals(
    graph: GeneGraph, levels: Mapping[float, Mapping[str, Sequence[str]]], min_size: int, compare: Sequence[str]
) -> Iterator[tuple[tuple[float, str], dict[str, list[str]]]]:
    """Programs of co-expression at each resolution."""
    for level, lists in levels.items():
        for kind in compare:
            sizes = [len(genes) for genes in lists.values()]
            if kind == RIVALS[0]:
                found = graph.clusters(level)
            else:
                found = graph.matched(sizes, level, min_size=min_size) if sizes else []
            kept = [genes for genes in found if len(genes) >= min_size]
            yield (level, kind), {program_name(level, i): genes for i, genes in enumerate(kept)}


def _hits(at: tuple[float, str], lists: Mapping[str, Sequence[str]], table: pd.DataFrame | None) -> dict[str, Any]:
    """One row of the summary; without a table there were no programs."""
    sizes = [len(genes) for genes in lists.values()]
    hit = pd.DataFrame({"gene_set": [], "program": []}) if table is None else table[table["hit"]]
    row = {"resolution": at[0], "network": at[1], "n_programs": len(lists), "n_genes": sum(sizes)}
    row |= {"mean_size": float(np.mean(sizes or [0])), "hits": float(hit["gene_set"].nunique()), "hits_95": np.nan}
    return {**row, "programs_hit": float(hit["program"].nunique()), "p_random": np.nan}


def _random_hits(
    lists: Mapping[str, Sequence[str]],
    sets: Mapping[str, Sequence[str]],
    test: Mapping[str, Any],
    n_random: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Sets hit by random lists of the same sizes, draw by draw; no gene is in two lists, where the universe allows."""
    universe, sizes = np.array(test["universe"], dtype=object), [len(genes) for genes in lists.values()]
    ends = np.cumsum(sizes)
    hits = []
    for _ in range(n_random):
        if ends[-1] <= len(universe):
            parts = np.split(rng.permutation(universe)[: ends[-1]], ends[:-1])
        else:
            parts = [rng.choice(universe, min(size, len(universe)), replace=False) for size in sizes]
        drawn = enrichment(dict(enumerate(map(list, parts))), sets, **test)
        hits.append(drawn.loc[drawn["hit"], "gene_set"].nunique())
    return np.array(hits)


def _joined(tables: Mapping[tuple[float, str], pd.DataFrame]) -> pd.DataFrame:
    """All tests in one table."""
    parts = []
    for (level, kind), table in tables.items():
        kept = table[(table["overlap"] > 1) | table["hit"]]
        parts.append(kept.assign(network=kind, resolution=level))
    joined = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    joined.attrs = {}
    return joined


def _ordered(summary: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    order = {name: i for i, name in enumerate((OURS, LISTS, *RIVALS, "random"))}
    rows = sorted(summary, key=lambda row: (row["resolution"], order[row["network"]]))
    return pd.DataFrame(rows)


def _receipt(record: Mapping[str, Any], hits: pd.DataFrame) -> None:
    parts = [f"{record['n_sets']:,} of {record['n_sets_given']:,} sets", f"universe of {record['n_universe']:,} genes"]
    for level, part in hits.groupby("resolution", sort=False, dropna=False):
        told = ", ".join(f"{name} {n:.4g}" for name, n in zip(part["network"], part["hits"], strict=True))
        parts.append(("" if np.isnan(level) else f"resolution {level:g}: ") + f"{told} hits")
    shown = [*parts[:5], *([f"{len(parts) - 5} resolutions more"] if len(parts) > 5 else [])]  # noqa: PLR2004
    logger.info("enrich: %s · %.1f s → uns[%r]", " · ".join(shown), record["seconds"], record["key"])
