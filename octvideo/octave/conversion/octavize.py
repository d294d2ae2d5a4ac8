"""`octavize`: an existing network, made octave without touching its code or the keys of its state_dict."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import torch
from torch import Tensor, fx, nn

from octvideo.octave.conv import OctConv1d, OctConv2d, OctConv3d
from octvideo.octave.conversion.calibration import Calibration
from octvideo.octave.conversion.choose import ChannelChooser
from octvideo.octave.conversion.refit import refit
from octvideo.octave.conversion.report import OctaveReport
from octvideo.octave.conversion.rewrite import Rewriter, Settings
from octvideo.octave.conversion.roles import Network
from octvideo.octave.conversion.solve import PartitionSolver
from octvideo.octave.conversion.trace import computed_tensors, trace_network
from octvideo.octave.conversion.value_classes import Alpha, InvertedResiduals, Shares
from octvideo.octave.factor import Factor, as_factor
from octvideo.octave.layer import OctaveLayer
from octvideo.octave.ordinary import CONVS
from octvideo.octave.partition import HoldsIndices
from octvideo.octave.paths import Downsample, Exchange, OctaveDownsample


class OctaveNetwork(fx.GraphModule):
    """What `octavize` returns: a GraphModule that pickles and copies with `meta` and all its state, in order.

    Args:
        state: the attributes of a module with all that the graph calls, and all parameters and buffers.
        graph: what is computed.
        class_name: of the ordinary network.
    """

    def __init__(self, state: Mapping[str, Any], graph: fx.Graph, class_name: str = "OctaveNetwork") -> None:
        # Unpickling traces with the tracer's class.
        super().__init__(nn.Module(), fx.Graph(tracer_cls=graph._tracer_cls), class_name)
        self.__dict__.update(state)  # GraphModule would take over what the graph reads, in the order of reading
        self.graph = graph

    @property
    def octave_report(self) -> OctaveReport:
        """What became octave and what could not."""
        return self.meta["octave"]

    def __reduce__(self) -> tuple[Any, ...]:
        rebuild, (state, *others) = super().__reduce__()  # type: ignore[misc]
        return _restore, (rebuild, (_without_compiled(state), *others))

    def __deepcopy__(self, memo: dict[int, Any]) -> OctaveNetwork:
        memo.update(computed_tensors(self))
        network = memo[id(self)] = OctaveNetwork({}, copy.deepcopy(self.graph, memo), type(self).__name__)
        state = {name: value for name, value in _without_compiled(vars(self)).items() if name != "_graph"}
        network.__dict__.update(copy.deepcopy(state, memo))
        return network


def _without_compiled(state: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes of a network, as nn.Module passes them on: what was compiled of it computes with its own weights."""
    return {name: value for name, value in state.items() if name != "_compiled_call_impl"}


def _restore(rebuild: Any, args: tuple[Any, ...]) -> OctaveNetwork:
    return OctaveNetwork(args[0], rebuild(*args).graph)


