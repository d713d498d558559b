"""Models: data in, arrays out."""

from ._cells import CellTokens
from ._inference import Embedder, choose_device

__all__ = ["CellTokens", "Embedder", "choose_device"]
