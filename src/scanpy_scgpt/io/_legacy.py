"""Folders of the original release (`best_model.pt`, `args.json`, `vocab.json`). The only file that knows its names."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from scanpy_scgpt.nn import TransformerConfig
from scanpy_scgpt.tokenizer import GeneVocab, TokenizerConfig

from ._checkpoint import (
    Checkpoint,
    CheckpointError,
    CheckpointMismatchError,
    check_vocab_size,
    file_digest,
    read_json,
    read_vocab,
)

WEIGHTS_FILE = "best_model.pt"
FILES = (WEIGHTS_FILE, "args.json", "vocab.json")
_PAD_VALUE = -2.0  # of the original, where args.json gives none
_LAYER = r"transformer_encoder\.layers\.(\d+)\."

# Original name (without `module.`) -> our name. The attention has three spellings for the same rows.
_RENAMED = tuple(
    (re.compile(f"^{old}$"), new)
    for old, new in (
        (r"encoder\.embedding\.weight", r"transformer.encoder.genes.embedding.weight"),
        (r"encoder\.enc_norm\.(weight|bias)", r"transformer.encoder.genes.norm.\1"),
        (r"value_encoder\.(linear1|linear2|norm)\.(weight|bias)", r"transformer.encoder.values.\1.\2"),
        (r"value_encoder\.embedding\.weight", r"transformer.encoder.values.embedding.weight"),
        (r"value_encoder\.enc_norm\.(weight|bias)", r"transformer.encoder.values.norm.\1"),
        (_LAYER + r"self_attn\.(?:_impl\.)?Wqkv\.(weight|bias)", r"transformer.layers.\1.attention.in_proj.\2"),
        (_LAYER + r"self_attn\.in_proj_(weight|bias)", r"transformer.layers.\1.attention.in_proj.\2"),
        (_LAYER + r"self_attn\.(?:_impl\.)?out_proj\.(weight|bias)", r"transformer.layers.\1.attention.out_proj.\2"),
        (_LAYER + r"(linear1|linear2)\.(weight|bias)", r"transformer.layers.\1.feed_forward.\2.\3"),
        (_LAYER + r"(norm1|norm2)\.(weight|bias)", r"transformer.layers.\1.\2.\3"),
        (r"decoder\.fc\.(\d+)\.(weight|bias)", r"expression_head.network.\1.\2"),
        (r"decoder\.zero_logit\.(\d+)\.(weight|bias)", r"expression_head.nonzero.\1.\2"),
        (r"mvc_decoder\.gene2query\.(weight|bias)", r"cell_to_gene_head.query.\1"),
        (r"mvc_decoder\.W\.weight", r"cell_to_gene_head.weight.weight"),
        (r"mvc_decoder\.W_zero_logit\.(weight|bias)", r"cell_to_gene_head.nonzero.\1"),
        (r"mvc_decoder\.(fc1|fc2)\.(weight|bias)", r"cell_to_gene_head.\1.\2"),
        (r"mvc_decoder\.hidden_activation\.weight", r"cell_to_gene_head.activation.weight"),
        (r"cls_decoder\._decoder\.0\.(weight|bias)", r"class_head.hidden.0.\1"),
        (r"cls_decoder\._decoder\.3\.(weight|bias)", r"class_head.hidden.1.\1"),
        (r"cls_decoder\._decoder\.2\.(weight|bias)", r"class_head.norms.0.\1"),
        (r"cls_decoder\._decoder\.5\.(weight|bias)", r"class_head.norms.1.\1"),
        (r"cls_decoder\.out_layer\.(weight|bias)", r"class_head.out.\1"),
    )
)
_NORMALISERS = ("bn.", "dsbn.")  # of the input of the network, plain and by batch
_FLAG = "flag_encoder.weight"  # two rows; the second stands in for an unknown value, the first is never used


def renamed(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors of an original state dict by our names, and the others with the reason why they have no place."""
    weights: dict[str, Tensor] = {}
    ignored: dict[str, str] = {}
    for name, tensor in state.items():
        plain = name.removeprefix("module.")
        if plain == _FLAG and tuple(tensor.shape[:1]) == (2,):
            weights["transformer.encoder.unknown"] = tensor[1].float()
            continue
        new = next((pattern.sub(to, plain) for pattern, to in _RENAMED if pattern.match(plain)), None)
        if new is None:
            ignored[name] = "no part of this release has such a tensor"
        elif new in weights:
            ignored[name] = f"the file has another tensor for {new}"
        else:
            weights[new] = tensor.float()
    return weights, ignored


def _refuse_normalisers(state: dict[str, Tensor], *, path: Path) -> None:
    names = [name for name in state if name.removeprefix("module.").startswith(_NORMALISERS)]
    if names:
        msg = (
            f"{path} has {len(names)} tensors ({', '.join(names[:3])}) that normalise the input of the network by "
            "batch statistics. This release has no such part, and without it every vector would be another one. Use a "
            "checkpoint that was trained without it ('domain_spec_batchnorm': false in args.json)."
        )
        raise CheckpointMismatchError(msg)


