"""What each operation of a traced network does to an Octave: the lists to extend when a new one is met."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from octvideo.octave.conversion.conv_form import conv_form, why_ordinary
from octvideo.octave.conversion.trace import ACTIVATIONS_BY_NAME, SAME_POOLS
from octvideo.octave.factor import Factor

Role = Literal[
    "conv", "norm",  # with parameters
    "map", "function", "drop", "pool", "add", "mul",  # give the partition that they take
    "gate",  # a pair scaled or shifted by an ordinary value
    "cat",  # gives its parts' partitions, side by side
    "shuffle", "slice",  # give a rearrangement, or a part, of the partition that they take
    "chunk",  # only slices read it
    "squeeze", "shape",  # read a pair and give what the ordinary network would
    "tensor",  # everything else: can neither take nor give a pair
]  # fmt: skip

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
# Drop whole samples: both frequencies of a sample together.
DROP_PATHS = ("DropPath", "StochasticDepth")
MAX_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
AVG_POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
MAX_POOL_FUNCTIONS: tuple[Callable[..., object], ...] = (F.max_pool1d, F.max_pool2d, F.max_pool3d)
AVG_POOL_FUNCTIONS: tuple[Callable[..., object], ...] = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
GLOBAL_POOLS = (
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
)  # fmt: skip
GLOBAL_POOL_FUNCTIONS: tuple[Callable[..., object], ...] = (
    F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d,
)  # fmt: skip
ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")  # functions, and names of methods
MULTIPLICATIONS = (operator.mul, operator.imul, torch.mul, "mul", "mul_")
CONCATENATIONS = (torch.cat, torch.concat, torch.concatenate)
# Only make ordinary tensors, but with the channels of what they read.
KEEP_CHANNELS: tuple[type[nn.Module], ...] = (*MAX_POOLS, *AVG_POOLS, *GLOBAL_POOLS, nn.Upsample)
KEEP_CHANNELS_FUNCTIONS: tuple[Callable[..., object], ...] = (
    *MAX_POOL_FUNCTIONS, *AVG_POOL_FUNCTIONS, *GLOBAL_POOL_FUNCTIONS, F.interpolate,
)  # fmt: skip


@dataclass(frozen=True)
class Network:
    """A traced network: its operations in order, its modules by path, and which axes an Octave halves."""

    graph: fx.Graph
    modules: Mapping[str, nn.Module]
    factor: Factor | None = None

    def module(self, node: fx.Node) -> nn.Module | None:
        """The module that a node calls, or None."""
        return self.modules.get(str(node.target)) if node.op == "call_module" else None


def operand_nodes(node: fx.Node) -> tuple[fx.Node, ...]:
    """The values that an operation of two takes, in order; the same value may come twice."""
    return tuple(arg for arg in node.args if isinstance(arg, fx.Node))


def parts_of(cat: fx.Node) -> tuple[fx.Node, ...]:
    """What a concatenation joins, in order; the same value may come twice."""
    return tuple(cat.args[0])  # type: ignore[arg-type]


def shuffle_groups(node: fx.Node, network: Network) -> int | None:
    """The groups of a channel shuffle, or None where the node is none."""
    module = network.module(node)
    if isinstance(module, nn.ChannelShuffle):
        return module.groups
    named_so = node.op == "call_function" and getattr(node.target, "__name__", "") == "channel_shuffle"
    groups = node.args[1] if named_so and len(node.args) == 2 else None
    return groups if isinstance(groups, int) else None


def is_chunk(node: fx.Node) -> bool:
    """Whether a node cuts a value into equal parts along its channels, each of which is picked by number."""
    if not (node.op == "call_method" and node.target == "chunk") and node.target is not torch.chunk:
        return False
    dim = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
    picked = all(user.target is operator.getitem and isinstance(user.args[1], int) for user in node.users)
    return bool(dim == 1 and len(node.args) > 1 and isinstance(node.args[1], int) and picked)


def slice_range(node: fx.Node, num_channels: int) -> tuple[int, int]:
    """The channels that a part of a chunked value has: first, and one after the last."""
    chunks, index = (int(value) for value in (node.all_input_nodes[0].args[1], node.args[1]))  # type: ignore[arg-type]
    size = -(-num_channels // chunks)
    start = (index % -(-num_channels // size)) * size
    return start, min(start + size, num_channels)


def changes_in_place(node: fx.Node, network: Network) -> bool:
    """Whether the operation writes into its first input, so that what reads that later sees the change."""
    module = network.module(node)
    if module is not None:
        return bool(getattr(module, "inplace", False))
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    named_so = (name.endswith("_") and not name.endswith("__")) or node.target in (operator.iadd, operator.imul)
    return node.op in ("call_method", "call_function") and (named_so or node.kwargs.get("inplace") is True)


def find_roles(network: Network) -> dict[fx.Node, Role]:
    """The role of every node; "tensor" where it can neither take nor give a pair."""
    pooled = globally_pooled(network)
    return {node: _role(node, network, pooled) for node in network.graph.nodes}


def _role(node: fx.Node, network: Network, pooled: set[fx.Node]) -> Role:
    inputs = node.all_input_nodes
    if is_shape(node):
        return "shape"
    if is_chunk(node):
        return "chunk"
    if inputs and is_chunk(inputs[0]):
        return "slice"
    if shuffle_groups(node, network) is not None:
        return "shuffle"
    if pools_globally(node, network):
        return "squeeze"
    if node in pooled:  # has one value a channel: no resolution to halve
        return "tensor"
    if node.op == "call_module":
        return _module_role(network.modules[str(node.target)], network) if len(inputs) == 1 else "tensor"
    if node.op == "call_function" or (node.op == "call_method" and node.target in ADDITIONS + MULTIPLICATIONS):
        return _function_role(node, pooled)
    if node.op == "call_method" and len(inputs) == 1 and len(node.args) == 1:
        return "function" if node.target in ELEMENTWISE_METHODS else "tensor"
    return "tensor"


def _module_role(module: nn.Module, network: Network) -> Role:
    kind = type(module)
    if conv_form(module) is not None:
        return "conv" if why_ordinary(module, network.factor) is None else "tensor"  # type: ignore[arg-type]
    if kind in NORMS or (isinstance(module, NORMS) and holds_activation(module)):
        return "norm"
    if kind in ELEMENTWISE or kind.__name__ in ACTIVATIONS_BY_NAME:
        return "map"
    if any(name in kind.__name__ for name in DROP_PATHS):
        return "drop"
    if isinstance(module, MAX_POOLS + AVG_POOLS):
        options = vars(module)
        if kind.__name__ in SAME_POOLS:  # averages of these count the padding, whatever they were told
            padding = [k // 2 for k in _each(module.kernel_size)]
            options = {**options, "padding": padding, "count_include_pad": True}
        return "pool" if keeps_pairs(options, average=isinstance(module, AVG_POOLS)) else "tensor"
    return "tensor"


def _function_role(node: fx.Node, pooled: set[fx.Node]) -> Role:
    operands = operand_nodes(node)
    if node.target in ADDITIONS + MULTIPLICATIONS and not node.kwargs and len(node.args) == 2:
        adds = node.target in ADDITIONS
        if len(operands) == 2:
            if any(operand in pooled for operand in operands):
                return "gate"
            if node.target in ("add_", "mul_"):  # an OctMap makes a new pair
                return "tensor"
            return "add" if adds else "mul"
        return "function" if not adds and any(isinstance(arg, int | float) for arg in node.args) else "tensor"
    if node.target in ELEMENTWISE_FUNCTIONS and len(operands) == 1 and node.args:
        return "function"
    if node.target in MAX_POOL_FUNCTIONS + AVG_POOL_FUNCTIONS and len(operands) == 1:
        average = node.target in AVG_POOL_FUNCTIONS
        return "pool" if keeps_pairs(pool_options(node), average=average) else "tensor"
    if node.target in CONCATENATIONS and node.args and isinstance(node.args[0], list | tuple):
        dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        return "cat" if dim == 1 and all(isinstance(part, fx.Node) for part in node.args[0]) else "tensor"
    return "tensor"


def holds_activation(norm: nn.Module) -> bool:
    """Whether a norm applies its own dropout and activation after it, as timm's BatchNormAct2d does."""
    return {name for name, _ in norm.named_children()} == {"drop", "act"}


