"""`prepare_inference`: a copy of a network that only computes scores, with everything done ahead that can be."""

from __future__ import annotations

import copy
import operator
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from octvideo.octave.conversion.conv_form import conv_form, make_weight_once
from octvideo.octave.conversion.modules import Method, OctGate, OctMap, OctPool, OctSqueeze
from octvideo.octave.conversion.trace import computed_tensors, trace_network
from octvideo.octave.fused.arrange import arrange
from octvideo.octave.fused.conv import PreparedConv, PreparedLayer, PreparedOctConv
from octvideo.octave.fused.light_operations import PreparedMean, PreparedOperation, PreparedScale, PreparedShift
from octvideo.octave.fused.patterns import TracedModules
from octvideo.octave.fused.sequence import FusedSequence
from octvideo.octave.fused.training import fuse_training, unfuse
from octvideo.octave.gpu.devices import runs_on
from octvideo.octave.kernel.formats import FORMATS
from octvideo.octave.kernel.fused_conv import MaxPool, has_format
from octvideo.octave.kernel.sequence import NO_VALUE
from octvideo.octave.layer import OctaveLayer
from octvideo.octave.norms import OctBatchNormAct2d
from octvideo.octave.ordinary import is_conv
from octvideo.octave.temporal_shift import TemporalShift

_PRODUCTS = (operator.mul, operator.imul, torch.mul, "mul", "mul_")
_MAKERS = (PreparedLayer, PreparedOperation, OctPool, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool2d, nn.AvgPool3d)


def prepare_inference(network: nn.Module, *, device: torch.device | str | None = None) -> nn.Module:
    """A copy of `network` for inference: the same scores to rounding, in less time.

    Batch norms are folded into the convolutions before them, ordinary and octave alike. These convolutions then take
    on the activation, a stem's max pool and the residual addition after them (octvideo/octave/fused/conv.py).
    Squeeze-excitation becomes a mean and a product, and the kernel does temporal shifts, too (light_operations.py). All
    else takes the forms of octvideo/octave/fused/arrange.py. The copy has no gradients and other keys; give it
    channels-last clips, one at a time where the processor's cache is small.

    For CUDA a network of `octavize` keeps its norms where that makes fewer passes: each does in one pass what lies
    between two convolutions (octvideo/octave/fused/training.py).

    Args:
        network: any; not changed. One that torch.fx cannot trace keeps its batch norms and is only arranged.
        device: that it will compute on, uncompiled; None: where its parameters are.

    Returns:
        A module with the network's inputs and outputs, in eval mode.

    Raises:
        ValueError: torch has no device of that name.
    """
    target = _device_of(network, device)
    model = copy.deepcopy(network, computed_tensors(network)).eval().requires_grad_(False)
    for module in model.modules():
        _fix_weights(module)
    unfuse(model)
    if target.type == "cuda" and runs_on(target):
        for module in model.modules():
            make_weight_once(module)
        report = fuse_training(model)
        if len(report.fused) > len(report.kept):
            return arrange(model)
        unfuse(model)
    return arrange(_prepare(model))


def _device_of(model: nn.Module, device: torch.device | str | None) -> torch.device:
    first = next(model.parameters(), None)
    if device is not None:
        try:
            return torch.device(device)
        except RuntimeError as error:
            raise ValueError(f"device: got {device!r}, expected one of torch's, as cpu, cuda, cuda:1 or mps") from error
    return torch.device("cpu") if first is None else first.device


def fuse_convolutions(prepared: nn.Module) -> None:
    """What the first call of a prepared network does in float32 on a CPU: pack weights for fused_conv.py.

    A graph that is to be compiled needs it done beforehand, and else gets slower operations.
    """
    for module in prepared.modules():
        if isinstance(module, FusedSequence):
            module.fuse()


def use_bfloat16(prepared: nn.Module, *, by_kernel: bool) -> None:
    """Lets a prepared network compute in bfloat16 under `torch.autocast`.

    Convolutions and products hold their weights in bfloat16, so that they are not converted at each call.

    Args:
        by_kernel: sequences are computed by the kernel, if it has the format here. The network is on a CPU.
    """
    of_kernel: set[nn.Module] = set()
    for module in prepared.modules():
        if isinstance(module, FusedSequence) and by_kernel and has_format(FORMATS["bf16"]):
            module.set_format(FORMATS["bf16"], gives_format=True)
            of_kernel.update(module.modules())
    for module in prepared.modules():
        if isinstance(module, nn.modules.conv._ConvNd | PreparedConv | nn.Linear) and module not in of_kernel:
            module.to(torch.bfloat16)


