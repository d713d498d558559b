"""Measures: truth and result in, numbers out."""

from ._annotate import annotation, macro_f1_interval, per_class, unknown_detection
from ._calibration import calibration_error, prediction_sets, reliability
from ._embed import Agreement, knn_agreement
from ._integrate import integration, scib
from ._mixing import batch_mixing, structure_kept
from ._paired import paired_difference
from ._perturb import PerturbationScores, perturbation

__all__ = [
    "Agreement",
    "PerturbationScores",
    "annotation",
    "batch_mixing",
    "calibration_error",
    "integration",
    "knn_agreement",
    "macro_f1_interval",
    "paired_difference",
    "per_class",
    "perturbation",
    "prediction_sets",
    "reliability",
    "scib",
    "structure_kept",
    "unknown_detection",
]
