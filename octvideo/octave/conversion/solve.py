"""Which value of a traced network is stored how: solved over the whole graph before anything changes.

Values that an addition, a norm, an activation or a depthwise convolution ties together have one partition (a
*class*). A class takes the low share that its convolutions were asked for, split per group where a grouped
convolution reads or writes it; a concatenation juxtaposes, a channel shuffle permutes. A class with a producer
that only makes ordinary tensors, or that nobody can read as a pair, is ordinary: the convolution that writes
it merges at no extra cost.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx
from torch.nn.modules.conv import _ConvNd

from octvideo.octave.conversion.conv_form import CONV_FUNCTIONS, conv_form, why_ordinary
from octvideo.octave.conversion.roles import Network, Role, shuffle_groups, slice_range
from octvideo.octave.conversion.value_classes import Shares, ValueClass, ValueClasses, name_of
from octvideo.octave.partition import Partition
from octvideo.octave.paths import plan_path


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
        network: the traced network.
        wanted: the low share that each convolution's output should have.
        channel_multiple: of channels that parts should have; see `Partition.of`.
    """

    def __init__(self, network: Network, wanted: Shares, channel_multiple: int = 1) -> None:
        self.network, self.wanted, self.channel_multiple = network, wanted, channel_multiple
        self.classes = ValueClasses(network)
        self.nodes, self.roles = self.classes.nodes, self.classes.roles
        self._unfit_reasons: dict[str, str] = {}
        self._notes: dict[str, str] = {}  # of the last round

    def solve(self) -> Solution:
        """Repeat until nothing more has to merge; each round makes some class ordinary, so it ends."""
        while True:
            partitions = self._partitions()
            if not (self._unreadable(partitions) or self._unfit(partitions)):
                octave = {node: p for node, p in partitions.items() if not p.is_ordinary}
                return Solution(self.roles, octave, self._reasons(octave))

    # -- one round -------------------------------------------------------------------------------------------

    def _partitions(self) -> dict[fx.Node, Partition]:
        """Partitions of all values that may be a pair, as far as is known now."""
        self._notes = {}
        solved: dict[int, Partition | None] = {}
        found = {node: self._partition(self.classes[node], solved) for node in self.nodes}
        return {node: partition for node, partition in found.items() if partition is not None}

    def _partition(self, group: ValueClass, solved: dict[int, Partition | None]) -> Partition | None:
        """The partition of a class; those of what it is derived from are solved first, wherever they are."""
        if id(group) not in solved:
            solved[id(group)] = None  # where a circle would end; parts are thinner than the whole, so none is
            solved[id(group)] = None if group.ordinary is not None else self._class_partition(group, solved)
        return solved[id(group)]

    def _class_partition(self, group: ValueClass, solved: dict[int, Partition | None]) -> Partition | None:
        if not group.convs and not group.derived:
            group.ordinary = "no convolution writes it"
            return None
        channels = self.classes.channel_counts(group)
        if len(channels) > 1:
            group.ordinary = f"values of {' and '.join(map(str, sorted(channels)))} channels are added or multiplied"
            return None
        if group.derived:
            return self._derived_partition(group, solved)
        share = min(self.wanted(conv) for conv in group.convs)
        for conv in group.convs:
            if self.wanted(conv) != share:
                wanted = f"{share:g} instead of {self.wanted(conv):g}"
                self._notes[name_of(conv)] = f"added to values with a smaller alpha: {wanted}"
        groups = math.lcm(*group.groups) if group.groups else 1
        partition = Partition.of(channels.pop(), share, groups=groups, multiple=self.channel_multiple)
        if partition.is_ordinary:
            group.ordinary = self._zero_reason(group) or f"alpha {share:g} is less than a channel"
            return None
        return partition

    def _zero_reason(self, group: ValueClass) -> str | None:
        zero = next((conv for conv in group.convs if self.wanted(conv) == 0), None)
        return None if zero is None else f"alpha is 0 in {name_of(zero)}, which is tied to it"

    def _derived_partition(self, group: ValueClass, solved: dict[int, Partition | None]) -> Partition | None:
        found = [self._derive(node, solved) for node in group.derived]
        partition = found[0]
        if partition is None or len(set(found)) > 1 or group.groups - {partition.num_channels}:
            group.ordinary = "concatenations of different partitions, or read by a grouped convolution"
            return None
        if not partition.is_ordinary:
            group.ordinary = self._zero_reason(group)
            if group.ordinary is not None:
                return None
        for conv in group.convs:
            if not math.isclose(self.wanted(conv), partition.alpha):
                got = f"alpha {partition.alpha:.3g} instead of {self.wanted(conv):g}"
                self._notes[name_of(conv)] = f"added to a concatenation: {got}"
        return partition

    def _derive(self, node: fx.Node, solved: dict[int, Partition | None]) -> Partition | None:
        """The partition that a concatenation, a shuffle or a slice makes of those it reads."""
        parts = []
        for source in self.classes.sources(node):
            part = self._partition(self.classes[source], solved)
            if part is None:  # an ordinary part: all its channels are high, if we can tell how many
                channels = self.classes.channels(source)
                if channels is None:
                    return None
                part = Partition((False,) * channels)
            parts.append(part)
        joined = Partition.join(parts)
        if self.roles[node] == "slice":
            start, stop = slice_range(node, joined.num_channels)
            return Partition(joined.is_low[start:stop])
        groups = shuffle_groups(node, self.network)
        return joined if groups is None else joined.shuffle(groups)

    def _readers(self, group: ValueClass) -> Iterator[fx.Node]:
        inside = set(group.nodes)
        for node in group.nodes:
            for user in node.users:
                passes_on = self.roles[user] != "conv" or self.classes.is_depthwise(user)
                if self.roles[user] == "chunk":
                    yield from user.users
                elif user not in inside or not passes_on:
                    yield user

    def _takes_pair(self, reader: fx.Node, group: ValueClass, partitions: dict[fx.Node, Partition]) -> bool:
        role = self.roles[reader]
        # A convolution before a global pool merges at no cost; a concatenation before it would upsample.
        return (role == "conv" or (role in ("cat", "shuffle", "slice") and reader in partitions)) or (
            role == "squeeze" and bool(group.derived)
        )

    def _unreadable(self, partitions: dict[fx.Node, Partition]) -> bool:
        """Make ordinary every class that no reader takes as a pair: its convolution then merges by itself."""
        changed = False
        for group in self.classes.all():
            if group.ordinary is not None or group.nodes[0] not in partitions:
                continue
            readers = [reader for reader in self._readers(group) if self.roles[reader] != "shape"]
            if readers and not any(self._takes_pair(reader, group, partitions) for reader in readers):
                names = sorted({self.classes.words(reader) for reader in readers})
                some = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
                group.ordinary = f"only {some} {'reads' if len(names) == 1 else 'read'} it"
                changed = True
        return changed

    def _unfit(self, partitions: dict[fx.Node, Partition]) -> bool:
        """Give ordinary tensors to grouped convolutions whose groups the partitions would cut unevenly."""
        for node in self.nodes:
            if self.roles[node] != "conv":
                continue
            conv, source = self.classes.conv(node), node.all_input_nodes[0]
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
                self.classes[node].ordinary = self._unfit_reasons[name_of(node)] = str(error)
                return True
        return False

    # -- the report ------------------------------------------------------------------------------------------

    def _reasons(self, octave: dict[fx.Node, Partition]) -> dict[str, str]:
        """Why what was asked for low channels, or reads them, works on ordinary tensors all the same."""
        reasons = {**self._notes, **self._unfit_reasons}
        for node in self.nodes:
            group, role = self.classes[node], self.roles[node]
            if node in octave or role in ("squeeze", "shape", "chunk", "slice"):
                continue
            if role == "conv":
                if self.wanted(node) > 0 or self.classes.is_depthwise(node):
                    reasons.setdefault(name_of(node), f"gives an ordinary tensor: {group.ordinary}")
                else:
                    reasons.setdefault(name_of(node), self.wanted.reason(node))
            elif self._convolves(node) or any(source in octave for source in node.all_input_nodes):
                reasons.setdefault(name_of(node), self._why_merged(node, group))
        return {**reasons, **self._uncalled()}

    def _convolves(self, node: fx.Node) -> bool:
        return isinstance(self.network.module(node), _ConvNd) or node.target in CONV_FUNCTIONS

    def _uncalled(self) -> dict[str, str]:
        """Why convolutions are ordinary that no node calls."""
        calls = {str(node.target): self.classes.words(node) for node in self.nodes if node.op == "call_module"}
        reasons = {}
        for path, module in self.network.modules.items():
            if isinstance(module, _ConvNd) and path not in calls:
                whole = [f"lies in {calls[call]}, which is kept whole" for call in calls if path.startswith(f"{call}.")]
                reasons[path] = whole[0] if whole else "is not called in the forward pass"
        return reasons

    def _why_merged(self, node: fx.Node, group: ValueClass) -> str:
        module = self.network.module(node)
        if node.target in CONV_FUNCTIONS:
            return "is a function's call: only modules become octave"
        if isinstance(module, _ConvNd):
            if module.transposed:
                return "is a transposed convolution"
            if conv_form(module) is None or len(node.all_input_nodes) > 1:
                return f"is a {type(module).__name__}, which does more than to convolve its input with one weight"
            problem = why_ordinary(module, self.network.factor)
            return problem or "reads globally pooled values, which have no resolution to halve"
        return "takes ordinary tensors" + (f": {group.ordinary}" if node in group.derived else "")
