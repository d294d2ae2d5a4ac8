"""Tracing with torch.fx: one graph that holds in training and in evaluation, or an error that says why."""

from __future__ import annotations

import copy
import inspect
from itertools import zip_longest
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from octvideo.octave.ordinary import CONVS

# Of pytorchvideo, fvcore and timm; parameter-free and element-wise.
ACTIVATIONS_BY_NAME = (
    "Swish", "SwishMe", "SwishJit", "MishMe", "MishJit", "HardSwish", "HardSwishMe", "HardSwishJit", "HardMish",
    "HardMishMe", "HardSigmoid", "HardSigmoidMe", "HardSigmoidJit", "GELUTanh", "QuickGELU",
)  # fmt: skip

# timm's, which pad by TensorFlow's rule: they compute with the map's size.
SAME_POOLS = ("MaxPool2dSame", "AvgPool2dSame")

# Kept as modules while tracing: what they do depends on .training, which a trace would freeze. By name, since
# timm, torchvision and pytorchvideo each have their own.
_MODE_DEPENDENT = ("Dropout", "DropPath", "StochasticDepth", "DropBlock")
# Functions that are told .training, and the modules that know it.
_DROPOUTS: dict[Any, Any] = {
    F.dropout: nn.Dropout,
    F.dropout1d: nn.Dropout1d,
    F.dropout2d: nn.Dropout2d,
    F.dropout3d: nn.Dropout3d,
    F.alpha_dropout: nn.AlphaDropout,
    F.feature_alpha_dropout: nn.FeatureAlphaDropout,
}