def _norm_scheme(state: dict[str, Tensor], args: dict[str, Any]) -> Literal["post", "legacy_pre"]:
    """Only the layer with flash attention of the original obeys `pre_norm`; its names have `Wqkv`."""
    return "legacy_pre" if args.get("pre_norm") and any("Wqkv" in name for name in state) else "post"


def _shape(weights: dict[str, Tensor], name: str, *, path: Path, found: list[str]) -> tuple[int, ...]:
    if name in weights:
        return tuple(weights[name].shape)
    msg = (
        f"{path}: no tensor of the file becomes {name!r}, so this is no scGPT model (or its names are of an unknown "
        f"kind). First names: {', '.join(found[:4])}."
    )
    raise CheckpointMismatchError(msg)


def transformer_config(
    weights: dict[str, Tensor], args: dict[str, Any], vocab: GeneVocab, *, path: Path, state: dict[str, Tensor]
) -> TransformerConfig:
    """Shape of the network, read from the tensors; heads, dropout and place of the norms come from `args.json`."""
    found = list(state)
    n_tokens, d_model = _shape(weights, "transformer.encoder.genes.embedding.weight", path=path, found=found)
    _shape(weights, "transformer.layers.0.attention.in_proj.weight", path=path, found=found)
    d_ff = _shape(weights, "transformer.layers.0.feed_forward.linear1.weight", path=path, found=found)[0]
    n_layers = 1 + max(int(name.split(".")[2]) for name in weights if name.startswith("transformer.layers."))
    encoding, n_bins = "continuous", int(args.get("n_bins") or TokenizerConfig.n_bins)
    if "transformer.encoder.values.embedding.weight" in weights:
        encoding, n_bins = "category", weights["transformer.encoder.values.embedding.weight"].shape[0] - 2
    elif "transformer.encoder.values.linear1.weight" not in weights:
        encoding = "scaling"
    check_vocab_size(n_tokens, vocab, path=path)
    n_heads = args.get("nheads", args.get("nhead"))
    if n_heads is None:
        msg = f"{path.parent / 'args.json'} does not give the number of heads ('nheads'), and no tensor tells it."
        raise CheckpointError(msg)
    return TransformerConfig(
        n_tokens=n_tokens,
        pad_id=vocab[str(args.get("pad_token") or "<pad>")],
        d_model=d_model,
        n_heads=int(n_heads),
        n_layers=n_layers,
        d_ff=d_ff,
        dropout=float(args.get("dropout") or 0.0),
        value_encoding=encoding,
        n_bins=n_bins,
        norm_scheme=_norm_scheme(state, args),
    )


def read_legacy(folder: Path) -> Checkpoint:
    """Read a folder of the original release; no object other than tensors is unpickled (`weights_only=True`)."""
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        msg = (
            f"{folder} lacks {', '.join(missing)}; a folder of the original release has {', '.join(FILES)}. "
            "Download the missing file from where the others came."
        )
        raise CheckpointError(msg)
    args = read_args(folder / "args.json")
    vocab = read_vocab(folder / "vocab.json")
    path = folder / WEIGHTS_FILE
    return assemble(path, read_tensors(path), args, vocab, info={"format": "original release", "args": args})


def read_args(path: Path) -> dict[str, Any]:
    """Settings of a model as an object."""
    args = read_json(path)
    if not isinstance(args, dict):
        msg = f"{path} holds a JSON {type(args).__name__}; the settings of a model are an object."
        raise CheckpointError(msg)
    return args


def assemble(
    path: Path, state: dict[str, Tensor], args: dict[str, Any], vocab: GeneVocab, *, info: dict[str, Any]
) -> Checkpoint:
    """Checkpoint from the parts of a folder: tensors by the original's names, settings, vocabulary.

    `info["legacy_generation"]` says that unknown genes attend as in the original (see :class:`PretrainModule`).
    """
    _refuse_normalisers(state, path=path)
    weights, ignored = renamed(state)
    config = transformer_config(weights, args, vocab, path=path, state=state)
    length = int(args.get("max_seq_len") or TokenizerConfig.max_length)
    pad_value = args.get("pad_value")
    cls_value = _PAD_VALUE if pad_value is None else float(pad_value)
    tokenizer = TokenizerConfig(n_bins=config.n_bins, ties="random", max_length=length, cls_value=cls_value)
    return Checkpoint(
        name=path.parent.name,
        transformer=config,
        tokenizer=tokenizer,
        vocab=vocab,
        weights=weights,
        digest=file_digest(path),
        info={**info, "legacy_generation": True},
        ignored=ignored,
    )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A state dict out of a file of torch; no object other than tensors is unpickled."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        msg = (
            f"{path} cannot be read as tensors ({first}). It is damaged, or holds objects other than tensors, which "
            "are never loaded because they could run code. Download it again from its source."
        )
        raise CheckpointError(msg) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(x, Tensor) for x in state.values()):
        msg = f"{path} holds no plain dict of tensors; the original release saves model.state_dict()."
        raise CheckpointError(msg)
    return state
