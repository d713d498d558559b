"""A perturber in a folder: `perturber.json` and `arrays.safetensors`. Nothing is unpickled."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from safetensors.numpy import load_file, save_file
from scipy import sparse

from scanpy_scgpt._version import __version__
from scanpy_scgpt.datasets import gene_features
from scanpy_scgpt.io import read_checkpoint, write_checkpoint

from ._perturb_data import Source
from ._perturb_network import Controls, NetworkSettings, PerturbNetwork
from ._screen import Conditions, Screen

P = TypeVar("P")
FACTS, ARRAYS, CHECKPOINT = "perturber.json", "arrays.safetensors", "checkpoint"
_KNOWLEDGE = "knowledge"
_FORMAT = 1


def write_perturber(model: Any, folder: str | os.PathLike[str], *, overwrite: bool) -> None:
    """Write it; the table of gene knowledge comes with the package and is left out."""
    path = Path(folder)
    if path.exists() and not overwrite:
        msg = f"{path} exists. Choose another folder, or replace it: overwrite=True."
        raise FileExistsError(msg)
    if path.is_file() or (path.is_dir() and not (path / FACTS).is_file() and any(path.iterdir())):
        msg = f"{path} holds something else than a perturber, and is not replaced. Choose another folder."
        raise FileExistsError(msg)
    path.mkdir(parents=True, exist_ok=True)
    screen, shipped = model.screen_, _shipped(model.features_)
    arrays = {"effects": screen.effects, "n_cells": screen.n_cells}
    arrays |= {f"control/{name}": x for name, x in screen.controls.items()}
    if screen.errors is not None:
        arrays["errors"] = screen.errors
    facts = {
        "format": _FORMAT,
        "version": __version__,
        "checkpoint": model.model_name_,
        "source": asdict(model.source_),
        "anchor": model.anchor_,
        "legacy": model.legacy_,
        "rng": model.rng_,
        "is_table": model.is_table_,
        "genes": list(screen.genes),
        "parts": [list(x) for x in screen.conditions.parts],
        "contexts": list(screen.conditions.contexts),
        "names": [[list(parts), name] for parts, name in model.names_.items()],
        "features": {
            name: list(map(str, table.index))
            for name, table in model.features_.items()
            if not (shipped and name == _KNOWLEDGE)
        },
        "knowledge": shipped,
        "network_weight": model.network_weight_,
        "networks": [asdict(network.settings) for network in model.networks_],
    }
    arrays |= {f"features/{name}": model.features_[name].to_numpy(np.float32) for name in facts["features"]}
    for i, network in enumerate(model.networks_):
        arrays |= {f"network{i}/{name}": x.cpu().numpy() for name, x in network.module.state_dict().items()}
    if model.networks_:
        write_checkpoint(model._checkpoint, path / CHECKPOINT, overwrite=overwrite)
        values = model.controls_.values
        arrays |= {"cells/data": values.data, "cells/indices": values.indices, "cells/indptr": values.indptr}
        where = sorted((int(row), *key) for key, rows in model.controls_.groups.items() for row in rows)
        facts["cells"] = [[context, batch] for _, context, batch in where]
    save_file({name: np.ascontiguousarray(x) for name, x in arrays.items()}, path / ARRAYS)
    (path / FACTS).write_text(json.dumps(facts) + "\n", encoding="utf-8")


def _shipped(features: dict[str, pd.DataFrame]) -> bool:
    """Whether gene knowledge is among the features; a table of the user may have its name."""
    return _KNOWLEDGE in features and features[_KNOWLEDGE].equals(gene_features())


def read_perturber(cls: type[P], folder: str | os.PathLike[str]) -> P:
    """Read it; choices are made again from the same numbers."""
    path = Path(folder)
    if not (path / FACTS).is_file():
        msg = f"{path} holds no {FACTS}, so no perturber was saved there. Save one: model.save({str(path)!r})."
        raise FileNotFoundError(msg)
    facts = json.loads((path / FACTS).read_text(encoding="utf-8"))
    arrays = load_file(path / ARRAYS)
    model: Any = cls.__new__(cls)
    model.source_ = Source(**facts["source"])
    model.anchor_, model.legacy_, model.rng_ = facts["anchor"], facts["legacy"], facts["rng"]
    model._adata, model._read = None, None
    model.model_name_ = facts["checkpoint"]
    model._checkpoint = read_checkpoint(path / CHECKPOINT) if facts["networks"] else None
    conditions = Conditions(tuple(map(tuple, facts["parts"])), tuple(facts["contexts"]))
    controls = {name.removeprefix("control/"): x for name, x in arrays.items() if name.startswith("control/")}
    screen = Screen(
        conditions, arrays["effects"], tuple(facts["genes"]), arrays["n_cells"], controls, arrays.get("errors")
    )
    tables = {name: pd.DataFrame(arrays[f"features/{name}"], index=index) for name, index in facts["features"].items()}
    if facts["knowledge"]:
        tables[_KNOWLEDGE] = gene_features()
    names = {tuple(parts): name for parts, name in facts["names"]}
    model._settle(screen, names, tables, is_table=facts["is_table"])
    model.network_weight_ = facts["network_weight"]
    for i, settings in enumerate(facts["networks"]):
        network = PerturbNetwork(model._checkpoint, screen.genes, NetworkSettings(**{**settings, "device": "cpu"}))
        prefix = f"network{i}/"
        state = {
            name.removeprefix(prefix): torch.from_numpy(x) for name, x in arrays.items() if name.startswith(prefix)
        }
        network.module.load_state_dict(state)
        model.networks_.append(network)
    if model.networks_:
        parts = tuple(arrays[f"cells/{name}"] for name in ("data", "indices", "indptr"))
        values = sparse.csr_matrix(parts, shape=(len(facts["cells"]), len(screen.genes)))
        where = np.array(facts["cells"], dtype=object)
        model.controls_ = Controls(values, where[:, 0], where[:, 1])
    return model
