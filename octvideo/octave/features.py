"""`Octave`: a feature map whose slowly varying channels are stored at half resolution, and ways in and out.

Height and width are halved, rounding up (low = ceil(high / 2)); time is kept, as in the paper's video
networks (Chen et al. 2019, arXiv 1904.05049). One-dimensional signals are halved along their only axis.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from octvideo.octave.partition import Partition, as_channel_index, as_partition, take_channels


class Octave(NamedTuple):
    """A pair of feature maps of one value: `high` at full resolution, `low` at half (ceil) height and width.

    A named tuple, so that autograd, DDP, torch.compile, torch.export and pytrees see two plain tensors.
    `high` may have zero channels (alpha = 1); it still carries the full size.

    Shapes: high (N, C_high, [T,] H, W), low (N, C_low, [T,] ceil(H/2), ceil(W/2)).
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


def pool_down(x: Tensor) -> Tensor:
    """Average 2x2 pixels into one (at odd borders, those there are).

    Args:
        x: (N, C, L), (N, C, H, W) or (N, C, T, H, W).

    Returns:
        The same with L, or H and W, halved and rounded up.
    """
    if x.dim() == 3:
        return F.avg_pool1d(x, 2, ceil_mode=True, count_include_pad=False)
    x, folded = _fold_time(x)
    return _unfold_time(F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False), folded)


def upsample(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """Repeat each pixel 2x2 times and crop to `size`, an inverse of `pool_down` on constant maps.

    Args:
        x: (N, C, [T,] h, w) or (N, C, l).
        size: the wanted (H, W) or (L,), with h = ceil(H/2).
    """
    x, folded = _fold_time(x)
    x = F.interpolate(x, scale_factor=2, mode="nearest")
    if tuple(x.shape[-len(size) :]) != tuple(size):
        x = x[..., : size[-1]] if len(size) == 1 else x[..., : size[0], : size[1]]
    return _unfold_time(x, folded)


def spatial_size(x: Tensor) -> tuple[int, ...]:
    """The halved sizes of a full-resolution map: (H, W), or (L,) for signals."""
    return tuple(x.shape[2:]) if x.dim() == 3 else tuple(x.shape[-2:])


def split(x: Tensor, alpha: float | Partition) -> Tensor | Octave:
    """Move the low channels of `x` to half resolution by average pooling.

    Args:
        x: (N, C, [T,] H, W).
        alpha: the low share, or a Partition of C channels.

    Returns:
        An Octave, or `x` itself where no channel is low.
    """
    partition = as_partition(alpha, x.shape[1])
    if partition.is_ordinary:
        return x
    high = take_channels(x, as_channel_index(partition.high))
    return Octave(high, pool_down(take_channels(x, as_channel_index(partition.low))))


def merge(x: Tensor | Octave, partition: Partition | None = None) -> Tensor:
    """An ordinary tensor with every channel at full resolution and in its place.

    Args:
        x: a Tensor (returned as it is) or an Octave.
        partition: where each channel belongs; None means all high channels first.

    Returns:
        (N, C, [T,] H, W).
    """
    if not isinstance(x, Octave):
        return x
    joined = torch.cat([x.high, upsample(x.low, spatial_size(x.high))], dim=1)
    order = None if partition is None else partition.high + partition.low
    if order is None or order == tuple(range(len(order))):
        return joined
    inverse = sorted(range(len(order)), key=order.__getitem__)
    return joined.index_select(1, torch.tensor(inverse, device=joined.device))
