"""Which axes a low map halves, and which convolutions fit two such maps.

A `factor` has one entry of 1 or 2 for each axis after the channels. Sizes round up (low = ceil(high / 2)). The default
is the paper's (Chen et al. 2019, arXiv 1904.05049): height and width, (2, 2) for images and (1, 2, 2) for clips, whose
time is kept; (2,) for signals. The time octave, (2, 2, 2), stores low channels at half the frame rate as well.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from torch import nn

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
    checked = tuple(factor) if isinstance(factor, Sequence) else ()
    if len(checked) != num_axes or not set(checked) <= {1, 2} or 2 not in checked:
        axes = ", ".join(AXES[num_axes])
        raise ValueError(f"factor: got {factor}, expected {num_axes} of 1 or 2 for ({axes}), at least one of them 2")
    return tuple(int(f) for f in checked)


def low_size(size: Sequence[int], factor: Sequence[int] | None = None) -> tuple[int, ...]:
    """The size of the low map of a high map of `size` (all axes after the channels): halved ones rounded up.

    >>> low_size((8, 15, 15)), low_size((9, 15, 15), (2, 2, 2))
    ((8, 8, 8), (5, 8, 8))
    """
    return tuple((n + f - 1) // f for n, f in zip(size, as_factor(factor, len(size)), strict=True))


def octave_problem(
    conv: nn.modules.conv._ConvNd, factor: Sequence[int] | None = None, *, is_same: bool = False
) -> str | None:
    """Why `conv` cannot work on two resolutions (or by pooling), or None where it can.

    Both maps fit if, in each axis that `factor` halves, 2 * padding = dilation * (kernel - 1) and the stride
    is 1 or 2. A transposed convolution must give stride times the size there, at any stride:
    2 * padding = dilation * (kernel - 1) + output_padding + 1 - stride. Other axes are free.

    Args:
        conv: ordinary or octave, of any class.
        factor: which axes are halved.
        is_same: it pads by TensorFlow's rule (octvideo/octave/ordinary.py).

    Raises:
        ValueError: if `factor` does not fit the number of axes.
    """
    num_axes = len(conv.kernel_size)
    for n, (axis, f) in enumerate(zip(AXES[num_axes], as_factor(factor, num_axes), strict=True)):
        if f == 1:
            continue
        problem = _transposed_problem(conv, n, axis) if conv.transposed else _problem(conv, n, axis, is_same)
        if problem:
            return problem
    return None


def _problem(conv: nn.modules.conv._ConvNd, n: int, axis: str, is_same: bool) -> str | None:
    kernel, stride, dilation = int(conv.kernel_size[n]), int(conv.stride[n]), int(conv.dilation[n])
    if stride not in (1, 2):
        return f"stride {stride} in {axis}, expected 1 or 2"
    needed = dilation * (kernel - 1)
    padding: Any = 0 if conv.padding == "valid" else conv.padding
    if padding == "same" or is_same:
        problem = f"kernel {kernel}, dilation {dilation} in {axis} has no centre, expected an odd one"
        return problem if needed % 2 else None
    if padding != 0:
        padding = int(padding[n])
    if 2 * padding == needed:
        return None
    want = f"padding {needed // 2}" if needed % 2 == 0 else "an odd kernel"
    return (
        f"kernel {kernel}, dilation {dilation} and padding {conv.padding} in {axis} do not keep the "
        f"size, expected {want}"
    )


def _transposed_problem(conv: nn.modules.conv._ConvNd, n: int, axis: str) -> str | None:
    kernel, stride, dilation = int(conv.kernel_size[n]), int(conv.stride[n]), int(conv.dilation[n])
    padding, output_padding = int(conv.padding[n]), int(conv.output_padding[n])  # type: ignore[arg-type]
    spare = dilation * (kernel - 1) + 1 - stride  # 2 * padding - output_padding
    if 2 * padding == spare + output_padding:
        return None
    # torch wants output_padding below stride or dilation.
    fits = [op for op in range(max(stride, dilation)) if spare + op >= 0 and (spare + op) % 2 == 0]
    want = f"padding {(spare + fits[0]) // 2} and output_padding {fits[0]}" if fits else "a larger or odd kernel"
    return (
        f"kernel {kernel}, stride {stride}, dilation {dilation}, padding {padding} and output_padding "
        f"{output_padding} in {axis} do not give {stride} times the size, expected {want}"
    )
