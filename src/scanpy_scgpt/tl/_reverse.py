"""`tl.reverse_perturb`: which perturbation explains a state of cells, or the way from one state to another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import comb
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.special import gammaln

from scanpy_scgpt._counts import choose_counts
from scanpy_scgpt._effects import normalised_rows, sizes_of
from scanpy_scgpt._logging import get_logger
from scanpy_scgpt._validate import check_anndata, check_key, check_one_of, seed_of

if TYPE_CHECKING:
    from anndata import AnnData

    from scanpy_scgpt.model import Conditions, SCGPTPerturber

logger = get_logger(__name__)
METHODS = ("direct", "votes")
_POOLS, _POOL = 40, 20  # reference profiles of a candidate, and control cells in each
_NEAREST = 10
_LEVEL = 0.95
_NO_SHIFT = 1e-6
_LITTLE = 0.02  # effect on a target that tells nothing
_OWN = 0.5  # weight of what targets show; found on other seeds of the simulation than those that are reported


def reverse_perturb(
    adata: AnnData,
    model: SCGPTPerturber,
    *,
    target: str | Sequence[str],
    groupby: str,
    source: str | Sequence[str] | None = None,
    candidates: Sequence[str | Sequence[str]] | None = None,
    method: str = "direct",
    context: str | None = None,
    n_neighbors: int = _NEAREST,
    layer: str | None = None,
    size_key: str | None = None,
    rng: int | np.random.Generator | None = 0,
) -> pd.DataFrame:
    """Rank perturbations by how well they explain a state of cells, or a shift between two states.

    Parameters
    ----------
    adata
        Cells, shape `(n_obs, n_vars)`, with genes of the screen. Not changed.
    model
        A trained :class:`scanpy_scgpt.model.SCGPTPerturber`.
    target
        Group of cells, or groups, whose state is to be explained.
    groupby
        Column of `.obs` with the groups.
    source
        Group that the shift starts from; by default the controls of the screen.
    candidates
        Perturbations to rank; by default all of the screen, and all doubles of its genes when it has doubles.
    method
        `"direct"`: distance of the mean shift to each predicted change, in the length of the shift, and how far the
        targets themselves moved of the way that perturbed targets go. `"votes"`: the published procedure
        :cite:p:`Cui2024`, each cell votes for the candidates of its nearest reference profiles, which are random pools
        of control cells moved by the predicted change.
    context
        Context of the predictions, and of the cells where `adata` has the column; the first of the screen by default.
    n_neighbors
        Profiles that a cell votes for.
    layer, size_key
        As in :func:`scanpy_scgpt.tl.perturb`; by default those that the model was made with.
    rng
        Seed of the pools.

    Returns
    -------
    Candidates, the best first; the index holds their names. Columns:

    `rank`, `score`
        `score` is the share of the votes, or half of `own` less the relative distance.
    `distance`, `correlation`, `own`
        Of the mean shift and the predicted change: Euclidean, Pearson; and how far the targets moved, from 0 to 1.
    `kind`
        What is known of it, as in :func:`scanpy_scgpt.tl.perturb`.
    `chance_top`, `relevant_chance`
        Chance that a random order has the true one this high or higher; and that it has met one of its genes by then.

    Raises
    ------
    KeyError
        When there is no such column.
    ValueError
        When a group has no cells, genes are missing, or the method is unknown.
    """
    check_anndata(adata, function="tl.reverse_perturb")
    check_one_of(method, METHODS, name="method")
    check_key(adata.obs, groupby, where="adata.obs")
    seed = seed_of(rng) % 2**31
    if n_neighbors < 1 or _same(source, target):
        msg = (
            f"n_neighbors={n_neighbors!r}: give 1 or more."
            if n_neighbors < 1
            else f"source and target are both {target!r}: there is no shift between a group and itself."
        )
        raise ValueError(msg)
    where = {"layer": layer, "size_key": size_key}
    if layer is None and size_key is None:  # as the model read its screen, where these cells have that too
        kept = {"layer": (model.source_.layer, adata.layers), "size_key": (model.source_.size_key, adata.obs)}
        where = {name: one if one is not None and one in there else None for name, (one, there) in kept.items()}
    context = model.contexts_[0] if context is None else context
    check_one_of(context, model.contexts_, name="context")
    inside = _inside(adata, model, context)
    cells = _values(adata, _rows(adata, groupby, target, "target", inside), model, **where)
    start = model.screen_.controls.get(context)
    if source is not None:
        start = _values(adata, _rows(adata, groupby, source, "source", inside), model, **where).mean(axis=0)
    if start is None:
        msg = "The screen is a table without controls, so the state to start from must be named: source='...'."
        raise ValueError(msg)
    conditions = _wanted(model, candidates, context)
    changes = model.changes(conditions)
    shift = cells.mean(axis=0) - start
    if np.linalg.norm(shift) < _NO_SHIFT:
        msg = f"The cells of target={target!r} are where the shift starts, so there is nothing to explain. Name others."
        raise ValueError(msg)
    distance = np.linalg.norm(changes - shift, axis=1)
    own = _own_share(model, conditions, shift)
    if method == "direct":
        score = _OWN * own - distance / max(float(np.linalg.norm(shift)), 1e-12)
    else:
        score = _votes(cells, changes, model, context, start, n_neighbors, seed)
    table = pd.DataFrame({"score": score, "distance": distance, "correlation": _correlation(changes, shift)})
    table = table.assign(own=own, kind=model.kinds(conditions))
    table.index = pd.Index([model.names_.get(x, "+".join(x)) for x in conditions.parts], name="perturbation")
    order = np.lexsort((distance, -score))
    return _with_chance(table.iloc[order], [conditions.parts[i] for i in order])


def _same(source: str | Sequence[str] | None, target: str | Sequence[str]) -> bool:
    first, second = ({x} if isinstance(x, str) else set(x or ()) for x in (source, target))
    return first == second


def _inside(adata: AnnData, model: SCGPTPerturber, context: str) -> np.ndarray:
    """Cells of the context, where these say theirs; all of them otherwise."""
    key = model.source_.context_key
    if key is None or key not in adata.obs or not (adata.obs[key].astype(str) == context).any():
        return np.ones(adata.n_obs, dtype=bool)
    return (adata.obs[key].astype(str) == context).to_numpy()


def _rows(adata: AnnData, groupby: str, names: str | Sequence[str], what: str, inside: np.ndarray) -> np.ndarray:
    wanted = {names} if isinstance(names, str) else set(names)
    there = adata.obs[groupby].astype(str).isin(wanted).to_numpy()
    rows = np.flatnonzero(there & inside)
    if not len(rows) and there.any():
        msg = (
            f"{what}={names!r}: none of its {int(there.sum()):,} cells is in this context. Name theirs: context='...'."
        )
        raise ValueError(msg)
    if not len(rows):
        groups = ", ".join(map(repr, list(dict.fromkeys(adata.obs[groupby].astype(str)))[:8]))
        msg = f"{what}={names!r}: no cell is in this group. obs[{groupby!r}] has {groups}."
        raise ValueError(msg)
    return rows


def _columns(genes: pd.Index, model: SCGPTPerturber) -> np.ndarray:
    columns = genes.astype(str).get_indexer(pd.Index(model.screen_.genes))
    if (columns < 0).any():
        n = int((columns < 0).sum())
        msg = (
            f"{n:,} of the {len(columns):,} genes of the screen are not among those of adata, such as "
            f"{model.screen_.genes[int(np.argmax(columns < 0))]!r}. Train on the shared genes: adata[:, shared]."
        )
        raise ValueError(msg)
    return columns


def _values(
    adata: AnnData, rows: np.ndarray, model: SCGPTPerturber, *, layer: str | None, size_key: str | None
) -> np.ndarray:
    """Log-normalised values of some cells, float32, shape `(n, n_genes)`."""
    counts = choose_counts(adata, layer=layer, as_values=True)
    columns, sizes = _columns(counts.var.index, model), sizes_of(adata, size_key)
    blocks = []
    for start in range(0, adata.n_obs, 20_000):
        own = rows[(rows >= start) & (rows < start + 20_000)] - start
        if len(own):
            block = normalised_rows(counts, start, min(start + 20_000, adata.n_obs), sizes)
            blocks.append(block[own][:, columns].toarray().astype(np.float32))
    return np.concatenate(blocks)


def _candidates(model: SCGPTPerturber) -> list[tuple[str, ...]]:
    parts = model.screen_.conditions
    out = [(part,) for part in parts.universe]
    if any(len(x) > 1 for x in parts.parts):
        genes = parts.universe
        out += [(a, b) for i, a in enumerate(genes) for b in genes[i + 1 :]]
    return out


def _wanted(model: SCGPTPerturber, candidates: Sequence[str | Sequence[str]] | None, context: str) -> Conditions:
    """Candidates, each once."""
    conditions = model.conditions(_candidates(model) if candidates is None else candidates, [context])
    if not len(conditions):
        msg = "candidates is empty: name perturbations, candidates=['A', 'A+B'], or leave it out for all of the screen."
        raise ValueError(msg)
    first: dict[tuple[str, ...], int] = {}
    for i, x in enumerate(conditions.parts):
        first.setdefault(x, i)
    return conditions.take(list(first.values()))


def _own_share(model: SCGPTPerturber, conditions: Conditions, shift: np.ndarray) -> np.ndarray:
    """How far the targets themselves moved of the way that perturbed targets go, from 0 to 1, shape `(n,)`.

    A target that is not measured counts as the mean of the others; 0 for all when nothing was learned of targets.
    """
    if model.effects_ is None:
        return np.zeros(len(conditions))
    own, expected = model.effects_.own.of(model.screen_, conditions)
    there = [(row, shift[gene] / e) for (row, gene), e in zip(own, expected, strict=True) if abs(e) > _LITTLE]
    if not there:
        return np.zeros(len(conditions))
    rows, share = np.array([row for row, _ in there]), np.clip([x for _, x in there], 0, 1)
    sums, n = np.bincount(rows, share, len(conditions)), np.bincount(rows, minlength=len(conditions))
    sizes = np.array([len(x) for x in conditions.parts])
    return (sums + np.maximum(sizes - n, 0) * share.mean()) / np.maximum(sizes, n)


def _correlation(changes: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Correlation of each change with the shift, float64, shape `(n,)`."""
    a, b = changes - changes.mean(axis=1, keepdims=True), shift - shift.mean()
    norm = np.linalg.norm(a, axis=1) * np.linalg.norm(b)
    return np.divide(a @ b, norm, out=np.zeros(len(a)), where=norm > 1e-12)  # noqa: PLR2004


