"""Networks of genes against edges that are known, and rankings of genes against a list."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.integrate import trapezoid
from scipy.stats import hypergeom

_LEAST = 2  # sources with which a spread can be told


class _Candidates(NamedTuple):
    """All pairs that could be an edge, best first, and where a run of equal scores ends."""

    source: np.ndarray
    true: np.ndarray
    ends: np.ndarray


def grn(
    edges: pd.DataFrame | Mapping[str, pd.DataFrame],
    reference: pd.DataFrame,
    *,
    genes: Iterable[str] | None = None,
    n_top: Sequence[int] = (20, 100),
    absolute: bool = False,
    n_boot: int = 200,
    confidence: float = 0.95,
    rng: int = 0,
) -> pd.DataFrame:
    """Early precision, AUPRC and AUROC of networks against known edges, with intervals over sources.

    Candidates are all pairs of a source that has known edges and one of the genes, without a gene and itself. A pair
    that a table does not have comes after all that it has. Early precision is the share of known edges among the first
    `k` candidates, where `k` is the number of known edges (:cite:t:`Pratapa2020`); inside a run of equal weights their
    mean counts. A ratio is to the share among all candidates: 1 is chance. Intervals draw whole sources, as edges of
    one source are not independent.

    Parameters
    ----------
    edges
        Columns `source`, `target`, `weight`; or one such table for each method, by its name. Edges without a direction,
        such as those of `tl.grn`, are needed both ways: `get.grn_edges(adata, both_ways=True)`.
    reference
        Columns `source` and `target`: known edges.
    genes
        Targets that count; by default every target of any table.
    n_top
        Numbers of targets of each source that are compared with its known ones.
    absolute
        Sort by the absolute weight.
    n_boot
        Draws of the bootstrap.
    confidence
        Level of the intervals.
    rng
        Seed of the bootstrap.

    Returns
    -------
    A row for each method: `early_precision_ratio`, `auprc_ratio`, `auroc`, each with `_low` and `_high`;
    `early_precision`, `auprc`, `density` (share of known edges among the candidates); `overlap_20`, `expected_20` (mean
    number of known targets among the first 20 of a source, and by chance), and so for each of `n_top`; `n_sources`,
    `n_edges`, `n_candidates`.

    Raises
    ------
    KeyError
        When a table lacks a column.
    ValueError
        When there is no table, a weight is missing, or no source of the tables has a known edge among the genes.
    """
    tables = edges if isinstance(edges, Mapping) else {"edges": edges}
    if not tables:
        msg = "edges holds no network. Give tables by the name of their method: {'scGPT': get.grn_edges(adata)}."
        raise ValueError(msg)
    if isinstance(confidence, str) or not 0 < confidence < 1:
        msg = f"confidence={confidence!r}: a share between 0 and 1, such as 0.95."
        raise ValueError(msg)
    for name, table in {**tables, "reference": reference}.items():
        needed = ("source", "target") if name == "reference" else ("source", "target", "weight")
        if lacking := [column for column in needed if column not in table]:
            msg = (
                f"{name} has no column {lacking[0]!r}; it needs {', '.join(needed)}. Rename: table.rename(columns=...)."
            )
            raise KeyError(msg)
    targets = pd.Index(pd.unique(pd.concat([table["target"] for table in tables.values()])) if genes is None else genes)
    targets = targets.astype(str).unique()
    everywhere = [set(table["source"].astype(str)) for table in tables.values()]
    known = reference[reference["target"].astype(str).isin(targets)]
    known = known[known["source"].astype(str) != known["target"].astype(str)]
    sources = pd.Index(known["source"].astype(str).unique())
    sources = sources[[all(source in there for there in everywhere) for source in sources]].sort_values()
    if not len(sources):
        msg = (
            f"No source of the tables ({', '.join(sorted(everywhere[0])[:3])}, ...) has a known edge to one of the "
            f"{len(targets):,} genes in reference ({len(reference):,} edges). Both need gene symbols of one naming."
        )
        raise ValueError(msg)
    true = np.zeros((len(sources), len(targets)), dtype=bool)
    _fill(true, known, sources, targets, values=True)
    rows = {}
    for name, table in tables.items():
        score = np.full(true.shape, -np.inf)
        weight = table["weight"].to_numpy(dtype=np.float64)
        if np.isnan(weight).any():
            msg = f"{name}: {int(np.isnan(weight).sum()):,} edges have no weight. Leave them out: table.dropna()."
            raise ValueError(msg)
        _fill(score, table, sources, targets, values=np.abs(weight) if absolute else weight)
        rows[name] = _row(score, true, sources, targets, (n_top, n_boot, confidence, rng))
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("method")


def _fill(
    matrix: np.ndarray, table: pd.DataFrame, sources: pd.Index, targets: pd.Index, *, values: np.ndarray | bool
) -> None:
    row, column = sources.get_indexer(table["source"].astype(str)), targets.get_indexer(table["target"].astype(str))
    there = (row >= 0) & (column >= 0)
    matrix[row[there], column[there]] = values if isinstance(values, bool) else values[there]


def _row(
    score: np.ndarray, true: np.ndarray, sources: pd.Index, targets: pd.Index, settings: tuple
) -> dict[str, float]:
    n_top, n_boot, confidence, rng = settings
    candidate = sources.to_numpy()[:, None] != targets.to_numpy()[None, :]
    place, column = np.nonzero(candidate)
    values = np.nan_to_num(score[place, column], nan=-np.inf)
    order = np.argsort(-values, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(values[order]) != 0), len(order) - 1)
    pairs = _Candidates(place[order], true[place, column][order], ends)
    found = _measures(pairs, np.ones(len(sources)))
    draws = np.random.default_rng(rng).multinomial(len(sources), np.full(len(sources), 1 / len(sources)), size=n_boot)
    drawn = pd.DataFrame([_measures(pairs, weights) for weights in draws])
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    out = {}
    for name in ("early_precision_ratio", "auprc_ratio", "auroc"):
        low, high = drawn[name].quantile(tails) if len(sources) >= _LEAST and n_boot else (np.nan, np.nan)
        out |= {name: found[name], f"{name}_low": low, f"{name}_high": high}
    out |= {name: found[name] for name in ("early_precision", "auprc", "density")}
    hidden = np.where(candidate, np.nan_to_num(score, nan=-np.inf), -np.inf)
    best = np.argsort(-hidden, axis=1, kind="stable")
    for n in n_top:
        top = best[:, :n]
        there = np.take_along_axis(true & candidate, top, 1) & np.isfinite(np.take_along_axis(hidden, top, 1))
        out[f"overlap_{n}"] = float(there.sum(axis=1).mean())
        out[f"expected_{n}"] = float((n * (true & candidate).sum(axis=1) / candidate.sum(axis=1)).mean())
    counts = {"n_sources": len(sources), "n_edges": int((true & candidate).sum()), "n_candidates": int(candidate.sum())}
    return out | counts


def _measures(pairs: _Candidates, weights: np.ndarray) -> dict[str, float]:
    """Of candidates that count as often as their source was drawn; equal scores count as one step."""
    weight = weights[pairs.source]
    hits, seen = np.cumsum(weight * pairs.true)[pairs.ends], np.cumsum(weight)[pairs.ends]
    n_true, n_all = hits[-1], seen[-1]
    if n_true in (0, n_all):
        return dict.fromkeys(
            ("early_precision_ratio", "early_precision", "auprc_ratio", "auprc", "auroc", "density"), np.nan
        )
    early = np.interp(n_true, np.append(0, seen), np.append(0, hits)) / n_true
    steps = np.diff(np.append(0, hits))
    auprc = float((steps * hits / np.maximum(seen, 1e-12)).sum() / n_true)
    missed = seen - hits
    auroc = float(trapezoid(np.append(0, hits), np.append(0, missed)) / (n_true * missed[-1]))
    density = n_true / n_all
    return {
        "early_precision_ratio": float(early / density),
        "early_precision": float(early),
        "auprc_ratio": auprc / density,
        "auprc": auprc,
        "auroc": auroc,
        "density": float(density),
    }


def target_overlap(
    ranked: Sequence[str],
    targets: Iterable[str],
    *,
    genes: Iterable[str] | None = None,
    n_top: Sequence[int] = (20, 100),
) -> pd.DataFrame:
    """How many of the first genes of a ranking are in a list, what chance gives, and the hypergeometric p.

    Parameters
    ----------
    ranked
        Genes, best first.
    targets
        The list, such as known targets of a transcription factor.
    genes
        All genes that could have been first; by default those of the ranking.
    n_top
        Numbers of first genes to look at; all of them when there are fewer.

    Returns
    -------
    A row for each of `n_top` (the index): `n_hits`, `expected`, `share` of hits, `background` (share of the list among
    all genes), `fold`, `p` (of as many hits or more), `n_targets` (of the list, among all genes), `n_genes`, `hits`
    (names, joined by commas).

    Raises
    ------
    ValueError
        When a gene is ranked twice, or none of the list is among the genes.
    """
    order = [str(gene) for gene in ranked]
    if len(set(order)) < len(order):
        twice = next(gene for gene in order if order.count(gene) > 1)
        msg = f"ranked has {twice!r} more than once. Keep the best place: list(dict.fromkeys(ranked))."
        raise ValueError(msg)
    everything = set(order) if genes is None else set(map(str, genes)) | set(order)
    wanted = {targets} if isinstance(targets, str) else set(map(str, targets))
    known = wanted & everything
    if not known:
        msg = (
            f"None of the {len(wanted):,} targets ({', '.join(sorted(wanted)[:3])}, ...) is among the "
            f"{len(everything):,} genes ({', '.join(order[:3])}, ...). Both need symbols of one naming."
        )
        raise ValueError(msg)
    rows = {}
    for n in map(int, np.atleast_1d(n_top)):
        if n < 1:
            msg = f"n_top={n_top!r}: numbers of first genes, 1 or more."
            raise ValueError(msg)
        first = order[:n]
        hits = [gene for gene in first if gene in known]
        background, size = len(known) / len(everything), max(len(first), 1)
        rows[n] = {
            "n_hits": len(hits),
            "expected": size * background,
            "share": len(hits) / size,
            "background": background,
            "fold": len(hits) / size / background,
            "p": float(hypergeom.sf(len(hits) - 1, len(everything), len(known), size)),
            "n_targets": len(known),
            "n_genes": len(everything),
            "hits": ", ".join(hits),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("n_top")
