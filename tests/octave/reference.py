"""A slow, independent octave convolution in NumPy: the definition, written out tap by tap.

Nothing of octvideo is used: pixels are averaged in loops, convolutions are sums over kernel taps, groups are
loops, and each of the four paths runs the whole ordinary kernel on a map whose other channels are zero. Where a
convolution shrinks a map by striding, the reference keeps every n-th of the results at stride 1.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

_PAD_MODE = {"zeros": "constant", "replicate": "edge", "reflect": "reflect", "circular": "wrap"}


def average_down(x: np.ndarray, axes: Sequence[int]) -> np.ndarray:
    """Mean of each block of two pixels along each of `axes`, of the pixels that are there."""
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


def conv_transposed(x, weight, stride, padding, output_padding, dilation, groups):
    """Each input pixel adds its kernel to the output, `stride` pixels apart; `padding` is cut off both ends."""
    dims, kernel = weight.ndim - 2, weight.shape[2:]
    size = x.shape[2:]
    full = [(size[d] - 1) * stride[d] + dilation[d] * (kernel[d] - 1) + 1 + output_padding[d] for d in range(dims)]
    c_in, c_out = weight.shape[0] // groups, weight.shape[1]
    y = np.zeros((x.shape[0], c_out * groups, *full))
    for g in range(groups):
        for tap in itertools.product(*[range(k) for k in kernel]):
            to = tuple(
                slice(tap[d] * dilation[d], tap[d] * dilation[d] + stride[d] * (size[d] - 1) + 1, stride[d])
                for d in range(dims)
            )
            w = weight[(slice(g * c_in, (g + 1) * c_in), slice(None), *tap)]
            part = np.einsum("io,ni...->no...", w, x[:, g * c_in : (g + 1) * c_in])
            y[(slice(None), slice(g * c_out, (g + 1) * c_out), *to)] += part
    return y[(slice(None), slice(None), *[slice(p, n - p) for p, n in zip(padding, full, strict=True)])]


def embed(x: np.ndarray, flags: np.ndarray) -> np.ndarray:
    """`x` as those channels of an ordinary map that are flagged; the others are zero."""
    full = np.zeros((x.shape[0], len(flags), *x.shape[2:]))
    full[:, flags] = x
    return full


def add_up(hh, hl, lh, ll, bias, is_low_in, is_low_out, exchange) -> tuple[np.ndarray, np.ndarray]:
    """Choose each frequency's channels of the four results and add; exchanges are dropped where all four exist."""
    every_path = 0 < is_low_in.sum() < len(is_low_in) and 0 < is_low_out.sum() < len(is_low_out)
    if every_path and exchange in ("none", "low_to_high"):
        hl = np.zeros_like(hl)
    if every_path and exchange in ("none", "high_to_low"):
        lh = np.zeros_like(lh)
    y_high, y_low = (hh + lh)[:, ~is_low_out], (hl + ll)[:, is_low_out]
    if bias is not None:
        shape = (1, -1, *[1] * (hh.ndim - 2))
        y_high, y_low = y_high + bias[~is_low_out].reshape(shape), y_low + bias[is_low_out].reshape(shape)
    return y_high, y_low


def octave_conv(
    high, low, weight, bias, *, is_low_in, is_low_out, stride, padding, dilation, groups, padding_mode,
    factor, exchange="both", octave_downsample="pool",
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """The octave convolution of (high, low), as (y_high, y_low); low may have no channel.

    high (N, C_high, ...), low (N, C_low, ...) with ceil(size / 2) in the axes where `factor` is 2; stride is 1
    or 2 there. `exchange` is right for groups = 1 only.
    """
    is_low_in, is_low_out = np.array(is_low_in), np.array(is_low_out)
    halved = [d for d, f in enumerate(factor) if f == 2]
    strided = [d for d in halved if stride[d] == 2]
    repeated = [d for d in halved if stride[d] == 1]
    kept = [1 if d in halved else s for d, s in enumerate(stride)]  # strides of every path

    def run(x: np.ndarray, flags: np.ndarray) -> np.ndarray:
        return conv(embed(x, flags), weight, kept, padding, dilation, groups, padding_mode)

    def down(x: np.ndarray, dims: list[int]) -> np.ndarray:
        return average_down(x, [2 + d for d in dims])

    def every_second(x: np.ndarray, dims: list[int]) -> np.ndarray:
        for d in dims:
            x = x.take(range(0, x.shape[2 + d], 2), axis=2 + d)
        return x

    if octave_downsample == "pool":
        hh, ll = run(down(high, strided), ~is_low_in), run(down(low, strided), is_low_in)
        hl = run(down(down(high, strided), halved), ~is_low_in)
    else:
        hh, ll = every_second(run(high, ~is_low_in), strided), every_second(run(low, is_low_in), strided)
        if octave_downsample == "keep":
            hl = every_second(run(down(high, halved), ~is_low_in), strided)
        else:
            hl = every_second(every_second(run(high, ~is_low_in), strided), halved)
    lh = repeat_up(run(low, is_low_in), [2 + d for d in repeated], [high.shape[2 + d] for d in repeated])
    return add_up(hh, hl, lh, ll, bias, is_low_in, is_low_out, exchange)


def octave_conv_transposed(
    high, low, weight, bias, *, is_low_in, is_low_out, stride, padding, output_padding, dilation, groups,
    factor, exchange="both",
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """The transposed octave convolution; weight (C_in, C_out / groups, ...), sizes grow by `stride`."""
    is_low_in, is_low_out = np.array(is_low_in), np.array(is_low_out)
    halved = [2 + d for d, f in enumerate(factor) if f == 2]
    full = [high.shape[axis] * stride[axis - 2] for axis in halved]

    def run(x: np.ndarray, flags: np.ndarray) -> np.ndarray:
        return conv_transposed(embed(x, flags), weight, stride, padding, output_padding, dilation, groups)

    def to_low(y: np.ndarray) -> np.ndarray:
        for axis, size in zip(halved, full, strict=True):
            y = y.take(range((size + 1) // 2), axis=axis)
        return y

    hh, hl = run(high, ~is_low_in), to_low(run(average_down(high, halved), ~is_low_in))
    from_low = run(low, is_low_in)
    lh, ll = repeat_up(from_low, halved, full), to_low(from_low)
    return add_up(hh, hl, lh, ll, bias, is_low_in, is_low_out, exchange)
