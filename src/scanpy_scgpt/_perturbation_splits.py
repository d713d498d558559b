"""Which perturbations are held out: the splits of the benchmarks, the same for every method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ._logging import get_logger
from ._perturbations import NO_LABEL, Perturbations
from ._validate import check_one_of, seed_of

logger = get_logger(__name__)

KINDS = ("single", "double", "leave_one_out", "covariate")
_TOO_FEW = 10  # conditions; fewer are left out one by one
_PAIR = 2


@dataclass(frozen=True)
class PerturbationSplit:
    """Conditions to learn from, to choose with, and to be judged by.

    Attributes
    ----------
    name
        Such as `"single 1/5"` or `"without rep_2"`.
    train, valid, test
        Names of conditions.
    grade
        What is known of each test condition: `"unseen"`, and for combinations of two genes `"0/2 seen"`, `"1/2 seen"`,
        `"2/2 seen"`, by whether its genes were perturbed in training; `"other level"` for a level held out.
    level
        Level of the covariate whose cells are held out; None for the other kinds.
    """

    name: str
    train: tuple[str, ...]
    valid: tuple[str, ...]
    test: tuple[str, ...]
    grade: dict[str, str]
    level: str | None = None

    def cells(self, perturbations: Perturbations, part: str, *, covariate: Sequence[str] | None = None) -> np.ndarray:
        """Cells of one part, with the control cells.

        Parameters
        ----------
        perturbations
            Perturbations of the cells.
        part
            `"train"`, `"valid"` or `"test"`.
        covariate
            Levels of the cells, for a split that holds one out: its cells are those of the test, all others of the
            rest.

        Returns
        -------
        Mask, bool, shape `(n_cells,)`.
        """
        check_one_of(part, ("train", "valid", "test"), name="part")
        wanted = [i for i, name in enumerate(perturbations.conditions) if name in set(getattr(self, part))]
        mask = np.isin(perturbations.codes, [-1, *wanted])
        if self.level is not None:
            if covariate is None:
                msg = (
                    f"The split {self.name!r} holds a level out: pass the level of each cell, covariate=adata.obs[...]."
                )
                raise ValueError(msg)
            held_out = np.asarray(covariate).astype(str) == self.level
            mask &= held_out if part == "test" else ~held_out
        return mask


def perturbation_splits(
    perturbations: Perturbations,
    *,
    kind: str = "single",
    covariate: Sequence[str] | None = None,
    n_splits: int = 5,
    valid_share: float = 0.1,
    rng: int = 0,
) -> list[PerturbationSplit]:
    """Hold perturbations out.

    `single`: the conditions with one gene or none are shuffled and cut into `n_splits` parts, each held out once;
    conditions of the same gene, such as CRISPRi and CRISPRa, stay together; combinations take no part. `double`: in
    each of `n_splits` draws a quarter of the genes is unseen; the conditions of an unseen gene, combinations with one,
    and half of the other combinations are held out. `leave_one_out`: each condition once. `covariate`: the cells of
    each level once, such as a batch or a cell type. Under ten conditions, `single` leaves out one by one.

    Parameters
    ----------
    perturbations
        From :func:`scanpy_scgpt.pp.parse_perturbations`.
    kind
        `"single"`, `"double"`, `"leave_one_out"` or `"covariate"`.
    covariate
        Level of each cell, for `kind="covariate"`.
    n_splits
        Number of splits of the first two kinds.
    valid_share
        Share of the training conditions that is set aside to choose with; at least one.
    rng
        Seed.

    Returns
    -------
    The splits. The same arguments give the same splits, whatever the order of the cells.

    Raises
    ------
    ValueError
        For an unknown kind, fewer than two conditions, no combination for `"double"`, or less than two levels.
    """
    check_one_of(kind, KINDS, name="kind")
    least = 1 if kind == "double" else _PAIR
    if n_splits < least or not 0 <= valid_share < 1:
        few = n_splits < least
        msg = f"n_splits={n_splits!r}: give {least} or more." if few else f"valid_share={valid_share!r}: 0 to below 1."
        raise ValueError(msg)
    if kind == "covariate":
        return _by_level(perturbations, covariate, valid_share, seed_of(rng))
    table = perturbations.target_table
    alone = [name for name, genes in table.items() if len(genes) < _PAIR]
    if kind == "double":
        return _doubles(table, n_splits, valid_share, seed_of(rng))
    conditions = list(table) if kind == "leave_one_out" else alone
    if len(conditions) < _PAIR:
        msg = (
            f"{len(conditions)} condition can be held out; a split needs two or more. Split cells by kind='covariate'."
        )
        raise ValueError(msg)
    if kind == "single" and len(conditions) < max(_TOO_FEW, n_splits):
        logger.info(
            "note: %d perturbations are too few for %d parts (10 or more are needed): each is left out once.",
            len(conditions),
            n_splits,
        )
        kind = "leave_one_out"
    generator = np.random.default_rng([seed_of(rng), 11])
    groups: dict[tuple[str, ...], list[str]] = {}
    for name in conditions:
        groups.setdefault(table[name] or ("", name), []).append(name)
    keys = sorted(groups)
    order = [keys[i] for i in generator.permutation(len(keys))] if kind == "single" else keys
    n = n_splits if kind == "single" else len(order)
    splits = []
    for i in range(n):
        test = sorted(name for key in order[i::n] for name in groups[key])
        rest = [name for name in conditions if name not in set(test)]
        train, valid = _set_aside(rest, valid_share, generator)
        title = f"single {i + 1}/{n}" if kind == "single" else f"without {test[0]}"
        splits.append(PerturbationSplit(title, train, valid, tuple(test), _grades(test, table, (*train, *valid))))
    return splits


def _set_aside(
    names: Sequence[str], share: float, generator: np.random.Generator
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Training and validation conditions; with a single one there is none to choose with."""
    n = min(max(round(share * len(names)), 1 if share > 0 else 0), len(names) - 1)
    chosen = set(generator.permutation(np.array(names, dtype=object))[:n].tolist())
    return tuple(name for name in names if name not in chosen), tuple(sorted(chosen))