def _votes(
    cells: np.ndarray,
    changes: np.ndarray,
    model: SCGPTPerturber,
    context: str,
    start: np.ndarray,
    n_neighbors: int,
    seed: int,
) -> np.ndarray:
    """Share of the votes of each candidate, float64, shape `(n_candidates,)`."""
    from sklearn.neighbors import NearestNeighbors

    pools = model.control_pools(context, _POOLS, _POOL, seed)
    pools = np.broadcast_to(start, (1, len(start))) if pools is None else pools + (start - pools.mean(axis=0))
    owner = np.tile(np.arange(len(changes)), len(pools))
    profiles = np.concatenate([np.maximum(pool + changes, 0) for pool in pools])
    basis = np.linalg.svd(changes - changes.mean(axis=0), full_matrices=False)[2][:50].T  # candidates differ only here
    found = NearestNeighbors(n_neighbors=min(n_neighbors, len(profiles))).fit(profiles @ basis)
    near = found.kneighbors(cells @ basis, return_distance=False)
    return np.bincount(owner[near.ravel()], minlength=len(changes)) / near.size


def _with_chance(table: pd.DataFrame, parts: Sequence[tuple[str, ...]]) -> pd.DataFrame:
    n, ranks = len(table), np.arange(1, len(table) + 1)
    within: dict[str, set[int]] = {}
    for i, x in enumerate(parts):
        for part in x:
            within.setdefault(part, set()).add(i)
    others = np.array([n - len(set().union(*(within[part] for part in x))) for x in parts])
    log = gammaln(np.maximum(others, 0) + 1) - gammaln(np.maximum(others - ranks, 0) + 1)
    log += gammaln(n - ranks + 1) - gammaln(n + 1)  # of none of the relevant ones among the first
    chance = np.where(others < ranks, 1.0, 1 - np.exp(log))
    table = table.assign(chance_top=ranks / n, relevant_chance=chance)
    table.insert(0, "rank", ranks)
    return table


