"""The package logger. Receipts go through it; a library never configures the root logger."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

LOGGER_NAME = "scanpy_scgpt"
VERBOSITIES = {"error": logging.ERROR, "warning": logging.WARNING, "info": logging.INFO, "debug": logging.DEBUG}


class _StderrHandler(logging.StreamHandler):
    """Writes to whatever `sys.stderr` is now, so notebooks and captured output both work."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.setFormatter(logging.Formatter("%(message)s"))

    @property
    def stream(self) -> object:
        return sys.stderr

    def filter(self, record: logging.LogRecord) -> bool | logging.LogRecord:
        # An application that configures logging itself gets the records through its own handlers.
        return super().filter(record) if not logging.getLogger().handlers else False


def set_verbosity(level: str) -> None:
    """Level of the package logger: `"error"`, `"warning"`, `"info"` or `"debug"`."""
    logging.getLogger(LOGGER_NAME).setLevel(VERBOSITIES[level])


def verbosity() -> str | None:
    """Name of the level of the package logger (of a level in between, the next less talkative); None if it has none."""
    level = logging.getLogger(LOGGER_NAME).level
    if level == logging.NOTSET:
        return None
    return next((name for name, value in reversed(VERBOSITIES.items()) if value >= level), "error")


@contextmanager
def quiet(*names: str, level: int = logging.WARNING) -> Iterator[None]:
    """Loggers of these names say nothing below a level."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, former in zip(loggers, levels, strict=True):
            logger.setLevel(former)


def get_logger(name: str) -> logging.Logger:
    """Logger of a module of the package; the first call attaches the handler of the package."""
    package = logging.getLogger(LOGGER_NAME)
    if not any(isinstance(handler, _StderrHandler) for handler in package.handlers):
        package.addHandler(_StderrHandler())
        if package.level == logging.NOTSET:
            package.setLevel(logging.INFO)
    return logging.getLogger(name)
