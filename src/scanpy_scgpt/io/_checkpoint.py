"""Checkpoints on disk: `config.json`, `vocab.json`, `weights.safetensors`, `card.md`. Never a pickle."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from scanpy_scgpt.nn import TransformerConfig
from scanpy_scgpt.tokenizer import GeneVocab, TokenizerConfig

FORMAT_VERSION = 1
FILES = ("config.json", "vocab.json", "weights.safetensors")
CARD = "card.md"


class CheckpointError(ValueError):
    """A checkpoint folder is incomplete, damaged or of an unknown kind."""


class CheckpointMismatchError(CheckpointError):
    """The weights of a checkpoint do not fit the network."""


@dataclass(frozen=True)
class LoadReport:
    """What became of the tensors of a checkpoint.

    Attributes
    ----------
    loaded
        Names of the tensors of the network that were filled.
    initialised
        Names of the tensors of the network that the checkpoint does not have and that kept their initial values.
    ignored
        Name of each tensor of the file that was not used, with the reason.
    """

    loaded: tuple[str, ...] = ()
    initialised: tuple[str, ...] = ()
    ignored: Mapping[str, str] = field(default_factory=dict)

    def summary(self) -> str:
        """One phrase with the three numbers."""
        return (
            f"{len(self.loaded)} tensors loaded, {len(self.initialised)} newly initialised, {len(self.ignored)} ignored"
        )


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A pretrained model as data: settings, vocabulary, weights.

    Two objects are equal only if they are the same one; compare `digest` to learn whether the weights are the same.

    Attributes
    ----------
    name
        Name to show.
    digest
        First 8 hexadecimal digits of the SHA-256 of the weights file.
    transformer, tokenizer
        Settings of the network and of the tokens it was trained on.
    vocab
        Genes and their ids.
    weights
        Tensors by our names: `transformer.*`, `expression_head.*`, `cell_to_gene_head.*`, ...
    info
        Where it comes from: training data, settings, losses.
    card
        Text for people.
    ignored
        Tensors of the file that have no place, with the reason.
    """

    name: str
    transformer: TransformerConfig
    tokenizer: TokenizerConfig
    vocab: GeneVocab = field(repr=False)
    weights: Mapping[str, Tensor] = field(repr=False)
    digest: str = ""
    info: Mapping[str, Any] = field(default_factory=dict, repr=False)
    card: str = field(default="", repr=False)
    ignored: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def label(self) -> str:
        """`name@digest`."""
        return f"{self.name}@{self.digest}" if self.digest else self.name


def load_component(
    module: nn.Module, checkpoint: Checkpoint, component: str, *, optional: frozenset[str] = frozenset()
) -> LoadReport:
    """Fill a part of a network with the weights of a checkpoint, strictly.

    Parameters
    ----------
    module
        Network part to fill in place.
    checkpoint
        Source.
    component
        Prefix of its tensors in the checkpoint, such as `"transformer"`.
    optional
        Tensors that may be missing and then keep their initial values.

    Returns
    -------
    What was loaded, newly initialised and ignored.

    Raises
    ------
    CheckpointMismatchError
        When a tensor that is not optional is missing or has another shape; nothing is filled then.
    """
    wanted = module.state_dict()
    prefix = f"{component}."
    found = {name.removeprefix(prefix): t for name, t in checkpoint.weights.items() if name.startswith(prefix)}
    wrong = {
        name: f"shape {tuple(found[name].shape)} in the file, {tuple(tensor.shape)} in the network"
        for name, tensor in wanted.items()
        if name in found and found[name].shape != tensor.shape
    }
    missing = [name for name in wanted if name not in found and name not in optional]
    if wrong or missing:
        raise CheckpointMismatchError(_mismatch_text(checkpoint, component, list(wanted), missing, wrong))
    loaded = {name: found[name] for name in wanted if name in found}
    module.load_state_dict({**wanted, **loaded}, strict=True)
    ignored = {f"{component}.{name}": "the network has no such tensor" for name in found if name not in wanted}
    return LoadReport(
        tuple(f"{component}.{name}" for name in loaded),
        tuple(f"{component}.{name}" for name in wanted if name not in loaded),
        {**checkpoint.ignored, **ignored},
    )


