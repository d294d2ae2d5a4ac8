"""`octavize`: an existing network, made octave without touching its code or the keys of its state_dict."""

from __future__ import annotations

import copy
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from octvideo.octave.conv import Downsample, OctConv1d, OctConv2d, OctConv3d, octave_problem
from octvideo.octave.modules import (
    OctAdd,
    OctBatchNorm1d,
    OctBatchNorm2d,
    OctBatchNorm3d,
    OctCat,
    OctFunction,
    OctMap,
    OctMerge,
)
from octvideo.octave.partition import Partition
from octvideo.octave.roles import CONVS, changes_in_place, parts_of
from octvideo.octave.solve import PartitionSolver, Solution
from octvideo.octave.trace import add_operation, trace_network

_OCTAVE_CLASS: dict[type[nn.Module], Any] = {
    nn.Conv1d: OctConv1d,
    nn.Conv2d: OctConv2d,
    nn.Conv3d: OctConv3d,
    nn.BatchNorm1d: OctBatchNorm1d,
    nn.BatchNorm2d: OctBatchNorm2d,
    nn.BatchNorm3d: OctBatchNorm3d,
}


@dataclass(frozen=True)
class OctaveReport:
    """What `octavize` did: each convolution's real low shares; what merged or stayed ordinary, and why."""

    layers: dict[str, tuple[float, float]]  # path -> (alpha in, alpha out)
    merged: dict[str, str]  # path -> reason

    def __str__(self) -> str:
        lines = [f"{path}: alpha {a_in:.3g} -> {a_out:.3g}" for path, (a_in, a_out) in self.layers.items()]
        return "\n".join(lines + [f"{path}: {reason}" for path, reason in self.merged.items()])


class OctaveNetwork(fx.GraphModule):
    """What `octavize` returns: a GraphModule that pickles and copies with `meta` and unread parameters."""

    @property
    def octave_report(self) -> OctaveReport:
        """What became octave and what could not."""
        return self.meta["octave"]

    def __reduce__(self) -> tuple[Any, ...]:
        rebuild, args = super().__reduce__()
        return _restore, (rebuild, args, self.meta)

    def __deepcopy__(self, memo: dict[int, Any]) -> OctaveNetwork:
        network = super().__deepcopy__(memo)
        _keep_unused_state(self, network, memo)
        return network  # type: ignore[return-value]


def _restore(rebuild: Any, args: tuple[Any, ...], meta: dict[str, Any]) -> OctaveNetwork:
    plain = rebuild(*args)
    network = OctaveNetwork(plain, plain.graph, "OctaveNetwork")
    _keep_unused_state(plain, network)
    network.meta.update(meta)
    return network


def octavize(
    model: nn.Module,
    alpha: float | Mapping[str, float],
    *,
    downsample: Downsample = "stride",
    leaf_modules: Sequence[type[nn.Module]] = (),
) -> OctaveNetwork:
    """A new network that computes `model` with part of its channels at half resolution.

    Its state_dict has the keys and shapes of the ordinary network's, so either loads the other's weights at
    any alpha. At alpha = 0 (and downsample="stride") its outputs are equal bit for bit. It shares nothing
    with `model`, pickles, deep-copies and switches between train and eval. Weights trained at another alpha
    need fine-tuning.

    Args:
        model: a network that torch.fx can trace; not changed.
        alpha: the low share of every convolution's output, those that read the network's input excepted (the
            stem); or a mapping from module path prefixes to shares, the longest matching prefix deciding and
            0 elsewhere.
        downsample: "pool" makes every strided convolution behind the stem pool first and then convolve with
            stride 1, as the paper's networks do, also where its alphas are 0; "stride" leaves the latter as
            they are.
        leaf_modules: module classes to keep whole (they take and give ordinary tensors), for code that cannot
            be traced.

    Returns:
        A torch.fx GraphModule; `octave_report` says what became octave and what could not.

    Raises:
        ValueError: if an alpha is outside [0, 1], a prefix matches nothing, the network cannot be traced, or
            it computes something else in training than in evaluation.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1),
        ...                     nn.ReLU(), nn.Conv2d(8, 4, 1))
        >>> octavize(net, 0.5).octave_report.layers["2"]
        (0.0, 0.5)
    """
    if downsample not in ("stride", "pool"):
        raise ValueError(f"downsample: got {downsample!r}, expected 'stride' or 'pool'")
    model = copy.deepcopy(model)
    graph = trace_network(model, tuple(leaf_modules))
    modules = dict(model.named_modules())
    wanted = _wanted_alpha(alpha, graph, modules)
    solution = PartitionSolver(graph, modules, wanted).solve()
    layers = _rewrite(model, graph, modules, solution, downsample)
    network = OctaveNetwork(model, graph, type(model).__name__)
    _keep_unused_state(model, network)
    network.meta["octave"] = OctaveReport(layers, solution.merged)
    return network