def _fix_weights(module: nn.Module) -> None:
    """Make parameters of what a parametrization or a hook computes in every call (weight norm, spectral norm)."""
    if is_parametrized(module):  # torch's own removal would change the class, which the given network shares
        computed = {name: getattr(module, name) for name in module.parametrizations}  # type: ignore[union-attr]
        del module.parametrizations
        module.__class__ = type(module).__bases__[0]
        for name, value in computed.items():
            module.register_parameter(name, nn.Parameter(value.detach(), requires_grad=False))
    for key, hook in list(module._forward_pre_hooks.items()):
        if isinstance(hook, WeightNorm | SpectralNorm | BasePruningMethod):
            hook.remove(module)
            del module._forward_pre_hooks[key]
    module.requires_grad_(False)


def _prepare(model: nn.Module) -> nn.Module:
    if not isinstance(model, fx.GraphModule) and any(isinstance(part, fx.GraphModule) for part in model.modules()):
        for name, child in list(model.named_children()):  # an octave network within another module: frame_network
            if any(isinstance(part, fx.GraphModule) for part in child.modules()):
                setattr(model, name, _prepare(child))
        return model
    if not isinstance(model, fx.GraphModule):
        try:
            model = fx.GraphModule(model, trace_network(model, ()))
        except ValueError:
            return model
    _Preparation(model).run()
    return model


