"""`scanpy-scgpt pretrain`: a model from one's own cells."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scanpy_scgpt.pretrain import CensusQuery
    from scanpy_scgpt.tokenizer import GeneVocab

_OF_CENSUS = ("organism", "census_version", "max_cells")
_LIMITS = ("min_genes", "max_genes", "min_counts", "max_mito")


def add_parser(commands: Any) -> None:  # the action that `add_subparsers` gives
    """Add the command `pretrain` and its arguments."""
    parser = commands.add_parser("pretrain", help="pretrain a model on raw counts; goes on where a killed run was")
    add = parser.add_argument
    add("files", nargs="*", type=Path, help=".h5ad, .zarr or .h5mu files, annbatch collections, or one token store")
    add("--out", type=Path, required=True, help="folder for the corpus, checkpoints, curves and the model")
    add("--name", default="pretrained", help="name of the model (pretrained)")
    add("--vocab", type=Path, help="vocabulary as JSON (all genes that 20 cells express)")
    add("--continue-from", metavar="MODEL", help="name or folder of the model to continue from")
    settings = parser.add_argument_group("settings of the run, see pretrain.PretrainConfig")
    add = settings.add_argument
    add("--config", type=Path, metavar="JSON", help="file with settings by name")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="one setting, such as d_model=128; repeat it")
    add("--max-steps", type=int, help="steps of the whole run (10000)")
    add("--validation-by", choices=("cell", "study"), help="hold out cells or whole studies (cell)")
    add("--validation-studies", nargs="+", metavar="STUDY", help="the studies to hold out")
    cells = parser.add_argument_group("cells")
    add = cells.add_argument
    add("--census", metavar="FILTER", help="cells of CELLxGENE Census, such as \"tissue_general == 'blood'\"")
    add("--census-version", help="release of the Census (stable)")
    add("--organism", help="organism of the Census (homo_sapiens)")
    add("--max-cells", type=int, help="most cells of the Census")
    add("--min-genes", type=int, help="fewest expressed genes of a cell")
    add("--max-genes", type=int, help="most expressed genes of a cell")
    add("--min-counts", type=float, help="lowest sum of the counts of a cell")
    add("--max-mito", type=float, help="highest share of mitochondrial counts, 0 to 1")
    add("--duplicates", default="report", choices=("report", "drop"), help="cells that stand twice (report)")
    add("--on-error", default="raise", choices=("raise", "skip"), help="files that cannot be read (raise)")
    machine = parser.add_argument_group("machine")
    add = machine.add_argument
    add("--accelerator", default="auto", help="auto, cpu, cuda, mps (auto)")
    add("--devices", default="1", help="number of devices, or auto (1)")
    add("--num-nodes", type=int, default=1, help="number of machines (1)")
    add("--strategy", default="auto", help="auto, ddp, fsdp (auto)")
    add("--logger", action="append", default=[], choices=("tensorboard", "wandb"), help="curves beside the CSV")
    add("--half", action="store_true", help="store the weights in half precision")
    add("--no-resume", action="store_true", help="start anew where --out holds checkpoints")
    add("--seed", type=int, default=0, help="(0)")


def pretrain(args: argparse.Namespace) -> None:
    """Run the command; prints the card of the model and where it lies."""
    from scanpy_scgpt.pretrain import QualityFilters, run

    limits = {name: getattr(args, name) for name in _LIMITS if getattr(args, name) is not None}
    checkpoint = run(
        _data(args),
        args.out,
        vocab=None if args.vocab is None else _vocab(args.vocab),
        name=args.name,
        continue_from=args.continue_from,
        filters=QualityFilters(**limits) if limits else None,
        duplicates=args.duplicates,
        on_error=args.on_error,
        loggers=tuple(args.logger),
        accelerator=args.accelerator,
        devices=int(args.devices) if args.devices.isdecimal() else args.devices,
        num_nodes=args.num_nodes,
        strategy=args.strategy,
        half=args.half,
        resume=not args.no_resume,
        rng=args.seed,
        **_settings(args),
    )
    print(checkpoint.card)
    print(f"Model: {args.out / 'model'}")


def _data(args: argparse.Namespace) -> Path | list[Path | CensusQuery]:
    """Files and query; a lone path as it is, as it may be a token store."""
    from scanpy_scgpt.pretrain import CensusQuery

    given = {name: getattr(args, name) for name in _OF_CENSUS if getattr(args, name) is not None}
    if args.census is None:
        if given:
            name, value = next(iter(given.items()))
            msg = (
                f"--{name.replace('_', '-')} {value} is about cells of the Census, and --census is not there. Add "
                '--census "tissue_general == \'blood\'" (--census "" for all cells), or leave it out.'
            )
            raise ValueError(msg)
        if not args.files:
            msg = "no cells are given. Name files of raw counts, or --census \"tissue_general == 'blood'\"."
            raise ValueError(msg)
        return args.files[0] if len(args.files) == 1 else args.files
    return [*args.files, CensusQuery(args.census or None, **given)]


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """Fields of `PretrainConfig` that were given: those of the file, then single ones."""
    from scanpy_scgpt.pretrain import PretrainConfig

    found = {} if args.config is None else _of_file(args.config)
    found.update(map(_pair, args.set))
    named = {name: getattr(args, name) for name in ("max_steps", "validation_by", "validation_studies")}
    if args.validation_studies and args.validation_by is None:
        named["validation_by"] = "study"
    found.update({name: value for name, value in named.items() if value is not None})
    PretrainConfig.check_names(found)
    return {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}


def _text(path: Path, option: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        msg = f"{option} {path}: this file cannot be read ({error.strerror}). Check the path."
        raise type(error)(msg) from error


def _vocab(path: Path) -> GeneVocab:
    from scanpy_scgpt.tokenizer import GeneVocab

    _text(path, "--vocab")
    try:
        return GeneVocab.read(path)
    except ValueError as error:
        msg = (
            f'--vocab {path}: this is no vocabulary ({error}). It is JSON such as {{"CD3D": 0, "CD4": 1}}; '
            "vocab.write(path) makes it of a GeneVocab."
        )
        raise ValueError(msg) from error


def _of_file(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(_text(path, "--config"))
    except ValueError as error:
        msg = f'--config {path}: no valid JSON ({error}). Write it as {{"d_model": 128, "lr": 0.001}}.'
        raise ValueError(msg) from error
    if not isinstance(found, dict):
        msg = f'--config {path} holds a JSON {type(found).__name__}; write {{"d_model": 128, "lr": 0.001}}.'
        raise ValueError(msg)
    return found


def _pair(text: str) -> tuple[str, Any]:
    """Name and value of `KEY=VALUE`; a value that is no JSON is text."""
    key, equals, value = text.partition("=")
    if not equals:
        msg = f"--set {text}: write KEY=VALUE, such as --set d_model=128."
        raise ValueError(msg)
    try:
        return key, json.loads(value)
    except ValueError:
        return key, {"None": None, "True": True, "False": False}.get(value, value)
