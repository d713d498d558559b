"""Models: data in, arrays out."""

from ._cells import CellTokens
from ._dask import active_client, embed_on_workers
from ._devices import choose_device
from ._files import BLOCK_ROWS, CellFiles, embed_files
from ._gene_lists import GeneLists
from ._generative_pass import Predicted
from ._generator import Generator, Order
from ._inference import Embedder

__all__ = [
    "BLOCK_ROWS",
    "CellFiles",
    "CellTokens",
    "Embedder",
    "GeneLists",
    "Generator",
    "Order",
    "Predicted",
    "active_client",
    "choose_device",
    "embed_files",
    "embed_on_workers",
]
