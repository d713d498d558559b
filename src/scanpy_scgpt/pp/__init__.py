"""Preprocessing: counts to tokens, a column of perturbations to conditions."""

from scanpy_scgpt._perturbations import Perturbations, parse_perturbations

from ._tokenize import tokenize

__all__ = ["Perturbations", "parse_perturbations", "tokenize"]