class Constant(nn.Module):
    """A tensor that the ordinary network makes in its forward pass: in no state, but as `.to()` makes the network."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value

    def forward(self) -> Tensor:
        return self.value.clone()  # may be changed in place

    def _apply(self, fn: Any, recurse: bool = True) -> Constant:
        self.value = self.value.to(fn(self.value))  # of its result the device and precision alone
        return super()._apply(fn, recurse)  # type: ignore[return-value]


class _Tracer(fx.Tracer):
    """torch.fx with mode-dependent modules as leaves, remembering where a trace failed."""

    proxy_buffer_attributes = True  # what is computed from a buffer follows weights that are loaded later

    # Unpickling gives no arguments.
    def __init__(
        self, leaves: tuple[type[nn.Module], ...] = (), pathways: int = 0, shuffles: tuple[Any, ...] = ()
    ) -> None:
        super().__init__(autowrap_functions=shuffles)
        self._leaves, self._pathways = leaves, pathways
        self.failed_in: str | None = None

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, self._leaves):
            return True
        if type(m) is nn.Identity:  # may carry a list of pathways, which a node cannot
            return False
        if any(name in type(m).__name__ for name in _MODE_DEPENDENT) and not holds_conv(m):
            return True
        if isinstance(m, CONVS) and not hasattr(m, "set_octave"):  # of any class: see conv_form.py
            return True
        if is_norm(m) or is_activation(m) or type(m).__name__ in SAME_POOLS:
            return True
        return super().is_leaf_module(m, module_qualified_name)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        """The network's inputs; a list of pathways is one input that is indexed.

        Arguments that may be left out, the first excepted, are: a trace would take `mask is None` for False.
        """
        parameters = inspect.signature(inspect.unwrap(root_fn)).parameters
        function, args = super().create_args_for_root(root_fn, is_module, concrete_args)
        for n, proxy in enumerate(args[2:], 2):
            parameter = parameters[proxy.node.target.lstrip("*")]
            nothing: dict[Any, Any] = {parameter.VAR_POSITIONAL: (), parameter.VAR_KEYWORD: {}}
            default = nothing.get(parameter.kind, parameter.default)
            if default is not parameter.empty:
                args[n] = default
                self.graph.erase_node(proxy.node)
        if self._pathways:
            args[1] = [args[1][n] for n in range(self._pathways)]
        return function, args

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        try:
            if isinstance(m, torch.jit.ScriptModule) and not self.is_leaf_module(m, ""):
                raise ValueError("torch.fx cannot read TorchScript; give the network from before torch.jit")
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.failed_in = self.failed_in or self.path_of_module(m)
            raise


def holds_conv(module: nn.Module) -> bool:
    """Whether a convolution is in it: then it is a block, whatever its class is named after."""
    return any(isinstance(part, CONVS) for part in module.modules())


def is_norm(module: nn.Module) -> bool:
    """Whether `module` is one normalisation layer (timm's may hold their activation), by its class's name."""
    own = next(module.parameters(recurse=False), None) is not None or isinstance(module, _BatchNorm)
    return "Norm" in type(module).__name__ and own and not holds_conv(module)


def is_activation(module: nn.Module) -> bool:
    """Whether `module` is an activation of another library with its own gradient, which a trace would lose."""
    return type(module).__name__ in ACTIVATIONS_BY_NAME and not list(module.children())


def computed_tensors(model: nn.Module) -> dict[int, Tensor]:
    """A memo for copies: copy.deepcopy refuses what hooks compute at each call (torch.nn.utils.weight_norm)."""
    held = (value for module in model.modules() for value in vars(module).values())
    return {id(v): v.detach().clone() for v in held if isinstance(v, Tensor) and not v.is_leaf}


def count_pathways(model: nn.Module) -> int:
    """How many tensors the list holds that `model` takes (pytorchvideo's SlowFast), 0 where it takes a tensor."""
    blocks = getattr(model, "blocks", None)
    first = blocks[0] if type(model).__name__ == "Net" and isinstance(blocks, nn.ModuleList) else model
    return len(first.multipathway_blocks) if type(first).__name__ == "MultiPathWayWithFuse" else 0  # type: ignore


def trace_network(model: nn.Module, leaves: tuple[type[nn.Module], ...]) -> fx.Graph:
    """The graph of `model`, which is the same in training and in evaluation.

    Args:
        model: is given a module for each dropout function that follows its mode; modes stay what they are.
        leaves: module classes to keep whole.

    Raises:
        ValueError: if torch.fx cannot trace the network, or it computes something else in training.
    """
    modes = [(module, module.training) for module in model.modules()]
    shared: dict[int, Any] = {id(tensor): tensor for tensor in _state(model).values()}
    twin = copy.deepcopy(model, shared).eval()
    try:
        graph, scopes = _trace(model.train(), leaves)
        in_evaluation, scopes_in_evaluation = _trace(twin, leaves)
    finally:
        for module, training in modes:
            module.training = training
    dropouts = []
    for node, other in zip_longest(graph.nodes, in_evaluation.nodes):
        if node is not None and other is not None:
            if _call(node) == _call(other) and _equal(_made_tensor(node, model), _made_tensor(other, twin)):
                continue
            if node.target in _DROPOUTS and _call(node, but="training") == _call(other, but="training"):
                dropouts.append(node)
                continue
        # The longer trace has what the other lacks.
        longer = len(graph.nodes) >= len(in_evaluation.nodes)
        first, known = (node, scopes) if longer else (other, scopes_in_evaluation)
        where, kind = known.get(str(first), ("", None))
        kind = kind or type(model)  # torch.fx names no class for the network itself
        name, whole = kind.__name__, f"keep the class whole with leaf_modules=[{kind.__name__}]"
        whole = "move it out of the network" if _holds_all(model, kind) else whole
        raise ValueError(
            f"octavize cannot convert {where or 'the network itself'} ({name}): in training it "
            f"computes something else than in evaluation, or at random, from {first} on, and a trace would keep "
            f"one of the two. Switch that off, or {whole}"
        )
    for node in dropouts:
        options = {key: value for key, value in node.kwargs.items() if key != "training"}
        replace_by_module(model, graph, node, _DROPOUTS[node.target](**options), node.args)  # type: ignore[arg-type]
    for node in list(graph.nodes):
        if (made := _made_tensor(node, model)) is not None:
            replace_by_module(model, graph, node, Constant(made), ())
    return graph


def _trace(model: nn.Module, leaves: tuple[type[nn.Module], ...]) -> tuple[fx.Graph, dict[str, Any]]:
    # Kept whole, by name: ShuffleNets each have their own.
    found = (
        getattr(getattr(type(m), "forward", None), "__globals__", {}).get("channel_shuffle") for m in model.modules()
    )
    tracer = _Tracer(leaves, count_pathways(model), tuple({function for function in found if function is not None}))
    state = _state(model)
    try:
        graph = tracer.trace(model)
    except Exception as error:
        where = tracer.failed_in or "the network itself"
        module = dict(model.named_modules()).get(tracer.failed_in or "", model)
        name = type(module).__name__
        advice = f"Keep that class whole with leaf_modules=[{name}]; it then takes and gives ordinary tensors"
        if _holds_all(model, type(module)):
            advice = "Change that code, or convert a part of the network: kept whole, it would leave nothing to convert"
        raise ValueError(f"octavize cannot trace {where} ({name}): {error}. {advice}") from error
    after = _state(model)
    if replaced := [name for name, value in state.items() if value is not after.get(name)]:
        raise ValueError(
            "octavize cannot convert this network: its forward pass puts another tensor in the place of "
            f"{replaced[0]}, which a trace does once; change it in place, as copy_ does"
        )
    for node in graph.nodes:
        if isinstance(node.type, str):  # where annotations are postponed; torch 2.6 cannot pickle it
            node.type = None
    return graph, tracer.node_name_to_scope


def _state(model: nn.Module) -> dict[str, Tensor]:
    return dict([*model.named_parameters(), *model.named_buffers()])


def _holds_all(model: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether modules of a class are the network itself, or hold all its convolutions."""
    whole = [module for module in model.modules() if isinstance(module, kind)]
    convs = {module for module in model.modules() if isinstance(module, CONVS)}
    return model in whole or (bool(convs) and convs <= {part for module in whole for part in module.modules()})


def _call(node: fx.Node, *, but: str = "") -> tuple[Any, ...]:
    """What a node does, comparable between two traces of one network."""
    kwargs = {key: value for key, value in node.kwargs.items() if key != but}
    return node.op, node.target, repr(node.args), repr(kwargs)


def _made_tensor(node: fx.Node, model: nn.Module) -> Tensor | None:
    """What a node reads, if that is a tensor that the forward pass made: no parameter and no buffer."""
    if node.op != "get_attr":
        return None
    path, _, name = str(node.target).rpartition(".")
    owner = model.get_submodule(path)
    return None if name in owner._parameters or name in owner._buffers else getattr(owner, name)


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b or (a is not None and b is not None and torch.equal(a, b))


def replace_by_module(
    model: nn.Module, graph: fx.Graph, node: fx.Node, module: nn.Module, inputs: tuple[fx.Node, ...]
) -> fx.Node:
    """Let a module without parameters compute what a node did; returns its call."""
    with graph.inserting_before(node):
        replacement = graph.call_module(add_operation(model, node.name, module), inputs)
    replacement.meta = dict(node.meta)  # where it was traced
    node.replace_all_uses_with(replacement)
    graph.erase_node(node)
    return replacement


def add_operation(model: nn.Module, name: str, module: nn.Module) -> str:
    """Hang a parameter-free module into the network under octave_ops; returns its path."""
    if not hasattr(model, "octave_ops"):
        model.add_module("octave_ops", nn.Module().train(model.training))
    module.train(model.training)
    model.octave_ops.add_module(name, module)  # type: ignore[union-attr, operator]
    return f"octave_ops.{name}"
