"""Preprocessing: counts to tokens, a column of perturbations to conditions."""

from scanpy_scgpt._perturbation_splits import PerturbationSplit, perturbation_splits
from scanpy_scgpt._perturbations import Perturbations, parse_perturbations

from ._tokenize import tokenize

__all__ = ["PerturbationSplit", "Perturbations", "parse_perturbations", "perturbation_splits", "tokenize"]