def _each(value: Any) -> tuple[int, ...]:
    return tuple(int(v) for v in value) if isinstance(value, tuple | list) else (int(value),)


def pool_options(node: fx.Node) -> dict[str, Any]:
    """Kernel, stride, padding and the rest of a pooling function's call."""
    if len(node.args) > 4:
        return {}  # more options by position: not worth the bookkeeping
    names = ("input", "kernel_size", "stride", "padding")
    given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    given.pop("input", None)
    return given


def pool_module(node: fx.Node) -> nn.Module:
    """The module that does what a call of a pooling function does; functions of torch do not all pickle."""
    functions, kinds = MAX_POOL_FUNCTIONS + AVG_POOL_FUNCTIONS, MAX_POOLS + AVG_POOLS
    return kinds[functions.index(node.target)](**pool_options(node))  # type: ignore[arg-type]


def keeps_pairs(options: Mapping[str, Any], *, average: bool) -> bool:
    """Whether a pool acts on each frequency by itself: it keeps sizes, or halves them up to an edge pixel.

    Averages that count padding are no such pool: the edge weighs more at half resolution.
    """
    values = [
        options.get("kernel_size"),
        options.get("stride") or options.get("kernel_size"),
        options.get("padding", 0),
    ]
    if any(isinstance(value, fx.Node) or value is None for value in values) or options.get("return_indices"):
        return False
    kernel, stride, padding = (_each(value) for value in values)
    if _each(options.get("dilation", 1)) not in ((1,), (1, 1), (1, 1, 1)) or options.get("divisor_override"):
        return False
    if average and any(padding) and options.get("count_include_pad", True):
        return False
    length = max(len(kernel), len(stride), len(padding))
    axes = zip(*(value * (length if len(value) == 1 else 1) for value in (kernel, stride, padding)), strict=True)
    return all(k <= 3 and s in (1, 2) and (s == 2 or 2 * p == k - 1) for k, s, p in axes)


