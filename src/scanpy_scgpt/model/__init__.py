"""Models: data in, arrays out."""

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
from ._screen import Conditions

if TYPE_CHECKING:
    from ._annotator import SCGPTAnnotator
    from ._integrator import SCGPTIntegrator
    from ._perturber import SCGPTPerturber
    from ._scgpt import SCGPT

__all__ = [
    "BLOCK_ROWS",
    "SCGPT",
    "Assessment",
    "CellFiles",
    "CellTokens",
    "Conditions",
    "Embedder",
    "GeneLists",
    "Generator",
    "Order",
    "Predicted",
    "SCGPTAnnotator",
    "SCGPTIntegrator",
    "SCGPTPerturber",
    "active_client",
    "choose_device",
    "embed_files",
    "embed_on_workers",
]


def __getattr__(name: str) -> Any:
    """The classes of scvi-tools' kind load it when they are asked for: that takes seconds."""
    if name == "SCGPT":
        from ._scgpt import SCGPT

        return SCGPT
    if name == "SCGPTAnnotator":
        from ._annotator import SCGPTAnnotator

        return SCGPTAnnotator
    if name == "SCGPTIntegrator":
        from ._integrator import SCGPTIntegrator

        return SCGPTIntegrator
    if name == "SCGPTPerturber":
        from ._perturber import SCGPTPerturber

        return SCGPTPerturber
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