def _reads_input(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a convolution reads the network's input: as it is, or what layers without parameters take from it."""
    source = node.all_input_nodes[0]
    while source.op != "placeholder":
        # Modules that are not in the table are operations on pairs, which have no parameters either.
        module = modules.get(str(source.target), nn.Identity()) if source.op == "call_module" else None
        chosen = source.target is operator.getitem or (module is not None and not list(module.parameters()))
        if not chosen or len(source.all_input_nodes) != 1:
            return False
        source = source.all_input_nodes[0]
    return True


def _wanted_alpha(alpha: float | Mapping[str, float], graph: fx.Graph, modules: dict[str, nn.Module]) -> Any:
    shares = dict(alpha) if isinstance(alpha, Mapping) else {"": float(alpha)}
    calls = {str(node.target): modules[str(node.target)] for node in graph.nodes if node.op == "call_module"}
    convs = [path for path, module in calls.items() if isinstance(module, CONVS)]

    def matches(path: str, prefix: str) -> bool:
        return prefix == "" or path == prefix or path.startswith(prefix + ".")

    for prefix, share in shares.items():
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"octavize: alpha of {prefix or 'the network'!r} is {share}, expected 0 <= alpha <= 1")
        if prefix and not any(matches(path, prefix) for path in convs):
            raise ValueError(
                f"octavize: no convolution of this network is called {prefix!r} or lies in it; it has {convs[:4]} ..."
            )

    def wanted(node: fx.Node) -> float:
        prefixes = [prefix for prefix in shares if matches(str(node.target), prefix)]
        if not prefixes or (not isinstance(alpha, Mapping) and _reads_input(node, modules)):
            return 0.0
        return shares[max(prefixes, key=len)]

    return wanted


def _rewrite(
    model: nn.Module,
    graph: fx.Graph,
    modules: dict[str, nn.Module],
    solution: Solution,
    downsample: Downsample,
) -> dict[str, tuple[float, float]]:
    """Change modules and graph to what was solved; returns the convolutions that became octave."""
    layers: dict[str, tuple[float, float]] = {}
    calls = [str(node.target) for node in graph.nodes if node.op == "call_module"]
    merges: dict[fx.Node, fx.Node] = {}
    for node in list(graph.nodes):
        role, out = solution.roles[node], solution.partition(node)
        changed = node.all_input_nodes[0] if changes_in_place(node, modules) else None
        if role == "conv":
            layers.update(_convert_conv(node, modules, solution, downsample))
        elif role == "tensor" or out is None:
            if role == "tensor" and node.op == "call_module":
                _pool_ordinary(node, modules, downsample)
            for source in list(node.all_input_nodes):
                partition = solution.partition(source)
                if partition is not None:
                    if source not in merges:
                        merges[source] = _insert_merge(model, graph, source, partition, reader=node)
                    node.replace_input_with(source, merges[source])
        elif role == "norm":
            _retype(modules[str(node.target)], out)
        else:
            once = calls.count(str(node.target)) == 1
            new = _convert_operation(model, graph, node, modules, role, once=once)
            solution.partitions[new] = out
        if changed is not None:
            merges.pop(changed, None)  # made before the change
    graph.lint()
    return layers


def _retype(module: nn.Module, *partitions: Partition, **options: Any) -> None:
    """Turn an ordinary layer into its octave subclass in place: parameters, hooks and mode stay."""
    if type(module) in _OCTAVE_CLASS:
        module.__class__ = _OCTAVE_CLASS[type(module)]
    module.set_octave(*partitions, **options)  # type: ignore[operator]


