"""Changes the modules and the graph of a traced network to what was solved for it."""

from __future__ import annotations

import copy
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils.parametrize import is_parametrized

from octvideo.octave.conversion.conv_form import conv_form, why_ordinary
from octvideo.octave.conversion.modules import (
    Method,
    OctCat,
    OctDropPath,
    OctGate,
    OctMap,
    OctMerge,
    OctPool,
    OctShape,
    OctSqueeze,
    OctTake,
)
from octvideo.octave.conversion.roles import (
    ADDITIONS,
    NORMS,
    Network,
    changes_in_place,
    holds_activation,
    mean_dims,
    operand_nodes,
    parts_of,
    pool_module,
    shuffle_groups,
    slice_range,
)
from octvideo.octave.conversion.solve import Solution
from octvideo.octave.conversion.trace import add_operation, replace_by_module
from octvideo.octave.conversion.value_classes import reads_input
from octvideo.octave.factor import Factor, as_factor
from octvideo.octave.layer import OctaveLayer
from octvideo.octave.norms import OctBatchNorm1d, OctBatchNorm2d, OctBatchNorm3d, OctBatchNormAct2d
from octvideo.octave.partition import Partition
from octvideo.octave.paths import Downsample, Exchange, OctaveDownsample

Classes = Mapping[type[nn.Module], Any]  # of ordinary layers, to their octave ones
_NORMS: Classes = dict(zip(NORMS, (OctBatchNorm1d, OctBatchNorm2d, OctBatchNorm3d), strict=True))


@dataclass(frozen=True)
class Settings:
    """How octave layers work, the same for a whole network; see `octavize`."""

    downsample: Downsample = "stride"
    octave_downsample: OctaveDownsample = "pool"
    exchange: Exchange = "both"
    factor: Factor | None = None


class Rewriter:
    """Makes `model` and its graph octave, in place; `convs` has the classes of its convolutions.

    Attributes:
        layers: of each convolution that became octave, its low shares in and out.
        costs: likewise, its share of the multiply-adds.
    """

    def __init__(
        self, model: nn.Module, traced: Network, solution: Solution, settings: Settings, convs: Classes
    ) -> None:
        self.classes: Classes = {**convs, **_NORMS}
        self.model, self.traced, self.solution, self.settings = model, traced, solution, settings
        self.graph, self.factor = traced.graph, traced.factor
        self.merges: dict[fx.Node, fx.Node] = {}
        self.layers: dict[str, tuple[float, float]] = {}
        self.costs: dict[str, float] = {}

    def run(self) -> None:
        """Changes every operation that is to work on a pair."""
        calls = [str(node.target) for node in self.graph.nodes if node.op == "call_module"]
        for node in list(self.graph.nodes):
            role, out = self.solution.roles[node], self.solution.partition(node)
            changed = node.all_input_nodes[0] if changes_in_place(node, self.traced) else None
            if role == "conv":
                self._convert_conv(node)
            elif role in ("squeeze", "shape"):
                self._convert_reader(node)
            elif role == "slice":
                self._convert_slice(node, out)
            elif role == "chunk":
                continue
            elif role == "tensor" or out is None:
                self._pool_ordinary(node)
                for source in list(node.all_input_nodes):
                    self._merge_before(node, source)
            elif role == "norm":
                _retype(self.traced.modules[str(node.target)], self.classes, out)
            else:
                new = self._convert_operation(node, role, out, once=calls.count(str(node.target)) == 1)
                self.solution.partitions[new] = out
            if changed is not None:
                self.merges.pop(changed, None)  # made before the change
        self.graph.lint()

    # -- convolutions ----------------------------------------------------------------------------------------

    def _convert_conv(self, node: fx.Node) -> None:
        path, conv = str(node.target), self.traced.modules[str(node.target)]
        assert isinstance(conv, nn.modules.conv._ConvNd)
        p_in = self.solution.partition(node.all_input_nodes[0]) or Partition((False,) * conv.in_channels)
        p_out = self.solution.partition(node) or Partition((False,) * conv.out_channels)
        if p_in.is_ordinary and p_out.is_ordinary:
            self._pool_ordinary(node)
            return
        self._set_octave(conv, p_in, p_out)
        self.layers[path] = (p_in.alpha, p_out.alpha)
        self.costs[path] = conv_cost_ratio(conv)  # type: ignore[arg-type]

    def _pool_ordinary(self, node: fx.Node) -> None:
        """Let a strided ordinary convolution pool first, where asked and possible; the stem stays as it is."""
        conv = self.traced.module(node)
        if self.settings.downsample == "stride" or conv_form(conv) is None or reads_input(node, self.traced):
            return
        assert isinstance(conv, nn.modules.conv._ConvNd)
        halved = zip(conv.stride, as_factor(self.factor, len(conv.stride)), strict=True)
        if why_ordinary(conv, self.factor) is None and any(stride == 2 and f == 2 for stride, f in halved):
            none_in, none_out = (Partition((False,) * n) for n in (conv.in_channels, conv.out_channels))
            self._set_octave(conv, none_in, none_out)

    def _set_octave(self, conv: nn.modules.conv._ConvNd, p_in: Partition, p_out: Partition) -> None:
        _retype(conv, self.classes, p_in, p_out, **(vars(self.settings) | {"factor": self.factor}))

    # -- operations ------------------------------------------------------------------------------------------

    def _convert_operation(self, node: fx.Node, role: str, out: Partition, *, once: bool) -> fx.Node:
        """Replace an activation, addition, pool, ... by the module that does it on a pair."""
        module = self.traced.module(node)
        if role in ("map", "drop") or (role == "pool" and module is not None):
            wrap = {"map": OctMap, "drop": OctDropPath}.get(role)
            source = module if once else copy.deepcopy(module)
            new = wrap(source) if wrap is not None else OctPool(source, self.factor)  # type: ignore[arg-type]
            new.training = source.training  # type: ignore[union-attr]
            if once:
                self.model.set_submodule(str(node.target), new)
            else:  # shared with places where the value is ordinary
                node.target = add_operation(self.model, node.name, new)
            return node
        inputs: tuple[fx.Node, ...] = operand_nodes(node)
        if role == "add" or role == "mul":
            new = OctMap(operator.add if role == "add" else operator.mul)
        elif role == "cat":
            new, inputs = OctCat(), parts_of(node)
        elif role == "gate":
            if self.solution.partition(inputs[0]) is None:
                inputs = inputs[::-1]
            operation = torch.add if node.target in ADDITIONS else torch.mul
            if node.op == "call_method":  # maybe in place
                operation = _function(node)
            new = OctGate(operation, out, self.factor)
        elif role == "shuffle":
            groups, inputs = shuffle_groups(node, self.traced), inputs[:1]
            order = torch.arange(out.num_channels).reshape(groups, -1).T.flatten().tolist()  # type: ignore[arg-type]
            new = OctTake(self.solution.partitions[inputs[0]], order)
        else:
            function = _function(node)
            if role == "function":
                others = [arg for arg in node.args if arg is not inputs[0]]  # of a product it may be the first
                new = OctMap(function, *_plain(others), **_plain(node.kwargs))
            else:
                new = OctPool(pool_module(node), self.factor)
        return replace_by_module(self.model, self.graph, node, new, inputs)

    def _convert_reader(self, node: fx.Node) -> None:
        """Let a global pool or a question for the size read the pair itself."""
        source = node.all_input_nodes[0]
        partition = self.solution.partition(source)
        if partition is None:
            return
        if any(other in self.solution.partitions for other in node.all_input_nodes[1:]):
            raise ValueError(f"octavize: {node.name} reads more than one Octave")  # no known operation does
        function, args, kwargs = _function(node), _plain(node.args[1:]), _plain(node.kwargs)
        if self.solution.roles[node] == "shape":
            replace_by_module(self.model, self.graph, node, OctShape(function, *args), (source,))
            return
        module = self.traced.module(node)
        squeeze = OctSqueeze(
            function if module is None else copy.deepcopy(module),
            *args,
            partition=partition,
            factor=self.factor,
            dims=mean_dims(node),
            **kwargs,
        )
        replace_by_module(self.model, self.graph, node, squeeze, (source,))

    def _convert_slice(self, node: fx.Node, out: Partition | None) -> None:
        """Let each part of a chunked pair be cut from the pair itself."""
        chunk = node.all_input_nodes[0]
        source = chunk.all_input_nodes[0]
        partition = self.solution.partition(source)
        if partition is None:
            return
        piece = OctTake(partition, range(*slice_range(node, partition.num_channels)))
        new = replace_by_module(self.model, self.graph, node, piece, (source,))
        if out is not None:
            self.solution.partitions[new] = out
        elif not piece.part.is_ordinary:  # nobody reads it as a pair
            users = list(new.users)
            self.solution.partitions[new] = piece.part
            for user in users:
                self._merge_before(user, new)
        if not chunk.users:
            self.graph.erase_node(chunk)

    def _merge_before(self, reader: fx.Node, source: fx.Node) -> None:
        partition = self.solution.partition(source)
        if partition is None:
            return
        if source not in self.merges:
            # Before the reader, not after the source: an in-place activation may lie between.
            with self.graph.inserting_before(reader):
                merge = OctMerge(partition, self.factor)
                path = add_operation(self.model, f"merge_{source.name}", merge)
                self.merges[source] = self.graph.call_module(path, (source,))
        reader.replace_input_with(source, self.merges[source])


