"""Pretrained models by name."""

from scanpy_scgpt.io import Checkpoint

from ._zoo import available, load, untrained

__all__ = ["Checkpoint", "available", "load", "untrained"]
