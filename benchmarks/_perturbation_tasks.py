"""Splits of real screens, tables of effects and a simulation: what is known, what is asked, and the truth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import scanpy as sc

from scanpy_scgpt import baselines, datasets, pp

FEW_GENES = 5  # at FDR 0.05: fewer, and a row of the macrophage table hardly shows an effect
MARKERS = {
    "T": ("CD3D", "CD3E", "IL7R", "LTB"),
    "B": ("CD79A", "CD79B", "MS4A1"),
    "NK": ("GNLY", "NKG7", "PRF1"),
    "myeloid": ("FCER1G", "TYROBP", "FTL", "CST3"),
}
EXPRESSED = 0.05  # share of the cells; genes below are left out of the simulation


@dataclass(frozen=True, eq=False)
class Task:
    """One split of one data set.

    `cells` and `perturbations` are those that may be learned from (None for a table); `effects` their pseudobulk
    effects, conditions of training and validation together; `wanted` the conditions to predict. A method sees all of
    these and not the rest.
    """

    name: str
    seed: int
    cells: ad.AnnData | None
    perturbations: pp.Perturbations | None
    covariate: str | None
    size_key: str | None
    effects: baselines.Effects
    targets: Mapping[str, tuple[str, ...]]
    valid: tuple[str, ...]
    wanted: tuple[str, ...]
    features: Mapping[str, pd.DataFrame | None]
    truth: pd.DataFrame
    de_genes: Mapping[str, tuple[str, ...]]
    control: pd.Series | None
    ceiling: tuple[pd.DataFrame, pd.DataFrame] | None
    grade: Mapping[str, str]
    scored: tuple[str, ...]  # of `wanted`


class Screen(NamedTuple):
    """File, covariate that is matched, column of sizes, kind of split, its covariate; column of the perturbation."""

    file: str
    covariate: str | None
    size_key: str | None
    kind: str
    held_out: str | None = None
    column: str = "perturbation"
    control: str = "control"


SCREENS = {
    "THP-1, unseen targets": Screen("perturb_papalexi2021_thp1", "batch", None, "single"),
    "THP-1, unseen batch": Screen("perturb_papalexi2021_thp1", None, None, "covariate", "batch"),
    "Jurkat, unseen targets": Screen("perturb_datlinger2021_jurkat", "condition", "total_counts", "single"),
    "Jurkat, other stimulation": Screen("perturb_datlinger2021_jurkat", None, "total_counts", "covariate", "condition"),
    "blood with interferon, other kind of cell": Screen(
        "pbmc_ifnb_kang2018_2k", None, None, "covariate", "kind of cell", "condition", "ctrl"
    ),
    "A549 with dexamethasone, other hour": Screen(
        "multiome_a549_scicar2018", None, None, "leave_one_out", None, "time", "0h"
    ),
}
TABLES = {
    "macrophages CRISPRi, unseen targets": ("perturb_table_macrophage_wang2025", "CRISPRi", False),
    "macrophages CRISPRi, targets with an effect": ("perturb_table_macrophage_wang2025", "CRISPRi", True),
    "macrophages CRISPRa, unseen targets": ("perturb_table_macrophage_wang2025", "CRISPRa", False),
    "LUHMES, unseen targets": ("perturb_table_luhmes_lalli2020", "CRISPRi", False),
}
SIMULATED = {"SIMULATION, effects add up": 0.0, "SIMULATION, with interactions": 0.4}
SETS = (*SCREENS, *TABLES, *SIMULATED)


def tasks_of(name: str, data: Path, seed: int, *, shared: bool = False) -> Iterator[Task]:
    """The splits of one set with one seed; `shared`: training and truth have the same control cells."""
    if name in SCREENS:
        yield from _screen(name, data, seed, shared=shared)
    elif name in TABLES:
        yield from _table(name, data, seed)
    else:
        yield from _simulation(name, data, seed, shared=shared)


def _features() -> dict[str, pd.DataFrame | None]:
    return {"own": None, "knowledge": datasets.gene_features()}


def _screen(name: str, data: Path, seed: int, *, shared: bool) -> Iterator[Task]:
    set_ = SCREENS[name]
    cells = _cells(data, set_)
    found = pp.parse_perturbations(cells.obs["perturbation"], genes=cells.var_names)
    yield from _of_cells(name, cells, found, set_, seed, shared=shared)


def _cells(data: Path, set_: Screen) -> ad.AnnData:
    """Cells of a screen; kinds of cells are told by markers."""
    if (data / f"{set_.file}.h5mu").is_file():
        cells = md.read_h5mu(data / f"{set_.file}.h5mu").mod["rna"]
    else:
        cells = ad.read_h5ad(data / f"{set_.file}.h5ad")
    cells.obs["perturbation"] = cells.obs[set_.column].astype(str).replace({set_.control: "control"})
    if set_.held_out == "kind of cell":
        cells.obs["kind of cell"] = _by_markers(cells)
    return cells


def _by_markers(cells: ad.AnnData) -> np.ndarray:
    """Kind of each cell: whose markers it has most of, in standard deviations; most stimulated cells have no label."""
    work = sc.pp.log1p(sc.pp.normalize_total(cells, target_sum=1e4, copy=True), copy=True)
    scores = np.stack([work[:, list(names)].X.toarray().mean(axis=1) for names in MARKERS.values()], axis=1)
    return np.array(list(MARKERS))[((scores - scores.mean(axis=0)) / scores.std(axis=0)).argmax(axis=1)]


def _simulation(name: str, data: Path, seed: int, *, shared: bool) -> Iterator[Task]:
    real = ad.read_h5ad(data / "pbmc3k_10x.h5ad")
    kept = np.asarray((real.X > 0).mean(axis=0)).ravel() >= EXPRESSED
    cells = datasets.simulate_perturb(
        real[:, kept].copy(),
        n_genes=14,
        doubles=0.6,
        interactions=SIMULATED[name],
        n_cells=150,
        n_control=800,
        interaction_strength=1.5,
        rng=seed,
    )
    found = pp.parse_perturbations(cells.obs["perturbation"], genes=cells.var_names)
    yield from _of_cells(name, cells, found, Screen("", None, None, "double"), seed, shared=shared, n_splits=1)


def _of_cells(
    name: str, cells: ad.AnnData, found: pp.Perturbations, set_: Screen, seed: int, *, shared: bool, n_splits: int = 5
) -> Iterator[Task]:
    """Training and truth have control cells of their own, else both err in the same direction."""
    levels = None if set_.held_out is None else cells.obs[set_.held_out]
    matched = set_.covariate
    half, quarter = _halves(cells, found, matched, seed), _halves(cells, found, matched, seed + 1000)
    control = found.codes == -1
    given = {"covariate": matched, "size_key": set_.size_key}
    for split in pp.perturbation_splits(found, kind=set_.kind, covariate=levels, n_splits=n_splits, rng=seed):
        known = split.cells(found, "train", covariate=levels) | split.cells(found, "valid", covariate=levels)
        asked = split.cells(found, "test", covariate=levels)
        if split.level is None and not shared:
            known, asked = known & ~(control & half), asked & ~(control & ~half)
        effects = baselines.pseudobulk_effects(cells, _only(found, known), **given)
        truth = baselines.pseudobulk_effects(cells, _only(found, asked), **given).take(split.test)
        parts = [
            baselines.pseudobulk_effects(cells, _only(found, asked & own), **given).deltas
            for own in (quarter, ~quarter)
        ]
        targets = found.target_table
        yield Task(
            name=f"{name}: {split.name}", seed=seed, cells=cells[known].copy(), perturbations=found.take(known),
            covariate=matched or set_.held_out, size_key=set_.size_key, effects=effects, targets=targets,
            valid=split.valid, wanted=split.test, features=_features(), truth=truth.deltas,
            de_genes=truth.de_genes(targets=targets), control=effects.control, ceiling=tuple(parts), grade=split.grade,
            scored=split.test,
        )  # fmt: skip


def _only(found: pp.Perturbations, mask: np.ndarray) -> pp.Perturbations:
    return replace(found, codes=np.where(mask, found.codes, np.int32(-2)))


def _halves(cells: ad.AnnData, found: pp.Perturbations, covariate: str | None, seed: int) -> np.ndarray:
    """Mask of a random half of the cells of each condition and level."""
    level = "" if covariate is None else cells.obs[covariate].astype(str).to_numpy()
    frame = pd.DataFrame({"code": found.codes, "level": level})
    frame["draw"] = np.random.default_rng([seed, 31]).random(len(frame))
    return (frame.groupby(["code", "level"])["draw"].rank(method="first") % 2 == 0).to_numpy()


@lru_cache(maxsize=2)
def _read_table(path: Path, mode: str) -> tuple[ad.AnnData, pp.Perturbations, baselines.Effects]:
    table = ad.read_h5ad(path)
    table = table[(table.obs["condition"] == mode) & (table.obs["perturbation"] != "control")].copy()
    found = pp.parse_perturbations(table.obs["perturbation"], genes=table.var_names, needs_control=False)
    return table, found, baselines.table_effects(table, found, p_layer="neglog10_p", clip=9.99)


def _table(name: str, data: Path, seed: int) -> Iterator[Task]:
    file, mode, strong = TABLES[name]
    table, found, effects = _read_table(data / f"{file}.h5ad", mode)
    with_effect = set(found.conditions)
    if strong:
        with_effect = set(table.obs["perturbation"][table.obs["n_genes_fdr05"] >= FEW_GENES])
    for split in pp.perturbation_splits(found, rng=seed):
        scored = tuple(one for one in split.test if one in with_effect)
        if not scored:
            continue
        known = effects.take((*split.train, *split.valid))
        yield Task(
            name=f"{name}: {split.name}", seed=seed, cells=None, perturbations=None, covariate=None, size_key=None,
            effects=known, targets=found.target_table, valid=split.valid, wanted=split.test, features=_features(),
            truth=effects.deltas.loc[list(split.test)], control=None, ceiling=None, grade=split.grade, scored=scored,
            de_genes=effects.take(split.test).de_genes(targets=found.target_table),
        )  # fmt: skip


def interaction(task: Task, predicted: pd.DataFrame) -> float:
    """Correlation of what a prediction adds to the sum of the measured singles with the simulated interaction."""
    truth = task.cells.uns["simulation"]
    known = pd.DataFrame(truth["interaction"], [str(one) for one in truth["conditions"]], task.truth.columns)
    out = []
    for one in task.wanted:
        first, *second = one.split("+")
        both = second and {first, second[0]} <= set(task.effects.deltas.index)
        if both and known.loc[one].any():
            rest = predicted.loc[one] - task.effects.deltas.loc[first] - task.effects.deltas.loc[second[0]]
            flat = rest.std() <= 1e-9
            out.append(0.0 if flat else float(np.corrcoef(rest, known.loc[one] * task.control)[0, 1]))
    return float(np.mean(out)) if out else float("nan")