def _mismatch_text(
    checkpoint: Checkpoint, component: str, wanted: list[str], missing: list[str], wrong: dict[str, str]
) -> str:
    attention = [name for name in wanted if ".attention." in name]
    lost = [name for name in attention if name in missing or name in wrong]
    text = (
        f"{checkpoint.label}: {len(missing) + len(wrong)} of {len(wanted)} tensors of the {component} cannot be loaded"
    )
    if lost:
        text += f", among them {len(lost)} of {len(attention)} attention tensors"
    if missing:
        text += f". Missing: {', '.join(missing[:3])}"
    if wrong:
        name, reason = next(iter(wrong.items()))
        text += f". Other shape: {name} ({reason})"
    unused = list(checkpoint.ignored)[:3]
    if unused:
        text += f". Not understood in the file: {', '.join(unused)}"
    return text + ". Random weights are never used in their place: check that all files are of one checkpoint."


def file_digest(path: Path) -> str:
    """First 8 hexadecimal digits of the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:8]


def read_json(path: Path) -> Any:
    """Parsed JSON file; a damaged one is a :class:`CheckpointError`."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        msg = f"{path} is no valid JSON ({error}). The file is damaged: copy the checkpoint folder again."
        raise CheckpointError(msg) from error


def read_vocab(path: Path) -> GeneVocab:
    """Vocabulary of a checkpoint; a damaged one is a :class:`CheckpointError`."""
    mapping = read_json(path)
    if not isinstance(mapping, dict):
        msg = f"{path} holds a JSON {type(mapping).__name__}; a vocabulary is an object {{token: id}}."
        raise CheckpointError(msg)
    try:
        return GeneVocab.from_mapping(mapping, source=str(path))
    except ValueError as error:
        raise CheckpointError(str(error)) from error


def check_vocab_size(n_tokens: int, vocab: GeneVocab, *, path: Path) -> None:
    """The gene table must have one row per token."""
    if n_tokens != len(vocab):
        msg = (
            f"{path}: the gene table has {n_tokens:,} rows, vocab.json {len(vocab):,} tokens: "
            "the two files are not of one checkpoint."
        )
        raise CheckpointMismatchError(msg)


