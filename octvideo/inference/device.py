"""Devices by name, and how they compute float32."""

from __future__ import annotations

import contextlib

import torch

from octvideo.errors import UserError
from octvideo.files import one_line

AUTO_DEVICE = "auto"
_KINDS = ("cuda", "mps", "xpu")  # of which torch says why there is none


def pick_device(name: str) -> torch.device:
    """The device of that name, "auto" being CUDA where there is one.

    Raises:
        UserError: there is no such device here, with those that there are.
    """
    if name == AUTO_DEVICE:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, ImportError) as error:  # by kind, where there is none
        reason = f" ({one_line(error)})" if name.partition(":")[0] in _KINDS else ""
        raise UserError(f"device '{name}' can't be used here{reason}: expected {', '.join(devices_here())}") from error
    if device.type == "meta":  # it has no values
        raise UserError(f"device '{name}' can't be used here: expected {', '.join(devices_here())}")
    return device


def devices_here() -> list[str]:
    """What a user may give: "auto", and the names of the devices that torch finds."""
    found = [AUTO_DEVICE, "cpu", *(f"cuda:{n}" for n in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        found.append("mps")
    return found


def computes_tf32(device: torch.device) -> bool:
    """Whether float32 convolutions round what they read to TF32, of 10 bits: torch's default on newer NVIDIA GPUs."""
    if device.type != "cuda" or torch.version.hip is not None or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    with contextlib.suppress(RuntimeError):  # raised where newer settings differ between kinds of operations
        return torch.backends.cudnn.allow_tf32
    return torch.backends.cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]


def precision_in_words(precision: str, device: torch.device) -> str:
    """The precision that an engine computes in, for people: "f32 (convolutions in TF32)" where it is."""
    return f"{precision} (convolutions in TF32)" if precision == "f32" and computes_tf32(device) else precision
