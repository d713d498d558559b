"""scGPT as a Scanpy plugin: tokenise, embed and analyse single cells with a generative transformer."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from ._settings import settings
from ._version import __version__

if TYPE_CHECKING:
    from types import ModuleType

    from . import (
        baselines,
        datasets,
        disk,
        get,
        io,
        metrics,
        model,
        models,
        neighbours,
        nn,
        pl,
        pp,
        pretrain,
        tl,
        tokenizer,
    )

_LAZY = (
    "baselines", "datasets", "disk", "get", "io", "metrics", "model", "models", "neighbours", "nn", "pl", "pp",
    "pretrain", "tl", "tokenizer",
)  # fmt: skip
__all__ = [
    "__version__",
    "baselines",
    "datasets",
    "disk",
    "get",
    "io",
    "metrics",
    "model",
    "models",
    "neighbours",
    "nn",
    "pl",
    "pp",
    "pretrain",
    "settings",
    "tl",
    "tokenizer",
]


def __getattr__(name: str) -> ModuleType:
    if name in _LAZY:
        return import_module(f".{name}", __name__)
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return sorted(__all__)
