"""Checks of the arguments of `run` and `prepare`: what they are, before any work."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from scanpy_scgpt._validate import check_one_of
from scanpy_scgpt.tokenizer import GeneVocab

from ._config import PretrainConfig
from ._filters import QualityFilters


def check_kinds(*, vocab: object = None, config: object = None, filters: object = None, **switches: object) -> None:
    """Arguments are of the kinds that they are used as; None is always one.

    Parameters
    ----------
    vocab, config, filters
        As :func:`run` takes them.
    **switches
        True or False.

    Raises
    ------
    TypeError
        When an argument is something else; the text says what to pass.
    ValueError
        When a switch is neither True nor False.
    """
    text = isinstance(vocab, str | os.PathLike)
    vocab_fix = f"tokenizer.GeneVocab.read({os.fspath(vocab)!r})" if text else "tokenizer.GeneVocab([...])"
    _require(vocab, GeneVocab, "vocab", vocab_fix)
    _require(config, PretrainConfig, "config", f"pretrain.PretrainConfig({_keywords(config, 'lr=1e-4')})")
    _require(filters, QualityFilters, "filters", f"pretrain.QualityFilters({_keywords(filters, 'min_genes=200')})")
    for name, value in switches.items():
        check_one_of(value, (True, False), name=name)


def _require(value: object, kind: type, name: str, fix: str) -> None:
    if value is not None and not isinstance(value, kind):
        msg = f"{name} is a {type(value).__name__}, not a {kind.__name__}. Pass {name}={fix}."
        raise TypeError(msg)


def _keywords(given: Any, otherwise: str) -> str:
    if not isinstance(given, Mapping) or not given:
        return otherwise
    return ", ".join(f"{name}={value!r}" for name, value in given.items())
