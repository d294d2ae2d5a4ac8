"""A slow, independent octave convolution in NumPy: the definition, written out tap by tap.

Nothing of octvideo is used: pixels are averaged in loops, convolutions are sums over kernel taps, groups are
loops, and each of the four paths runs the whole ordinary kernel on a map whose other channels are zero.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

_PAD_MODE = {"zeros": "constant", "replicate": "edge", "reflect": "reflect", "circular": "wrap"}


def average_down(x: np.ndarray, axes: Sequence[int]) -> np.ndarray:
    """Mean of each 2x2 (or 2) block of the pixels that are there."""
    for axis in axes:
        size = x.shape[axis]
        # Two passes of means equal the mean of the block only where all blocks along the axis have equal
        # weight in each pass, which they have: a border block has the same number of pixels in every column.
        pairs = [x.take(range(i, min(i + 2, size)), axis=axis) for i in range(0, size, 2)]
        blocks = [pair.mean(axis=axis, keepdims=True) for pair in pairs]
        x = np.concatenate(blocks, axis=axis)
    return x


def repeat_up(x: np.ndarray, axes: Sequence[int], sizes: Sequence[int]) -> np.ndarray:
    for axis, size in zip(axes, sizes, strict=True):
        x = np.repeat(x, 2, axis=axis).take(range(size), axis=axis)
    return x


def conv(x, weight, stride, padding, dilation, groups, padding_mode):
    dims = weight.ndim - 2
    x = np.pad(x, [(0, 0), (0, 0), *[(p, p) for p in padding]], mode=_PAD_MODE[padding_mode])
    kernel = weight.shape[2:]
    out = [(x.shape[2 + d] - dilation[d] * (kernel[d] - 1) - 1) // stride[d] + 1 for d in range(dims)]
    c_out, c_in = weight.shape[0] // groups, weight.shape[1]
    y = np.zeros((x.shape[0], weight.shape[0], *out))
    for g in range(groups):
        for tap in itertools.product(*[range(k) for k in kernel]):
            window = tuple(
                slice(tap[d] * dilation[d], tap[d] * dilation[d] + stride[d] * (out[d] - 1) + 1, stride[d])
                for d in range(dims)
            )
            part = x[(slice(None), slice(g * c_in, (g + 1) * c_in), *window)]
            w = weight[(slice(g * c_out, (g + 1) * c_out), slice(None), *tap)]
            y[:, g * c_out : (g + 1) * c_out] += np.einsum("oi,ni...->no...", w, part)
    return y


def octave_conv(
    high, low, weight, bias, *, is_low_in, is_low_out, stride, padding, dilation, groups, padding_mode
) -> tuple[np.ndarray, np.ndarray]:
    """The octave convolution of (high, low), as (y_high, y_low); low may have no channel.

    high (N, C_high, ..., H, W), low (N, C_low, ..., ceil(H/2), ceil(W/2)); stride of the last one or two axes
    is 1 or 2.
    """
    is_low_in, is_low_out = np.array(is_low_in), np.array(is_low_out)
    dims = weight.ndim - 2
    axes = (2,) if dims == 1 else (high.ndim - 2, high.ndim - 1)
    strided = stride[-1] == 2
    unit = (*stride[: dims - len(axes)], *[1] * len(axes))

    def embed(x: np.ndarray, flags: np.ndarray) -> np.ndarray:
        full = np.zeros((x.shape[0], len(flags), *x.shape[2:]))
        full[:, flags] = x
        return full

    def run(x: np.ndarray, flags: np.ndarray) -> np.ndarray:
        return conv(embed(x, flags), weight, unit, padding, dilation, groups, padding_mode)

    if strided:
        high = average_down(high, axes)
        from_high, from_low = run(high, ~is_low_in), run(low, is_low_in)
        y_high = (from_high + from_low)[:, ~is_low_out]
        y_low = run(average_down(high, axes), ~is_low_in) + run(average_down(low, axes), is_low_in)
    else:
        from_low = run(low, is_low_in)
        sizes = [high.shape[a] for a in axes]
        y_high = (run(high, ~is_low_in) + repeat_up(from_low, axes, sizes))[:, ~is_low_out]
        y_low = run(average_down(high, axes), ~is_low_in) + from_low
    y_low = y_low[:, is_low_out]
    if bias is not None:
        shape = (1, -1, *[1] * dims)
        y_high, y_low = y_high + bias[~is_low_out].reshape(shape), y_low + bias[is_low_out].reshape(shape)
    return y_high, y_low
