"""Operations on an Octave, as modules without parameters: activation, pooling, addition, concatenation, gates.

`octavize` puts these in place of an ordinary network's operations. They are modules, not functions, since an
`isinstance` in a traced function would see a Proxy.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octvideo.octave.factor import Factor, as_factor, low_size
from octvideo.octave.features import Octave, join, merge, split
from octvideo.octave.partition import ChannelIndex, HoldsIndices, Partition, as_channel_index, reorder, take_channels

Operation = Callable[..., Any]  # a module or a function


class Method:
    """A method of tensors as a function: torch 2.6 does not compile a module that holds `torch.Tensor.relu`."""

    def __init__(self, name: str) -> None:
        self.__name__ = name

    def __call__(self, x: Tensor, *args: object, **kwargs: object) -> Any:
        """What the method gives."""
        return getattr(x, self.__name__)(*args, **kwargs)


def _fit(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """Crop the axes after the channels to `size`, or replicate their last values up to it."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    x = x[(slice(None), slice(None)) + tuple(slice(s) for s in size)]  # noqa: RUF005 (mypy's Python 3.10)
    missing = [want - have for want, have in zip(size, x.shape[2:], strict=True)]
    if any(missing):
        x = F.pad(x, [pad for n in reversed(missing) for pad in (0, n)], mode="replicate")
    return x


class OctMap(nn.Module):
    """Applies an element-wise operation to each frequency: activations, dropout, additions, products.

    Args:
        function: a module without parameters or a function, of one Octave or of two with the same partition.
        args, kwargs: its other arguments.
    """

    def __init__(self, function: Operation, *args: object, **kwargs: object) -> None:
        super().__init__()
        self.function, self.args, self.kwargs = function, args, kwargs

    def forward(self, *pairs: Octave) -> Octave:
        highs, lows = [x.high for x in pairs], [x.low for x in pairs]
        return Octave(self.function(*highs, *self.args, **self.kwargs), self.function(*lows, *self.args, **self.kwargs))

    def extra_repr(self) -> str:
        return "" if isinstance(self.function, nn.Module) else getattr(self.function, "__name__", str(self.function))


class OctPool(nn.Module):
    """Pools each frequency by itself, so that low stays ceil(high / 2).

    Args:
        pool: the ordinary network's pooling module.
        factor: which axes the Octave halves; None for height and width.
    """

    def __init__(self, pool: nn.Module, factor: Factor | None = None) -> None:
        super().__init__()
        self.pool, self.factor = pool, factor
        self.pool_low = copy.deepcopy(pool)
        self.pool_low.ceil_mode = True  # type: ignore[assignment]  # keeps the edge pixel: the size may need it

    def forward(self, x: Octave) -> Octave:
        if x.high.shape[1] > 0:
            high = self.pool(x.high)
        else:  # alpha = 1: pooling refuses an empty map, and only its size is wanted
            high = self.pool(x.high.new_zeros(1, 1, *x.high.shape[2:]))
            high = high.new_empty(x.high.shape[0], 0, *high.shape[2:])
        low = self.pool_low(x.low)
        return Octave(high, _fit(low, low_size(high.shape[2:], self.factor)))


class OctDropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): drops both frequencies of a sample, or neither.

    Args:
        module: timm's DropPath, torchvision's StochasticDepth, or another that scales whole samples.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Octave) -> Octave:
        if not self.module.training:
            return x
        # What it does to ones is what it does to the samples: one draw for both maps.
        scale = self.module(x.low.new_ones(x.low.shape[0], *[1] * (x.low.dim() - 1)))
        return Octave(x.high * scale, x.low * scale)


class OctGate(HoldsIndices):
    """Scales (or shifts) an Octave by an ordinary tensor: the gates of squeeze-excitation, split again.

    Args:
        operation: torch.mul, torch.add or a method of theirs.
        partition: of the Octave.
        factor: which axes it halves; None for height and width.
    """

    def __init__(self, operation: Operation, partition: Partition, factor: Factor | None = None) -> None:
        super().__init__()
        self.operation, self.partition, self.factor = operation, partition, factor
        self.high, self.low = partition.indices
        self.hold_indices(self.high, self.low)

    def forward(self, x: Octave, gate: Tensor) -> Octave:
        """x of partition's C channels; gate (N, C or 1, [T,] 1, 1), one number, or any tensor that broadcasts."""
        if gate.dim() < 2 and gate.numel() == 1:
            return Octave(self.operation(x.high, gate), self.operation(x.low, gate))
        axes = gate.shape[2:]
        if gate.dim() != x.high.dim() or gate.shape[1] not in (1, self.partition.num_channels):
            full = self.operation(merge(x, self.partition, self.factor), gate)  # any other tensor
            return split(full, self.partition, self.factor)  # type: ignore[return-value]
        halved = [f == 2 for f in as_factor(self.factor, len(axes))]
        if any(h and size > 1 for h, size in zip(halved, axes, strict=True)):  # not one value a channel
            full_gate = gate.expand(-1, self.partition.num_channels, *x.high.shape[2:])
            pair = split(full_gate, self.partition, self.factor)
            return Octave(self.operation(x.high, pair.high), self.operation(x.low, pair.low))  # type: ignore
        if gate.shape[1] == 1:
            return Octave(self.operation(x.high, gate), self.operation(x.low, gate))
        high, low = take_channels(gate, self.high, 1, self), take_channels(gate, self.low, 1, self)
        return Octave(self.operation(x.high, high), self.operation(x.low, low))

    def extra_repr(self) -> str:
        return f"{getattr(self.operation, '__name__', self.operation)}, {self.partition!r}"


