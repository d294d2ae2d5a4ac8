"""Convolutions that torch 2.14 trains wrongly in bfloat16 on CPUs: the gradient of their weight is whatever lay in
memory, finite or not, where the kernel is longer than the map (3 x 1 x 1 over 2 frames).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


def short_maps_in_float32(x: Tensor) -> AbstractContextManager[Any]:
    """Within it such convolutions run in float32, where that is needed.

    Args:
        x: what a network is about to be given.
    """
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    is_wrong = x.device.type == "cpu" and dtype == torch.bfloat16 and torch.is_grad_enabled()
    return _InFloat32() if is_wrong else nullcontext()


class _InFloat32(TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function not in (F.conv3d, F.conv_transpose3d) or _fits(*args[:2]):
            return function(*args, **(kwargs or {}))
        with torch.autocast("cpu", enabled=False):
            wide = [arg.float() if isinstance(arg, Tensor) else arg for arg in args]
            return function(*wide, **(kwargs or {})).bfloat16()


def _fits(x: Tensor, weight: Tensor) -> bool:
    return all(size >= kernel for size, kernel in zip(x.shape[-3:], weight.shape[-3:], strict=True))
