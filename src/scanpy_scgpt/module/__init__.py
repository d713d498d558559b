"""Networks with their objectives."""

from ._encoder import CellEncoder
from ._pretrain import Generated, PretrainModule, initial_weights

__all__ = ["CellEncoder", "Generated", "PretrainModule", "initial_weights"]
