"""Models: data in, arrays out."""

from typing import TYPE_CHECKING, Any

from ._assessment import Assessment
from ._attention_ranks import AttentionRanks, RankTies, dealt
from ._cells import CellTokens
from ._dask import active_client, embed_on_workers
from ._devices import choose_device
from ._files import BLOCK_ROWS, CellFiles, embed_files
from ._gene_contexts import GeneContexts
from ._gene_lists import GeneLists
from ._generative_pass import Predicted
from ._generator import Generator, Order
from ._impute import Imputed
from ._inference import Embedder
from ._screen import Conditions

if TYPE_CHECKING:
    from ._annotator import SCGPTAnnotator
    from ._integrator import SCGPTIntegrator
    from ._modal_cells import plain_cells
    from ._multi import SCGPTMulti
    from ._perturber import SCGPTPerturber
    from ._scgpt import SCGPT

__all__ = [
    "BLOCK_ROWS",
    "SCGPT",
    "Assessment",
    "AttentionRanks",
    "CellFiles",
    "CellTokens",
    "Conditions",
    "Embedder",
    "GeneContexts",
    "GeneLists",
    "Generator",
    "Imputed",
    "Order",
    "Predicted",
    "RankTies",
    "SCGPTAnnotator",
    "SCGPTIntegrator",
    "SCGPTMulti",
    "SCGPTPerturber",
    "active_client",
    "choose_device",
    "dealt",
    "embed_files",
    "embed_on_workers",
    "plain_cells",
]


def __getattr__(name: str) -> Any:
    """What loads scvi-tools, which takes seconds, is loaded when it is asked for."""
    if name == "SCGPT":
        from ._scgpt import SCGPT as found
    elif name == "SCGPTAnnotator":
        from ._annotator import SCGPTAnnotator as found
    elif name == "SCGPTIntegrator":
        from ._integrator import SCGPTIntegrator as found
    elif name == "SCGPTMulti":
        from ._multi import SCGPTMulti as found
    elif name == "SCGPTPerturber":
        from ._perturber import SCGPTPerturber as found
    elif name == "plain_cells":
        from ._modal_cells import plain_cells as found
    else:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return found