class _Preparation(TracedModules):
    """A traced network, in place, while its convolutions take on what surrounds them."""

    def run(self) -> None:
        for module in self.modules.values():
            make_weight_once(module)
        for node in list(self.graph.nodes):
            self._fold_norm(node)
        for node in list(self.graph.nodes):
            self._prepare_convolution(node)
        order = {node: n for n, node in enumerate(self.graph.nodes)}
        self._take_on_followers(order)
        for node in list(self.graph.nodes):
            self._prepare_gate(node)
            if isinstance(shift := self.module(node), TemporalShift):
                self.put(node, PreparedShift(shift))
        self._take_on_followers(order)  # what is scaled by a gate is a shortcut to others, too
        self._join_convolutions()
        self.model.delete_all_unused_submodules()
        self.graph.lint()
        self.model.recompile()

    def _take_on_followers(self, order: dict[fx.Node, int]) -> None:
        for node in list(self.graph.nodes):
            prepared = self.module(node)
            pools = isinstance(prepared, PreparedConv) and prepared.max_pool is not None  # before what follows
            if isinstance(prepared, PreparedLayer | PreparedScale) and prepared.activation == "none" and not pools:
                self._take_on_addition(node, order)
                self._take_on_activation(node, prepared)
            if isinstance(prepared, PreparedConv):
                self._take_on_pool(node, prepared)

    def _fold_norm(self, node: fx.Node) -> None:
        """Let a convolution that a batch norm alone reads do the norm's work."""
        norm = self.module(node)
        if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or norm.running_mean is None:
            return
        source: Any = node.args[0]
        conv = self.module(source)
        form = conv_form(conv)
        foldable = form is not None and form.make_weight is None and len(source.users) == 1
        if not foldable or self.calls[source.target] > 1 or self.calls[node.target] > 1:
            return
        assert isinstance(conv, nn.modules.conv._ConvNd) and norm.running_var is not None
        conv.weight, conv.bias = fuse_conv_bn_weights(  # type: ignore[assignment]
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        activation = _activation(norm)
        if activation is None:
            self.drop(node, source)
        else:
            self.put(node, activation)

    def _prepare_convolution(self, node: fx.Node) -> None:
        conv = self.module(node)
        prepared: PreparedLayer | None = None
        if self.calls[node.target] == 1 and isinstance(conv, OctaveLayer):
            prepared = PreparedOctConv.of(conv)
        elif self.calls[node.target] == 1 and is_conv(conv):
            prepared = PreparedConv.of(conv)  # type: ignore[arg-type]
        if prepared is not None:
            self.put(node, prepared)

    def _take_on_addition(self, conv: fx.Node, order: dict[fx.Node, int]) -> None:
        """Let a convolution add its result to the shortcut, where nobody reads the shortcut afterwards."""
        addition = next(iter(conv.users))
        has_residual = len(conv.args) > 1 and conv.args[1] is not None
        if len(conv.users) != 1 or not self.is_addition(addition) or has_residual or self._is_depthwise(conv):
            return
        shortcut = addition.args[1] if addition.args[0] is conv else addition.args[0]
        assert isinstance(shortcut, fx.Node)
        last = max(shortcut.users, key=order.__getitem__)
        is_read = last is not addition or shortcut in conv.all_input_nodes  # afterwards, or while it is overwritten
        if order[shortcut] < order[conv] and not is_read and self._is_fresh(shortcut):
            conv.args = (conv.args[0], shortcut, *conv.args[2:])
            self.drop(addition, conv)

    def _take_on_activation(self, layer: fx.Node, prepared: PreparedLayer | PreparedScale) -> None:
        user = next(iter(layer.users))
        activation = self.activation(user) if len(layer.users) == 1 else None
        if activation is not None:
            prepared.activation = activation
            self.drop(user, layer)

    def _prepare_gate(self, scale: fx.Node) -> None:
        """Let the kernel take means over clips, and scale by what convolutions make of them (squeeze-excitation)."""
        found = self._gate_of(scale)
        if found is None:
            return
        x, mean, convs = found
        gate = self.module(scale)
        if isinstance(gate, OctGate):  # means and gates have the high channels first
            channels = torch.tensor([*gate.partition.high, *gate.partition.low])
            first: Any = self.module(convs[0])
            last: Any = self.module(convs[-1])
            first.weight = first.weight[:, channels]
            last.weight = last.weight[channels]
            last.bias = None if last.bias is None else last.bias[channels]
        self._call(mean, PreparedMean(), (x,))
        self._call(scale, PreparedScale(gives_pair=isinstance(gate, OctGate)), (x, None, convs[-1]))

    def _gate_of(self, scale: fx.Node) -> tuple[fx.Node, fx.Node, list[fx.Node]] | None:
        """What `scale` multiplies by a gate; the mean of that; the convolutions from the mean to the gate."""
        module = self.module(scale)
        operation = module.operation if isinstance(module, OctGate) else scale.target
        name = operation.__name__ if isinstance(operation, Method) else operation
        if name not in _PRODUCTS or len(scale.args) != 2 or scale.kwargs:
            return None
        for x, gate in (scale.args, scale.args[::-1]):
            convs: list[fx.Node] = []
            node: Any = gate
            while _reads_a_pixel(self.module(node)) and len(node.users) == 1 and len(node.args) == 1:
                convs.insert(0, node)
                node = node.args[0]
            if not convs or not isinstance(x, fx.Node):
                continue
            first, last = self.module(convs[0]), self.module(convs[-1])
            scales_each = last.weight.shape[0] == first.weight.shape[1]  # type: ignore[union-attr, index]
            if scales_each and self._is_mean_of(node, x, first):
                return x, node, convs
        return None

    def _is_mean_of(self, node: Any, x: fx.Node, reader: Any) -> bool:
        """Whether `node`, which `reader` alone reads, takes each channel's mean over a clip."""
        if not isinstance(node, fx.Node) or len(node.users) != 1 or not node.args or node.args[0] is not x:
            return False
        operation: Any = self.operation(node)
        args: Any = node.args[1:]
        kwargs: Any = node.kwargs
        if isinstance(operation, OctSqueeze):
            operation, args, kwargs = operation.pool, operation.args, operation.kwargs
        if isinstance(operation, nn.AdaptiveAvgPool2d | nn.AdaptiveAvgPool3d):
            size = operation.output_size
            return not args and set(size if isinstance(size, tuple) else (size,)) == {1}
        name = operation if isinstance(operation, str) else getattr(operation, "__name__", "")
        given = {**dict(zip(("dim", "keepdim"), args, strict=False)), **kwargs}
        if name != "mean" or given.pop("keepdim", False) is not True or set(given) != {"dim"}:
            return False
        dims, axes = given["dim"], reader.weight.dim()
        dims = (dims,) if isinstance(dims, int) else dims
        return sorted(dim % axes for dim in dims) == list(range(2, axes))

    def _call(self, node: fx.Node, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Let a node, whatever it did, call `module` in its place."""
        name = f"prepared_{node.name}"
        self.model.add_submodule(name, module)
        self.modules[name] = module
        node.op, node.target, node.args, node.kwargs = "call_module", name, args, {}

    def _take_on_pool(self, conv: fx.Node, prepared: PreparedConv) -> None:
        """Let a stem pool its map while it makes it."""
        user = next(iter(conv.users))
        pool: Any = self.module(user)
        alone = len(conv.users) == 1 and len(conv.args) == 1
        if alone and type(pool) in (nn.MaxPool2d, nn.MaxPool3d):  # timm's subclasses pad otherwise
            prepared.max_pool = _max_pool(pool, prepared)
            if prepared.max_pool is not None:
                self.drop(user, conv)

    def _is_depthwise(self, node: fx.Node) -> bool:
        module = self.module(node)
        return isinstance(module, PreparedLayer) and module.form is not None and module.form.is_depthwise

    def _is_fresh(self, node: fx.Node) -> bool:
        """Whether `node` makes tensors of its own, which no other node's result shares."""
        return node.target in (operator.add, torch.add) or isinstance(self.module(node), _MAKERS)

    def _join_convolutions(self) -> None:
        """Make one module of prepared convolutions that follow each other and that the kernel has."""
        sequence: list[fx.Node] = []
        for node in list(self.graph.nodes):
            module = self.module(node)
            if isinstance(module, PreparedLayer | PreparedOperation) and module.kernel_has:
                sequence.append(node)
            elif node.op not in ("placeholder", "get_attr"):
                self._join(sequence)
                sequence = []

    def _join(self, sequence: list[fx.Node]) -> None:
        if not sequence:
            return
        num_frames = None
        for node in sequence:
            if isinstance(self.module(node), PreparedShift):
                *args, num_frames = node.args  # all of a network read the same number
                node.args = tuple(args)
        read = dict.fromkeys(source for node in sequence for source in node.all_input_nodes)
        inputs = [node for node in read if node not in sequence]
        indices = {node: n for n, node in enumerate([*inputs, *sequence])}
        results = [node for node in sequence if any(user not in sequence for user in node.users)]
        module = FusedSequence(
            [self.module(node) for node in sequence],  # type: ignore[misc]
            [[NO_VALUE if arg is None else indices[arg] for arg in node.args] for node in sequence],  # type: ignore
            len(inputs),
            [indices[node] for node in results],
        )
        name = "sequence_" + str(sequence[0].target).replace(".", "_")
        self.model.add_submodule(name, module)
        with self.graph.inserting_after(sequence[-1]):
            call = self.graph.call_module(name, tuple(inputs), {} if num_frames is None else {"num_frames": num_frames})
        with self.graph.inserting_after(call):
            made = [call] if len(results) == 1 else [
                self.graph.call_function(operator.getitem, (call, n)) for n in range(len(results))
            ]  # fmt: skip
        for node, new in zip(results, made, strict=True):
            node.replace_all_uses_with(new, lambda user: user not in sequence)
        for node in reversed(sequence):
            self.graph.erase_node(node)


def _reads_a_pixel(module: Any) -> bool:
    """Whether it is a dense convolution whose kernel has one pixel, and which does nothing but apply an activation."""
    if not isinstance(module, PreparedConv) or module.max_pool is not None or module.groups > 1:
        return False
    return set(module.weight.shape[2:]) == {1} and set(module.padding) == {0} and set(module.stride) == {1}


def _activation(norm: nn.Module) -> nn.Module | None:
    """What timm's norms do after normalising; dropout does nothing here."""
    act: Any = getattr(norm, "act", None)
    if act is None or isinstance(act, nn.Identity):
        return None
    return OctMap(act) if isinstance(norm, OctBatchNormAct2d) and norm.partition.low else act


def _max_pool(pool: nn.MaxPool2d | nn.MaxPool3d, conv: PreparedConv) -> MaxPool | None:
    """What it does after a convolution of as many axes, unless that is more than taking maxima in space."""
    axes = 3 if isinstance(pool, nn.MaxPool3d) else 2
    given = (pool.kernel_size, pool.stride, pool.padding, pool.dilation)
    window, stride, padding, dilation = ((n,) * axes if isinstance(n, int) else tuple(n) for n in given)
    plain = set(dilation) == {1} and not pool.ceil_mode and not pool.return_indices
    in_space = axes == 2 or (window[0], stride[0], padding[0]) == (1, 1, 0)
    if not (plain and in_space and conv.weight.dim() == axes + 2):
        return None
    return MaxPool(window[-2:], stride[-2:], padding[-2:])
