"""`scanpy-scgpt`: commands and their arguments."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from scanpy_scgpt._version import __version__

from . import _annotate, _models, _pretrain


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scanpy-scgpt", description="scGPT as a Scanpy plugin.")
    parser.add_argument("--version", action="version", version=f"scanpy-scgpt {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help="embed the PBMC cells that scanpy ships; figure, h5ad and summary")
    demo.add_argument("--out", type=Path, default=Path("scgpt_demo"), help="folder for the results (scgpt_demo)")
    demo.add_argument("--model", help="name or folder of a checkpoint (the bundled model)")
    embed = commands.add_parser("embed", help="embed the cells of files; goes on where a killed run was")
    embed.add_argument("files", nargs="+", type=Path, help=".h5ad, .zarr or .h5mu files")
    embed.add_argument("--out", type=Path, required=True, help="file of the result, .zarr or .h5ad")
    embed.add_argument("--model", help="name or folder of a checkpoint (the bundled model)")
    embed.add_argument("--layer", help="layer with the counts")
    embed.add_argument("--device", default="auto", help="auto, cpu, cuda, mps, cuda:1, ... (auto)")
    embed.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16"), help="(auto)")
    embed.add_argument("--backend", default="auto", choices=("auto", "torch", "openvino"), help="(auto)")
    embed.add_argument("--min-genes", type=int, default=200, help="fewest genes found in the vocabulary (200)")
    embed.add_argument("--max-tokens", type=int, help="most tokens of a batch")
    embed.add_argument("--shard", type=_shard, metavar="WHICH/OF", help="share of the cells, such as 0/4 to 3/4")
    embed.add_argument("--overwrite", action="store_true", help="replace what stands at --out")
    _annotate.add_parser(commands)
    _pretrain.add_parser(commands)
    _models.add_parser(commands)
    return parser


# What the texts of Python say, as an argument of a command
_ARGUMENTS = {
    "annotate": {"overwrite=True": "--overwrite", "min_genes": "--min-genes", "labels_key": "--labels-key"},
    "embed": {"overwrite=True": "--overwrite"},
    "pretrain": {"resume=False": "--no-resume", "overwrite=True": "--no-resume"},
    "models": {"overwrite=True": "--overwrite", "force=True": "--force"},
}


def _as_arguments(text: str, command: str) -> str:
    """The text of an error, with the arguments of the command that do what it says."""
    found = dict.fromkeys(argument for said, argument in _ARGUMENTS.get(command, {}).items() if said in text)
    return f"{text} On the command line: {', '.join(found)}." if found else text


def _shard(text: str) -> tuple[int, int]:
    which, slash, of = text.partition("/")
    if not (slash and which.isdecimal() and of.isdecimal()):
        msg = f"{text!r}: write WHICH/OF, counted from 0, such as 0/4"
        raise argparse.ArgumentTypeError(msg)
    return int(which), int(of)


def _embed(args: argparse.Namespace) -> None:
    from scanpy_scgpt import tl

    path = tl.embed(
        args.files,
        args.model,
        layer=args.layer,
        device=args.device,
        precision=args.precision,
        backend=args.backend,
        min_genes=args.min_genes,
        max_tokens=args.max_tokens,
        out=args.out,
        overwrite=args.overwrite,
        shard=args.shard,
    )
    print(path if path.exists() else f"{path} waits for the other shares")


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
        elif args.command == "embed":
            _embed(args)
        elif args.command == "annotate":
            print(_annotate.annotate(args))
        elif args.command == "pretrain":
            _pretrain.pretrain(args)
        else:
            print(_models.models(args))
    except (ValueError, OSError, KeyError, RuntimeError, ImportError) as error:
        text = str(error.args[0] if isinstance(error, KeyError) else error)
        print(f"scanpy-scgpt {args.command}: {_as_arguments(text, args.command)}", file=sys.stderr)
        return 1
    return 0
