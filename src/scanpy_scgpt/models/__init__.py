"""Pretrained models by name."""

from scanpy_scgpt.io import Checkpoint

from ._download import download
from ._push import push
from ._recommend import better_than_default, recommend
from ._zoo import available, load, register, unregister, untrained

__all__ = [
    "Checkpoint",
    "available",
    "better_than_default",
    "download",
    "load",
    "push",
    "recommend",
    "register",
    "unregister",
    "untrained",
]
