"""A network computed node by node over many clips, so that each layer is met once, with all of its inputs at hand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from octvideo.octave.features import Octave


class Walk:
    """Goes through a graph once; every clip's live values are held where it stands.

    Args:
        network: in eval.
        clips: what it takes; each is one call, and may be changed.
    """

    def __init__(self, network: fx.GraphModule, clips: Sequence[Any]) -> None:
        self.network = network
        self.nodes = list(network.graph.nodes)
        self._interpreter = fx.Interpreter(network)
        self.clips = clips
        self._values: list[dict[fx.Node, Any]] = [{} for _ in clips]
        self._at = 0
        self._places = {node: place for place, node in enumerate(self.nodes)}
        self._last_reader = {source: node for node in self.nodes for source in node.all_input_nodes}

    @torch.no_grad()
    def go_to(self, node: fx.Node, *, after: bool = False) -> None:
        """Computes all that lies before `node`, and the node itself where asked."""
        stop = self._places[node] + after
        for current in self.nodes[self._at : stop]:
            for n, values in enumerate(self._values):
                if current.op == "placeholder":
                    values[current] = self.clips[n]
                elif current.op != "output":
                    self._compute(current, values)
        self._at = max(self._at, stop)

    def values(self, node: fx.Node) -> list[Any]:
        """What `node` gave for each clip; it must be live: computed, and read by a node still to come."""
        return [values[node] for values in self._values]

    def live_bytes(self) -> int:
        """Memory of all values held."""
        return sum(x.nbytes for values in self._values for value in values.values() for x in tensors_of(value))

    def _compute(self, node: fx.Node, values: dict[fx.Node, Any]) -> None:
        self._interpreter.env = values
        args, kwargs = self._interpreter.fetch_args_kwargs_from_env(node)
        values[node] = getattr(self._interpreter, node.op)(node.target, args, kwargs)
        for source in node.all_input_nodes:
            if self._last_reader[source] is node:
                del values[source]


@contextmanager
def in_eval(network: nn.Module) -> Iterator[None]:
    """In eval mode within; then each module is in its mode from before."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def at_least_float32(x: Tensor) -> Tensor:
    """For sums, which 16 bits are too few for."""
    return x if x.dtype == torch.float64 else x.float()


def tensors_of(value: Any) -> list[Tensor]:
    """The tensors that a value of a graph holds."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Octave):
        return [value.high, value.low]
    if isinstance(value, Mapping):
        return tensors_of(list(value.values()))
    return [x for part in value for x in tensors_of(part)] if isinstance(value, list | tuple) else []