def _read_config(path: Path) -> tuple[dict[str, Any], TransformerConfig, TokenizerConfig]:
    config = read_json(path)
    version = config.get("format_version") if isinstance(config, dict) else None
    if version != FORMAT_VERSION:
        msg = (
            f"{path} has format_version {version!r}, this release reads {FORMAT_VERSION}. "
            "A newer file needs a newer release: pip install -U scanpy-scgpt."
        )
        raise CheckpointError(msg)
    try:
        return config, TransformerConfig.from_dict(config["transformer"]), TokenizerConfig(**config["tokenizer"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        msg = f"{path}: {what} The file is damaged or was edited: copy the checkpoint folder again."
        raise CheckpointError(msg) from error


def read_own(folder: Path) -> Checkpoint:
    """Read a folder in our format."""
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        msg = f"{folder} lacks {', '.join(missing)}; a checkpoint has {', '.join(FILES)}. Copy the whole folder."
        raise CheckpointError(msg)
    config, transformer, tokenizer = _read_config(folder / "config.json")
    vocab = read_vocab(folder / "vocab.json")
    path = folder / "weights.safetensors"
    try:
        weights = {name: tensor.float() for name, tensor in load_file(path).items()}
    except (SafetensorError, OSError) as error:
        msg = f"{path} is damaged ({error}). Copy the checkpoint folder again."
        raise CheckpointError(msg) from error
    check_vocab_size(transformer.n_tokens, vocab, path=path)
    card = folder / CARD
    return Checkpoint(
        name=config.get("name", folder.name),
        transformer=transformer,
        tokenizer=tokenizer,
        vocab=vocab,
        weights=weights,
        digest=file_digest(folder / "weights.safetensors"),
        info=config.get("info", {}),
        card=card.read_text(encoding="utf-8") if card.is_file() else "",
    )


def _replaced(folder: Path) -> Path:
    """Where a folder lies while a new one takes its place."""
    return folder.with_name(f".{folder.name}.old")


def put_back(folder: Path) -> None:
    """Undo a replacement that was killed half-way: when the folder is missing, the former one returns."""
    old = _replaced(folder) if folder.name else folder
    if not folder.exists() and all((old / name).is_file() for name in FILES):
        os.replace(old, folder)


def require_replaceable(folder: str | Path) -> None:
    """Whether :func:`write_checkpoint` with `overwrite` may write a folder; changes nothing.

    Parameters
    ----------
    folder
        Target; it may be missing.

    Raises
    ------
    FileExistsError
        When the target is no folder, or holds other files than those of a checkpoint.
    """
    folder = Path(folder).expanduser().resolve()
    for place in (folder, _replaced(folder)):
        _check_ours(place)


def _check_ours(folder: Path) -> None:
    """Only a folder with nothing but the files of a checkpoint may be removed."""
    if not folder.exists():
        return
    if not folder.is_dir():
        msg = f"{folder} is no folder, so it is not replaced. Choose another path, or remove the file yourself."
        raise FileExistsError(msg)
    others = sorted(path.name for path in folder.iterdir() if path.name not in {*FILES, CARD} or not path.is_file())
    if others:
        msg = (
            f"{folder} holds {', '.join(others[:5])}, which {'is' if len(others) == 1 else 'are'} no part of a "
            f"checkpoint ({', '.join((*FILES, CARD))}), so the folder is not replaced. Choose another folder, or move "
            "these files elsewhere."
        )
        raise FileExistsError(msg)


def _to_disk(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on disk."""
    if not path.is_dir():
        with path.open("rb+") as file:
            os.fsync(file.fileno())
    elif os.name == "posix":
        handle = os.open(path, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):  # some network file systems cannot
                os.fsync(handle)
        finally:
            os.close(handle)


def _write_files(checkpoint: Checkpoint, draft: Path, *, half: bool) -> None:
    config = {
        "format_version": FORMAT_VERSION,
        "name": checkpoint.name,
        "transformer": checkpoint.transformer.to_dict(),
        "tokenizer": checkpoint.tokenizer.to_dict(),
        "info": dict(checkpoint.info),
    }
    (draft / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    checkpoint.vocab.write(draft / "vocab.json")
    dtype = torch.float16 if half else torch.float32
    weights = {name: t.detach().cpu().to(dtype).contiguous().clone() for name, t in checkpoint.weights.items()}
    save_file(weights, draft / "weights.safetensors")
    (draft / CARD).write_text(checkpoint.card or f"# {checkpoint.name}\n", encoding="utf-8")
    draft.chmod(0o755)
    for path in draft.iterdir():
        path.chmod(0o644)  # others may read what they may find
        _to_disk(path)
    _to_disk(draft)


def _swap(draft: Path, folder: Path) -> None:
    """Put the draft in the place of the folder; the former one is removed last."""
    old = _replaced(folder)
    if folder.exists():
        if old.exists():
            shutil.rmtree(old)  # of a run that was killed after its new folder was in place
        os.replace(folder, old)
    try:
        os.replace(draft, folder)
    except OSError:
        put_back(folder)
        raise
    _to_disk(folder.parent)
    if old.exists():
        shutil.rmtree(old)


def write_checkpoint(
    checkpoint: Checkpoint, folder: str | Path, *, half: bool = False, overwrite: bool = False
) -> None:
    """Write a checkpoint folder; under its name there is never a part of one.

    All files are written to a hidden folder `.<name>-*` next to the target, brought to disk, and the folder is renamed.
    A folder that is replaced is first renamed to `.<name>.old` and removed at the end. After an error the former folder
    is in its place. After a kill there is the former folder, the new one, or (between the two renamings) none and
    `.<name>.old`: :func:`read_checkpoint` and the next call of this function put that one back. A killed run may leave
    its hidden folder, which can be deleted. Two processes must not write the same folder at a time, nor may one read
    it while it is replaced.

    Parameters
    ----------
    checkpoint
        What to write.
    folder
        Target; its parents are made. Of a link the folder that it points to is written.
    half
        Store weights in half precision (they are read back as float32).
    overwrite
        Replace a folder that exists, if it holds nothing but `config.json`, `vocab.json`, `weights.safetensors` and
        `card.md`.

    Raises
    ------
    FileExistsError
        When the target exists and `overwrite` is not set; or it is no folder, or holds other files.
    """
    folder = Path(folder).expanduser().resolve()
    put_back(folder)
    if folder.exists() and not overwrite:
        msg = f"{folder} exists. Choose another folder, or pass overwrite=True to replace it."
        raise FileExistsError(msg)
    require_replaceable(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _write_files(checkpoint, draft, half=half)
        _swap(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
