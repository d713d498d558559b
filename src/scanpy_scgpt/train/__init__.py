"""Training with Lightning."""

from ._plan import PlanConfig, TrainingPlan

__all__ = ["PlanConfig", "TrainingPlan"]
