"""Weights between checkpoints and the network of fine-tuning."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from scanpy_scgpt._version import __version__
from scanpy_scgpt.io import Checkpoint, LoadReport, load_component

if TYPE_CHECKING:
    from scanpy_scgpt.module.finetune import FineTuneModule

_OPTIONAL = frozenset({"encoder.unknown"})
_OF_THE_DATA = frozenset({"class_head", "adversary_head"})


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
            report = load_component(part, checkpoint, name, optional=_OPTIONAL)
            loaded += report.loaded
            new += report.initialised
        else:
            new += [f"{name}.{key}" for key in part.state_dict()]
    parts = dict(module.named_children())
    unused = {key: "the model has no such part" for key in checkpoint.weights if key.split(".")[0] not in parts}
    return LoadReport(tuple(loaded), tuple(new), {**checkpoint.ignored, **unused})


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
