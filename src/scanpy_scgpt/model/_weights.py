"""Weights between checkpoints and the network of fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from scanpy_scgpt._version import __version__
from scanpy_scgpt.io import Checkpoint, LoadReport, load_component

if TYPE_CHECKING:
    from scanpy_scgpt.module.finetune import FineTuneModule

_OPTIONAL = frozenset({"encoder.unknown"})
_OF_THE_DATA = frozenset({"class_head", "adversary_head", "batch_encoder", "modality_encoder", "domain_norm"})
_TOLD = {
    "expression_head.network.0.weight": 1,
    "expression_head.nonzero.0.weight": 1,
    "cell_to_gene_head.weight.weight": 0,
    "cell_to_gene_head.nonzero.weight": 0,
    "cell_to_gene_head.nonzero.bias": 0,
}
"""Tensors that grow along an axis when a decoder is told the batch beside what it decodes."""
_TELLING = ("batch_encoder.", "modality_encoder.", "domain_norm.")


def fill(module: FineTuneModule, checkpoint: Checkpoint, *, own: bool = False) -> LoadReport:
    """Weights of a checkpoint into the network, strictly part by part; a head that it lacks stays new.

    Parameters
    ----------
    module
        Network, changed in place.
    checkpoint
        Source.
    own
        The checkpoint was written by this very model: its scores are of the same labels and batches. Those of others
        are of other ones, even where there are as many, and stay new.

    Returns
    -------
    What was loaded, newly initialised and ignored.
    """
    loaded: list[str] = []
    new: list[str] = []
    for name, part in module.named_children():
        there = any(key.startswith(f"{name}.") for key in checkpoint.weights) and (own or name not in _OF_THE_DATA)
        if name == "transformer" or there:
            lacking = {key for key in part.state_dict() if key.startswith("nonzero.")}
            report = load_component(part, _grown(checkpoint, module), name, optional=_OPTIONAL | lacking)
            loaded += report.loaded
            new += report.initialised
        else:
            new += [f"{name}.{key}" for key in part.state_dict()]
    parts = dict(module.named_children())
    unused = {key: "the model has no such part" for key in checkpoint.weights if key.split(".")[0] not in parts}
    return LoadReport(tuple(loaded), tuple(new), {**checkpoint.ignored, **unused})


def _grown(checkpoint: Checkpoint, module: nn.Module) -> Checkpoint:
    """The weights of decoders that are told nothing, for decoders that are: what they are told does nothing at first.

    The original leaves such tensors random, and so loses its pretrained decoders.
    """
    state, weights = module.state_dict(), dict(checkpoint.weights)
    for name, axis in _TOLD.items():
        if name not in weights or name not in state:
            continue
        more = state[name].shape[axis] - weights[name].shape[axis]
        if more > 0:
            shape = [more if i == axis else n for i, n in enumerate(weights[name].shape)]
            weights[name] = torch.cat([weights[name], weights[name].new_zeros(shape)], dim=axis)
    return replace(checkpoint, weights=weights)


def told(module: nn.Module) -> dict[str, np.ndarray]:
    """What a network that is told the batch has beyond a plain checkpoint: all tensors of the parts concerned."""
    state = module.state_dict()
    parts = (
        _TELLING
        if all(getattr(module, name, None) is None for name in ("batch_encoder", "modality_encoder"))
        else (*_TELLING, "expression_head.", "cell_to_gene_head.")
    )
    return {f"told.{name}": x.detach().cpu().numpy() for name, x in state.items() if name.startswith(parts)}


def tell(module: nn.Module, arrays: Mapping[str, np.ndarray]) -> None:
    """Put back what :func:`told` gave; a network with more batches keeps what is new in it."""
    state = module.state_dict()
    for key, array in arrays.items():
        name = key.removeprefix("told.")
        if key != name and name in state and array.shape[1:] == tuple(state[name].shape[1:]):
            state[name][: len(array)] = torch.from_numpy(np.ascontiguousarray(array)).to(state[name])
    module.load_state_dict(state)


def untold(weights: Mapping[str, Tensor], mean: Tensor | None) -> dict[str, Tensor]:
    """Weights for networks that are told nothing: the decoders take the mean vector of the batches for granted.

    Parameters
    ----------
    weights
        Of a network that is told the batch.
    mean
        Mean vector of the batches, shape `(d_model,)`, or None when decoders are not told.
    """
    out = {name: x for name, x in weights.items() if not name.startswith(_TELLING)}
    for name, axis in _TOLD.items() if mean is not None else ():
        if name not in out:
            continue
        own = out[name].shape[axis] - len(mean)
        if axis == 1:
            bias = name.replace("weight", "bias")
            out[bias] = out[bias] + out[name][:, own:] @ mean
        out[name] = out[name].narrow(axis, 0, own)
    return out


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """Weights by their plain names, low-rank partners added to what they belong to."""
    state = {name: tensor for name, tensor in module.state_dict().items() if ".parametrizations." not in name}
    for name, part in module.named_modules():
        if parametrize.is_parametrized(part, "weight"):
            state[f"{name}.weight"] = part.weight.detach()
    return state


def as_checkpoint(module: nn.Module, start: Checkpoint, *, name: str, digest: str = "", **info: Any) -> Checkpoint:
    """The network as a checkpoint for :func:`scanpy_scgpt.tl.embed` and the rest.

    Parameters
    ----------
    module
        Network.
    start
        Checkpoint whose vocabulary and shape it has.
    name, digest
        Of the checkpoint.
    **info
        Facts to remember.
    """
    told = {**start.info, "fine_tuned_from": start.label, "version": __version__, **info}
    return replace(
        start,
        name=name,
        transformer=module.transformer.config,
        weights=weights_of(module),
        digest=digest,
        info=told,
        ignored={},
    )
