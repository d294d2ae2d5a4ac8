"""Where Triton runs."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import logging
import os

import torch
from torch import Tensor
from torch._guards import detect_fake_mode

log = logging.getLogger("octvideo.octave")

# Not beside torch for CPUs, macOS or Windows.
HAS_TRITON = importlib.util.find_spec("triton") is not None
# Triton's own switch, read before its kernels are made: they run in Python then, on CPU tensors too.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def runs_on(device: torch.device) -> bool:
    """Whether operations are Triton kernels on a device, else they are plain torch."""
    if not HAS_TRITON or device.type != "cuda":
        return HAS_TRITON and INTERPRETED and device.type == "cpu"
    if torch.compiler.is_compiling() or not torch.cuda.is_available() or detect_fake_mode() is not None:
        return True  # inductor needs Triton too; nothing is launched on fake tensors
    return _launches_on(device.index if device.index is not None else torch.cuda.current_device())


@functools.cache
def _launches_on(index: int) -> bool:
    """Whether a kernel can be compiled and launched on a GPU: Triton wants a C compiler, and not every GPU."""
    from octvideo.octave.gpu.probe_kernels import counts  # here: Triton is not there everywhere

    try:
        if (found := counts(torch.device("cuda", index))) == list(range(16)):
            return True
        problem = f"a kernel that counts gave {found}"
    except Exception as error:
        problem = next(iter(str(error).splitlines()), type(error).__name__)
    log.warning("Triton does not work on cuda:%d (%s): plain torch operations run in its place, slower", index, problem)
    return False


def on_device(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """Triton launches on the current device, whatever its tensors'; compiled graphs switch by themselves."""
    if x.is_cuda and not torch.compiler.is_compiling() and torch.cuda.device_count() > 1:
        return torch.cuda.device(x.device)
    return contextlib.nullcontext()
