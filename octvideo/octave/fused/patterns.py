"""What a node of a traced network does, for those that join it with others: additions, activations, pools."""

from __future__ import annotations

import operator
from collections import Counter
from typing import Any

import torch
from torch import fx, nn

from octvideo.octave.conversion.modules import Method, OctMap
from octvideo.octave.fused.activations import activation_of
from octvideo.octave.kernel.fused_conv import Activation

ADDITIONS = (operator.add, operator.iadd, torch.add)


class TracedModules:
    """The modules of a traced network, by the nodes that call them."""

    def __init__(self, model: fx.GraphModule) -> None:
        self.model, self.graph = model, model.graph
        self.modules: dict[str, nn.Module] = dict(model.named_modules())
        self.calls = Counter(node.target for node in self.graph.nodes if node.op == "call_module")

    def module(self, node: Any) -> nn.Module | None:
        """What a node calls, if that is a module."""
        is_call = isinstance(node, fx.Node) and node.op == "call_module"
        return self.modules.get(str(node.target)) if is_call else None

    def put(self, node: fx.Node, module: nn.Module) -> None:
        """Let a node call `module` in place of its own."""
        self.model.set_submodule(str(node.target), module)
        self.modules[str(node.target)] = module

    def drop(self, node: fx.Node, source: fx.Node) -> None:
        """`source` gives what `node` gave."""
        node.replace_all_uses_with(source)
        self.graph.erase_node(node)

    def operation(self, node: fx.Node) -> Any:
        """What `node` does to a map, or to each one of an octave pair: a module, a function or a method's name."""
        module = self.module(node)
        if module is None:
            return node.target
        return module.function if isinstance(module, OctMap) else module

    def is_addition(self, node: fx.Node) -> bool:
        """Whether `node` adds two computed values, and does nothing else."""
        plain = len(node.args) == 2 and not node.kwargs and all(isinstance(arg, fx.Node) for arg in node.args)
        return plain and node.args[0] is not node.args[1] and self.operation(node) in ADDITIONS

    def activation(self, node: fx.Node) -> Activation | None:
        """Which of the kernel's activations `node` applies, to a map or an octave pair; None: it does another thing."""
        operation = self.operation(node)
        return activation_of(operation.__name__ if isinstance(operation, Method) else operation)

    def is_relu(self, node: fx.Node) -> bool:
        """Written as a module, a function or a method; of a map or an octave pair."""
        return self.activation(node) == "relu"

    def writes_in_place(self, node: fx.Node) -> bool:
        """Whether `node` changes the value that it reads first."""
        operation = self.operation(node)
        name = operation if isinstance(operation, str) else getattr(operation, "__name__", "")
        named_so = (name.endswith("_") and not name.endswith("__")) or operation in (operator.iadd, operator.imul)
        return named_so or bool(getattr(operation, "inplace", False)) or node.kwargs.get("inplace") is True
