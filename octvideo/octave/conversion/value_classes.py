"""Values of a traced network that must be stored alike, gathered into classes; and the low share of each convolution.

Shares are the user's alphas, less the paper's exceptions. All of it is found before anything is solved.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import fx, nn

from octvideo.octave.conversion.conv_form import conv_form
from octvideo.octave.conversion.roles import (
    ELEMENTWISE,
    ELEMENTWISE_FUNCTIONS,
    ELEMENTWISE_METHODS,
    KEEP_CHANNELS,
    KEEP_CHANNELS_FUNCTIONS,
    NORMS,
    Network,
    Role,
    changes_in_place,
    find_roles,
    globally_pooled,
    operand_nodes,
    parts_of,
    slice_range,
)
from octvideo.octave.conversion.trace import ACTIVATIONS_BY_NAME, is_norm
from octvideo.octave.ordinary import CONVS

# Give the partition that they take, so that what they read and write is one class.
_PASSES_ON: tuple[Role, ...] = ("norm", "map", "function", "drop", "pool", "add", "mul")
# Write a partition that follows from those they read.
_DERIVES: tuple[Role, ...] = ("cat", "shuffle", "slice")


@dataclass
class ValueClass:
    """Values with one partition, and what is known of it."""

    nodes: list[fx.Node] = field(default_factory=list)
    convs: list[fx.Node] = field(default_factory=list)  # depthwise ones excepted: they write what they read
    derived: list[fx.Node] = field(default_factory=list)  # concatenations, shuffles and slices that write it
    groups: set[int] = field(default_factory=set)  # of the grouped convolutions that read or write it
    ordinary: str | None = None  # why, where it is


class ValueClasses:
    """The classes of one network, found by joining what operations tie together.

    Args:
        network: the traced network.
    """

    def __init__(self, network: Network) -> None:
        self.network = network
        self.nodes = list(network.graph.nodes)
        self.roles = find_roles(network)
        self._parent: dict[fx.Node, fx.Node] = {node: node for node in self.nodes}
        self._tie()
        self._by_root = self._collect()

    def __getitem__(self, node: fx.Node) -> ValueClass:
        return self._by_root[self._find(node)]

    def all(self) -> list[ValueClass]:
        """Every class, in the order of the graph."""
        return list(self._by_root.values())

    def conv(self, node: fx.Node) -> nn.modules.conv._ConvNd:
        """The convolution that a node of role "conv" calls."""
        module = self.network.module(node)
        assert isinstance(module, nn.modules.conv._ConvNd)
        return module

    def is_depthwise(self, node: fx.Node) -> bool:
        """Whether a node of role "conv" has one kernel a channel, so that it writes the partition it reads."""
        conv = self.conv(node)
        return conv.groups == conv.in_channels == conv.out_channels and conv.groups > 1

    def passes_on(self, node: fx.Node) -> bool:
        """Whether a node writes the partition that it reads."""
        role = self.roles[node]
        return role in (*_PASSES_ON, "gate") or (role == "conv" and self.is_depthwise(node))

    def sources(self, node: fx.Node) -> tuple[fx.Node, ...]:
        """What a concatenation, a shuffle or a slice makes its value from."""
        if self.roles[node] == "cat":
            return parts_of(node)
        source = node.all_input_nodes[0]
        return (source.all_input_nodes[0] if self.roles[node] == "slice" else source,)

    def words(self, node: fx.Node) -> str:
        """A node as reasons name it: `name_of`, and the class of a module."""
        module = self.network.module(node)
        return name_of(node) + (f" ({type(module).__name__})" if module is not None else "")

    def _find(self, node: fx.Node) -> fx.Node:
        while self._parent[node] is not node:
            node = self._parent[node]
        return node

    def _unite(self, a: fx.Node, b: fx.Node) -> None:
        self._parent[self._find(a)] = self._find(b)

    def _tie(self) -> None:
        pooled = globally_pooled(self.network)
        calls: dict[str, fx.Node] = {}
        for node in self.nodes:
            role = self.roles[node]
            if self.passes_on(node):
                for source in operand_nodes(node):
                    if not (role == "gate" and source in pooled):
                        self._unite(source, node)
            if role in ("conv", "norm"):  # a module called twice has one partition in and one out
                first = calls.setdefault(str(node.target), node)
                self._unite(first, node)
                self._unite(first.all_input_nodes[0], node.all_input_nodes[0])

    def _collect(self) -> dict[fx.Node, ValueClass]:
        classes: dict[fx.Node, ValueClass] = {}
        for node in self.nodes:
            group = classes.setdefault(self._find(node), ValueClass())
            group.nodes.append(node)
            role = self.roles[node]
            if role == "conv" and not self.is_depthwise(node):
                group.convs.append(node)
            elif role in _DERIVES:
                group.derived.append(node)
            elif role in ("tensor", "squeeze", "shape"):
                group.ordinary = f"its channels are tied to the ordinary tensor of {self.words(node)}"
        for node in self.nodes:
            if self.roles[node] == "tensor" and changes_in_place(node, self.network):
                changed = node.all_input_nodes[0]
                if len(changed.users) > 1:  # it would change a merged copy, which the others do not read
                    classes[self._find(changed)].ordinary = f"{self.words(node)} changes it in place"
            if self.roles[node] == "conv" and self.conv(node).groups > 1:
                for value in (node, node.all_input_nodes[0]):
                    classes[self._find(value)].groups.add(self.conv(node).groups)
        return classes

    # -- channels --------------------------------------------------------------------------------------------

    def channel_counts(self, group: ValueClass) -> set[int]:
        """How many channels the convolutions and norms of a class write: one number, unless it broadcasts."""
        counts = {self._written_channels(node) for node in group.nodes}
        return {count for count in counts if count is not None}

    def _written_channels(self, node: fx.Node) -> int | None:
        module = self.network.module(node)
        if conv_form(module) is not None:
            return module.out_channels  # type: ignore[union-attr, return-value]
        return module.num_features if isinstance(module, NORMS) else None

    def channels(self, node: fx.Node, seen: frozenset[fx.Node] = frozenset()) -> int | None:
        """Channels of an ordinary value: of its class, or of what pooling and concatenation make it from."""
        root = self._find(node)
        if root in seen:
            return None
        seen = seen | {root}
        for value in self[node].nodes:
            count = self._written_channels(value)
            module = self.network.module(value)
            keeps = isinstance(module, KEEP_CHANNELS) or value.target in KEEP_CHANNELS_FUNCTIONS
            if count is None and keeps:
                count = self.channels(value.all_input_nodes[0], seen)
            elif count is None and self.roles[value] in _DERIVES:
                parts = [self.channels(part, seen) for part in self.sources(value)]
                count = None if None in parts else sum(filter(None, parts))
                if count is not None and self.roles[value] == "slice":
                    start, stop = slice_range(value, count)
                    count = stop - start
            if count is not None:
                return count
        return None


def name_of(node: fx.Node) -> str:
    """A node as messages name it: the path of its module, or its operation as the user wrote it, and where."""
    if node.op == "call_module":
        return str(node.target)
    if node.op in ("placeholder", "output"):
        return f"the network's {'input' if node.op == 'placeholder' else 'output'}"
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return f"{_as_code(node)} in {stack[-1][0] if stack else 'forward'}"


_SYMBOLS = {"add": "+", "iadd": "+=", "sub": "-", "mul": "*", "imul": "*=", "truediv": "/", "matmul": "@", "pow": "**"}


def _as_code(node: fx.Node) -> str:
    target: Any = node.target
    if node.op == "get_attr":
        return f"self.{target.rpartition('.')[2]}"
    if node.op == "call_method":
        return f"x.{target}()"
    if target in (getattr, operator.getitem):
        return f"x.{node.args[1]}" if target is getattr else "x[...]"
    name = getattr(target, "__name__", str(target))
    if getattr(operator, name, None) is target and name in _SYMBOLS:
        return f"x {_SYMBOLS[name]} y"
    owner = next((prefix for prefix, of in (("F.", F), ("torch.", torch)) if getattr(of, name, None) is target), "")
    return f"{owner}{name}()"


Alpha = float | Mapping[str, float]
# What is split in an inverted residual (MobileNetV2): the expanded width, or the thin ends too.
InvertedResiduals = Literal["hidden", "all"]
_NOT_ACTIVATIONS = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.Dropout3d)


class Shares:
    """For each convolution's node, the low share that its output should have.

    Args:
        alpha: one share for all but the stem, or shares by module path prefix, the longest deciding.
        network: the traced network.
        inverted_residuals: "hidden" leaves the thin ends of inverted residuals ordinary, as in the paper.

    Raises:
        ValueError: a share outside [0, 1], or a prefix of no convolution.
    """

    def __init__(self, alpha: Alpha, network: Network, *, inverted_residuals: InvertedResiduals) -> None:
        shares = alpha if isinstance(alpha, Mapping) else {"": alpha}
        try:
            self._shares = {str(prefix): float(share) for prefix, share in shares.items()}
        except (TypeError, ValueError):
            raise ValueError(f"alpha: got {alpha!r}, expected a number from 0 to 1, or one by module path") from None
        self._keeps_stem = not isinstance(alpha, Mapping)
        self._network = network
        calls = {str(node.target) for node in network.graph.nodes if node.op == "call_module"}
        convs = [path for path in network.modules if path in calls and isinstance(network.modules[path], CONVS)]
        for prefix, share in self._shares.items():
            if not 0.0 <= share <= 1.0:
                raise ValueError(f"octavize: alpha of {prefix or 'the network'!r} is {share}, expected 0 <= alpha <= 1")
            if prefix and not any(_matches(path, prefix) for path in convs):
                raise ValueError(
                    f"octavize: no convolution of this network is called {prefix!r} or lies in it; "
                    f"it has {convs[:4]} ..."
                )
        self._ends = thin_ends(network) if inverted_residuals == "hidden" else set()

    def __call__(self, node: fx.Node) -> float:
        prefixes = [prefix for prefix in self._shares if _matches(str(node.target), prefix)]
        if not prefixes or self._exception(node) is not None:
            return 0.0
        return self._shares[max(prefixes, key=len)]

    def reason(self, node: fx.Node) -> str:
        """Why a convolution is asked for no low channel."""
        return self._exception(node) or "alpha is 0 here"

    def _exception(self, node: fx.Node) -> str | None:
        if str(node.target) in self._ends:
            return "ends an inverted residual, of which only the expanded width is split"
        if self._keeps_stem and reads_input(node, self._network):
            return "reads the network's input"
        return None


def _matches(path: str, prefix: str) -> bool:
    return prefix == "" or path == prefix or path.startswith(prefix + ".")


def reads_input(node: fx.Node, network: Network) -> bool:
    """Whether a convolution is a stem: it reads the input, or what indexing and layers without weights make of it."""
    source = node.all_input_nodes[0]
    while source.op != "placeholder":
        module = network.module(source)
        weights = module is not None and next(module.parameters(), None) is not None
        if weights or len(source.all_input_nodes) != 1:
            return False
        source = source.all_input_nodes[0]
    return True


def thin_ends(network: Network) -> set[str]:
    """Paths of the convolutions that end an inverted residual: from a depthwise one to fewer channels, linearly.

    The paper splits only the expanded width of MobileNetV2: the first convolution of a block is a first
    octave convolution, the last one a last (arXiv 1904.05049, section 4.3).
    """
    classes = ValueClasses(network)
    ends = set()
    for node in classes.nodes:
        if classes.roles[node] != "conv":
            continue
        conv = classes.conv(node)
        hidden = classes[node.all_input_nodes[0]]
        depthwise = any(classes.roles[n] == "conv" and classes.is_depthwise(n) for n in hidden.nodes)
        if conv.groups == 1 and conv.out_channels < conv.in_channels and depthwise and not _activated(node, network):
            ends.add(str(node.target))
    return ends


def _activated(node: fx.Node, network: Network) -> bool:
    """Whether an activation follows a convolution, after its norm."""
    users = list(node.users)
    while len(users) == 1 and isinstance(module := network.module(users[0]), nn.Module) and is_norm(module):
        held = getattr(module, "act", None)
        if held is not None and not isinstance(held, nn.Identity):
            return True
        users = list(users[0].users)
    return any(_is_activation(user, network) for user in users)


def _is_activation(node: fx.Node, network: Network) -> bool:
    module = network.module(node)
    if module is not None:
        known = isinstance(module, ELEMENTWISE) or type(module).__name__ in ACTIVATIONS_BY_NAME
        return known and not isinstance(module, _NOT_ACTIVATIONS)
    return node.target in ELEMENTWISE_FUNCTIONS or (
        node.op == "call_method" and node.target in ELEMENTWISE_METHODS[:-1]
    )
