"""Channels of a network in another order: the same function, its hidden channels renamed.

A trained network's slowly varying channels lie anywhere among a layer's. Moved to its end they are the ones that
`octavize` stores at half resolution, and layers read runs of channels, whichever were chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from octvideo.octave.conversion.conv_form import conv_form
from octvideo.octave.conversion.roles import CONCATENATIONS, operand_nodes, parts_of
from octvideo.octave.conversion.value_classes import ValueClass, ValueClasses


class ChannelOrders:
    """New orders of channels, and every tensor of the network that they reorder.

    Args:
        classes: of a traced network.
        orders: of some classes, by one of their nodes: for each new place the channel's old index.

    Raises:
        ValueError: a class with an order is read or written by something whose weights have no known order.
    """

    def __init__(self, classes: ValueClasses, orders: Mapping[fx.Node, Sequence[int]]) -> None:
        self.classes = classes
        self._of_class = {id(classes[node]): tuple(order) for node, order in orders.items()}
        self._orders: dict[fx.Node, tuple[int, ...] | None] = {}  # None: a value's channels keep their order
        self._rows: dict[fx.Node, tuple[int, ...]] = {}  # of layers that write what scales a reordered value
        for node in classes.nodes:
            self._orders[node] = self._find(node)
        for node in classes.nodes:
            if classes.roles[node] == "gate":
                self._order_gate(node)

    def apply(self) -> None:
        """Reorders weights, biases and statistics of the network's modules, in place."""
        done = set()
        for node in self.classes.nodes:
            module = self.classes.network.module(node)
            if module is None or node.target in done or not list(module.parameters()) + list(module.buffers()):
                continue
            done.add(node.target)
            columns = self._orders[node.all_input_nodes[0]] if node.all_input_nodes else None
            rows = self._rows.get(node, self._orders[node])
            if columns is not None or rows is not None:
                _reorder(module, columns, rows)

    def _find(self, node: fx.Node) -> tuple[int, ...] | None:
        own = self._of_class.get(id(self.classes[node]))
        if own is not None:
            return own
        inputs = node.all_input_nodes
        if self.classes.roles[node] in ("shuffle", "chunk", "slice") and self._orders.get(inputs[0]) is not None:
            raise ValueError(f"{node.name} takes channels by their places")
        if node.target in CONCATENATIONS:
            return self._joined(node)
        if not inputs or conv_form(self.classes.network.module(node)) is not None:
            return None
        if isinstance(self.classes.network.module(node), nn.Linear | nn.modules.conv._ConvNd):
            return None
        return next((order for order in (self._orders.get(one) for one in inputs) if order is not None), None)

    def _joined(self, node: fx.Node) -> tuple[int, ...] | None:
        parts = parts_of(node)
        if all(self._orders.get(part) is None for part in parts):
            return None
        joined: list[int] = []
        for part in parts:
            count = self.classes.channels(part)
            order = self._orders.get(part) or (None if count is None else tuple(range(count)))
            if order is None:
                raise ValueError(f"{node.name}: the number of channels of {part.name} is not known")
            joined += [len(joined) + index for index in order]
        return tuple(joined)

    def _order_gate(self, node: fx.Node) -> None:
        """Rows of the layer that writes what scales the channels of a reordered value."""
        order = self._orders[node]
        for operand in operand_nodes(node):
            source = operand
            while order is not None and self.classes[source] is not self.classes[node]:
                module = self.classes.network.module(source)
                if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
                    self._rows[source] = order
                    break
                if self._orders[source] == order or len(source.all_input_nodes) != 1:
                    break
                source = source.all_input_nodes[0]


@torch.no_grad()
def _reorder(module: nn.Module, columns: Sequence[int] | None, rows: Sequence[int] | None) -> None:
    if isinstance(module, nn.Linear):
        if columns is not None:
            _take(module.weight, columns, 1)
        if rows is not None:
            _take(module.weight, rows, 0)
            _take(module.bias, rows, 0)
    elif isinstance(module, nn.modules.conv._ConvNd):
        if module.groups == 1 and columns is not None:
            _take(module.weight, columns, 0 if module.transposed else 1)
        if rows is not None:
            _take(module.weight, rows, 1 if module.transposed else 0)
            _take(module.bias, rows, 0)
    elif isinstance(module, _BatchNorm):
        for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
            if rows is not None:
                _take(tensor, rows, 0)
    elif columns is not None:  # kept whole, such as a head
        for part in module.modules():
            if isinstance(part, nn.Linear) and part.in_features == len(columns):
                _take(part.weight, columns, 1)


def _take(tensor: Tensor | None, order: Sequence[int], axis: int) -> None:
    if tensor is not None:
        tensor.copy_(tensor.index_select(axis, torch.tensor(order, device=tensor.device)))


def can_reorder(group: ValueClass, classes: ValueClasses) -> bool:
    """Whether each channel of a class can take any place: no grouped convolution, shuffle or slice ties some."""
    if group.derived or any(count != n for count in group.groups for n in classes.channel_counts(group)):
        return False
    readers = [user for node in group.nodes for user in node.users]
    return not any(classes.roles[reader] in ("shuffle", "chunk", "slice") for reader in readers)
