"""Models: data in, arrays out."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._assessment import Assessment
from ._cells import CellTokens
from ._dask import active_client, embed_on_workers
from ._devices import choose_device
from ._files import BLOCK_ROWS, CellFiles, embed_files
from ._gene_lists import GeneLists
from ._generative_pass import Predicted
from ._generator import Generator, Order
from ._inference import Embedder

if TYPE_CHECKING:
    from ._annotator import SCGPTAnnotator
    from ._integrator import SCGPTIntegrator
    from ._modal_cells import plain_cells
    from ._multi import SCGPTMulti
    from ._scgpt import SCGPT

__all__ = [
    "BLOCK_ROWS",
    "SCGPT",
    "Assessment",
    "CellFiles",
    "CellTokens",
    "Embedder",
    "GeneLists",
    "Generator",
    "Order",
    "Predicted",
    "SCGPTAnnotator",
    "SCGPTIntegrator",
    "SCGPTMulti",
    "active_client",
    "choose_device",
    "embed_files",
    "embed_on_workers",
    "plain_cells",
]


_LATER = {
    "SCGPT": "_scgpt",
    "SCGPTAnnotator": "_annotator",
    "SCGPTIntegrator": "_integrator",
    "SCGPTMulti": "_multi",
    "plain_cells": "_modal_cells",
}


def __getattr__(name: str) -> Any:
    """What loads scvi-tools, which takes seconds, is loaded when it is asked for."""
    if name in _LATER:
        return getattr(import_module(f".{_LATER[name]}", __name__), name)
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
