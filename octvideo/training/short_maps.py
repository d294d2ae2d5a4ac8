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
from torch.utils._pytree import tree_map_only


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
        kwargs = kwargs or {}
        if function not in (F.conv3d, F.conv_transpose3d) or _fits(*args, **kwargs):
            return function(*args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            args, kwargs = tree_map_only(Tensor, Tensor.float, (args, kwargs))
            return function(*args, **kwargs).bfloat16()


def _fits(input: Tensor, weight: Tensor, *_: Any, **others: Any) -> bool:
    return all(size >= kernel for size, kernel in zip(input.shape[-3:], weight.shape[-3:], strict=True))
