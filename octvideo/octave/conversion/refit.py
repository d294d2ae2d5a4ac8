"""A converted network fitted to the ordinary one, without labels, layer by layer.

Both networks are computed node by node on the same clips (walk.py). Where the octave one comes to a layer, all earlier
layers are fitted already, so that the layer sees what it will see in use; all fitted at once, it gets worse.

norms     Running statistics are set so that each channel's normalised values have the ordinary network's mean and
          variance on these clips. Low channels are compared with the ordinary values *pooled*; matched to the variance
          before pooling, every layer would amplify them. It is a match, no new estimate: on clips unlike the training
          set, new estimates destroy any network.
weights   Before that, what a convolution's weights have to add so that its results come nearest to the ordinary
          network's (least_squares.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, fx
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from octvideo.octave.conversion.least_squares import can_fit, fit_weights
from octvideo.octave.conversion.walk import Walk
from octvideo.octave.factor import Factor, as_factor
from octvideo.octave.features import Octave
from octvideo.octave.layer import OctaveLayer
from octvideo.octave.norms import _OctBatchNorm
from octvideo.octave.resample import pool_down

Refit = Literal["none", "norms", "weights"]  # "weights" fits norms, too
Fitted = dict[str, dict[str, Tensor]]  # path of a layer -> what was fitted of its state_dict

# Variances that differ by more are those of channels that are all but constant.
_MOST = 10.0
_TINY = 1e-12


def refit(
    student: fx.GraphModule,
    teacher: fx.GraphModule,
    clips: Sequence[Any],
    how: Refit = "weights",
    *,
    factor: Factor | None = None,
    seed: int = 0,
    begun: Fitted | None = None,
    watch: Callable[[Sequence[str]], Iterable[str]] = iter,
    keep: Callable[[Fitted], None] = lambda _: None,
) -> Fitted:
    """Fits the layers of `student`, from its first octave one on, in place.

    Args:
        student: the octave network, in eval.
        teacher: the ordinary network, in eval, with the same modules at the same paths.
        clips: what both take.
        how: what is fitted.
        factor: which axes low maps halve.
        seed: of the positions that weights are fitted at.
        begun: what an interrupted call had fitted.
        watch: sees the paths of layers go by.
        keep: is given what is fitted after each.

    Returns:
        What was fitted.
    """
    fitted: Fitted = {}
    theirs = {str(node.target): node for node in teacher.graph.nodes if node.op == "call_module"}
    ours = {path: node for path, node in _layers(student, how).items() if path in theirs}
    here, there = Walk(student, clips), Walk(teacher, clips)
    for path in watch(list(ours)):
        layer, node, like = student.get_submodule(path), ours[path], theirs[path]
        if begun is not None and path in begun:
            fitted[path] = begun[path]
        else:
            here.go_to(node)
            inputs = here.values(node.all_input_nodes[0])
            if isinstance(layer, _BatchNorm):
                there.go_to(like)
                fitted[path] = fit_norm(layer, inputs, there.values(like.all_input_nodes[0]), factor)
            else:
                there.go_to(like, after=True)
                fitted[path] = fit_weights(layer, inputs, there.values(like), seed=seed)  # type: ignore[arg-type]
        layer.load_state_dict(fitted[path], strict=False)
        keep({**(begun or {}), **fitted})
    return fitted


def _layers(network: fx.GraphModule, how: Refit) -> dict[str, fx.Node]:
    """Calls of layers to fit, in order; of modules that are called once."""
    calls = [node for node in network.graph.nodes if node.op == "call_module"]
    times = Counter(str(node.target) for node in calls)
    found: dict[str, fx.Node] = {}
    started = False
    for node in calls:
        module = network.get_submodule(str(node.target))
        started = started or (isinstance(module, OctaveLayer) and module.is_octave)
        is_norm = isinstance(module, _BatchNorm) and module.running_mean is not None
        is_conv = how == "weights" and isinstance(module, _ConvNd) and can_fit(module)
        if started and how != "none" and times[str(node.target)] == 1 and (is_norm or is_conv):
            found[str(node.target)] = node
    return found


@torch.no_grad()
def fit_norm(
    norm: _BatchNorm, inputs: Sequence[Tensor | Octave], wanted: Sequence[Tensor], factor: Factor | None
) -> dict[str, Tensor]:
    """New running statistics of one norm.

    Args:
        norm: a batch norm of the octave network, with the ordinary one's statistics.
        inputs: what it takes, a clip each.
        wanted: what the ordinary network's takes, (N, C, ...).
        factor: which axes low maps halve.

    Returns:
        running_mean and running_var, (C,).
    """
    assert norm.running_mean is not None and norm.running_var is not None
    mean, var = norm.running_mean.double().clone(), norm.running_var.double().clone()
    for channels, is_low in _frequencies(norm):
        if not len(channels):
            continue
        ours = _moments([(x.low if is_low else x.high) if isinstance(x, Octave) else x for x in inputs])
        theirs = _moments([_pooled(x[:, channels], factor) if is_low else x[:, channels] for x in wanted])
        std = (var[channels] + norm.eps).sqrt()
        ratio = ((ours[1] + _TINY) / (theirs[1] + _TINY)).clamp(1 / _MOST, _MOST)
        new_var = (std.square() * ratio - norm.eps).clamp_min(_TINY)
        offset = (theirs[0] - mean[channels]) / std  # of the ordinary network's normalised values
        mean[channels] = ours[0] - offset * (new_var + norm.eps).sqrt()
        var[channels] = new_var
    return {"running_mean": mean.to(norm.running_mean), "running_var": var.to(norm.running_var)}


def _frequencies(norm: _BatchNorm) -> list[tuple[Tensor, bool]]:
    """The channels of each frequency, and whether it is the low one."""
    if isinstance(norm, _OctBatchNorm) and not norm.partition.is_ordinary:
        return [(torch.tensor(norm.partition.high, dtype=torch.long), False), (torch.tensor(norm.partition.low), True)]
    return [(torch.arange(norm.num_features), False)]


def _pooled(x: Tensor, factor: Factor | None) -> Tensor:
    return pool_down(x, as_factor(factor, x.dim() - 2))


def _moments(maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel over all maps, float64."""
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for x in maps:
        size = x.numel() // max(1, x.shape[1])
        axes = [0, *range(2, x.dim())]
        mean = x.mean(axes, keepdim=True)
        var = (x - mean).square_().mean(axes).double()  # torch.var_mean takes several times as long
        mean = mean.flatten().double()
        count, total, squares = count + size, total + size * mean, squares + size * (var + mean.square())
    mean = total / count
    return mean, (squares / count - mean.square()).clamp_min(0)
