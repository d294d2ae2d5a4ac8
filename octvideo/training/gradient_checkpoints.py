"""Gradient checkpoints (Chen et al., "Training Deep Nets with Sublinear Memory Cost", arXiv 1604.06174): of each block
its input is kept, and the backward pass computes the block again. Memory for time.

By torch.utils.checkpoint, which knows modules. A converted network is one graph whose blocks are called nowhere: it is
cut into the parts that were blocks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import fx, nn
from torch.utils.checkpoint import checkpoint

from octvideo.training.blocks import block_at, blocks_of

Context = AbstractContextManager[Any]
Modes = Callable[[], Context]


class GradientCheckpoints:
    """A network that keeps of its blocks the inputs alone, while gradients are on.

    Gradients, statistics of norms and dropout are as without it. Between calls the network is untouched.

    Args:
        network: with blocks; not compiled.

    Raises:
        UserError: it has no blocks.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network, self._blocks = network, blocks_of(network)

    def __len__(self) -> int:
        """How many blocks."""
        return len(self._blocks)

    def __call__(self, x: Any, *, modes: Modes = contextlib.nullcontext) -> Any:
        """The network's output.

        Args:
            x: its input.
            modes: gives what the network runs in and the backward pass does not, to compute blocks again in.
        """
        if not torch.is_grad_enabled():
            return self._network(x)
        graphs = [
            (f"{name}.".lstrip("."), module)
            for name, module in self._network.named_modules()
            if isinstance(module, fx.GraphModule)
        ]
        with contextlib.ExitStack() as stack:
            for prefix, graph in graphs:
                inside = {name[len(prefix) :]: block for name, block in self._blocks.items() if name.startswith(prefix)}
                if inside:
                    stack.enter_context(_forward(graph, _Parts(graph, inside, modes)))
            for block in self._blocks.values():  # those of graphs are called nowhere
                stack.enter_context(_forward(block, partial(_keep_input, block.forward, [block], modes)))
            return self._network(x)


@contextmanager
def _forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Another forward of a module, for now."""
    own = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own


def _keep_input(run: Callable[..., Any], modules: Sequence[nn.Module], modes: Modes, *inputs: Any, **named: Any) -> Any:
    """Runs a block whose inputs alone are kept."""
    contexts = partial(_contexts, modules, modes)
    return checkpoint(run, *inputs, use_reentrant=False, context_fn=contexts, **named)


def _contexts(modules: Sequence[nn.Module], modes: Modes) -> tuple[Context, Context]:
    """Of the forward pass, and of the second one."""
    return contextlib.nullcontext(), _again(modules, modes)


@contextmanager
def _again(modules: Sequence[nn.Module], modes: Modes) -> Iterator[None]:
    """Leaves buffers as the first pass has: a norm counts each batch once."""
    buffers = list({id(buffer): buffer for module in modules for buffer in module.buffers()}.values())
    before = [buffer.clone() for buffer in buffers]
    try:
        with modes():
            yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)


@dataclass(frozen=True)
class _Part:
    """Nodes of a graph that run together.

    Attributes:
        nodes: in order.
        inputs: what they need of earlier ones.
        outputs: what later ones need of them.
        is_block: whether its inputs alone are kept.
    """

    nodes: list[fx.Node]
    inputs: list[fx.Node]
    outputs: list[fx.Node]
    is_block: bool

    def modules(self, network: nn.Module) -> list[nn.Module]:
        """What it calls."""
        return [network.get_submodule(str(node.target)) for node in self.nodes if node.op == "call_module"]


class _Parts:
    """Runs a graph block by block.

    Args:
        network: with the graph.
        blocks: of it, by name.
        modes: see `GradientCheckpoints`.
    """

    def __init__(self, network: fx.GraphModule, blocks: dict[str, nn.Module], modes: Modes) -> None:
        self._network, self._modes = network, modes
        self._inputs = [node for node in network.graph.nodes if node.op == "placeholder"]
        self._parts = list(_cut(network.graph, blocks))

    def __call__(self, *inputs: Any) -> Any:
        values: dict[fx.Node, Any] = dict(zip(self._inputs, inputs, strict=False))
        values |= {node: node.args[0] for node in self._inputs[len(inputs) :]}  # defaults
        for n, part in enumerate(self._parts):
            taken = [values[node] for node in part.inputs]
            run: Callable[..., list[Any]] = partial(_run, self._network, part)
            if part.is_block:
                run = partial(_keep_input, run, part.modules(self._network), self._modes)
            made = run(*taken)
            values |= zip(part.outputs, made, strict=True)
            later = {node for other in self._parts[n + 1 :] for node in other.inputs}
            values = {node: value for node, value in values.items() if node in later or node.op == "output"}
        return next(value for node, value in values.items() if node.op == "output")


def _cut(graph: fx.Graph, blocks: dict[str, nn.Module]) -> Iterator[_Part]:
    """The parts: what lies between two blocks goes with the one before, what follows the last one by itself."""
    nodes = [node for node in graph.nodes if node.op != "placeholder"]
    block_of = [block_at(str(node.target), blocks) if node.op == "call_module" else None for node in nodes]
    last = max((n for n, block in enumerate(block_of) if block), default=-1)
    runs: list[tuple[str, list[fx.Node]]] = [("", [])]
    for n, (node, block) in enumerate(zip(nodes, block_of, strict=True)):
        name = (block or runs[-1][0]) if n <= last else ""
        if name != runs[-1][0]:
            runs.append((name, []))
        runs[-1][1].append(node)
    for name, run in runs:
        inside = set(run)
        needed = dict.fromkeys(node for user in run for node in user.all_input_nodes if node not in inside)
        outputs = [node for node in run if node.op == "output" or any(user not in inside for user in node.users)]
        if run:
            yield _Part(run, list(needed), outputs, bool(name))


def _run(network: fx.GraphModule, part: _Part, *inputs: Any) -> list[Any]:
    """The part's outputs."""
    values: dict[fx.Node, Any] = dict(zip(part.inputs, inputs, strict=True))
    last_use = {node: user for user in part.nodes for node in user.all_input_nodes}
    for node in part.nodes:
        args: Any = fx.node.map_arg(node.args, values.__getitem__)
        named: Any = fx.node.map_arg(node.kwargs, values.__getitem__)
        target: Any = node.target
        if node.op == "call_module":
            values[node] = network.get_submodule(target)(*args, **named)
        elif node.op == "call_method":
            values[node] = getattr(args[0], target)(*args[1:], **named)
        elif node.op == "get_attr":
            place, _, name = target.rpartition(".")
            values[node] = getattr(network.get_submodule(place), name)
        else:
            values[node] = args[0] if node.op == "output" else target(*args, **named)
        for used in node.all_input_nodes:
            if last_use[used] is node and used not in part.outputs:
                del values[used]
    return [values[node] for node in part.outputs]
