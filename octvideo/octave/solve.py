"""Which value of a traced network is stored how: solved over the whole graph before anything changes.

Values that an addition, a norm, an activation or a depthwise convolution ties together have one partition (a
*class*). A class takes the low share that its convolutions were asked for, split per group where a grouped
convolution reads or writes it; a concatenation juxtaposes. A class with a producer that only makes ordinary
tensors, or that nobody can read as a pair, is ordinary: the convolution that writes it merges at no extra
cost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from torch import fx, nn

from octvideo.octave.conv import octave_problem, plan_path
from octvideo.octave.partition import Partition
from octvideo.octave.roles import (
    CONVS,
    KEEP_CHANNELS,
    KEEP_CHANNELS_FUNCTIONS,
    NORMS,
    Role,
    changes_in_place,
    parts_of,
    role_of,
)


@dataclass
class ValueClass:
    """Values with one partition, and what is known of it."""

    nodes: list[fx.Node] = field(default_factory=list)
    convs: list[fx.Node] = field(default_factory=list)
    cats: list[fx.Node] = field(default_factory=list)
    groups: set[int] = field(default_factory=set)
    ordinary: str | None = None  # why, where it is


@dataclass
class Solution:
    """The partition of every value that is an Octave, the role of every node, and what had to merge."""

    roles: dict[fx.Node, Role]
    partitions: dict[fx.Node, Partition]
    merged: dict[str, str]  # module path or node name -> reason

    def partition(self, node: fx.Node) -> Partition | None:
        """The partition of a value, or None where it is an ordinary tensor."""
        return self.partitions.get(node)


class PartitionSolver:
    """Solves the partitions of one traced network.

    Args:
        graph: the traced network.
        modules: its modules by path.
        wanted: for each convolution's path, the low share its output should have.
    """

    def __init__(self, graph: fx.Graph, modules: dict[str, nn.Module], wanted: Callable[[fx.Node], float]) -> None:
        self.modules, self.wanted = modules, wanted
        self.nodes = list(graph.nodes)
        self.roles: dict[fx.Node, Role] = {node: role_of(node, modules) for node in self.nodes}
        self._unfit_reasons: dict[str, str] = {}
        self._notes: dict[str, str] = {}  # of the last round
        self._parent: dict[fx.Node, fx.Node] = {node: node for node in self.nodes}
        self._tie()
        self.classes = self._collect()

    def solve(self) -> Solution:
        """Repeat until nothing more has to merge; each round makes some class ordinary, so it ends."""
        while True:
            partitions = self._partitions()
            if not (self._unreadable(partitions) or self._unfit(partitions)):
                octave = {node: p for node, p in partitions.items() if not p.is_ordinary}
                return Solution(self.roles, octave, self._reasons(octave))

    # -- which values belong together ------------------------------------------------------------------------

    def _find(self, node: fx.Node) -> fx.Node:
        while self._parent[node] is not node:
            node = self._parent[node]
        return node

    def _unite(self, a: fx.Node, b: fx.Node) -> None:
        self._parent[self._find(a)] = self._find(b)

    def _conv(self, node: fx.Node) -> nn.modules.conv._ConvNd:
        module = self.modules[str(node.target)]
        assert isinstance(module, nn.modules.conv._ConvNd)
        return module

    def _is_depthwise(self, node: fx.Node) -> bool:
        conv = self._conv(node)
        return conv.groups == conv.in_channels == conv.out_channels and conv.groups > 1

    def _tie(self) -> None:
        calls: dict[str, fx.Node] = {}
        for node in self.nodes:
            role = self.roles[node]
            if role in ("norm", "map", "function", "add") or (role == "conv" and self._is_depthwise(node)):
                for source in node.all_input_nodes:
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
            if role == "conv":
                if not self._is_depthwise(node):
                    group.convs.append(node)
            elif role == "cat":
                group.cats.append(node)
            elif role == "tensor":
                group.ordinary = f"{_name(node)} makes an ordinary tensor"
        for node in self.nodes:
            if self.roles[node] == "tensor" and changes_in_place(node, self.modules):
                changed = node.all_input_nodes[0]
                if len(changed.users) > 1:  # it would change a merged copy, which the others do not read
                    classes[self._find(changed)].ordinary = f"{_name(node)} changes it in place"
            if self.roles[node] == "conv" and self._conv(node).groups > 1:
                for value in (node, node.all_input_nodes[0]):
                    classes[self._find(value)].groups.add(self._conv(node).groups)
        return classes

    # -- one round -------------------------------------------------------------------------------------------

    def _class(self, node: fx.Node) -> ValueClass:
        return self.classes[self._find(node)]

    def _partitions(self) -> dict[fx.Node, Partition]:
        """Partitions of all values that may be a pair, as far as is known now."""
        self._notes = {}
        solved: dict[int, Partition | None] = {}
        found = {node: self._partition(self._class(node), solved) for node in self.nodes}
        return {node: partition for node, partition in found.items() if partition is not None}

    def _partition(self, group: ValueClass, solved: dict[int, Partition | None]) -> Partition | None:
        """The partition of a class; those of what it concatenates are solved first, wherever they are."""
        if id(group) not in solved:
            solved[id(group)] = None  # where a circle would end; parts are thinner than the whole, so none is
            solved[id(group)] = None if group.ordinary is not None else self._class_partition(group, solved)
        return solved[id(group)]

    def _class_partition(self, group: ValueClass, solved: dict[int, Partition | None]) -> Partition | None:
        if not group.convs and not group.cats:
            group.ordinary = "no convolution writes it"
            return None
        channels = self._channel_counts(group)
        if len(channels) > 1:
            group.ordinary = f"values of {' and '.join(map(str, sorted(channels)))} channels are added"
            return None
        if group.cats:
            return self._cat_partition(group, solved)
        share = min(self.wanted(conv) for conv in group.convs)
        for conv in group.convs:
            if self.wanted(conv) != share:
                wanted = f"{share:g} instead of {self.wanted(conv):g}"
                self._notes[_name(conv)] = f"added to values with a smaller alpha: {wanted}"
        partition = Partition.of(channels.pop(), share, groups=math.lcm(*group.groups) if group.groups else 1)
        if partition.is_ordinary:
            group.ordinary = self._zero_reason(group) or f"alpha {share:g} is less than a channel"
            return None
        return partition

    def _zero_reason(self, group: ValueClass) -> str | None:
        zero = next((conv for conv in group.convs if self.wanted(conv) == 0), None)
        return None if zero is None else f"alpha is 0 in {_name(zero)}, which is added to it"

    def _cat_partition(self, group: ValueClass, solved: dict[int, Partition | None]) -> Partition | None:
        joined = [self._joined(cat, solved) for cat in group.cats]
        partition = joined[0]
        if partition is None or len(set(joined)) > 1 or group.groups:
            group.ordinary = "concatenations of different partitions, or read by a grouped convolution"
            return None
        if not partition.is_ordinary:
            group.ordinary = self._zero_reason(group)
            if group.ordinary is not None:
                return None
        for conv in group.convs:
            if not math.isclose(self.wanted(conv), partition.alpha):
                got = f"alpha {partition.alpha:.3g} instead of {self.wanted(conv):g}"
                self._notes[_name(conv)] = f"added to a concatenation: {got}"
        return partition

    def _joined(self, cat: fx.Node, solved: dict[int, Partition | None]) -> Partition | None:
        parts = []
        for source in parts_of(cat):
            part = self._partition(self._class(source), solved)
            if part is None:  # an ordinary part: all its channels are high, if we can tell how many
                channels = self._channels(source)
                if channels is None:
                    return None
                part = Partition((False,) * channels)
            parts.append(part)
        return Partition.join(parts)

    def _channel_counts(self, group: ValueClass) -> set[int]:
        counts = {self._written_channels(node) for node in group.nodes}
        return {count for count in counts if count is not None}

    def _written_channels(self, node: fx.Node) -> int | None:
        """Channels of what a convolution or a norm writes."""
        module = self.modules[str(node.target)] if node.op == "call_module" else None
        if isinstance(module, CONVS):
            return module.out_channels
        return module.num_features if isinstance(module, NORMS) else None

    def _channels(self, node: fx.Node, seen: frozenset[fx.Node] = frozenset()) -> int | None:
        """Channels of an ordinary value: of its class, or of what pooling and concatenation make it from."""
        root = self._find(node)
        if root in seen:
            return None
        seen = seen | {root}
        for value in self._class(node).nodes:
            count = self._written_channels(value)
            kept = type(self.modules[str(value.target)]) if value.op == "call_module" else value.target
            if count is None and kept in KEEP_CHANNELS + KEEP_CHANNELS_FUNCTIONS:
                count = self._channels(value.all_input_nodes[0], seen)
            elif count is None and self.roles[value] == "cat":
                parts = [self._channels(part, seen) for part in parts_of(value)]
                count = None if None in parts else sum(filter(None, parts))
            if count is not None:
                return count
        return None

    def _readers(self, group: ValueClass) -> Iterator[fx.Node]:
        inside = set(group.nodes)
        for node in group.nodes:
            for user in node.users:
                passes_on = self.roles[user] != "conv" or self._is_depthwise(user)
                if user not in inside or not passes_on:
                    yield user

    def _takes_pair(self, reader: fx.Node, partitions: dict[fx.Node, Partition]) -> bool:
        role = self.roles[reader]
        return role == "conv" or (role == "cat" and reader in partitions)

    def _unreadable(self, partitions: dict[fx.Node, Partition]) -> bool:
        """Make ordinary every class that no reader takes as a pair: its convolution then merges by itself."""
        changed = False
        for group in self.classes.values():
            if group.ordinary is not None or group.nodes[0] not in partitions:
                continue
            readers = list(self._readers(group))
            if readers and not any(self._takes_pair(reader, partitions) for reader in readers):
                group.ordinary = f"only {', '.join(sorted({_name(r) for r in readers}))} reads it"
                changed = True
        return changed

    def _unfit(self, partitions: dict[fx.Node, Partition]) -> bool:
        """Give ordinary tensors to grouped convolutions whose groups the partitions would cut unevenly."""
        for node in self.nodes:
            if self.roles[node] != "conv":
                continue
            conv, source = self._conv(node), node.all_input_nodes[0]
            p_in = partitions.get(source, Partition((False,) * conv.in_channels))
            p_out = partitions.get(node, Partition((False,) * conv.out_channels))
            try:
                for from_low in (False, True):
                    for to_low in (False, True):
                        plan_path(p_in, p_out, conv.groups, from_low=from_low, to_low=to_low)
            except ValueError as error:
                for call in self.nodes:  # all of them: a module called twice is changed once
                    if call.op == "call_module" and call.target == node.target:
                        self.roles[call] = "tensor"
                self._class(node).ordinary = self._unfit_reasons[_name(node)] = str(error)
                return True
        return False

    # -- the report ------------------------------------------------------------------------------------------

    def _reasons(self, octave: dict[fx.Node, Partition]) -> dict[str, str]:
        """Why what was asked for low channels, or reads them, works on ordinary tensors all the same."""
        reasons = {**self._notes, **self._unfit_reasons}
        for node in self.nodes:
            group, role = self._class(node), self.roles[node]
            if node in octave:
                continue
            if role == "conv" and not self._is_depthwise(node):
                if self.wanted(node) > 0:
                    reasons.setdefault(_name(node), f"gives an ordinary tensor: {group.ordinary}")
            elif role in ("tensor", "cat") and any(source in octave for source in node.all_input_nodes):
                reasons.setdefault(_name(node), self._why_merged(node, group))
        return reasons

    def _why_merged(self, node: fx.Node, group: ValueClass) -> str:
        module = self.modules[str(node.target)] if node.op == "call_module" else None
        if type(module) in CONVS:
            return octave_problem(module) or "takes ordinary tensors"  # type: ignore[arg-type]
        return "takes ordinary tensors" + (f": {group.ordinary}" if node in group.cats else "")


def _name(node: fx.Node) -> str:
    return str(node.target) if node.op == "call_module" else node.name