class OctSqueeze(HoldsIndices):
    """A global pool of an Octave, as an ordinary tensor: each frequency pooled by itself, channels in their places.

    Args:
        pool: the ordinary network's module or function (a mean over the axes after the channels).
        partition: of the Octave.
        factor: which axes it halves; None for height and width.
        dims: of a mean, for which a clip may keep its frames.
    """

    def __init__(
        self,
        pool: Operation,
        *args: object,
        partition: Partition,
        factor: Factor | None = None,
        dims: tuple[int, ...] | None = None,
        **kwargs: object,
    ) -> None:
        super().__init__()
        self.pool, self.args, self.kwargs = pool, args, kwargs
        self.partition, self.factor, self.dims = partition, factor, dims
        self.order = partition.reordering()
        self.hold_indices(self.order)

    def forward(self, x: Octave) -> Tensor:
        """(N, C, 1, ...), or (N, C) where a mean keeps no dimensions."""
        if not self._covers(x.high):
            return self.pool(reorder(join(x, self.factor), self.order, self), *self.args, **self.kwargs)
        pooled = self.pool(x.low, *self.args, **self.kwargs)
        if x.high.shape[1] > 0:
            pooled = torch.cat([self.pool(x.high, *self.args, **self.kwargs), pooled], dim=1)
        return reorder(pooled, self.order, self)

    def _covers(self, x: Tensor) -> bool:
        """Whether the mean is over every halved axis, so that resolution does not matter."""
        if self.dims is None:
            return True
        factor = as_factor(self.factor, x.dim() - 2)
        halved = {axis for axis, f in enumerate(factor, start=2) if f == 2}
        return halved <= {dim % x.dim() for dim in self.dims}

    def extra_repr(self) -> str:
        return f"{getattr(self.pool, '__name__', type(self.pool).__name__)}, {self.partition!r}"


class OctShape(nn.Module):
    """The size of the ordinary tensor that an Octave stands for, without making it."""

    def __init__(self, function: Operation, *args: object) -> None:
        super().__init__()
        self.function, self.args = function, args

    def forward(self, x: Octave) -> Any:
        channels = x.high.shape[1] + x.low.shape[1]
        # Takes no memory: one value, broadcast by strides.
        stand_in = x.low.new_empty(1).expand(x.high.shape[0], channels, *x.high.shape[2:])
        return self.function(stand_in, *self.args)


class OctCat(nn.Module):
    """Concatenates Octaves and Tensors along channels: the result's partition is theirs, side by side."""

    def forward(self, *parts: Tensor | Octave) -> Octave:
        highs = [p.high if isinstance(p, Octave) else p for p in parts]
        lows = [p.low for p in parts if isinstance(p, Octave)]
        return Octave(torch.cat(highs, 1), torch.cat(lows, 1))


class OctTake(HoldsIndices):
    """Some of an Octave's channels, or all in another order: an Octave, or a Tensor if none of them is low.

    Args:
        partition: of the Octave that comes in.
        channels: of the ordinary tensor, in the order wanted.
    """

    def __init__(self, partition: Partition, channels: Sequence[int]) -> None:
        super().__init__()
        self.part = Partition(tuple(partition.is_low[c] for c in channels))
        self.high, self.low = (_index_in(own, channels) for own in (partition.high, partition.low))
        self.hold_indices(self.high, self.low)

    def forward(self, x: Octave) -> Tensor | Octave:
        high = take_channels(x.high, self.high, 1, self)
        return high if self.part.is_ordinary else Octave(high, take_channels(x.low, self.low, 1, self))

    def extra_repr(self) -> str:
        return repr(self.part)


def _index_in(own: Sequence[int], wanted: Sequence[int]) -> ChannelIndex:
    """Where in a map of the channels `own` those wanted lie, as far as it has them."""
    places = {c: n for n, c in enumerate(own)}
    found = [places[c] for c in wanted if c in places]
    return as_channel_index(found) if found == sorted(found) else tuple(found)


class OctMerge(HoldsIndices):
    """An ordinary tensor from an Octave, for operations that cannot work on a pair."""

    def __init__(self, partition: Partition, factor: Factor | None = None) -> None:
        super().__init__()
        self.partition, self.factor, self.order = partition, factor, partition.reordering()
        self.hold_indices(self.order)

    def forward(self, x: Octave) -> Tensor:
        return reorder(join(x, self.factor), self.order, self)

    def extra_repr(self) -> str:
        return repr(self.partition)
