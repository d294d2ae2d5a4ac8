"""A network that gives what one of its layers computes, averaged, in place of its scores.

Any engine runs it. The network ends at the layer: what comes after it is gone before anything is fused, so that no
fusion loses the layer's values, and features cost no more than scores::

    clips (N,3,T,H,W) ─ network up to the layer ─▶ map (N,C,T',H',W') ─ mean over positions ─▶ (N,C), or (N,T',C)
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from octvideo.errors import UserError
from octvideo.octave import Octave, arrange, merge, prepare_inference

# After the name of a layer: what it reads, in place of what it gives.
INPUT = ":input"
_PROBE_PX = 64  # side of the clips that a network is probed with, at most
_SAME = 1e-4  # of the features' size, in float32
# Between the last map and the classifier: none of these has weights.
_POOLS = (nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AvgPool2d, nn.AvgPool3d, nn.Flatten, nn.Dropout, nn.Identity)
_POOL_CALLS = ("flatten", "view", "reshape", "squeeze", "mean")


@dataclass(frozen=True)
class FeatureNetwork:
    """What gives features.

    Args:
        module: clips (N, 3, T, H, W) to (N, D), or (N, T', D) per time step.
        layer: whose they are, in full.
        kept_whole: the layer lies in a module that is run as it is, so that eager PyTorch alone can look into it.
    """

    module: nn.Module
    layer: str
    kept_whole: bool = False


def feature_network(
    network: nn.Module, clip_shape: Sequence[int], layer: str | None = None, *, pooled: bool = True
) -> FeatureNetwork:
    """A network that ends at a layer.

    A layer that is called several times gives what its last call does. Octave pairs are merged: high channels first,
    then low ones, upsampled. Several maps (SlowFast's pathways) are averaged one by one and put after each other.

    Args:
        network: clips to logits; left as it is.
        clip_shape: (3, T, H, W).
        layer: name of a module, as in `named_modules`, or the same with ":input" for what it reads. None is what the
            classifier (the last nn.Linear) reads; per time step, the map from which that is averaged.
        pooled: average over time too.

    Raises:
        UserError: no such layer, or one that gives no map.
    """
    if layer is None:
        return _at_classifier(network, clip_shape) if pooled else _before_pools(network)
    name, is_input = layer.removesuffix(INPUT), layer.endswith(INPUT)
    modules = dict(network.named_modules())
    if not name or name not in modules:
        raise UserError(f"no layer '{layer}' in this network{near_layers(name, modules)}; {HOW_TO_LIST}")
    if pooled and is_input and name == _classifier(network)[0]:
        return _at_classifier(network, clip_shape)
    owner = _owner(network, name)
    if owner is not None:
        own_name = name.removeprefix(f"{owner}.") if owner else name
        graph = modules[owner].graph  # type: ignore[union-attr]
        found = _value(graph, own_name, is_input=is_input)
        if found is not None:
            return FeatureNetwork(_ended_at(network, owner, found, pooled=pooled), layer)
        if not any(own_name.startswith(f"{node.target}.") for node in graph.nodes if node.op == "call_module"):
            raise UserError(f"layer '{layer}' gives nothing that can be read here; {HOW_TO_LIST}")
    return FeatureNetwork(_Read(_whole(network), name, is_input=is_input, pooled=pooled), layer, kept_whole=True)


HOW_TO_LIST = "octvideo features --layer list (or octvideo.inference.feature_network.list_layers) shows all"


def list_layers(network: nn.Module, clip_shape: Sequence[int]) -> list[tuple[str, str, str]]:
    """All layers that a network calls, in order: name, class, and the shape of what comes out for one clip.

    Args:
        network: left as it is.
        clip_shape: (3, T, H, W).
    """
    found: dict[str, tuple[str, str, str]] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, result: Any) -> None:
            found.pop(name, None)
            found[name] = (name, type(module).__name__, _shape_of(result))

        return hook

    hooks = [module.register_forward_hook(note(name)) for name, module in network.named_modules() if name]
    try:
        with torch.inference_mode():
            network(torch.zeros(1, *clip_shape))
    finally:
        for handle in hooks:
            handle.remove()
    return list(found.values())


def _shape_of(value: Any) -> str:
    """(C, T, H, W) of one clip; of a pair or of several maps each."""
    if isinstance(value, Tensor):
        return " x ".join(map(str, value.shape[1:]))
    if isinstance(value, Octave):
        return f"{_shape_of(value.high)} and {_shape_of(value.low)}"
    return ", ".join(map(_shape_of, value)) if isinstance(value, list | tuple) else ""


def near_layers(name: str, known: Sequence[str] | dict[str, nn.Module]) -> str:
    """`: did you mean X?` of the layers whose names are most like one that is not there; "" where none is."""
    near = difflib.get_close_matches(name, [other for other in known if other], n=3, cutoff=0.5)
    return f": did you mean {' or '.join(near)}?" if near else ""


def _classifier(network: nn.Module) -> tuple[str, nn.Linear | None]:
    linears = [(name, module) for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    return linears[-1] if linears else ("", None)


# ── what the classifier reads ───────────────────────────────────────────────────────────────────────────────


def _at_classifier(network: nn.Module, clip_shape: Sequence[int]) -> FeatureNetwork:
    """The network with nothing in the classifier's place: its means over positions are then those of features.

    That holds where means alone follow the classifier. A network is asked whether it does.
    """
    name, classifier = _classifier(network)
    if classifier is None:
        raise UserError(
            f"the network {type(network).__name__} has no nn.Linear, so it is not known what its classifier reads: "
            f"give a layer; {HOW_TO_LIST}"
        )
    headless = _copy(network)
    headless.set_submodule(name, nn.Identity())
    read = _Read(_copy(network), name, is_input=True, pooled=True)
    side = min(clip_shape[-1], _PROBE_PX)
    for size in dict.fromkeys((side, clip_shape[-1])):
        probe = torch.randn(2, *clip_shape[:2], size, size, generator=torch.Generator().manual_seed(0))
        device = next((p.device for p in network.parameters()), probe.device)
        try:
            with torch.inference_mode():
                expected, got = read(probe.to(device)), headless(probe.to(device))
        except Exception:  # networks are anybody's; some take clips of one size alone
            continue
        close = isinstance(got, Tensor) and got.shape == expected.shape
        if close and (got - expected).abs().max() <= _SAME * expected.abs().max():
            return FeatureNetwork(headless, name + INPUT)
    return FeatureNetwork(_Read(_whole(network), name, is_input=True, pooled=True), name + INPUT, kept_whole=True)


def _before_pools(network: nn.Module) -> FeatureNetwork:
    """The last map of clips, or for networks of images what the classifier reads of each frame."""
    name, classifier = _classifier(network)
    if classifier is not None and _frames_of(network) is not None:
        headless = _copy(network)
        headless.set_submodule(name, nn.Identity())
        return FeatureNetwork(_FrameSteps(headless.get_submodule("image_network")), name + INPUT)
    if classifier is not None and isinstance(network, fx.GraphModule):
        calls = [node for node in network.graph.nodes if node.op == "call_module"]
        heads = [node for node in calls if name == node.target or name.startswith(f"{node.target}.")]
        if heads:
            reader: fx.Node = heads[-1]
            value = reader.args[0]
            while isinstance(value, fx.Node) and _is_pool(network, value):
                reader, value = value, value.args[0]
            layer = (
                value.target if isinstance(value, fx.Node) and value.op == "call_module" else f"{reader.target}:input"
            )
            return FeatureNetwork(_ended_at(network, "", value, pooled=False), str(layer))
    raise UserError(f"it is not known which map of {type(network).__name__} has time: give a layer; {HOW_TO_LIST}")


def _is_pool(network: nn.Module, node: fx.Node) -> bool:
    if node.op == "call_module":
        module = network.get_submodule(str(node.target))
        return isinstance(module, _POOLS) or type(module).__name__ == "PathwayPool"
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return node.op in ("call_method", "call_function") and name in _POOL_CALLS


# ── a graph that ends at a layer ────────────────────────────────────────────────────────────────────────────


def _owner(network: nn.Module, name: str) -> str | None:
    """The innermost traced network that a module belongs to; "" is the network itself, None is none."""
    traced = [path for path, module in network.named_modules() if isinstance(module, fx.GraphModule)]
    inside = [path for path in traced if not path or name.startswith(f"{path}.")]
    return max(inside, key=len, default=None)


def _value(graph: fx.Graph, name: str, *, is_input: bool) -> Any:
    """What a layer gives or reads: a node, or a list of nodes; None where the graph has no call of it.

    Raises:
        UserError: it is a group of layers of which several values are used.
    """
    calls = [node for node in graph.nodes if node.op == "call_module" and node.target == name]
    if calls:
        return calls[-1].args[0] if is_input else calls[-1]
    inside = {node for node in graph.nodes if name in _scopes(node)}
    if is_input:
        used = dict.fromkeys(source for node in inside for source in node.all_input_nodes if source not in inside)
    else:
        used = dict.fromkeys(node for node in graph.nodes if node in inside and not set(node.users) <= inside)
    if len(used) > 1:
        listed = ", ".join(str(node.target) for node in used if node.op == "call_module")
        raise UserError(f"layer '{name}' has several values here: take one of the layers {listed}; {HOW_TO_LIST}")
    return next(iter(used), None)


def _scopes(node: fx.Node) -> set[str]:
    """Paths of the modules in whose forward pass a node was traced."""
    return {str(entry[0]) for entry in node.meta.get("nn_module_stack", {}).values()}


def _ended_at(network: nn.Module, owner: str, value: Any, *, pooled: bool) -> nn.Module:
    """A copy of the network that gives the mean of a value of its graph, or of that of a part of it."""
    given = network.get_submodule(owner)
    model = _copy(network)
    traced: Any = model.get_submodule(owner)
    twins = dict(zip(given.graph.nodes, traced.graph.nodes, strict=True))  # type: ignore[union-attr, arg-type]
    frames = _frames_of(model)
    of_reader = value if isinstance(value, fx.Node) else value[0]
    reads = isinstance(value, fx.Node) and value.op == "call_module"
    made_by = given.get_submodule(str(value.target)) if reads else None
    traced.add_submodule("features_mean", _Mean(pooled=pooled or frames is not None, last=_ends_in_channels(made_by)))
    output = next(node for node in traced.graph.nodes if node.op == "output")
    twin = twins[of_reader] if of_reader is value else [twins[node] for node in value]
    with traced.graph.inserting_before(output):
        mean = traced.graph.call_module("features_mean", (twin,))
    output.args = (mean,)
    traced.graph.eliminate_dead_code()
    traced.delete_all_unused_submodules()
    traced.recompile()
    if frames is None or pooled:
        return model
    return _FrameSteps(traced)


def _frames_of(network: nn.Module) -> nn.Module | None:
    """The network of images in a network that runs one on each frame."""
    return network.get_submodule("image_network") if type(network).__name__ == "FrameNetwork" else None


def _copy(network: nn.Module) -> nn.Module:
    """In eval mode; parameters and buffers are shared."""
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    return copy.deepcopy(network, shared).eval()


def _whole(network: nn.Module) -> nn.Module:
    """A copy in its fast form, in which the modules in those that a trace keeps whole are what they were.

    Other networks are not traced: what is listened to might be fused away.
    """
    if isinstance(network, fx.GraphModule):
        return prepare_inference(network)
    return arrange(copy.deepcopy(network).eval().requires_grad_(False))


class _FrameSteps(nn.Module):
    """A network of images on each frame, whose time steps are the frames."""

    def __init__(self, image_network: nn.Module) -> None:
        super().__init__()
        from octvideo.models.library import (
            FrameNetwork,  # not where exported models are served: it imports pytorchvideo
        )

        self.frames = FrameNetwork(image_network)

    def forward(self, clips: Tensor) -> Tensor:
        """Clips (N, 3, T, H, W) to features (N, T, C)."""
        return self.frames.frame_logits(clips)


class _Read(nn.Module):
    """A whole network, which it makes its own, and one module of which is listened to."""

    def __init__(self, network: nn.Module, name: str, *, is_input: bool, pooled: bool) -> None:
        super().__init__()
        self.network = network
        module = network.get_submodule(name)
        self._mean = _Mean(pooled=pooled, last=_ends_in_channels(module))
        self._is_input, self._name, self._kept = is_input, name, torch.empty(0)
        module.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, args: tuple[Any, ...], result: Any) -> None:
        value = args[0] if self._is_input else result  # averaged at once: it may be changed in place
        self._kept = self._mean(value)

    def forward(self, clips: Tensor) -> Tensor:
        """Clips (N, 3, T, H, W) to features (N, C) or (N, T', C).

        Raises:
            UserError: the network does not call the module.
        """
        self._kept = torch.empty(0)
        self.network(clips)
        if not len(self._kept):
            raise UserError(f"the network does not call its layer '{self._name}'; {HOW_TO_LIST}")
        if len(self._kept) == len(clips):
            return self._kept
        of_frames = self._kept.unflatten(0, (len(clips), -1))  # of a network of images
        return of_frames.mean(1) if of_frames.ndim == 3 and self._mean.pooled else of_frames.flatten(1, -2)


# ── means ───────────────────────────────────────────────────────────────────────────────────────────────────


def _ends_in_channels(module: nn.Module | None) -> bool:
    return isinstance(module, nn.Linear) or type(module) is nn.LayerNorm


class _Mean(nn.Module):
    """Averages what a layer gives over its positions.

    Args:
        pooled: over time too.
        last: channels are the last axis whatever the number of axes; else they are of (N, L, C) alone, and the second
            one of (N, C, H, W) and (N, C, T, H, W).
    """

    def __init__(self, *, pooled: bool, last: bool) -> None:
        super().__init__()
        self.pooled, self.last = pooled, last

    def forward(self, value: Any) -> Tensor:
        """(N, C), or (N, T', C) where it is not pooled: T' is 1 of what has no time."""
        if isinstance(value, Octave):
            # A high axis of 1 is halved to 1.
            sizes = zip(value.high.shape[2:], value.low.shape[2:], strict=True)
            value = merge(value, factor=[1 if high == low > 1 else 2 for high, low in sizes])
        if isinstance(value, Tensor):
            return self._of_map(value)
        if not isinstance(value, list | tuple) or not value:
            raise UserError(f"a layer whose features are asked for gives {type(value).__name__}, expected a map")
        parts = [self(part) for part in value]
        if self.pooled:
            return torch.cat(parts, 1)
        steps = min(part.shape[1] for part in parts)  # those of the slowest pathway
        return torch.cat([_as_steps(part, steps) for part in parts], 2)

    def _of_map(self, x: Tensor) -> Tensor:
        if x.ndim == 2:
            return x if self.pooled else x[:, None]
        if self.last or x.ndim == 3:
            x = x.movedim(-1, 1)  # (N,C,...)
        axes = tuple(range(2, x.ndim))
        if self.pooled:
            return x.mean(axes)
        has_time = x.ndim in (3, 5)
        space = axes[1:] if has_time else axes
        x = x.mean(space) if space else x  # (N,C,T') or (N,C)
        return x.transpose(1, 2) if has_time else x[:, None]


def _as_steps(x: Tensor, steps: int) -> Tensor:
    """(N, T', C) to (N, steps, C): means of equal parts."""
    if x.shape[1] == steps:
        return x
    return nn.functional.adaptive_avg_pool1d(x.transpose(1, 2), steps).transpose(1, 2)
