"""The four paths of an octave convolution: which part of the ordinary weight connects which channels.

Of W_hh, W_hl, W_lh and W_ll (source first), hl and lh exchange information between the two frequencies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from octvideo.octave.factor import Factor
from octvideo.octave.partition import (
    ChannelIndex,
    HoldsIndices,
    Indices,
    Partition,
    as_channel_index,
    index_tensor,
    take_channels,
)
from octvideo.octave.resample import pool_down

# How maps shrink: by a strided convolution, or by average pooling before it.
Downsample = Literal["stride", "pool"]
# The same in octave layers: "stride" lets what passes from high to low stride, too; "keep" pools that, and leaves the
# layer its stride.
OctaveDownsample = Literal["stride", "pool", "keep"]
# Which of the two exchange paths run: the ablation of the paper's Table 3 (arXiv 1904.05049).
Exchange = Literal["both", "none", "high_to_low", "low_to_high"]


@dataclass(frozen=True)
class ConvPath:
    """One of the four parts: its weights, the channels that they connect, and the resolutions between them."""

    rows: ChannelIndex  # of the weight's axis 0: output channels, in a transposed convolution input channels
    # Of axis 1: positions inside a group; one tuple for each row where they differ between groups.
    columns: ChannelIndex | tuple[tuple[int, ...], ...]
    groups: int
    inputs: ChannelIndex  # positions in the source map (x_high or x_low)
    outputs: ChannelIndex  # positions in the target map (y_high or y_low)
    covers_target: bool
    pool: Factor | None = None  # average pooling before the convolution
    stride: tuple[int, ...] = ()
    up: Factor | None = None  # nearest upsampling after it

    @property
    def num_connections(self) -> int:
        """Pairs of an input and an output channel that it connects."""
        columns = self.columns
        if isinstance(columns, tuple) and columns and isinstance(columns[0], tuple):
            return sum(map(len, columns))  # type: ignore[arg-type]
        return len(_positions(self.rows)) * len(_positions(columns))  # type: ignore[arg-type]

    def weight(self, weight: Tensor, holder: HoldsIndices | None = None) -> Tensor:
        """Its part of the ordinary weight; `holder` as in `take_channels`."""
        if isinstance(self.columns, tuple) and self.columns and isinstance(self.columns[0], tuple):
            rows, columns = (index_tensor(c, weight.device, holder) for c in (_positions(self.rows), self.columns))
            return weight[rows[:, None], columns]
        return take_channels(take_channels(weight, self.rows, 0, holder), self.columns, 1, holder)  # type: ignore

    @property
    def indices(self) -> tuple[Indices | slice, ...]:
        """The channels of the weight and of the target that a forward takes."""
        rows = self.rows
        if isinstance(self.columns, tuple) and self.columns and isinstance(self.columns[0], tuple):
            rows = _positions(rows)
        return rows, self.columns, *(() if self.covers_target else (_positions(self.outputs),))

    def join(self, other: ConvPath, order: ChannelIndex) -> ConvPath | None:
        """This path and one of other sources as one, over both sources' channels side by side; None if it can't be.

        Args:
            other: with the same target, at the same resolution.
            order: of the ordinary input's channels, in which the sources hold them.
        """
        alike = self.rows == other.rows and self.stride == other.stride and self.up is None and other.up is None
        return replace(self, columns=order) if alike else None


def plan_path(
    source: Partition, target: Partition, groups: int, *, from_low: bool, to_low: bool, transposed: bool = False
) -> ConvPath | None:
    """The part of a grouped convolution from one frequency to another; None where no kernel connects them.

    Args:
        source, target: which channels of the input and of the output are low.
        groups: of the ordinary convolution.
        from_low, to_low: which of the four parts.
        transposed: the weight is a transposed convolution's, (C_in, C_out / groups, ...).

    Raises:
        ValueError: if the groups that take part are not alike (such a convolution needs a merged input).
    """
    in_size, out_size = source.num_channels // groups, target.num_channels // groups
    taken: list[tuple[list[int], list[int]]] = []
    for g in range(groups):
        inputs = [i for i in range(g * in_size, (g + 1) * in_size) if source.is_low[i] == from_low]
        outputs = [o for o in range(g * out_size, (g + 1) * out_size) if target.is_low[o] == to_low]
        if inputs and outputs:
            taken.append((inputs, outputs))
    if not taken:
        return None
    if len({(len(inputs), len(outputs)) for inputs, outputs in taken}) > 1:
        raise ValueError(
            f"the {groups} groups of this convolution do not hold equally many low channels "
            f"(in {source}, out {target}); split each group alike, or merge before the convolution"
        )
    # Axis 0 of the weight counts channels throughout, axis 1 inside a group.
    axis_0, axis_1 = (0, 1) if transposed else (1, 0)
    size_1 = out_size if transposed else in_size
    per_group = [tuple(c % size_1 for c in pair[axis_1]) for pair in taken]
    columns: ChannelIndex | tuple[tuple[int, ...], ...] = as_channel_index(per_group[0])
    if len(set(per_group)) > 1:
        columns = tuple(own for own, pair in zip(per_group, taken, strict=True) for _ in pair[axis_0])
    in_position = {c: n for n, c in enumerate(source.low if from_low else source.high)}
    out_position = {c: n for n, c in enumerate(target.low if to_low else target.high)}
    all_outputs = [out_position[o] for _, outputs in taken for o in outputs]
    return ConvPath(
        rows=as_channel_index([c for pair in taken for c in pair[axis_0]]),
        columns=columns,
        groups=len(taken),
        inputs=as_channel_index([in_position[i] for inputs, _ in taken for i in inputs]),
        outputs=as_channel_index(all_outputs),
        covers_target=len(all_outputs) == len(out_position),
    )


@dataclass(frozen=True)
class Paths:
    """The paths of one layer; None where no weight connects two frequencies, or an exchange is switched off."""

    hh: ConvPath | None
    hl: ConvPath | None
    lh: ConvPath | None
    ll: ConvPath | None

    @classmethod
    def of(cls, source: Partition, target: Partition, groups: int, *, transposed: bool = False) -> Paths:
        """All four, both exchanges included.

        Raises:
            ValueError: as `plan_path`.
        """

        def plan(from_low: bool, to_low: bool) -> ConvPath | None:
            return plan_path(source, target, groups, from_low=from_low, to_low=to_low, transposed=transposed)

        return cls(hh=plan(False, False), hl=plan(False, True), lh=plan(True, False), ll=plan(True, True))

    def with_exchange(self, exchange: Exchange) -> Paths:
        """Without the exchange paths that `exchange` excludes.

        One stays where it is the only way in or out for some channel: in the first and last octave layers
        (alpha 0, or 1, on one side), and in grouped layers that move whole groups from one frequency to the
        other. The paper's Table 3 has to keep these, too: without them its networks would fall apart.

        Raises:
            ValueError: if `exchange` is no such choice.
        """
        if exchange not in get_args(Exchange):
            raise ValueError(f"exchange: got {exchange!r}, expected one of {', '.join(map(repr, get_args(Exchange)))}")
        keep_hl = exchange in ("both", "high_to_low") or _is_needed(self.hl, self.hh, self.ll)
        keep_lh = exchange in ("both", "low_to_high") or _is_needed(self.lh, self.ll, self.hh)
        return replace(self, hl=self.hl if keep_hl else None, lh=self.lh if keep_lh else None)


@dataclass(frozen=True)
class Term:
    """One convolution of a layer: of one source, or of both side by side where they meet at one resolution.

    One of more channels is faster than two of fewer and an addition, though the sources must be copied together.
    """

    path: ConvPath
    sources: tuple[ConvPath | None, ConvPath | None]  # how x_high and x_low come in; None: not at all

    def gather(self, high: Tensor, low: Tensor | None, axes: int, holder: HoldsIndices | None = None) -> Tensor:
        """What the convolution reads: its sources' channels, pooled where they have to be, side by side.

        Args:
            high: (N, C_high, ...), or (C_high, ...) in an ordinary layer.
            low: (N, C_low, ...) or None.
            axes: how many the maps have after the channels; a clip's frames (N·T, C, H, W) have two.
            holder: as in `take_channels`.
        """
        parts = []
        for x, path in zip((high, low), self.sources, strict=True):
            if path is not None:
                assert x is not None
                part = take_channels(x, path.inputs, -1 - axes, holder)
                parts.append(part if path.pool is None else pool_down(part, path.pool[-axes:]))
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


@dataclass(frozen=True)
class Target:
    """One frequency of a layer's result, y_high or y_low: the terms that add up to it, and its channels.

    Args:
        terms: the one at full resolution first; none where the frequency has no channel.
        channels: of the ordinary result.
        num_channels: how many these are.
    """

    terms: tuple[Term, ...]
    channels: ChannelIndex
    num_channels: int

    @classmethod
    def of(
        cls,
        from_high: ConvPath | None,
        from_low: ConvPath | None,
        order: ChannelIndex | None,
        channels: Sequence[int],
    ) -> Target:
        """From the paths that reach it.

        Args:
            from_high, from_low: of the paths; None where there is none.
            order: of the ordinary input's channels: the high ones, then the low ones; None in a grouped layer, where
                sources cannot lie side by side.
            channels: of the ordinary result, ascending.
        """
        joined = from_high.join(from_low, order) if from_high and from_low and order is not None else None
        terms = [Term(joined, (from_high, from_low))] if joined else []
        if from_high and not joined:
            terms.append(Term(from_high, (from_high, None)))
        if from_low and not joined:
            terms.append(Term(from_low, (None, from_low)))
        return cls(tuple(terms), as_channel_index(channels), len(channels))

    @property
    def indices(self) -> tuple[Indices | slice, ...]:
        """All channels that a forward takes."""
        return self.channels, *self.inputs, *[one for term in self.terms for one in term.path.indices]

    @property
    def inputs(self) -> list[ChannelIndex]:
        """Those of the source maps alone."""
        return [path.inputs for term in self.terms for path in term.sources if path is not None]

    def bias(self, bias: Tensor | None, holder: HoldsIndices | None = None) -> Tensor | None:
        """Its part of the ordinary bias; `holder` as in `take_channels`."""
        return None if bias is None else take_channels(bias, self.channels, 0, holder)

    def spread(self, y: Tensor, path: ConvPath, bias: Tensor | None, holder: HoldsIndices | None = None) -> Tensor:
        """All channels of the target: a path's result in their places, the bias, and zeros elsewhere.

        Args:
            y: (N, channels that the path reaches, ...).
            path: of a grouped layer that moves whole groups from one frequency to the other.
            bias: (num_channels,) or None.
            holder: as in `take_channels`.
        """
        full = y.new_zeros(y.shape[0], self.num_channels, *y.shape[2:])
        if bias is not None:
            full = full + bias.to(y.dtype).reshape(-1, *([1] * (y.dim() - 2)))
        return full.index_add(1, index_tensor(_positions(path.outputs), y.device, holder), y)


def _is_needed(path: ConvPath | None, same_source: ConvPath | None, same_target: ConvPath | None) -> bool:
    """Whether some channel has no other way out of the source, or into the target, than `path`."""
    if path is None:
        return False
    left = set(_positions(path.inputs)) - set(_positions(same_source.inputs if same_source else slice(0, 0)))
    reached = set(_positions(path.outputs)) - set(_positions(same_target.outputs if same_target else slice(0, 0)))
    return bool(left or reached)


def _positions(channels: ChannelIndex) -> tuple[int, ...]:
    return tuple(range(channels.start, channels.stop)) if isinstance(channels, slice) else channels
