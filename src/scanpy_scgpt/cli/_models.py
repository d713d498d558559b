"""`scanpy-scgpt models`: list, get, name and publish checkpoints."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

_OPTION = re.compile(r"\b(checksum|name)=(?=[\s,])")  # named in the text of an error, not in a line of Python
_SHOWN = ("kind", "trained_on", "cells", "size", "how")


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command and its actions."""
    parser = commands.add_parser("models", help="list, download, name and push models")
    actions = parser.add_subparsers(dest="action")
    listed = actions.add_parser("list", help="models by name, what they were trained on, how to get them")
    listed.add_argument("--csv", action="store_true", help="all columns, as CSV")
    get = actions.add_parser("download", help="download a model once; prints its folder")
    get.add_argument("source", help="name, hub repository org/name[@revision], or address of an archive or folder")
    get.add_argument("--revision", help="branch, tag or commit of a repository")
    get.add_argument("--checksum", help="SHA-256 of the archive or the weights; an address needs it")
    get.add_argument("--name", help="name for --model (that of the source)")
    get.add_argument("--force", action="store_true", help="download again what is there")
    get.add_argument("--offline", action="store_true", default=None, help="open no connection")
    where = actions.add_parser("path", help="print the folder of a model on this machine")
    where.add_argument("name")
    register = actions.add_parser("register", help="give a folder a name")
    register.add_argument("name")
    register.add_argument("folder", type=Path)
    register.add_argument("--heads", type=int, help="attention heads, of a mirror whose config does not give them")
    register.add_argument("--vocab", type=Path, help="vocab.json, of a mirror without one")
    register.add_argument("--overwrite", action="store_true", help="take the name from what it stands for")
    push = actions.add_parser("push", help="put a model on a hub; prints the address of the commit")
    push.add_argument("model", help="name or folder")
    push.add_argument("repo", help="org/name")
    push.add_argument("--public", action="store_true", help="a new repository is seen by all (private)")
    push.add_argument("--revision", help="branch (the main one)")
    push.add_argument("--licence", default="other", help="licence of the weights as the hub spells it (other)")


def models(args: argparse.Namespace) -> str:
    """Carry out an action.

    Parameters
    ----------
    args
        What :func:`add_parser` parsed.

    Returns
    -------
    The text to print.
    """
    try:
        return _carry_out(args)
    except ValueError as error:
        error.args = (_OPTION.sub(r"\g<0> (--\1)", str(error)),)
        raise


def _carry_out(args: argparse.Namespace) -> str:
    from scanpy_scgpt import models as zoo

    if args.action == "download":
        options = {key: getattr(args, key) for key in ("revision", "checksum", "name", "force", "offline")}
        return str(zoo.download(args.source, **options))
    if args.action == "path":
        return _path(zoo.available(), args.name)
    if args.action == "register":
        options = {"n_heads": args.heads, "vocab": args.vocab, "overwrite": args.overwrite}
        return f"{zoo.register(args.name, args.folder, **options).label} → {args.folder}"
    if args.action == "push":
        return zoo.push(args.model, args.repo, private=not args.public, revision=args.revision, licence=args.licence)
    table = zoo.available()
    if getattr(args, "csv", False):
        return table.to_csv().rstrip("\n")
    shown = table[list(_SHOWN)].copy()
    for column in ("cells", "size"):
        known = table[column].notna()
        shown[column] = table[column].astype(object).map("{:,}".format).where(known, "")
    return shown.reset_index().to_string(index=False)


def _path(table: pd.DataFrame, name: str) -> str:
    if name not in table.index:
        msg = f"No model {name!r}. Names: {', '.join(table.index)}."
        raise ValueError(msg)
    path, how = table.loc[name, ["path", "how"]]
    if path is None:
        msg = f"{name!r} is not on this machine ({how})."
        raise ValueError(msg)
    return path
