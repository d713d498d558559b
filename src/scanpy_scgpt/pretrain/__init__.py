"""Pretraining from raw counts."""

from scanpy_scgpt.train import NonFiniteError

from ._census import CensusQuery
from ._config import PretrainConfig
from ._corpus import Corpus
from ._filters import QualityFilters
from ._prepare import prepare
from ._report import corpus_report
from ._run import run
from ._vocabulary import build_vocab

__all__ = [
    "CensusQuery",
    "Corpus",
    "NonFiniteError",
    "PretrainConfig",
    "QualityFilters",
    "build_vocab",
    "corpus_report",
    "prepare",
    "run",
]
