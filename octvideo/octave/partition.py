"""Which channels of the ordinary network are stored at half resolution: one rounding rule, `Partition`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

# A set of channels as a slice where it is one run (a view costs nothing), else as indices.
ChannelIndex = slice | tuple[int, ...]
Indices = tuple[int, ...] | tuple[tuple[int, ...], ...]  # what an index tensor (n,) or (rows, n) is made of


def split_channels(num_channels: int, alpha: float) -> tuple[int, int]:
    """Number of high- and low-frequency channels: low = floor(alpha * channels + 1/2).

    Every part of octvideo rounds here, so convolutions and norms always agree.

    >>> split_channels(64, 0.9)
    (6, 58)
    """
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha is the share of low-frequency channels: expected 0 <= alpha <= 1, got {alpha}")
    # The tiny term keeps .1 * 5 = .5 (stored a hair lower in binary for other products) on the upper side.
    low = math.floor(alpha * num_channels + 0.5 + 1e-9)
    return num_channels - low, low


def as_channel_index(channels: Sequence[int]) -> ChannelIndex:
    """One run of channels as a slice (usable as a view), any other set as a tuple of indices."""
    if not channels:
        return slice(0, 0)
    first, last = channels[0], channels[-1]
    if last - first + 1 == len(channels):
        return slice(first, last + 1)
    return tuple(channels)


@dataclass(frozen=True)
class Partition:
    """For each channel of an ordinary tensor, whether it is low-frequency (stored at half resolution).

    An `Octave` with this partition holds the False channels, in order, in `high` and the True ones in `low`.

    >>> Partition.of(8, 0.25).low
    (6, 7)
    >>> Partition.of(8, 0.25, groups=2).low   # each group of four split by itself
    (3, 7)
    """

    is_low: tuple[bool, ...]

    @classmethod
    def of(cls, num_channels: int, alpha: float, *, groups: int = 1, multiple: int = 1) -> Partition:
        """Split by `alpha`: the last channels of each group where that is a whole number, else whole groups.

        Whole groups are the rule for depthwise convolutions and for groups too thin to be cut (ResNeXt 32x4d
        at .125).

        Args:
            num_channels: of the ordinary tensor.
            alpha: the low share.
            groups: of the convolutions that read or write it.
            multiple: of channels that both parts should be, for the sake of vector units: the nearest one, but no
                part vanishes. Tensors of fewer than two multiples, or of several groups, stay as they are.

        Raises:
            ValueError: if alpha is outside [0, 1] or the channels do not divide into the groups.
        """
        if groups < 1 or num_channels % groups:
            raise ValueError(f"{num_channels} channels do not divide into {groups} groups")
        per_group = num_channels // groups
        if groups == 1 and 0 < alpha < 1 and num_channels >= 2 * multiple > 2:
            low = multiple * min(max(1, round(alpha * num_channels / multiple)), num_channels // multiple - 1)
            return cls((False,) * (num_channels - low) + (True,) * low)
        low_share = alpha * per_group
        if groups == 1 or abs(low_share - round(low_share)) < 1e-9:
            high, low = split_channels(per_group, alpha)
            return cls(((False,) * high + (True,) * low) * groups)
        high_groups, low_groups = split_channels(groups, alpha)
        return cls((False,) * (high_groups * per_group) + (True,) * (low_groups * per_group))

    @classmethod
    def join(cls, parts: Iterable[Partition]) -> Partition:
        """The partition of tensors concatenated along their channels."""
        return cls(tuple(flag for part in parts for flag in part.is_low))

    def shuffle(self, groups: int) -> Partition:
        """The partition after a channel shuffle (ShuffleNet, arXiv 1707.01083): the groups dealt out in turn."""
        per_group = self.num_channels // groups
        return Partition(tuple(self.is_low[g * per_group + i] for i in range(per_group) for g in range(groups)))

    @property
    def num_channels(self) -> int:
        return len(self.is_low)

    @cached_property
    def high(self) -> tuple[int, ...]:
        """The ordinary network's indices of the high-frequency channels, ascending."""
        return tuple(i for i, flag in enumerate(self.is_low) if not flag)

    @cached_property
    def low(self) -> tuple[int, ...]:
        """The ordinary network's indices of the low-frequency channels, ascending."""
        return tuple(i for i, flag in enumerate(self.is_low) if flag)

    @cached_property
    def indices(self) -> tuple[ChannelIndex, ChannelIndex]:
        """The high and the low channels, as slices where they are runs."""
        return as_channel_index(self.high), as_channel_index(self.low)

    @property
    def order(self) -> ChannelIndex:
        """All channels, the high ones first."""
        order = self.high + self.low
        return slice(0, len(order)) if order == tuple(range(len(order))) else order

    def reordering(self) -> tuple[int, ...] | None:
        """Where each channel lies among the high ones and, after them, the low ones; None where all lie in order."""
        order = self.order
        return None if isinstance(order, slice) else tuple(sorted(range(len(order)), key=order.__getitem__))

    @property
    def is_ordinary(self) -> bool:
        """Whether no channel is low: such a value is a Tensor, not an Octave."""
        return not any(self.is_low)

    @property
    def alpha(self) -> float:
        """The share of low channels that the partition really has."""
        return len(self.low) / max(1, self.num_channels)

    def __repr__(self) -> str:
        runs: list[list[int | bool]] = []
        for flag in self.is_low:
            if runs and runs[-1][0] == flag:
                runs[-1][1] += 1
            else:
                runs.append([flag, 1])
        text = " ".join(f"{count}{'L' if flag else 'H'}" for flag, count in runs[:6])
        return f"Partition({text}{' ...' if len(runs) > 6 else ''})"


