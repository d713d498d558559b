"""Training with Lightning."""

from ._plan import NonFiniteError, PlanConfig, TrainingPlan

__all__ = ["NonFiniteError", "PlanConfig", "TrainingPlan"]
