"""Where to compute, and in which precision."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from scanpy_scgpt._validate import check_one_of

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def choose_device(device: str = "auto") -> torch.device:
    """Device by name; `"auto"` takes CUDA, then MPS, then CPU.

    Parameters
    ----------
    device
        `"auto"`, or the name of a torch device.

    Returns
    -------
    The device.

    Raises
    ------
    ValueError
        When the device is not there.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        torch.empty(1, device=device).cpu()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0][:100]
        msg = f"device={device!r} is not available ({reason}). Use device='auto' or device='cpu'."
        raise ValueError(msg) from error
    return torch.device(device)


def choose_devices(device: str | Sequence[str] = "auto") -> list[torch.device]:
    """All devices to share the cells: `"cuda"` without a number means every GPU.

    Parameters
    ----------
    device
        As in :func:`choose_device`, or several names, each of which gets its own copy of the network.

    Raises
    ------
    ValueError
        When a device is not there, or none is named.
    """
    if not isinstance(device, str):
        if not isinstance(device, list | tuple) or not device or not all(isinstance(name, str) for name in device):
            msg = f"device={device!r}: give the name of a device ('auto', 'cpu', 'cuda:0'), or a list of names."
            raise ValueError(msg)
        return [choose_device(name) for name in device]
    chosen = choose_device(device)
    if chosen.type == "cuda" and chosen.index is None:
        return [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    return [chosen]


def choose_precision(precision: str, devices: Sequence[torch.device]) -> str:
    """`"fp32"` or `"bf16"`; `"auto"` is `"bf16"` where every device is a GPU that has it, else `"fp32"`.

    Raises
    ------
    ValueError
        When there is no such precision.
    """
    check_one_of(precision, ("auto", *PRECISIONS), name="precision")
    if precision != "auto":
        return precision
    return "bf16" if all(map(_is_gpu_with_bf16, devices)) else "fp32"


def _is_gpu_with_bf16(device: torch.device) -> bool:
    if device.type != "cuda":
        return False
    return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)