def as_partition(alpha: float | Partition, num_channels: int, *, groups: int = 1, name: str = "alpha") -> Partition:
    """`alpha` as a Partition of `num_channels`; a Partition given is checked against that count.

    Raises:
        ValueError: if a given partition has another number of channels.
    """
    if isinstance(alpha, Partition):
        if alpha.num_channels != num_channels:
            raise ValueError(f"{name}: got a partition of {alpha.num_channels} channels, expected {num_channels}")
        return alpha
    return Partition.of(num_channels, float(alpha), groups=groups)


def take_channels(x: Tensor, channels: ChannelIndex, dim: int = 1, holder: HoldsIndices | None = None) -> Tensor:
    """The given channels of `x`: a view where they are one run, else a gathered copy.

    Args:
        holder: the module that takes them in every forward.
    """
    if isinstance(channels, slice):
        if channels == slice(0, x.shape[dim]):
            return x
        return x.narrow(dim, channels.start, channels.stop - channels.start)
    return x.index_select(dim, index_tensor(channels, x.device, holder))


def reorder(x: Tensor, channels: tuple[int, ...] | None, holder: HoldsIndices | None = None) -> Tensor:
    """The channels of `x` (N, C, ...) in another order, see `Partition.reordering`; None leaves them."""
    return x if channels is None else take_channels(x, channels, 1, holder)


def index_tensor(channels: Indices, device: torch.device, holder: HoldsIndices | None = None) -> Tensor:
    """The channels as an int64 tensor on the device, which nobody may change.

    Args:
        holder: the module that holds it, where it is needed in every forward.
    """
    return torch.tensor(channels, device=device) if holder is None else holder.index_tensor(channels, device)


class HoldsIndices(nn.Module):
    """A module that takes channels in every forward: it holds the index tensors, and they move with it.

    To make one on a GPU is a copy from the host, for which both wait. They are plain attributes, not buffers: they are
    no state, and DistributedDataParallel would broadcast buffers, averages and checks of a step would copy them.
    """

    def hold_indices(self, *channels: Indices | slice | None) -> None:
        """Chooses the channels whose tensors are held, in place of those before; slices and None need no tensor."""
        for name in self._index_names().values():
            delattr(self, name)
        needed = dict.fromkeys(one for one in channels if isinstance(one, tuple))
        self._held_as: dict[Indices, str] = {one: f"_index_{n}" for n, one in enumerate(needed)}
        device = next((p.device for p in self.parameters(recurse=False)), torch.device("cpu"))
        for one, name in self._held_as.items():
            setattr(self, name, _made(one, device))

    def index_tensor(self, channels: Indices, device: torch.device) -> Tensor:
        """The tensor that is held for `channels`, on the device of what is indexed."""
        name = self._held_as[channels]
        held: Tensor = getattr(self, name)
        if held.device == device:
            return held
        # The module was not moved by `to`: FSDP and `load_state_dict(assign=True)` move parameters alone.
        held = _made(channels, device)
        if type(held) is Tensor and not torch.compiler.is_compiling():  # not one of a trace, which ends
            setattr(self, name, held)
        return held

    def _index_names(self) -> dict[Indices, str]:
        return self.__dict__.get("_held_as", {})

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> HoldsIndices:
        super()._apply(fn, recurse)
        for channels, name in self._index_names().items():
            held: Tensor = getattr(self, name)
            device = fn(held).device  # and no more of it: `to_empty` gives a tensor without values
            setattr(self, name, _made(channels, device) if held.is_meta else held.to(device))
        return self


def _made(channels: Indices, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # autograd could not save a tensor of inference mode
        return torch.tensor(channels, device=device)
