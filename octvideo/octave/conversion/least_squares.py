"""A convolution's weights by least squares: what they have to add so that results are nearest to wanted ones.

An octave convolution is linear in its weights, too. Each row of the ordinary weight writes one channel at one
resolution, so rows of high and of low channels are two problems; x_low is read there by the pixel that covers a high
one, as upsampled after the convolution.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octvideo.octave.conversion.conv_form import conv_form
from octvideo.octave.conversion.walk import at_least_float32
from octvideo.octave.factor import Factor
from octvideo.octave.features import Octave
from octvideo.octave.ordinary import pad_same
from octvideo.octave.partition import ChannelIndex, take_channels
from octvideo.octave.paths import ConvPath
from octvideo.octave.resample import pool_down

# Output elements for each of these, over all clips: fewer fit the clips and not the task.
_POSITIONS = 30
# Weights stay as they are where maps have fewer elements for each: the clips would be learnt by heart.
_LEAST_ELEMENTS = 2
# The penalty on what is added, in mean squares of what is read. Positions of a clip are alike, so that a small penalty
# fits the clips: on others, features of networks came nearest to the ordinary ones' with 0.3 to 1.
_PENALTY = 0.3


def is_depthwise(layer: nn.modules.conv._ConvNd) -> bool:
    """Whether it has one kernel a channel."""
    return layer.groups == layer.in_channels == layer.out_channels and layer.groups > 1


@dataclass
class _Sums:
    """Of one problem: products of what is read, X (..., P, D), with itself and with the residual, R (..., P, O)."""

    count: int = 0
    xx: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.double))
    xr: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.double))
    x: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.double))
    r: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.double))
    near: Tensor = field(default_factory=lambda: torch.zeros(()))  # subtracted from X
    elements: int = 0  # of the map, of which positions are drawn

    def add(self, x: Tensor, r: Tensor) -> None:
        """Of some positions: x (..., P, D), r (..., P, O)."""
        x, r = at_least_float32(x), at_least_float32(r)
        if self.count == 0:  # near the mean, products in float32 do: the penalty is far larger than their rounding
            self.near = x.mean(-2, keepdim=True)
        x = x - self.near
        self.count += x.shape[-2]
        self.xx = self.xx + (x.mT @ x).double()
        self.xr = self.xr + (x.mT @ r).double()
        self.x = self.x + x.sum(-2, keepdim=True).double()
        self.r = self.r + r.sum(-2, keepdim=True).double()

    def solve(self) -> tuple[Tensor, Tensor]:
        """What is to be added to the weights, (..., O, D), and to a bias, (..., O); norms see to the mean else."""
        xx = self.xx - self.x.mT @ self.x / self.count
        xr = self.xr - self.x.mT @ self.r / self.count
        # The second term is for channels that are all but constant, of which rounding leaves no positive variance.
        squares, variance = (m.diagonal(dim1=-2, dim2=-1).mean(-1) for m in (self.xx, xx))
        penalty = _PENALTY * variance.clamp_min(0) + 1e-6 * squares + 1e-12
        xx.diagonal(dim1=-2, dim2=-1).add_(penalty[..., None])
        added = torch.cholesky_solve(xr, torch.linalg.cholesky(xx)).mT
        mean = self.x / self.count + self.near
        return added, (self.r / self.count - mean @ added.mT).squeeze(-2)


@dataclass(frozen=True)
class Term:
    """One convolution of a problem: the map it reads, and its part of the weight (None: all of it)."""

    x: Tensor
    stride: tuple[int, ...]
    path: ConvPath | None = None

    def weight(self, layer: nn.modules.conv._ConvNd) -> Tensor:
        return layer.weight if self.path is None else self.path.weight(layer.weight, layer)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Problem:
    """Rows of the weight whose results have one resolution, and the terms that add up to them.

    Args:
        rows: output channels.
        pool: by what wanted results are pooled; None for those at full resolution.
        terms: convolutions.
    """

    rows: ChannelIndex
    pool: Factor | None
    terms: tuple[Term, ...]


Problems = Callable[[Tensor | Octave], Sequence[Problem]]  # of what a layer takes


@torch.no_grad()
def fit_weights(
    layer: nn.modules.conv._ConvNd,
    problems: Problems,
    inputs: Sequence[Tensor | Octave],
    wanted: Sequence[Tensor],
    *,
    seed: int = 0,
) -> dict[str, Tensor]:
    """New weights of one convolution, and its bias if it has one.

    Args:
        layer: ordinary or octave, without groups or depthwise.
        problems: what it takes as problems, always as many in the same order.
        inputs: what it takes, for each clip.
        wanted: the ordinary network's results there, (N, C_out, ...).
        seed: of the positions that are looked at.

    Returns:
        weight, and bias: tensors of the layer's shapes.
    """
    generator = torch.Generator().manual_seed(seed)
    depthwise = is_depthwise(layer)
    sums: list[_Sums] = []
    positions = _POSITIONS * layer.weight[0].numel() * (8 if depthwise else 1)
    each = -(-positions // sum(len(y) for y in wanted))
    for x, y in zip(inputs, wanted, strict=True):
        for n, problem in enumerate(problems(x)):
            target = take_channels(y, problem.rows)
            if problem.pool is not None:
                target = pool_down(target, problem.pool)
            sizes = (len(y), *target.shape[2:])
            drawn = torch.randperm(math.prod(sizes), generator=generator)[: each * len(y)]  # all, where there are fewer
            at = torch.unravel_index(drawn, sizes)
            read, weights = [], []
            for term in problem.terms:
                read.append(_patches(layer, term, at))  # (P,C_in,k)
                weights.append(term.weight(layer))
            values = _take(target, at)  # (P,C_out)
            if n == len(sums):
                sums.append(_Sums())
            sums[n].elements += target[:, 0].numel()
            if depthwise:  # each channel by itself: one term, as it writes what it reads
                x_each = read[0].transpose(0, 1)  # (C,P,k)
                sums[n].add(x_each, values.T[..., None] - x_each @ weights[0].flatten(1)[..., None])
            else:
                x_all = torch.cat([part.flatten(1) for part in read], 1)  # (P,D)
                sums[n].add(x_all, values - x_all @ torch.cat([w.flatten(1) for w in weights], 1).T)
    weight, bias = layer.weight.clone(), None if layer.bias is None else layer.bias.clone()
    for problem, total in zip(problems(inputs[0]), sums, strict=True):
        if total.elements < _LEAST_ELEMENTS * total.xx.shape[-1]:
            continue
        added, offset = total.solve()
        parts = [term.weight(layer) for term in problem.terms]
        if depthwise:
            added, offset = added.flatten(1), offset.flatten()
        for term, part, more in zip(problem.terms, parts, added.split([w[0].numel() for w in parts], 1), strict=True):
            _add(weight, term, more.reshape(part.shape).to(weight))
        if bias is not None:
            bias[_index(problem.rows)] = offset.to(bias)
    return {"weight": weight} if bias is None else {"weight": weight, "bias": bias}


def _patches(layer: nn.modules.conv._ConvNd, term: Term, at: Sequence[Tensor]) -> Tensor:
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


def _add(weight: Tensor, term: Term, more: Tensor) -> None:
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
