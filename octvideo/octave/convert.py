"""`octavize`: an existing network, made octave without touching its code or the keys of its state_dict."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import fx, nn

from octvideo.octave.conv import Downsample, Exchange
from octvideo.octave.factor import Factor, as_factor
from octvideo.octave.report import OctaveReport
from octvideo.octave.rewrite import Settings, rewrite
from octvideo.octave.roles import Network
from octvideo.octave.shares import Alpha, InvertedResiduals, Shares
from octvideo.octave.solve import PartitionSolver
from octvideo.octave.trace import CONVS, trace_network


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
    alpha: Alpha,
    *,
    downsample: Downsample = "stride",
    octave_downsample: Downsample = "pool",
    exchange: Exchange = "both",
    factor: Factor | None = None,
    inverted_residuals: InvertedResiduals = "hidden",
    channel_multiple: int = 1,
    leaf_modules: Sequence[type[nn.Module] | str] = (),
) -> OctaveNetwork:
    """A new network that computes `model` with part of its channels at half resolution.

    Its state_dict has the keys and shapes of the ordinary network's, so either loads the other's weights at
    any alpha. At alpha = 0 (and downsample="stride") its outputs are equal bit for bit. It shares nothing
    with `model`, pickles, deep-copies and switches between train and eval; other methods of `model` than
    `forward` (`forward_features`, `reset_classifier` of timm) are lost: call them before converting. Weights
    trained at another alpha need fine-tuning.

    Args:
        model: a network that torch.fx can trace; not changed. One that takes a list of pathways
            (pytorchvideo's SlowFast) goes on taking it.
        alpha: the low share of every convolution's output, those that read the network's input excepted (the
            stem); or a mapping from module path prefixes to shares, the longest matching prefix deciding and
            0 elsewhere. The paper's ResNets: {"layer1": a, "layer2": a, "layer3": a}.
        downsample: "pool" makes every strided convolution behind the stem pool first and then convolve with
            stride 1, as the paper's networks do, also where its alphas are 0; "stride" leaves the latter as
            they are.
        octave_downsample: how octave convolutions make maps smaller: "pool" averages, then convolves with
            stride 1 (the paper); "stride" convolves with a stride (the first row of the paper's Table 3).
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

    Returns:
        A torch.fx GraphModule; `octave_report` says what became octave and what could not, with reasons.

    Raises:
        ValueError: if an alpha is outside [0, 1], a prefix or class name matches nothing, an option is unknown,
            the network cannot be traced, or it computes something else in training than in evaluation.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1),
        ...                     nn.ReLU(), nn.Conv2d(8, 4, 1))
        >>> octavize(net, 0.5).octave_report.layers["2"]
        (0.0, 0.5)
    """
    if channel_multiple < 1:
        raise ValueError(f"channel_multiple: got {channel_multiple}, expected 1 or more")
    settings = Settings(downsample, octave_downsample, exchange, factor)
    _check(settings, inverted_residuals)
    model = copy.deepcopy(model)
    _use_plain_integers(model)
    graph = trace_network(model, _classes(leaf_modules, model))
    traced = Network(graph, dict(model.named_modules()), _factor(factor, model))
    shares = Shares(alpha, traced, inverted_residuals=inverted_residuals)
    solution = PartitionSolver(traced, shares, channel_multiple).solve()
    layers, costs = rewrite(model, traced, solution, settings)
    network = OctaveNetwork(model, graph, type(model).__name__)
    _keep_unused_state(model, network)
    network.meta["octave"] = OctaveReport(layers, costs, solution.merged)
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


def _check(settings: Settings, inverted_residuals: str) -> None:
    ways = ("stride", "pool")
    for name, value, known in (
        ("downsample", settings.downsample, ways),
        ("octave_downsample", settings.octave_downsample, ways),
        ("exchange", settings.exchange, ("both", "none", "high_to_low", "low_to_high")),
        ("inverted_residuals", inverted_residuals, ("hidden", "all")),
    ):
        if value not in known:
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


def _factor(factor: Factor | None, model: nn.Module) -> Factor | None:
    """The given factor, checked against the convolutions' number of axes."""
    axes = {len(module.kernel_size) for module in model.modules() if isinstance(module, CONVS)}
    if factor is None or not axes:
        return None
    if len(axes) > 1:
        raise ValueError(f"factor: got {factor} for a network with convolutions of {sorted(axes)} axes; leave it out")
    return as_factor(factor, axes.pop())


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