def _grades(test: Sequence[str], table: dict[str, tuple[str, ...]], known: Sequence[str]) -> dict[str, str]:
    seen = {gene for name in known for gene in table[name]}
    out = {}
    for name in test:
        genes = table[name]
        n = sum(gene in seen for gene in genes)
        out[name] = f"{n}/{len(genes)} seen" if len(genes) >= _PAIR else "unseen" if n == 0 else "seen"
    return out


def _doubles(
    table: dict[str, tuple[str, ...]], n_splits: int, valid_share: float, seed: int
) -> list[PerturbationSplit]:
    pairs = [name for name, genes in table.items() if len(genes) >= _PAIR]
    if not pairs:
        msg = "kind='double': no condition changes two genes. Use kind='single'."
        raise ValueError(msg)
    genes = sorted({gene for own in table.values() for gene in own})
    splits = []
    for i in range(n_splits):
        generator = np.random.default_rng([seed, 12, i])
        unseen = set(generator.permutation(np.array(genes, dtype=object))[: max(len(genes) // 4, 1)].tolist())
        whole = [name for name in pairs if not unseen & set(table[name])]
        held = set(generator.permutation(np.array(whole, dtype=object))[: (len(whole) + 1) // 2].tolist())
        test = [name for name, own in table.items() if unseen & set(own) or name in held]
        train, valid = _set_aside([name for name in table if name not in set(test)], valid_share, generator)
        known = (*train, *valid)
        title = f"double {i + 1}/{n_splits}"
        splits.append(PerturbationSplit(title, train, valid, tuple(test), _grades(test, table, known)))
    return splits


def _by_level(
    perturbations: Perturbations, covariate: Sequence[str] | None, valid_share: float, seed: int
) -> list[PerturbationSplit]:
    if covariate is None:
        msg = "kind='covariate' needs the level of each cell: covariate=adata.obs['batch']."
        raise ValueError(msg)
    levels = pd.Series(np.asarray(covariate)).astype(str).to_numpy()
    if len(levels) != len(perturbations.codes):
        n = len(perturbations.codes)
        msg = f"covariate has {len(levels):,} entries, perturbations {n:,}; both need one per cell."
        raise ValueError(msg)
    names = sorted(set(levels[perturbations.codes != NO_LABEL]))
    if len(names) < _PAIR:
        msg = f"covariate has one level, {', '.join(map(repr, names))}; two or more are needed to hold one out."
        raise ValueError(msg)
    generator = np.random.default_rng([seed, 13])
    splits = []
    for name in names:
        inside, outside = (_conditions_of(perturbations, own) for own in (levels == name, levels != name))
        test = tuple(one for one in inside if one in set(outside))
        train, valid = _set_aside(outside, valid_share, generator)
        grade = dict.fromkeys(test, "other level")
        splits.append(PerturbationSplit(f"without {name}", train, valid, test, grade, name))
    return splits


def _conditions_of(perturbations: Perturbations, mask: np.ndarray) -> list[str]:
    found = np.unique(perturbations.codes[mask])
    return [perturbations.conditions[i] for i in found if i >= 0]
