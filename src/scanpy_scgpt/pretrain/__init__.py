"""Pretraining from raw counts."""

from ._corpus import Corpus, build_corpus, build_vocab
from ._run import PretrainConfig, run

__all__ = ["Corpus", "PretrainConfig", "build_corpus", "build_vocab", "run"]