@torch.inference_mode(False)  # what is made there can't be differentiated, nor trained on
def octavize(
    model: nn.Module,
    alpha: Alpha,
    *,
    downsample: Downsample = "stride",
    octave_downsample: OctaveDownsample = "pool",
    exchange: Exchange = "both",
    factor: Factor | None = None,
    inverted_residuals: InvertedResiduals = "hidden",
    channel_multiple: int = 1,
    leaf_modules: Sequence[type[nn.Module] | str] = (),
    calibration: Calibration | Sequence[Any] | Tensor | None = None,
) -> OctaveNetwork:
    """A new network that computes `model` with part of its channels at half resolution.

    Its state_dict, parameters and buffers have the ordinary network's keys, shapes and order, so that either loads
    the other's weights and its optimiser's state, at any alpha. At alpha = 0 (and downsample="stride") its outputs
    are equal bit for bit; with pytorchvideo's Swish (X3D) to rounding, since nn.SiLU takes its place. It shares
    nothing with `model`, pickles, deep-copies and switches between train and eval.
    Other methods of `model` than `forward` (`forward_features`, `reset_classifier` of timm) are lost: call them
    before converting. Optional arguments of `forward` after the first keep their defaults.
    Weights trained at another alpha need fine-tuning, or clips to calibrate on.

    Args:
        model: a network that torch.fx can trace; not changed. One that takes a list of pathways
            (pytorchvideo's SlowFast) goes on taking it.
        alpha: the low share of every convolution's output, those that read the network's input excepted (the
            stem); or a mapping from module path prefixes to shares, the longest matching prefix deciding and
            0 elsewhere. The paper's ResNets: {"layer1": a, "layer2": a, "layer3": a}.
        downsample: "pool" makes every strided convolution after the stem pool first and then convolve with
            stride 1, as the paper's networks do, also where its alphas are 0; "stride" leaves the latter as
            they are.
        octave_downsample: how octave convolutions make maps smaller: "pool" averages, then convolves with
            stride 1 (the paper); "stride" convolves with a stride, from high to low maps too (the first row of the
            paper's Table 3); "keep" pools between the maps alone, so that strided layers stay what they were: for
            trained weights.
        exchange: which of the two paths between frequencies run (Table 3); "both" is octave convolution.
        factor: which axes the low maps halve, (2, 2) for images and (1, 2, 2) for clips; (2, 2, 2) is a time
            octave, at half the frame rate too.
        inverted_residuals: "hidden" splits only the expanded width of inverted residuals (MobileNetV2 and its
            kin), as the paper does; "all" splits their thin ends too.
        channel_multiple: round the number of low channels to a multiple of this, so that both parts fill vector
            units: at alpha .1, 6 of 64 channels become 8 with a multiple of 8. Shares then differ a little from
            alpha, see `octave_report`; grouped and very thin layers are not rounded.
        leaf_modules: module classes, or names of some ("timm.layers.SelectiveKernel", or its last part), to keep
            whole: they take and give ordinary tensors. For code that cannot be traced.
        calibration: clips of the kind that a trained `model` will see, some 200 and without labels; or a
            `Calibration`, with options. Those channels are then low that lose least by it, and the layers are fitted
            to what they computed before. For it channels change places: weights are the ordinary network's in
            another order, which computes the same.

    Returns:
        A torch.fx GraphModule; `octave_report` says what became octave and what could not, with reasons, and what
        was done with clips.

    Raises:
        ValueError: if `model` is no ordinary network, an alpha is outside [0, 1], a prefix or class name matches
            nothing, an option is unknown, the network cannot be traced, it computes something else in training than
            in evaluation, or clips or weights to calibrate with hold NaN or infinity.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1),
        ...                     nn.ReLU(), nn.Conv2d(8, 4, 1))
        >>> octavize(net, 0.5).octave_report.layers["2"]
        (0.0, 0.5)
    """
    if not isinstance(channel_multiple, int) or channel_multiple < 1:
        raise ValueError(f"channel_multiple: got {channel_multiple!r}, expected 1 or more")
    settings = Settings(downsample, octave_downsample, exchange, factor)
    _check(settings, inverted_residuals)
    _check_network(model)
    model = copy.deepcopy(model, computed_tensors(model))
    _use_plain_integers(model)
    _use_torchs_swish(model)
    graph = trace_network(model, _classes(leaf_modules, model))
    traced = Network(graph, dict(model.named_modules()), _factor(factor, model))
    shares = Shares(alpha, traced, inverted_residuals=inverted_residuals)
    asked = calibration if calibration is None or isinstance(calibration, Calibration) else Calibration(calibration)
    chooser, ordinary = None, None
    if asked is not None:
        asked = asked.on(model)
        state = dict(asked.begun or {})
        chooser = ChannelChooser(asked, model, traced, shares, channel_multiple, state)
        alpha = chooser.choose()
        shares = Shares(alpha, traced, inverted_residuals=inverted_residuals)
        if asked.refit != "none":
            ordinary = fx.GraphModule(copy.deepcopy(model), copy.deepcopy(graph)).eval()
    solution = PartitionSolver(traced, shares, channel_multiple).solve()
    convs: dict[type[nn.Module], Any] = dict(zip(CONVS, (OctConv1d, OctConv2d, OctConv3d), strict=True))
    rewriter = Rewriter(model, traced, solution, settings, convs)
    rewriter.run()
    called = {model.get_submodule(str(node.target)) for node in graph.nodes if node.op == "call_module"}
    network = OctaveNetwork(_state_of(model, called), graph, type(model).__name__)
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    for module in network.modules():
        if isinstance(module, HoldsIndices) and next(module.parameters(), None) is None:
            module.to(device)  # an operation that is new here
    report = None
    if chooser is not None:
        report = chooser.report
        report.shares = chooser.shares_of(solution)
        if ordinary is not None:
            fitted, report.num_fitted_on = refit(network, ordinary, chooser.calibration, traced.factor, state)
            report.fitted = tuple(fitted)
    network.meta["octave"] = OctaveReport(rewriter.layers, rewriter.costs, solution.merged, alpha, report)
    return network


