"""What each operation of a traced network does to an Octave: the lists to extend when a new one is met."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import fx, nn

from octvideo.octave.conv import octave_problem

Role = Literal["conv", "norm", "map", "function", "add", "cat", "tensor"]

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
# Element-wise and without parameters: they act on each frequency by itself.
ELEMENTWISE = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish,
    nn.Hardsigmoid, nn.Hardtanh, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Identity, nn.Dropout,
)  # fmt: skip
ELEMENTWISE_FUNCTIONS: tuple[Callable[..., object], ...] = (
    F.relu, F.relu6, F.leaky_relu, F.elu, F.gelu, F.silu, F.mish, F.hardswish, F.hardsigmoid, F.hardtanh,
    torch.relu, torch.relu_, torch.sigmoid, torch.tanh,
)  # fmt: skip
ELEMENTWISE_METHODS = ("relu", "relu_", "sigmoid", "sigmoid_", "tanh", "contiguous")
POOLS_OVER_TIME = (nn.MaxPool3d, nn.AvgPool3d)
ADDITIONS = (operator.add, operator.iadd, torch.add)
CONCATENATIONS = (torch.cat, torch.concat, torch.concatenate)
# Only make ordinary tensors, but with the channels of what they read.
KEEP_CHANNELS: tuple[type[nn.Module], ...] = (
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.Upsample,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
)  # fmt: skip
KEEP_CHANNELS_FUNCTIONS: tuple[Callable[..., object], ...] = (
    F.max_pool1d, F.max_pool2d, F.max_pool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, F.interpolate,
    F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d,
)  # fmt: skip


def _triple(value: Any) -> tuple[int, ...]:
    return (int(value),) * 3 if not isinstance(value, tuple | list) else tuple(int(v) for v in value)


def changes_in_place(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether the operation writes into its first input, so that what reads that later sees the change."""
    if node.op == "call_module":
        return bool(getattr(modules[str(node.target)], "inplace", False))
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    named_so = name.endswith("_") and not name.endswith("__")
    return node.op in ("call_method", "call_function") and (named_so or node.kwargs.get("inplace") is True)


def role_of(node: fx.Node, modules: dict[str, nn.Module]) -> Role:
    """What a node does to a pair; "tensor" means it can neither take nor give one."""
    inputs = node.all_input_nodes
    if node.op == "call_module":
        module = modules[str(node.target)]
        if type(module) in CONVS:
            return "conv" if octave_problem(module) is None else "tensor"  # type: ignore[arg-type]
        if type(module) in NORMS:
            return "norm"
        if type(module) in ELEMENTWISE and len(inputs) == 1:
            return "map"
        if isinstance(module, POOLS_OVER_TIME) and not getattr(module, "return_indices", False):
            # Height and width untouched: low stays ceil(high / 2). Other pools take a merged tensor.
            spatial = [_triple(v)[1:] for v in (module.kernel_size, module.stride, module.padding)]
            if spatial == [(1, 1), (1, 1), (0, 0)]:
                return "map"
    elif node.op == "call_function":
        if node.target in ADDITIONS and len(node.args) == 2 and len(inputs) == 2 and not node.kwargs:
            return "add"
        if node.target in ELEMENTWISE_FUNCTIONS and len(inputs) == 1 and node.args:
            return "function"
        if node.target in CONCATENATIONS and node.args and isinstance(node.args[0], list | tuple):
            dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
            if dim == 1 and all(isinstance(part, fx.Node) for part in node.args[0]):
                return "cat"
    elif node.op == "call_method" and len(inputs) == 1 and len(node.args) == 1:
        return "function" if node.target in ELEMENTWISE_METHODS else "tensor"
    return "tensor"


def parts_of(cat: fx.Node) -> tuple[fx.Node, ...]:
    """What a concatenation joins, in order; the same value may come twice."""
    return tuple(cat.args[0])  # type: ignore[arg-type]
