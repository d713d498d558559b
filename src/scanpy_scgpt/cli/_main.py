"""`scanpy-scgpt`: commands and their arguments."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from scanpy_scgpt._version import __version__


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scanpy-scgpt", description="scGPT as a Scanpy plugin.")
    parser.add_argument("--version", action="version", version=f"scanpy-scgpt {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help="embed the PBMC cells that scanpy ships; figure, h5ad and summary")
    demo.add_argument("--out", type=Path, default=Path("scgpt_demo"), help="folder for the results (scgpt_demo)")
    demo.add_argument("--model", help="name or folder of a checkpoint (the bundled model)")
    commands.add_parser("models", help="list the models that are there")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Parameters
    ----------
    argv
        Arguments; those of the process by default.

    Returns
    -------
    Exit status: 0, or 1 when the command cannot be carried out (the reason is printed).
    """
    args = _parser().parse_args(argv)
    try:
        if args.command == "demo":
            from ._demo import demo

            print(demo(args.out, model=args.model))
        else:
            from scanpy_scgpt import models

            for name in models.available():
                print(models.load(name).label)
    except (ValueError, OSError) as error:
        print(f"scanpy-scgpt {args.command}: {error}", file=sys.stderr)
        return 1
    return 0
