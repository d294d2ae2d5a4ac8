"""`Octave`: a feature map whose slowly varying channels are stored at half resolution, and ways in and out.

A `factor` says which axes the low map halves, one entry of 1 or 2 for each axis after the channels; sizes
round up (low = ceil(high / 2)). The default is the paper's (Chen et al. 2019, arXiv 1904.05049): height and
width, (2, 2) for images and (1, 2, 2) for clips, whose time is kept; (2,) for signals. The time octave,
(2, 2, 2), stores low channels at half the frame rate as well.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from octvideo.octave.export_form import clips_stay_unfolded
from octvideo.octave.partition import Partition, as_channel_index, as_partition, reorder, take_channels

# For each axis after the channels, 2 where the low map has half (ceil) the size, else 1.
Factor = tuple[int, ...]

AXES = {1: ("L",), 2: ("H", "W"), 3: ("T", "H", "W")}
_DEFAULT_FACTOR: dict[int, Factor] = {1: (2,), 2: (2, 2), 3: (1, 2, 2)}
_CHECKED: dict[int, list[Factor]] = {n: list(itertools.product((1, 2), repeat=n))[1:] for n in AXES}


def as_factor(factor: Sequence[int] | None, num_axes: int) -> Factor:
    """`factor` checked against the number of axes after the channels; None gives the paper's.

    Raises:
        ValueError: if an entry is missing, too many, or not 1 or 2, or if no axis is halved.
    """
    if factor in _CHECKED.get(num_axes, ()):
        return factor  # type: ignore[return-value]
    if num_axes not in AXES:
        raise ValueError(f"got {num_axes} axes after N and C, expected 1 (L), 2 (H, W) or 3 (T, H, W)")
    if factor is None:
        return _DEFAULT_FACTOR[num_axes]
    checked = tuple(int(f) for f in factor)
    if len(checked) != num_axes or not set(checked) <= {1, 2} or 2 not in checked:
        axes = ", ".join(AXES[num_axes])
        raise ValueError(f"factor: got {factor}, expected {num_axes} of 1 or 2 for ({axes}), at least one of them 2")
    return checked


def low_size(size: Sequence[int], factor: Sequence[int] | None = None) -> tuple[int, ...]:
    """The size of the low map of a high map of `size` (all axes after the channels): halved ones rounded up.

    >>> low_size((8, 15, 15)), low_size((9, 15, 15), (2, 2, 2))
    ((8, 8, 8), (5, 8, 8))
    """
    return tuple((n + f - 1) // f for n, f in zip(size, as_factor(factor, len(size)), strict=True))


class Octave(NamedTuple):
    """A pair of feature maps of one value: `high` at full resolution, `low` at half of it (rounded up).

    A named tuple, so that autograd, DDP, torch.compile, torch.export and pytrees see two plain tensors.
    `high` may have zero channels (alpha = 1); it still carries the full size.

    Shapes: high (N, C_high, [T,] H, W), low (N, C_low, [T,] ceil(H/2), ceil(W/2)), with T halved too in a
    time octave (factor (2, 2, 2)).
    """

    high: Tensor
    low: Tensor

    def __add__(self, other: Any) -> Octave:  # type: ignore[override]
        """Frequency by frequency: without this a tuple's + would concatenate."""
        if not isinstance(other, Octave):
            got = type(other).__name__
            raise TypeError(f"an Octave can only be added to an Octave, got {got}; use split() or merge()")
        return Octave(self.high + other.high, self.low + other.low)

    def __mul__(self, other: Any) -> Octave:  # type: ignore[override]
        """Refused: a tuple's * would repeat the pair."""
        raise TypeError("an Octave cannot be multiplied: merge() it first, or scale .high and .low")

    def __rmul__(self, other: Any) -> Octave:  # type: ignore[override]
        return self * other

    def __getattr__(self, name: str) -> Any:
        # AttributeError, so that hasattr() stays honest.
        raise AttributeError(
            f"an Octave(high, low) reached code that expects a Tensor (it asked for .{name}). Merge it first "
            "with octvideo.octave.merge, or convert the module with octvideo.octave.octavize. "
            "(nn.SyncBatchNorm takes no Octave either: train octave networks with sync_batchnorm=False.)"
        )


def _fold_time(x: Tensor) -> tuple[Tensor, tuple[int, ...] | None]:
    """A view of (N,C,T,H,W) as 4-D, in either memory format, so that 2-D kernels do the work.

    On a 192x8x56x56 map, 1x2x2 pooling took 8.2 ms (contiguous) and 24.8 ms (channels_last_3d) as avg_pool3d
    but 0.85 ms as avg_pool2d on folded channels-last frames; nearest upsampling 6.0 against 1.1 ms
    (one thread of an AMD EPYC with AVX-512, torch 2.15).
    """
    if x.dim() != 5:
        return x, None
    n, c, t, h, w = x.shape
    if x.is_contiguous(memory_format=torch.channels_last_3d) and not x.is_contiguous():
        return x.permute(0, 2, 1, 3, 4).reshape(n * t, c, h, w), (n, t)  # (N·T,C,H,W), channels last
    return x.reshape(n, c * t, h, w), (n, c, t)  # (N,C·T,H,W)


def _unfold_time(x: Tensor, folded: tuple[int, ...] | None) -> Tensor:
    if folded is None:
        return x
    h, w = x.shape[-2:]
    if len(folded) == 2:
        n, t = folded
        return x.reshape(n, t, x.shape[1], h, w).permute(0, 2, 1, 3, 4)  # (N,C,T,H,W), channels_last_3d
    return x.reshape(*folded, h, w)


