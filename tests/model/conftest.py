"""Cells with labels and donors, and trained models of every class; scvi-tools is loaded where one is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anndata as ad
import numpy as np
import pytest

from scanpy_scgpt import io, model

CLASSES = ("SCGPT", "SCGPTAnnotator")


@pytest.fixture(scope="session")
def _labelled(_shipped_cells: ad.AnnData) -> ad.AnnData:
    kinds = _shipped_cells.obs["bulk_labels"].astype(str)
    chosen = np.concatenate(
        [np.flatnonzero(kinds == kind)[:n] for kind, n in (("Dendritic", 40), ("CD14+ Monocyte", 30), ("CD19+ B", 20))]
    )
    cells = _shipped_cells[np.sort(chosen)]
    adata = ad.AnnData(cells.layers["derived"].astype(np.float32), var=cells.var[[]].copy())
    adata.obs_names = cells.obs_names
    adata.obs["cell_type"] = kinds.to_numpy()[np.sort(chosen)]
    adata.obs["donor"] = np.where(np.arange(90) % 3 == 0, "d1", "d2")
    return adata


@pytest.fixture
def cells(_labelled: ad.AnnData) -> ad.AnnData:
    """90 real cells of three kinds and two donors, counts in X; a copy for each test."""
    return _labelled.copy()


@pytest.fixture(scope="session")
def make(checkpoint: io.Checkpoint) -> Callable[..., Any]:
    """Function: a model of a class from cells."""

    def make(name: str, adata: ad.AnnData, *, setup: dict[str, Any] | None = None, **settings: Any) -> Any:
        kind = getattr(model, name)
        kind.setup_anndata(adata, **{"labels_key": "cell_type", "batch_key": "donor", **(setup or {})})
        return kind(adata, **{"model": checkpoint, "min_genes": 20, "max_length": 120, **settings})

    return make


@pytest.fixture(scope="session", params=CLASSES)
def trained(request: pytest.FixtureRequest, _labelled: ad.AnnData, make: Callable[..., Any]) -> Any:
    """A model of each class after one epoch; not to be changed."""
    made = make(request.param, _labelled.copy())
    made.train(max_epochs=1, train_size=0.7, batch_size=16)
    return made


@pytest.fixture(scope="session")
def saved(trained: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder of that model, with its cells; not to be changed."""
    folder = tmp_path_factory.mktemp("models") / type(trained).__name__
    trained.save(folder, save_anndata=True)
    return folder