def _convert_conv(
    node: fx.Node, modules: dict[str, nn.Module], solution: Solution, downsample: Downsample
) -> dict[str, tuple[float, float]]:
    path, conv = str(node.target), modules[str(node.target)]
    assert isinstance(conv, nn.modules.conv._ConvNd)
    p_in = solution.partition(node.all_input_nodes[0]) or Partition((False,) * conv.in_channels)
    p_out = solution.partition(node) or Partition((False,) * conv.out_channels)
    if p_in.is_ordinary and p_out.is_ordinary:
        _pool_ordinary(node, modules, downsample)
        return {}
    _retype(conv, p_in, p_out, downsample=downsample)
    return {path: (p_in.alpha, p_out.alpha)}


def _pool_ordinary(node: fx.Node, modules: dict[str, nn.Module], downsample: Downsample) -> None:
    """Let a strided ordinary convolution pool first, where asked and possible; the stem stays as it is."""
    conv = modules[str(node.target)]
    if downsample == "stride" or not isinstance(conv, CONVS) or type(conv) not in CONVS or _reads_input(node, modules):
        return
    if octave_problem(conv) is None and any(int(s) == 2 for s in conv.stride[-2:]):
        none_in, none_out = (Partition((False,) * n) for n in (conv.in_channels, conv.out_channels))
        _retype(conv, none_in, none_out, downsample="pool")


def _convert_operation(
    model: nn.Module, graph: fx.Graph, node: fx.Node, modules: dict[str, nn.Module], role: str, *, once: bool
) -> fx.Node:
    """Replace an activation, addition or concatenation by the module that does it on a pair."""
    inputs = tuple(node.all_input_nodes)
    if role == "map":
        wrapped = OctMap(modules[str(node.target)])
        if once:
            model.set_submodule(str(node.target), wrapped)
        else:  # shared with places where the value is ordinary
            node.target = add_operation(model, node.name, OctMap(copy.deepcopy(wrapped.module)))
        return node
    new: nn.Module
    if role == "add":
        new, inputs = OctAdd(), (node.args[0], node.args[1])  # type: ignore[assignment]
    elif role == "cat":
        new, inputs = OctCat(), parts_of(node)
    else:
        function = getattr(torch.Tensor, str(node.target)) if node.op == "call_method" else node.target
        new = OctFunction(function, *node.args[1:], **node.kwargs)  # type: ignore[arg-type]
    with graph.inserting_before(node):
        replacement = graph.call_module(add_operation(model, node.name, new), inputs)
    node.replace_all_uses_with(replacement)
    graph.erase_node(node)
    return replacement


def _insert_merge(
    model: nn.Module, graph: fx.Graph, source: fx.Node, partition: Partition, *, reader: fx.Node
) -> fx.Node:
    # Before the reader, not after the source: an in-place activation may lie between.
    with graph.inserting_before(reader):
        path = add_operation(model, f"merge_{source.name}", OctMerge(partition))
        return graph.call_module(path, (source,))


def _keep_unused_state(model: nn.Module, network: nn.Module, memo: dict[int, Any] | None = None) -> None:
    """Give `network` the parameters that its forward pass never reads, or reads under another name.

    They are part of the state_dict too. With a memo they are deep copies, else the same tensors.
    """
    persistent = model.state_dict(keep_vars=True).keys()
    parameters = model.named_parameters(remove_duplicate=False)
    for path, value in [*parameters, *model.named_buffers(remove_duplicate=False)]:
        parent_path, _, name = path.rpartition(".")
        parent: nn.Module = network
        for part in parent_path.split(".") if parent_path else []:
            if not hasattr(parent, part):
                parent.add_module(part, nn.Module())
            parent = getattr(parent, part)
        if not hasattr(parent, name):
            value = value if memo is None else copy.deepcopy(value, memo)
            if isinstance(value, nn.Parameter):
                parent.register_parameter(name, value)
            else:
                parent.register_buffer(name, value, persistent=path in persistent)
