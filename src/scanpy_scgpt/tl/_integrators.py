"""The model behind `tl.integrate`: trained on the cells, or a trained one that cells to come are put into."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from mudata import MuData

    from scanpy_scgpt.model import SCGPTIntegrator, SCGPTMulti


def trained(model: Any, *, modal: bool = False) -> SCGPTIntegrator | None:
    """An integrator, or what a folder of one holds; None for anything else."""
    from scanpy_scgpt.model import SCGPTIntegrator, SCGPTMulti

    if isinstance(model, SCGPTIntegrator):
        if modal != isinstance(model, SCGPTMulti):
            wanted, given = ("SCGPTMulti", "a MuData") if modal else ("SCGPTIntegrator", "an AnnData")
            msg = f"model is a {type(model).__name__}, and these cells are {given}, which takes a {wanted}."
            raise TypeError(msg)
        if model.joint is None:
            msg = f"This {type(model).__name__} is not trained. Train it first: model.train(max_epochs=0) is enough."
            raise ValueError(msg)
        return model
    if isinstance(model, str | os.PathLike) and os.path.isfile(os.path.join(model, "model.json")):  # noqa: PTH113, PTH118
        return (SCGPTMulti if modal else SCGPTIntegrator).load(model, adata=False, accelerator="cpu")
    return None


def _query(
    integrator: SCGPTIntegrator, cells: Any, training: Mapping[str, Any], setup: Mapping[str, Any]
) -> SCGPTIntegrator:
    """The trained model on other cells."""
    accelerator, _, number = training["device"].partition(":")
    where = {"accelerator": accelerator, "device": int(number) if number else "auto"}
    return type(integrator).load_query_data(cells, integrator, min_genes=training["min_genes"], **where, **setup)


def column_for(batch_key: str | None, batches: pd.Series | None, given: SCGPTIntegrator | None) -> str | None:
    """Column that the batches are registered under: the user's, or that of the model where batches have no name."""
    if batches is None or batch_key is not None:
        return batch_key if batches is not None else None
    return given.registry_["setup_args"]["batch_key"]


def of_mudata(
    mdata: MuData,
    batch_key: str | None,
    given: SCGPTIntegrator | None,
    model: Any,
    settings: Mapping[str, Any],
    training: Mapping[str, Any],
    setup: Mapping[str, Any],
) -> SCGPTMulti:
    """A trained model on other cells, or one that is trained on these."""
    from scanpy_scgpt.model import SCGPTMulti

    if given is not None:
        said = {**setup, "batch_key": batch_key}
        return _query(given, mdata, training, {name: value for name, value in said.items() if value is not None})
    SCGPTMulti.setup_mudata(mdata, batch_key=batch_key, **setup)
    integrator = SCGPTMulti(mdata, model=model, **settings)
    train(integrator, training)
    return integrator


def of_anndata(
    cells: AnnData,
    batch_key: str | None,
    given: SCGPTIntegrator | None,
    model: Any,
    settings: Mapping[str, Any],
    training: Mapping[str, Any],
) -> SCGPTIntegrator:
    """A trained model on other cells, or one that is trained on these."""
    from scanpy_scgpt.model import SCGPTIntegrator

    if given is not None:
        named = {} if batch_key is None else {"batch_key": batch_key}
        if given.registry_["setup_args"].get("gene_symbols") not in cells.var:
            named["gene_symbols"] = None  # then the index has them
        return _query(given, cells, training, {"layer": None, **named})
    SCGPTIntegrator.setup_anndata(cells, batch_key=batch_key)
    integrator = SCGPTIntegrator(cells, model=model, **settings)
    train(integrator, training)
    return integrator


def train(integrator: SCGPTIntegrator, training: Mapping[str, Any]) -> None:
    """Train on the device that was asked for; with validation cells, where there are enough."""
    accelerator, _, number = training["device"].partition(":")
    integrator.train(
        max_epochs=training["max_epochs"],
        accelerator=accelerator,
        devices=[int(number)] if number else "auto" if accelerator != "cpu" else 1,
        freeze=training["freeze"],
        early_stopping=training["early_stopping"] and training["max_epochs"] > 1,
    )
