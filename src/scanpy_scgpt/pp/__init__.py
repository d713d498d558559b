"""Preprocessing: counts to tokens."""

from ._tokenize import tokenize

__all__ = ["tokenize"]
