"""Nearest neighbours among any number of vectors, and labels by their vote: arrays in, arrays out."""

from ._blocks import CellBlock
from ._cells import is_labelled
from ._engine import choose_method
from ._exact import Neighbours
from ._index import NeighbourIndex
from ._storage import IndexFormatError
from ._vote import Votes, vote

__all__ = [
    "CellBlock",
    "IndexFormatError",
    "NeighbourIndex",
    "Neighbours",
    "Votes",
    "choose_method",
    "is_labelled",
    "vote",
]
