"""Convolutions of another weight than their parameter, or with TensorFlow's padding: subclasses of torch's.

timm's StdConv2d, ScaledStdConv2d and Conv2dSame are such, and many others: a class is taken for what its `forward` is
seen to do, not by name. Only `pad_same`, which computes with the map's size, is known by name.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from octvideo.octave.factor import octave_problem
from octvideo.octave.ordinary import CONVS, ORDINARY, ConvForm, is_conv, pad_same

CONV_FUNCTIONS: tuple[Any, ...] = (F.conv1d, F.conv2d, F.conv3d)


_found: weakref.WeakKeyDictionary[nn.Module, ConvForm | None] = weakref.WeakKeyDictionary()


def conv_form(module: nn.Module | None) -> ConvForm | None:
    """The form of a convolution; None of what is none, or computes more than one."""
    if is_conv(module):
        return ORDINARY
    if not isinstance(module, CONVS):
        return None
    if hasattr(module, "set_octave"):
        return module.form  # type: ignore[return-value]
    if module not in _found:
        _found[module] = _read_form(module)
    return _found[module]


def why_ordinary(conv: nn.modules.conv._ConvNd, factor: Sequence[int] | None = None) -> str | None:
    """Why a convolution of any class can't be octave, or None where it can: see `octave_problem`."""
    form = conv_form(conv)
    return octave_problem(conv, factor, is_same=form is not None and form.is_same)


def make_weight_once(module: nn.Module) -> None:
    """For inference: let a convolution keep the weight that it makes, if torch's class or ours computes the rest."""
    form = conv_form(module)
    if form is None or form.make_weight is None or (form.is_same and not hasattr(module, "set_octave")):
        return
    module.weight = nn.Parameter(form.weight(module).detach(), requires_grad=False)
    if hasattr(module, "set_octave"):
        module.form = replace(form, make_weight=None)  # type: ignore[assignment]
    else:
        module.__class__ = next(conv for conv in CONVS if isinstance(module, conv))


def _read_form(conv: nn.Module) -> ConvForm | None:
    pad = getattr(type(conv).forward, "__globals__", {}).get("pad_same")
    tracer = fx.Tracer(autowrap_functions=() if pad is None else (pad,), param_shapes_constant=True)
    graphs = []
    for training in (True, False):
        try:
            twin = copy.copy(conv)  # a trace may set attributes
            twin.training = training
            graphs.append(tracer.trace(twin))
        except Exception:  # of a parametrized module, or whatever a forward raises that computes with a Proxy
            return None
    return _form(conv, graphs[0], pad) if str(graphs[0]) == str(graphs[1]) else None


def _form(conv: Any, graph: fx.Graph, pad: Any) -> ConvForm | None:
    """What a traced `forward` does, if that is one convolution of its input."""
    x, *nodes, output = graph.nodes
    call: Any = output.args[0]
    if call not in nodes or call.target not in CONV_FUNCTIONS or len(x.users) != 1:
        return None
    given = {**_DEFAULTS, **dict(zip(_DEFAULTS, call.args, strict=False)), **call.kwargs}
    source, weight, bias, *sizes = given.values()
    own = [conv.stride, conv.padding, conv.dilation, conv.groups]
    axes = len(conv.kernel_size)
    if [_each(size, axes) for size in sizes] != [_each(size, axes) for size in own]:
        return None
    is_same = source in nodes and source.target is pad
    if is_same:
        sizes = [conv.kernel_size, conv.stride, conv.dilation]
        example = torch.ones(1, 1, *range(8, 8 + axes), device="cpu")
        alike = torch.equal(pad(example, *sizes), pad_same(example, *sizes))
        if not alike or any(conv.padding) or [_each(arg, axes) for arg in source.args[1:]] != sizes or source.kwargs:
            return None
    makes = [node for node in nodes if node not in (call, source, bias)]
    state = {*dict(conv.named_parameters()), *dict(conv.named_buffers())}
    plain = all(node.op in ("call_function", "call_method") or node.target in state for node in makes)
    own_bias = bias is None if conv.bias is None else bias in nodes and bias.target == "bias"
    if not plain or not own_bias or (source.args[0] if is_same else source) is not x:
        return None
    if weight.target == "weight":
        return ConvForm(is_same=is_same)
    making, copies = fx.Graph(), {}
    for node in sorted(makes, key=lambda node: node.op != "get_attr"):  # a graph's inputs come first
        if node.op == "get_attr":
            copies[node] = making.placeholder(node.name)
        else:
            copies[node] = making.node_copy(node, copies.__getitem__)
    making.output(copies[weight])
    reads = tuple(str(node.target) for node in makes if node.op == "get_attr")
    return ConvForm(fx.GraphModule(nn.Module(), making, "Weight"), reads, is_same)


_DEFAULTS = {"input": None, "weight": None, "bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}


def _each(value: Any, axes: int) -> Any:
    return (value,) * axes if isinstance(value, int) else tuple(value) if isinstance(value, list | tuple) else value
