"""A converted network fitted to the ordinary one, without labels, layer by layer.

Both networks are computed node by node on the same clips (walk.py). Where the octave one comes to a layer, all earlier
layers are fitted already, so that the layer sees what it will see in use; all fitted at once, it gets worse.

norms     Running statistics are set so that each channel's normalised values have the ordinary network's mean and
          variance on these clips. Low channels are compared with the ordinary values *pooled*; matched to the variance
          before pooling, every layer would amplify them. It is a match, no new estimate: on clips unlike the training
          set, new estimates destroy any network.
weights   Before that, what a convolution's weights have to add so that its results come nearest to the ordinary
          network's (least_squares.py).
classifier  At the end its bias gets what scores lack on average. Norms see to the mean before the activation, and what
          an activation makes of smoother values has another mean. At large alphas this is most of the error.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrize import is_parametrized

from octvideo.octave.conversion.calibration import Calibration, Calls, Refit
from octvideo.octave.conversion.conv_form import conv_form
from octvideo.octave.conversion.least_squares import Problem, Term, fit_weights, is_depthwise
from octvideo.octave.conversion.walk import Walk, at_least_float32, in_eval
from octvideo.octave.factor import Factor, as_factor
from octvideo.octave.features import Octave
from octvideo.octave.layer import OctaveLayer
from octvideo.octave.partition import Partition
from octvideo.octave.resample import pool_down

Fitted = dict[str, dict[str, Tensor]]  # path of a layer -> what was fitted of its state_dict

# Variances that differ by more are those of channels that are all but constant.
_MOST = 10.0
# Of a channel, over all clips: a variance of fewer is a guess, and in deep networks such guesses multiply.
_LEAST_ELEMENTS = 64
_TINY = 1e-12


def refit(
    student: fx.GraphModule,
    teacher: fx.GraphModule,
    calibration: Calibration,
    factor: Factor | None,
    state: dict[str, Any],
) -> tuple[Fitted, int]:
    """Fits the layers of `student`, from its first octave one on, in place.

    Args:
        student: the octave network.
        teacher: the ordinary network, in eval, with the same modules at the same paths.
        calibration: what is fitted, and on which clips.
        factor: which axes low maps halve.
        state: what an interrupted call had done; filled.

    Returns:
        What was fitted, and on how many clips.
    """
    fitted: Fitted = {}
    begun: Fitted = state.get("fitted", {})
    with in_eval(student):
        clips = _clips_that_fit((student, teacher), calibration)
        theirs = {str(node.target): node for node in teacher.graph.nodes if node.op == "call_module"}
        ours = {path: node for path, node in _layers(student, calibration.refit).items() if path in theirs}
        here, there = Walk(student, clips), Walk(teacher, clips)
        for path in calibration.watch("fitting layers", list(ours)):
            layer, node, like = student.get_submodule(path), ours[path], theirs[path]
            if path in begun:
                fitted[path] = begun[path]
            else:
                here.go_to(node)
                inputs = here.values(node.all_input_nodes[0])
                if isinstance(layer, _BatchNorm):
                    there.go_to(like)
                    fitted[path] = fit_norm(layer, inputs, there.values(like.all_input_nodes[0]), factor)
                else:
                    there.go_to(like, after=True)
                    wanted = there.values(like)
                    assert isinstance(layer, _ConvNd)
                    problems = functools.partial(problems_of, layer)
                    fitted[path] = fit_weights(layer, problems, inputs, wanted, seed=calibration.seed)
            layer.load_state_dict(fitted[path], strict=False)
            calibration.done(state, "fitted", {**begun, **fitted})
        head = _classifier(student)
        if head is not None and calibration.refit != "none":
            if head in begun:
                fitted[head] = begun[head]
            else:
                fitted |= _fit_bias(head, here, there)
            student.get_submodule(head).load_state_dict(fitted.get(head, {}), strict=False)
            calibration.done(state, "fitted", {**begun, **fitted})
    return fitted, len(clips)


def _clips_that_fit(networks: Sequence[fx.GraphModule], calibration: Calibration) -> Sequence[Any]:
    """As many clips, evenly taken, as memory allows."""
    clips, need = calibration.clips, 1
    assert isinstance(clips, Calls)
    for network in networks:
        walk, peak = Walk(network, [clips[0]]), 0
        for node in walk.nodes:
            walk.go_to(node)
            peak = max(peak, walk.live_bytes())
        need += peak
    count = max(1, min(len(clips), calibration.memory_bytes // need))
    return clips.take(count)


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


# -- weights ----------------------------------------------------------------------------------------------


# Elements that an output element reads. Larger sums of products take minutes and gigabytes.
_MOST_INPUTS = 4096


def can_fit(layer: nn.Module) -> bool:
    """Whether the weights of a layer, octave or ordinary, can be fitted here."""
    form = conv_form(layer)
    if form is None or form.make_weight is not None:
        return False
    assert isinstance(layer, _ConvNd)
    usual = not (layer.transposed or isinstance(layer.padding, str) or is_parametrized(layer))
    grouped = layer.groups > 1 and not is_depthwise(layer)
    return usual and layer.padding_mode == "zeros" and not grouped and layer.weight[0].numel() <= _MOST_INPUTS


def problems_of(layer: _ConvNd, x: Tensor | Octave) -> list[Problem]:
    """What fitting a layer's weights comes to: one problem for each resolution of its results."""
    high, low = x if isinstance(x, Octave) else (x, None)
    if not isinstance(layer, OctaveLayer):
        return [Problem(slice(0, layer.out_channels), None, (Term(high, tuple(layer.stride)),))]
    if layer.pool_first is not None:
        high = pool_down(high, layer.pool_first)
    problems = []
    for target, pool in ((layer.to_high, None), (layer.to_low, layer.factor)):
        terms = [
            Term(term.gather(high, low, len(layer.factor), layer), term.path.stride, term.path) for term in target.terms
        ]
        if terms:
            problems.append(Problem(target.channels, pool, tuple(terms)))
    return problems


