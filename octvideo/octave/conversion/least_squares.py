"""A convolution's weights by least squares: what they have to add so that results are nearest to wanted ones.

An octave convolution is linear in its weights, too. Each row of the ordinary weight writes one channel at one
resolution, so rows of high and of low channels are two problems; x_low is read there by the pixel that covers a high
one, as upsampled after the convolution.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from octvideo.octave.conversion.conv_form import conv_form
from octvideo.octave.features import Octave
from octvideo.octave.layer import OctaveLayer
from octvideo.octave.ordinary import pad_same
from octvideo.octave.partition import ChannelIndex, take_channels
from octvideo.octave.paths import ConvPath
from octvideo.octave.resample import pool_down

# Elements that an output element reads. Larger sums of products take minutes and gigabytes.
_MOST_INPUTS = 4096
# Output elements for each of these, over all clips: fewer fit the clips and not the task.
_POSITIONS = 30
# The penalty on what is added, in mean squares of what is read. Positions of a clip are alike, so that a small penalty
# fits the clips: on others, features of networks came nearest to the ordinary ones' with 0.3 to 1.
_PENALTY = 0.3


def can_fit(layer: nn.Module) -> bool:
    """Whether the weights of a layer, octave or ordinary, can be fitted here."""
    form = conv_form(layer)
    if form is None or form.make_weight is not None:
        return False
    assert isinstance(layer, nn.modules.conv._ConvNd)
    usual = not (layer.transposed or isinstance(layer.padding, str) or is_parametrized(layer))
    grouped = layer.groups > 1 and not _is_depthwise(layer)
    return usual and layer.padding_mode == "zeros" and not grouped and layer.weight[0].numel() <= _MOST_INPUTS


def _is_depthwise(layer: nn.modules.conv._ConvNd) -> bool:
    return layer.groups == layer.in_channels == layer.out_channels and layer.groups > 1


@dataclass
class _Sums:
    """Of one problem: products of what is read, X (..., P, D), with itself and with the residual, R (..., P, O)."""

    count: int = 0
    xx: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.double))
    xr: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.double))
    x: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.double))
    r: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.double))

    def add(self, x: Tensor, r: Tensor) -> None:
        """Of some positions: x (..., P, D), r (..., P, O)."""
        # Products of one clip in float32 do: the penalty is far larger than their rounding.
        precise = torch.promote_types(x.dtype, torch.float)
        x, r = x.to(precise), r.to(precise)
        self.count += x.shape[-2]
        self.xx = self.xx + (x.mT @ x).double()
        self.xr = self.xr + (x.mT @ r).double()
        self.x = self.x + x.sum(-2, keepdim=True).double()
        self.r = self.r + r.sum(-2, keepdim=True).double()

    def solve(self) -> tuple[Tensor, Tensor]:
        """What is to be added to the weights, (..., O, D), and to a bias, (..., O); norms see to the mean else."""
        xx = self.xx - self.x.mT @ self.x / self.count
        xr = self.xr - self.x.mT @ self.r / self.count
        penalty = _PENALTY * xx.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(1e-12)
        xx.diagonal(dim1=-2, dim2=-1).add_(penalty[..., None])
        added = torch.cholesky_solve(xr, torch.linalg.cholesky(xx)).mT
        return added, (self.r - self.x @ added.mT).squeeze(-2) / self.count


@dataclass(frozen=True)
class _Term:
    """One convolution of a problem: the map it reads, and its part of the weight (None: all of it)."""

    x: Tensor
    stride: tuple[int, ...]
    path: ConvPath | None = None

    def weight(self, layer: nn.modules.conv._ConvNd) -> Tensor:
        return layer.weight if self.path is None else self.path.weight(layer.weight, layer)  # type: ignore[arg-type]


@dataclass(frozen=True)
class _Problem:
    """Rows of the weight whose results have one resolution, and the terms that add up to them."""

    rows: ChannelIndex
    is_low: bool
    terms: tuple[_Term, ...]


def _problems(layer: nn.modules.conv._ConvNd, x: Tensor | Octave) -> list[_Problem]:
    high, low = x if isinstance(x, Octave) else (x, None)
    if not isinstance(layer, OctaveLayer):
        return [_Problem(slice(0, layer.out_channels), False, (_Term(high, tuple(layer.stride)),))]
    if layer.pool_first is not None:
        high = pool_down(high, layer.pool_first)
    problems = []
    for target, is_low in ((layer.to_high, False), (layer.to_low, True)):
        terms = [
            _Term(term.gather(high, low, len(layer.factor), layer), term.path.stride, term.path)
            for term in target.terms
        ]
        if terms:
            problems.append(_Problem(target.channels, is_low, tuple(terms)))
    return problems


@torch.no_grad()
def fit_weights(
    layer: nn.modules.conv._ConvNd, inputs: Sequence[Tensor | Octave], wanted: Sequence[Tensor], *, seed: int = 0
) -> dict[str, Tensor]:
    """New weights of one convolution, and its bias if it has one.

    Args:
        layer: one that `can_fit`.
        inputs: what it takes, for each clip.
        wanted: the ordinary network's results there, (N, C_out, ...).
        seed: of the positions that are looked at.

    Returns:
        weight, and bias: tensors of the layer's shapes.
    """
    generator = torch.Generator().manual_seed(seed)
    depthwise = _is_depthwise(layer)
    sums: dict[bool, _Sums] = {}
    positions = _POSITIONS * layer.weight[0].numel() * (8 if depthwise else 1)
    each = -(-positions // sum(len(y) for y in wanted))
    for x, y in zip(inputs, wanted, strict=True):
        for problem in _problems(layer, x):
            target = take_channels(y, problem.rows)
            if problem.is_low:
                assert isinstance(layer, OctaveLayer)
                target = pool_down(target, layer.factor)
            sizes = (len(y), *target.shape[2:])
            drawn = torch.randperm(math.prod(sizes), generator=generator)[: each * len(y)]  # all, where there are fewer
            at = torch.unravel_index(drawn, sizes)
            read, weights = [], []
            for term in problem.terms:
                read.append(_patches(layer, term, at))  # (P,C_in,k)
                weights.append(term.weight(layer))
            values = _take(target, at)  # (P,C_out)
            total = sums.setdefault(problem.is_low, _Sums())
            if depthwise:  # each channel by itself: one term, as it writes what it reads
                x_each = read[0].transpose(0, 1)  # (C,P,k)
                total.add(x_each, values.T[..., None] - x_each @ weights[0].flatten(1)[..., None])
            else:
                x_all = torch.cat([part.flatten(1) for part in read], 1)  # (P,D)
                total.add(x_all, values - x_all @ torch.cat([w.flatten(1) for w in weights], 1).T)
    weight, bias = layer.weight.clone(), None if layer.bias is None else layer.bias.clone()
    for problem in _problems(layer, inputs[0]):
        added, offset = sums[problem.is_low].solve()
        parts = [term.weight(layer) for term in problem.terms]
        if depthwise:
            added, offset = added.flatten(1), offset.flatten()
        for term, part, more in zip(problem.terms, parts, added.split([w[0].numel() for w in parts], 1), strict=True):
            _add(weight, term, more.reshape(part.shape).to(weight))
        if bias is not None:
            bias[_index(problem.rows)] += offset.to(bias)
    return {"weight": weight} if bias is None else {"weight": weight, "bias": bias}


def _patches(layer: nn.modules.conv._ConvNd, term: _Term, at: Sequence[Tensor]) -> Tensor:
    """What output elements read: (P, C_in, k).

    Args:
        at: indices of the clip and of the position on each axis, (P,) each.
    """
    path = term.path
    up = (1,) * len(layer.kernel_size) if path is None or path.up is None else path.up
    sample, places = at[0], [place // f for place, f in zip(at[1:], up, strict=True)]
    form = conv_form(layer)
    if form is not None and form.is_same:
        x = pad_same(term.x, layer.kernel_size, term.stride, layer.dilation)
    else:
        padding: Sequence[Any] = layer.padding
        x = F.pad(term.x, [pad for pad in reversed(padding) for _ in (0, 1)])
    taken = []
    for offsets in itertools.product(*map(range, layer.kernel_size)):
        steps = zip(places, term.stride, offsets, layer.dilation, strict=True)
        taken.append(_take(x, [sample, *[place * s + offset * d for place, s, offset, d in steps]]))
    return torch.stack(taken, 2)


def _take(x: Tensor, at: Sequence[Tensor]) -> Tensor:
    index: tuple[Any, ...] = (at[0], slice(None), *at[1:])
    return x[index]


def _add(weight: Tensor, term: _Term, more: Tensor) -> None:
    path = term.path
    if path is None:
        weight += more
        return
    rows, columns = _index(path.rows, len(weight)), path.columns
    own = torch.tensor(columns) if isinstance(columns, tuple) else torch.arange(weight.shape[1])[columns]
    if own.dim() == 1:
        own = own[None]
    weight[rows[:, None], own] += more


def _index(channels: ChannelIndex, count: int | None = None) -> Tensor:
    if isinstance(channels, slice):
        return torch.arange(channels.stop if count is None else count)[channels]
    return torch.tensor(channels, dtype=torch.long)
