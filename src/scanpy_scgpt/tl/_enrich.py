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
    compare: Sequence[str] | str | None = RIVALS,
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
    compare = _checked(compare, alpha, n_random)
    keys = ProgramKeys.named(key_added)
    levels, universe, n_neighbors, min_size = _programs(adata, programs, universe, keys)
    sets = as_gene_sets(gene_sets)
    check_naming(sets, universe, adata.var_names)
    test = {"universe": universe, "correction": correction, "alpha": alpha}
    test |= {"min_set_size": min_set_size, "max_set_size": max_set_size}
    kinds = {(level, OURS if programs is None else LISTS): lists for level, lists in levels.items()}
    if programs is None and compare:
        vectors = gene_vectors(adata, universe, layer=layer, use_raw=use_raw).dropna()
        _note_lost(set(universe) - set(vectors.index) - set(map(str, adata.var_names)))
        graph = GeneGraph(vectors.to_numpy(), list(vectors.index), n_neighbors=n_neighbors, seed=seed)
        kinds.update(_rivals(graph, levels, min_size, compare))
    tables = {at: enrichment(lists, sets, **test) for at, lists in kinds.items()}
    summary = [_hits(at, lists, tables[at]) for at, lists in kinds.items()]
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
    first = next(iter(tables.values()))
    record = {"correction": correction, "alpha": alpha, "n_universe": len(universe), "n_random": n_random}
    record |= {"n_sets": first.attrs["n_sets"], "n_sets_given": len(sets), "min_set_size": min_set_size}
    record |= {"gene_sets": str(gene_sets) if isinstance(gene_sets, str | os.PathLike) else type(gene_sets).__name__}
    record |= {"key": keys.tests, "version": __version__, "seconds": time.perf_counter() - started}
    adata.uns[UNS] = {**adata.uns.get(UNS, {}), keys.uns_tests: record}
    _receipt(record, adata.uns[keys.hits])
    return adata if copy else None


def _checked(compare: Sequence[str] | str | None, alpha: float, n_random: int) -> list[str]:
    """The rivals that are asked for; what is out of range is refused."""
    compare = [compare] if isinstance(compare, str) else list(compare or ())
    for name in compare:
        check_one_of(name, RIVALS, name="compare")
    if isinstance(alpha, str | bool) or not 0 < alpha <= 1:
        msg = f"alpha={alpha!r}: a corrected p value above 0 and up to 1, such as 0.05."
        raise ValueError(msg)
    if isinstance(n_random, bool) or not isinstance(n_random, int | np.integer) or n_random < 0:
        msg = f"n_random={n_random!r}: a whole number from 0, such as 20."
        raise ValueError(msg)
    return compare


def _note_lost(genes: set[str]) -> None:
    if genes:
        logger.warning(
            "enrich: %s genes that were grouped are not in adata any more: co-expression has the others alone, so its "
            "numbers are not quite comparable. Group the genes that are left: scgpt.tl.gene_programs(adata).",
            f"{len(genes):,}",
        )


def _as_lists(programs: Any, known: set[str]) -> dict[str, list[str]]:
    """Lists of genes that were given, by name."""
    if isinstance(programs, str):
        msg = f"programs={programs!r} is one name: give lists of genes, programs={{'mine': ['CD3D', 'CD3E']}}."
        raise ValueError(msg)
    lists = programs if isinstance(programs, Mapping) else {"genes": programs}
    if bare := [name for name, genes in lists.items() if isinstance(genes, str)]:
        msg = f"programs[{bare[0]!r}] is the text {lists[bare[0]]!r}: give a list of genes, [{lists[bare[0]]!r}, ...]."
        raise ValueError(msg)
    lists = {str(name): [str(gene) for gene in genes] for name, genes in lists.items()}
    if not any(lists.values()):
        msg = "programs holds no gene. Give lists with genes: programs={'mine': ['CD3D', 'CD3E']}."
        raise ValueError(msg)
    if lost := [name for name, genes in lists.items() if not known & set(genes)]:
        msg = f"No gene of the list {lost[0]!r} is in the universe: {', '.join(map(repr, lists[lost[0]][:3]))}. "
        raise ValueError(msg + "Use the names of adata.var_names.")
    if absent := [gene for gene in dict.fromkeys(x for genes in lists.values() for x in genes) if gene not in known]:
        named = ", ".join(map(repr, absent[:5])) + (f" and {len(absent) - 5:,} more" if len(absent) > 5 else "")  # noqa: PLR2004
        logger.warning("enrich: %s of programs= are not in the universe and count nowhere.", named)
    return lists


def _programs(
    adata: AnnData, programs: Any, universe: Iterable[str] | None, keys: ProgramKeys
) -> tuple[dict[float, dict[str, list[str]]], list[str], int, int]:
    """Programs by resolution (NaN for lists given), universe, number of neighbours, and fewest genes of a program."""
    if programs is not None:
        universe = list(map(str, adata.var_names if universe is None else universe))
        return {np.nan: _as_lists(programs, set(universe))}, universe, 0, 0
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


def _hits(at: tuple[float, str], lists: Mapping[str, Sequence[str]], table: pd.DataFrame) -> dict[str, Any]:
    """One row of the summary."""
    sizes = [len(genes) for genes in lists.values()]
    hit = table[table["hit"]]
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
    joined = pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)
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
