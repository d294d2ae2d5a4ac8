"""The activations that the kernel applies in passing: which one a traced operation is, and each as torch has it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octvideo.octave.kernel.fused_conv import Activation

_MODULES: dict[type[nn.Module], Activation] = {
    nn.ReLU6: "relu6",
    nn.SiLU: "silu",
    nn.Hardswish: "hardswish",
    nn.Sigmoid: "sigmoid",
    nn.Hardsigmoid: "hardsigmoid",
}
_FUNCTIONS: dict[Any, Activation] = {
    **dict.fromkeys((F.relu, torch.relu, "relu", "relu_"), "relu"),
    F.relu6: "relu6",
    F.silu: "silu",
    F.hardswish: "hardswish",
    F.hardsigmoid: "hardsigmoid",
    **dict.fromkeys((F.sigmoid, torch.sigmoid, "sigmoid", "sigmoid_"), "sigmoid"),
}
# timm's own modules, each of which computes what torch's of a like name does.
_TIMM: dict[str, Activation] = {
    "Swish": "silu",
    "HardSwish": "hardswish",
    "Sigmoid": "sigmoid",
    "HardSigmoid": "hardsigmoid",
}
_TORCH: dict[Activation, Callable[[Tensor], Tensor]] = {
    "none": lambda y: y,
    "relu6": F.relu6,
    "silu": F.silu,
    "hardswish": F.hardswish,
    "sigmoid": torch.sigmoid,
    "hardsigmoid": F.hardsigmoid,
}


def activation_of(operation: Any) -> Activation | None:
    """Which activation a module, a function or a method's name is; None: another thing."""
    if not isinstance(operation, nn.Module):
        return _FUNCTIONS.get(operation)
    if isinstance(operation, nn.ReLU):
        return "relu"
    kind = type(operation)
    if kind.__module__.startswith("timm.layers.activations"):
        return _TIMM.get(kind.__name__)
    if isinstance(operation, nn.Hardtanh) and (operation.min_val, operation.max_val) == (0, 6):
        return "relu6"
    return _MODULES.get(kind)


def activated(y: Tensor, activation: Activation) -> Tensor:
    """The activation of a result that nobody else has."""
    if activation == "relu":
        return y.relu() if torch.compiler.is_compiling() or y.requires_grad else y.relu_()
    return _TORCH[activation](y)
