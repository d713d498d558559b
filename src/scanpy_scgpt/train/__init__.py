"""Training with Lightning."""

from ._callbacks import KeepBest, Watch
from ._fine_tuning import FineTuningPlan
from ._plan import NonFiniteError, PlanConfig, TrainingPlan

__all__ = ["FineTuningPlan", "KeepBest", "NonFiniteError", "PlanConfig", "TrainingPlan", "Watch"]