# -- the classifier ----------------------------------------------------------------------------------------


def _classifier(network: fx.GraphModule) -> str | None:
    """The path of the last nn.Linear, if it has a bias, and if an octave layer is before it."""
    if not any(isinstance(module, OctaveLayer) and module.is_octave for module in network.modules()):
        return None
    linears = [(path, module) for path, module in network.named_modules() if isinstance(module, nn.Linear)]
    return linears[-1][0] if linears and linears[-1][1].bias is not None else None


@torch.no_grad()
def _fit_bias(path: str, here: Walk, there: Walk) -> Fitted:
    """The classifier's new bias; nothing where the outputs are not its scores, (N, K), or for a single clip."""
    outputs = []
    for walk in (here, there):
        walk.go_to(walk.nodes[-1])
        made = walk.nodes[-1].args[0]
        outputs.append(walk.values(made) if isinstance(made, fx.Node) else [])
    ours, theirs = outputs  # (N,K) of each clip
    bias = here.network.get_submodule(path).bias
    assert isinstance(bias, nn.Parameter)
    is_scores = all(isinstance(x, Tensor) and x.dim() == 2 and x.shape[1] == len(bias) for x in (*ours, *theirs))
    if not is_scores or len(ours) < 2:
        return {}
    lacking = torch.stack([(b.double() - a.double()).mean(0) for a, b in zip(ours, theirs, strict=True)])  # (N,K)
    offset = lacking.mean(0)
    # Of the mean's square, so much is chance: on few clips, or where little is lacking, little is added.
    chance = lacking.var(0).sum() / len(lacking)
    offset = (offset * (1 - chance / offset.square().sum().clamp_min(_TINY)).clamp_min(0)).to(bias)
    before = bias.clone()
    bias.add_(offset)
    moved = here.network(here.clips[0]) - ours[0]
    fitted = {path: {"bias": bias.clone()}}
    bias.copy_(before)
    # Seen, not assumed: a softmax may follow, or another layer.
    room = 1e-3 * float(offset.abs().max()) + 1e-4 * float(ours[0].abs().max())
    return fitted if torch.allclose(moved, offset.expand_as(moved), rtol=0, atol=room) else {}


# -- norms -------------------------------------------------------------------------------------------------


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
        maps = [(x.low if is_low else x.high) if isinstance(x, Octave) else x for x in inputs]
        if sum(x[:, 0].numel() for x in maps) < _LEAST_ELEMENTS:
            continue
        ours = _moments(maps)
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
    partition = getattr(norm, "partition", None)  # of an octave norm
    if isinstance(partition, Partition) and not partition.is_ordinary:
        return [(torch.tensor(partition.high, dtype=torch.long), False), (torch.tensor(partition.low), True)]
    return [(torch.arange(norm.num_features), False)]


def _pooled(x: Tensor, factor: Factor | None) -> Tensor:
    return pool_down(x, as_factor(factor, x.dim() - 2))


def _moments(maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel over all maps, float64."""
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for x in maps:
        x = at_least_float32(x)
        size = x.numel() // max(1, x.shape[1])
        axes = [0, *range(2, x.dim())]
        mean = x.mean(axes, keepdim=True)
        var = (x - mean).square_().mean(axes).double()  # torch.var_mean takes several times as long
        mean = mean.flatten().double()
        count, total, squares = count + size, total + size * mean, squares + size * (var + mean.square())
    mean = total / count
    return mean, (squares / count - mean.square()).clamp_min(0)
