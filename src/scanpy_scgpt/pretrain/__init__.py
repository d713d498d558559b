"""Pretraining from raw counts."""

from ._corpus import Corpus, build_corpus, build_vocab
from ._run import PretrainConfig, mean_bin_error, run

__all__ = ["Corpus", "PretrainConfig", "build_corpus", "build_vocab", "mean_bin_error", "run"]
