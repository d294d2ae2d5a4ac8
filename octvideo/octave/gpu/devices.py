"""Where Triton runs."""

from __future__ import annotations

import contextlib
import importlib.util
import os

import torch
from torch import Tensor

# Not beside torch for CPUs, macOS or Windows.
HAS_TRITON = importlib.util.find_spec("triton") is not None
# Triton's own switch, read before its kernels are made: they run in Python then, on CPU tensors too.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def runs_on(device: torch.device) -> bool:
    """Whether operations are Triton kernels on a device, else they are plain torch."""
    return HAS_TRITON and (device.type == "cuda" or (INTERPRETED and device.type == "cpu"))


def on_device(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """Triton launches on the current device, whatever its tensors'; compiled graphs switch by themselves."""
    if x.is_cuda and not torch.compiler.is_compiling() and torch.cuda.device_count() > 1:
        return torch.cuda.device(x.device)
    return contextlib.nullcontext()