def _use_plain_integers(model: nn.Module) -> None:
    """Replace NumPy's integers in kernels and strides (pytorchvideo's), which torch.compile takes for data."""
    for module in model.modules():
        for name in ("kernel_size", "stride", "padding", "dilation", "_reversed_padding_repeated_twice"):
            value: Any = vars(module).get(name)
            if isinstance(value, tuple | list):
                setattr(module, name, type(value)(v.__index__() if hasattr(v, "__index__") else v for v in value))
            elif hasattr(value, "__index__"):
                setattr(module, name, value.__index__())


def _use_torchs_swish(model: nn.Module) -> None:
    """Replace pytorchvideo's Swish, whose autograd function ends a graph of torch.compile, by torch's own. Their
    results differ by the last bit.
    """
    for module in model.modules():
        for name, child in module.named_children():
            if (type(child).__module__, type(child).__name__) == ("pytorchvideo.layers.swish", "Swish"):
                setattr(module, name, nn.SiLU().train(child.training))


def _check(settings: Settings, inverted_residuals: str) -> None:
    for name, value, kind in (
        ("downsample", settings.downsample, Downsample),
        ("octave_downsample", settings.octave_downsample, OctaveDownsample),
        ("exchange", settings.exchange, Exchange),
        ("inverted_residuals", inverted_residuals, InvertedResiduals),
    ):
        if value not in (known := get_args(kind)):
            raise ValueError(f"{name}: got {value!r}, expected {' or '.join(map(repr, known))}")


def _classes(leaf_modules: Sequence[type[nn.Module] | str], model: nn.Module) -> tuple[type[nn.Module], ...]:
    """The classes that are meant; a name's last part decides, as libraries give a class several paths."""
    known = {type(module) for module in model.modules()}
    classes: list[type[nn.Module]] = []
    for given in leaf_modules:
        name = given.rpartition(".")[2] if isinstance(given, str) else None
        meant = [given] if isinstance(given, type) else [kind for kind in known if kind.__name__ == name]
        if not meant:
            names = ", ".join(sorted(kind.__name__ for kind in known))
            raise ValueError(f"leaf_modules: got {given!r}, expected a class of this network's modules: {names}")
        classes += meant
    return tuple(classes)


def _check_network(model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise ValueError(f"octavize: got {model!r:.60}, expected a network, a torch.nn.Module; build it first")
    wrappers = (torch.jit.ScriptModule, nn.DataParallel, nn.parallel.DistributedDataParallel)
    if isinstance(model, wrappers) or hasattr(model, "_orig_mod"):
        raise ValueError(
            f"octavize: got a {type(model).__name__}, which torch.fx cannot read; give the network from before "
            "torch.jit, torch.compile or DataParallel"
        )
    if any(map(nn.parameter.is_lazy, model.parameters())):
        raise ValueError("octavize: got a network with lazy layers, expected their sizes; call it once before")
    made = [module for module in model.modules() if isinstance(module, OctaveNetwork)]
    if any(isinstance(layer, OctaveLayer) for network in made for layer in network.modules()):
        raise ValueError(
            "octavize: got a network that octavize made, or that holds one, expected an ordinary one; build that anew "
            "to convert it at another alpha"
        )


def _factor(factor: Factor | None, model: nn.Module) -> Factor | None:
    """The given factor, checked against the convolutions' number of axes."""
    axes = {len(module.kernel_size) for module in model.modules() if isinstance(module, CONVS)}
    if factor is None or not axes:
        return None
    if len(axes) > 1:
        raise ValueError(f"factor: got {factor} for a network with convolutions of {sorted(axes)} axes; leave it out")
    return as_factor(factor, axes.pop())


def _state_of(model: nn.Module, called: set[nn.Module]) -> dict[str, Any]:
    """The attributes of a module with `model`'s state, in order: what is called as it is, all else without its code."""
    shells: dict[nn.Module, nn.Module] = {module: module for module in called}

    def shell_of(module: nn.Module) -> nn.Module:
        if module not in shells:
            shell = shells[module] = nn.Module()
            for name in ("training", "_parameters", "_buffers", "_non_persistent_buffers_set"):
                setattr(shell, name, getattr(module, name))
            children = module._modules.items()
            shell._modules = {name: None if child is None else shell_of(child) for name, child in children}
        return shells[module]

    shell = shell_of(model)
    return dict(vars(shell))  # a copy: Python 3.13.0 empties that of an object that is gone
