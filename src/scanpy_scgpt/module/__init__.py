"""Networks with their objectives."""

from ._encoder import CellEncoder
from ._pretrain import TERMS, Generated, Positives, PretrainModule, Task, initial_weights

__all__ = ["TERMS", "CellEncoder", "Generated", "Positives", "PretrainModule", "Task", "initial_weights"]
