"""How many bytes and kernels `octave_norm` takes, from shapes alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Traffic:
    """Bytes of maps read and written, and kernels. Vectors of channels and rows of sums are not counted."""

    read: int
    written: int
    kernels: int


def traffic(
    high_shape: Sequence[int],
    channels_low: int,
    *,
    half: bool,
    residual: bool,
    pools: bool,
    relu: bool = True,
    training: bool = True,
    again: bool = False,
    itemsize: int = 2,
) -> tuple[Traffic, Traffic]:
    """What `octave_norm` takes forward, and back.

    In units of x (high, half and low together), y (y_high and y_low), joined, training with a ReLU::

        forward    moments: reads x; normalize: reads x, residual, writes y, joined
        backward   sums: reads dy, d_joined, x, with a residual also y; writes g, with a residual or two readers
                   gradient: reads x, and g, where it was written, or dy and d_joined; writes dx

    Args:
        high_shape: (N, C_high, [T,] H, W).
        channels_low: of the low map; 0: none.
        half, residual, pools, relu: whether there is one; a residual of both maps.
        training: whether statistics are the batch's.
        again: whether two readers of all results send gradients back.
        itemsize: bytes of an element: 2, or 4 in float32.
    """
    n, channels_high, *frames, height, width = high_shape
    pixels = n * math.prod(frames) * ((height + 1) // 2) * ((width + 1) // 2) * itemsize
    low, joined = pixels * channels_low, pixels * (channels_high + channels_low) * pools
    high = math.prod(high_shape) * itemsize
    x = high + low + pixels * channels_high * half
    y = high + low
    forward = Traffic((2 if training else 1) * x + y * residual, y + joined, 3 if training else 1)
    writes_g = residual or again
    read_in_sums = (2 if again else 1) * (y + joined) + x + y * (residual and relu)
    uses_x = training or (relu and not writes_g)
    read_in_gradient = (y if writes_g else y + joined) + x * uses_x
    return forward, Traffic(read_in_sums + read_in_gradient, y * writes_g + x, 3)
