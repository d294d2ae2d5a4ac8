"""`prepare_inference`: a copy of a network that only computes scores, with everything done ahead that can be."""

from __future__ import annotations

import copy
import operator
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from octvideo.octave.arrange import arrange
from octvideo.octave.layer import OctaveLayer
from octvideo.octave.modules import OctAdd, OctMap
from octvideo.octave.norms import OctBatchNormAct2d
from octvideo.octave.trace import trace_network

_ADDITIONS = (operator.add, operator.iadd, torch.add)


def prepare_inference(network: nn.Module) -> nn.Module:
    """A copy of `network` for inference: the same scores to rounding, in less time.

    Batch norms go into the convolutions before them, ordinary and octave alike; convolutions and pools take
    the forms of octvideo/octave/arrange.py, with octave weights cut beforehand; activations and residual
    additions overwrite what nobody else reads. The copy has no gradients and other keys; give it
    channels-last clips.

    Args:
        network: any; not changed. One that torch.fx cannot trace keeps its batch norms and is only arranged.

    Returns:
        A module with the network's inputs and outputs, in eval mode.
    """
    model = copy.deepcopy(network).eval().requires_grad_(False)
    traced = _traced(model)
    if traced is not None:
        model = traced
        modules = dict(model.named_modules())
        _fold_norms(model, modules)
        _write_in_place(model, modules)
        model.graph.lint()
        model.recompile()
    for module in model.modules():
        if isinstance(module, OctaveLayer):
            module.cut_weights()
    return arrange(model)


def _traced(model: nn.Module) -> fx.GraphModule | None:
    if isinstance(model, fx.GraphModule):
        return model
    try:
        return fx.GraphModule(model, trace_network(model, ()))
    except ValueError:
        return None


def _fold_norms(model: fx.GraphModule, modules: dict[str, nn.Module]) -> None:
    """Let each convolution that a batch norm alone reads do the norm's work."""
    calls = [node.target for node in model.graph.nodes if node.op == "call_module"]
    for node in list(model.graph.nodes):
        norm = modules.get(str(node.target)) if node.op == "call_module" else None
        if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or norm.running_mean is None:
            continue
        source = node.args[0]
        conv = modules.get(str(source.target)) if source.op == "call_module" else None
        foldable = isinstance(conv, nn.Conv1d | nn.Conv2d | nn.Conv3d) and len(source.users) == 1
        if not foldable or calls.count(source.target) > 1 or calls.count(node.target) > 1:
            continue
        assert isinstance(conv, nn.modules.conv._ConvNd) and norm.running_var is not None
        conv.weight, conv.bias = fuse_conv_bn_weights(  # type: ignore[assignment]
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        activation = _activation(norm)
        if activation is None:
            node.replace_all_uses_with(source)
            model.graph.erase_node(node)
        else:
            model.set_submodule(str(node.target), activation)
            modules[str(node.target)] = activation


def _activation(norm: nn.Module) -> nn.Module | None:
    """What timm's norms do after normalising; dropout does nothing here."""
    act: Any = getattr(norm, "act", None)
    if act is None or isinstance(act, nn.Identity):
        return None
    return OctMap(act) if isinstance(norm, OctBatchNormAct2d) and norm.partition.low else act


def _write_in_place(model: fx.GraphModule, modules: dict[str, nn.Module]) -> None:
    """Let ReLUs and residual additions overwrite a result that nobody else reads: fewer large maps to allocate."""

    def is_fresh(node: Any) -> bool:
        """Whether `node` makes a tensor of its own, which one operation reads."""
        if not isinstance(node, fx.Node) or len(node.users) != 1:
            return False
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        return isinstance(module, nn.modules.conv._ConvNd | OctAdd) or node.target in _ADDITIONS

    calls = [node.target for node in model.graph.nodes if node.op == "call_module"]
    for node in model.graph.nodes:
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        relu = module.module if isinstance(module, OctMap) else module
        if isinstance(relu, nn.ReLU):
            if calls.count(node.target) == 1 and is_fresh(node.args[0]):
                relu.inplace = True
        elif isinstance(module, OctAdd) or node.target in _ADDITIONS:
            if len(node.args) != 2 or node.kwargs or not all(isinstance(arg, fx.Node) for arg in node.args):
                continue
            if is_fresh(node.args[1]) and not is_fresh(node.args[0]):
                node.args = node.args[::-1]  # what is overwritten comes first
            if not is_fresh(node.args[0]):
                continue
            if isinstance(module, OctAdd):
                module.inplace = True
            else:
                node.target = operator.iadd