def _function(node: fx.Node) -> Any:
    return Method(str(node.target)) if node.op == "call_method" else node.target


def _plain(value: Any) -> Any:
    """Arguments of a node as Python's own tuples, lists and dicts: torch.compile knows torch.fx's not."""
    if isinstance(value, tuple | list):
        return (list if isinstance(value, list) else tuple)(_plain(part) for part in value)
    return {key: _plain(part) for key, part in value.items()} if isinstance(value, dict) else value


def _retype(module: nn.Module, classes: Classes, *partitions: Partition | None, **options: Any) -> None:
    """Turn an ordinary layer into its octave subclass in place: parameters, hooks and mode stay."""
    if not hasattr(module, "set_octave"):  # one that is called twice has it already
        holds = isinstance(module, nn.BatchNorm2d) and holds_activation(module)
        ordinary = next(kind for kind in classes if isinstance(module, kind))
        if (form := conv_form(module)) is not None:
            module.form = form  # type: ignore[assignment]
        octave = OctBatchNormAct2d if holds else classes[ordinary]
        if is_parametrized(module):  # its class is its own, and computes the weight
            octave = type(f"Parametrized{octave.__name__}", (octave,), dict(vars(type(module))))
        module.__class__ = octave
    module.set_octave(*partitions, **options)  # type: ignore[operator]


def conv_cost_ratio(conv: OctaveLayer) -> float:
    """Multiply-adds of an octave convolution over the ordinary one's, where all sizes are even."""
    low = low_to_high = 1.0
    for f, stride in zip(conv.factor, conv.stride, strict=True):
        low /= f
        low_to_high /= f if stride == 1 else 1  # a strided layer's low input already has the size of its output
    paths = conv.paths
    shares = ((paths.hh, 1.0), (paths.hl, low), (paths.lh, low_to_high), (paths.ll, low))
    done = sum(path.num_connections * share for path, share in shares if path is not None)
    return done / (conv.out_channels * conv.in_channels // conv.groups)