def _pool_time(x: Tensor) -> Tensor:
    """Mean of each two frames of (N,C,T,H,W); a last one without a partner stays as it is.

    A sum of slices: on a 192x8x28x28 map .7 ms (contiguous) and .3 ms (channels_last_3d), where avg_pool3d
    took 6.2 and 9.9 ms (one thread of an AMD EPYC with AVX-512, torch 2.14).
    """
    pairs = x.shape[2] // 2
    pooled = (x[:, :, 0 : 2 * pairs : 2] + x[:, :, 1 : 2 * pairs : 2]) * 0.5  # (N,C,T//2,H,W)
    return pooled if x.shape[2] % 2 == 0 else torch.cat([pooled, x[:, :, 2 * pairs :]], dim=2)


def _repeat_time(x: Tensor) -> Tensor:
    """Each frame of (N,C,T,H,W) twice, in one copy that keeps the memory format."""
    n, c, t, h, w = x.shape
    if x.is_contiguous(memory_format=torch.channels_last_3d) and not x.is_contiguous():
        frames = x.permute(0, 2, 3, 4, 1).unsqueeze(2).expand(n, t, 2, h, w, c)
        return frames.reshape(n, 2 * t, h, w, c).permute(0, 4, 1, 2, 3)
    return x.unsqueeze(3).expand(n, c, t, 2, h, w).reshape(n, c, 2 * t, h, w)


def pool_down(x: Tensor, factor: Sequence[int] | None = None) -> Tensor:
    """Average the two (four, eight) neighbours that share a low pixel; at odd borders, those there are.

    Args:
        x: (N, C, L), (N, C, H, W) or (N, C, T, H, W); C may be 0.
        factor: which axes to halve.

    Returns:
        The same with the halved axes' sizes divided by two and rounded up (`low_size`).

    Raises:
        ValueError: if the factor does not fit the number of axes.
    """
    factor = as_factor(factor, x.dim() - 2)
    if x.shape[1] == 0:  # torch pools no empty map
        return x.new_empty(*x.shape[:2], *low_size(x.shape[2:], factor))
    if len(factor) == 1:
        return F.avg_pool1d(x, 2, ceil_mode=True, count_include_pad=False)
    if factor[-2:] != (1, 1):  # space first: it leaves a quarter to the pass over time
        if clips_stay_unfolded() and x.dim() == 5:
            x = F.avg_pool3d(x, (1, *factor[-2:]), ceil_mode=True, count_include_pad=False)
        else:
            x, folded = _fold_time(x)
            x = F.avg_pool2d(x, factor[-2:], ceil_mode=True, count_include_pad=False)
            x = _unfold_time(x, folded)
    return _pool_time(x) if len(factor) == 3 and factor[0] == 2 else x


def upsample(x: Tensor, size: Sequence[int], factor: Sequence[int] | None = None) -> Tensor:
    """Repeat pixels along the halved axes and crop to `size`: an inverse of `pool_down` on constant maps.

    Args:
        x: (N, C, l), (N, C, h, w) or (N, C, t, h, w).
        size: the wanted size of the last axes, as many as are given: (H, W) or (T, H, W) for a clip.
        factor: which axes are halved in `x`.

    Raises:
        ValueError: if the factor does not fit the number of axes.
    """
    factor = as_factor(factor, x.dim() - 2)
    if len(factor) == 3 and factor[0] == 2:
        x = _repeat_time(x)  # time first, on the smaller map
    if factor[-2:] != (1, 1):
        if clips_stay_unfolded() and x.dim() == 5:
            x = F.interpolate(x, scale_factor=(1.0, *map(float, factor[-2:])), mode="nearest")
            return crop(x, size)
        x, folded = _fold_time(x)
        x = F.interpolate(x, scale_factor=tuple(float(f) for f in factor[-2:]), mode="nearest")
        x = _unfold_time(x, folded)
    return crop(x, size)  # last: a cropped map folds into no view


def crop(x: Tensor, size: Sequence[int]) -> Tensor:
    """The leading part of `x` that has `size` in its last axes; `x` itself where nothing is cut."""
    for axis, length in enumerate(size, start=x.dim() - len(size)):
        if x.shape[axis] != length:
            x = x.narrow(axis, 0, length)
    return x


def spatial_size(x: Tensor) -> tuple[int, ...]:
    """The sizes of all axes after the channels: (L,), (H, W) or (T, H, W)."""
    return tuple(x.shape[2:])


def split(x: Tensor, alpha: float | Partition, factor: Sequence[int] | None = None) -> Tensor | Octave:
    """Move the low channels of `x` to half resolution by average pooling.

    Args:
        x: (N, C, [T,] H, W).
        alpha: the low share, or a Partition of C channels.
        factor: which axes the low map halves.

    Returns:
        An Octave, or `x` itself where no channel is low.
    """
    partition = as_partition(alpha, x.shape[1])
    if partition.is_ordinary:
        return x
    high = take_channels(x, as_channel_index(partition.high))
    return Octave(high, pool_down(take_channels(x, as_channel_index(partition.low)), factor))


def merge(x: Tensor | Octave, partition: Partition | None = None, factor: Sequence[int] | None = None) -> Tensor:
    """An ordinary tensor with every channel at full resolution and in its place.

    Args:
        x: a Tensor (returned as it is) or an Octave.
        partition: where each channel belongs; None means all high channels first.
        factor: which axes the low map halves.

    Returns:
        (N, C, [T,] H, W).
    """
    if not isinstance(x, Octave):
        return x
    return reorder(join(x, factor), None if partition is None else partition.reordering())


def join(x: Octave, factor: Sequence[int] | None = None) -> Tensor:
    """All channels at full resolution, high ones first: (N, C, [T,] H, W)."""
    return torch.cat([x.high, upsample(x.low, spatial_size(x.high), factor)], dim=1)
