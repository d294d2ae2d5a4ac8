"""`Octave`: a feature map whose slowly varying channels are stored at half resolution, and ways in and out.

Which axes are halved says a `factor`, see octvideo/octave/factor.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from octvideo.octave.partition import Partition, as_channel_index, as_partition, reorder, take_channels
from octvideo.octave.resample import pool_down, upsample


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
            "(nn.SyncBatchNorm takes no Octave either: octvideo.octave.SynchronisedNorms does.)"
        )


class Parts(NamedTuple):
    """What a convolution gives to a norm that adds it up by itself: y_high = high + upsampled(half), and y_low.

    Shapes: high (N, C_high, [T,] H, W), half (N, C_high, [T,] h, w), low (N, C_low, [T,] h, w), None where C_low is 0.
    """

    high: Tensor
    half: Tensor
    low: Tensor | None


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
    return torch.cat([x.high, upsample(x.low, x.high.shape[2:], factor)], dim=1)