def hit_rates(
    rankings: Mapping[str, Sequence[str] | pd.DataFrame], *, ks: Sequence[int] = (1, 2, 4, 8), level: float = _LEVEL
) -> pd.DataFrame:
    """How often the true perturbation, or one of its genes, is among the first of its ranking.

    Parameters
    ----------
    rankings
        By the name of the true perturbation: what :func:`reverse_perturb` gave, or names in the order of their rank.
    ks
        Numbers of first places.
    level
        Of the exact binomial (Clopper-Pearson) intervals.

    Returns
    -------
    One row for each of `ks` and measure: `k`, `measure` (`correct`: the perturbation itself; `relevant`: one of its
    genes), `hits`, `n`, `rate`, `low`, `high`, and the `chance` of a random order.

    Raises
    ------
    ValueError
        When a true perturbation is not in its ranking, or there is no ranking.
    """
    if not rankings:
        msg = "There is no ranking. Give one for each true perturbation: {'A+B': tl.reverse_perturb(...)}."
        raise ValueError(msg)
    rows = []
    for k in ks:
        for measure in ("correct", "relevant"):
            hits, chances = 0, []
            for true, ranked in rankings.items():
                names = list(ranked.index if isinstance(ranked, pd.DataFrame) else ranked)
                if true not in names:
                    msg = f"rankings[{true!r}] does not rank {true!r} itself. Add it to the candidates."
                    raise ValueError(msg)
                good = _good(true, names, measure)
                hits += any(name in good for name in names[:k])
                top = min(k, len(names))
                chances.append(1 - comb(len(names) - len(good), top) / comb(len(names), top))
            low, high = exact_interval(hits, len(rankings), level)
            rate = hits / len(rankings)
            rows.append((k, measure, hits, len(rankings), rate, low, high, float(np.mean(chances))))
    return pd.DataFrame(rows, columns=["k", "measure", "hits", "n", "rate", "low", "high", "chance"])


def _good(true: str, names: list[str], measure: str) -> set[str]:
    if measure == "correct":
        return {true}
    own = set(_genes(true))
    return {name for name in names if own & set(_genes(name))}


def exact_interval(hits: int, n: int, level: float = _LEVEL) -> tuple[float, float]:
    """Exact binomial (Clopper-Pearson) interval of a rate."""
    from scipy.stats import binomtest

    found = binomtest(hits, n).proportion_ci(level, method="exact")
    return float(found.low), float(found.high)


def _genes(name: str) -> list[str]:
    """Genes of a name; what follows a space is no part of them."""
    return name.partition(" ")[0].split("+")
