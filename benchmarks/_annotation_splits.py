"""Reference and query of each fold of the annotation benchmark: studies, donors and technologies apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import anndata as ad
import numpy as np

# The two studies of blood name cells differently; what both can tell apart.
SORTED = {
    "CD19+ B": "B", "CD34+": "CD34+", "CD56+ NK": "NK", "CD14+ Monocyte": "monocyte",
    "CD8+ Cytotoxic T": "T", "CD8+/CD45RA+ Naive Cytotoxic": "T", "CD4+ T Helper2": "T",
    "CD4+/CD45RO+ Memory": "T", "CD4+/CD25 T Reg": "T", "CD4+/CD45RA+/CD25- Naive T": "T",
}  # fmt: skip
CLUSTERED = {
    "Naive CD4 T": "T", "Memory CD4 T": "T", "CD8 T": "T", "B": "B", "NK": "NK", "CD14+ Mono": "monocyte",
    "FCGR3A+ Mono": "monocyte",
}  # fmt: skip
FOLDS = 5


class Fold(NamedTuple):
    """Cells with the columns `label` and `group` (donor or technology; one for all where there is none)."""

    reference: ad.AnnData
    query: ad.AnnData


def _read(data: Path, name: str) -> ad.AnnData:
    return ad.read_h5ad(data / f"{name}.h5ad")


def _at_most(adata: ad.AnnData, n: int, seed: int) -> ad.AnnData:
    if adata.n_obs <= n:
        return adata
    return adata[np.sort(np.random.default_rng([seed, 11]).permutation(adata.n_obs)[:n])].copy()


def _studies(data: Path, fold: int) -> Fold:
    reference, query = _read(data, "pbmc_facs_zheng2017"), _read(data, "pbmc3k_10x")
    reference.obs["label"] = reference.obs["subtype"].astype(str).map(SORTED)
    query.obs["label"] = query.obs["cell_type"].astype(str).map(CLUSTERED)
    reference.obs["group"] = query.obs["group"] = "one"
    # the query is one study: folds differ in the cells of the reference
    return Fold(reference, query[query.obs["label"].notna()].copy())


def _held_out(name: str, group: str, *, n_groups: int = FOLDS, least: int = 1) -> Callable[[Path, int], Fold]:
    """Folds of whole groups; labels of fewer than `least` cells are left out."""

    def fold_of(data: Path, fold: int) -> Fold:
        adata = _read(data, name)
        labels = adata.obs["cell_type"].astype(str)
        adata.obs["label"], adata.obs["group"] = labels, adata.obs[group].astype(str)
        adata = adata[(labels.map(labels.value_counts()) >= least).to_numpy()].copy()
        sizes = adata.obs[group].astype(str).value_counts()
        place = {one: i % n_groups for i, one in enumerate(sizes.index)}  # largest first, dealt out
        held = (adata.obs[group].astype(str).map(place) == fold).to_numpy()
        return Fold(adata[~held].copy(), adata[held].copy())

    return fold_of


SPLITS: Mapping[str, Callable[[Path, int], Fold]] = {
    "blood, study to study": _studies,
    "lupus patients, donors": _held_out("pbmc_kang2018_ctrl_8donors", "donor"),
    "pancreas, technologies": _held_out("pancreas_panc8_5tech_500", "technology"),
    "OneK1K, donors": _held_out("pbmc_onek1k_30donors", "donor"),
    "lung tumours, donors": _held_out("tumour_lung_zilionis2019_300", "donor", least=2),
}
REMOVED = {
    "blood, study to study": "monocyte",
    "lupus patients, donors": "B cells",
    "pancreas, technologies": "ductal",
    "OneK1K, donors": "Memory B",
    "lung tumours, donors": "tB cells",
}
"""Label that is taken out of the reference, for the detection of unknown cells."""


def fold_of(split: str, data: Path, fold: int, *, n_reference: int, n_query: int) -> Fold:
    """One fold; query cells whose label the reference does not have are kept."""
    found = SPLITS[split](data, fold)
    return Fold(_at_most(found.reference, n_reference, fold), _at_most(found.query, n_query, fold))


def few_labels(reference: ad.AnnData, share: float, seed: int) -> ad.AnnData:
    """A share of the cells of each label, two of each at least."""
    draws = np.random.default_rng([seed, 12]).random(reference.n_obs)
    labels = reference.obs["label"].astype(str).to_numpy()
    kept = np.zeros(reference.n_obs, dtype=bool)
    for label in np.unique(labels):
        cells = np.flatnonzero(labels == label)
        kept[cells[np.argsort(draws[cells])][: max(round(share * len(cells)), 2)]] = True
    return reference[kept].copy()