# -- values without a resolution ----------------------------------------------------------------------------


def is_shape(node: fx.Node) -> bool:
    """Whether a node reads the size of a tensor."""
    if node.op == "call_method":
        return node.target in ("size", "dim")
    return node.op == "call_function" and node.target is getattr and node.args[1] in ("shape", "ndim")


def pools_globally(node: fx.Node, network: Network) -> bool:
    """Whether a node gives one value a channel: a global pool, or a mean over all axes after the channels."""
    module = network.module(node)
    if module is not None:
        return isinstance(module, GLOBAL_POOLS) and set(_each(module.output_size or 0)) == {1}  # type: ignore
    if node.op == "call_function" and node.target in GLOBAL_POOL_FUNCTIONS:
        size = node.args[1] if len(node.args) > 1 else node.kwargs.get("output_size", 0)
        return not isinstance(size, fx.Node) and set(_each(size)) == {1}
    dims = mean_dims(node)
    return dims is not None and (set(dims) in ({2}, {2, 3}, {2, 3, 4}) or set(dims) in ({-1, -2}, {-1, -2, -3}))


def mean_dims(node: fx.Node) -> tuple[int, ...] | None:
    """The dimensions that a mean is taken over, or None where the node is no mean."""
    if not (node.op == "call_method" and node.target == "mean") and node.target is not torch.mean:
        return None
    dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    return _each(dims) if isinstance(dims, int | tuple | list) else None


def globally_pooled(network: Network) -> set[fx.Node]:
    """Values that come from global pools alone, such as the gates of squeeze-excitation, or are single parameters."""
    pooled: set[fx.Node] = set()
    sizes: set[fx.Node] = set()
    for node in network.graph.nodes:
        inputs = node.all_input_nodes
        if is_shape(node) or (inputs and sizes.issuperset(inputs)):
            sizes.add(node)
        elif (
            pools_globally(node, network) or (inputs and (sizes | pooled).issuperset(inputs)) or _is_one(node, network)
        ):
            pooled.add(node)
    return pooled


def _is_one(node: fx.Node, network: Network) -> bool:
    """Whether a node reads a parameter of one number, such as a residual branch's gain."""
    if node.op != "get_attr":
        return False
    value = operator.attrgetter(str(node.target))(network.modules[""])
    return isinstance(value, Tensor) and value.numel() == 1
