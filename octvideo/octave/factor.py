"""Which axes a low map halves: a `factor` has one entry of 1 or 2 for each axis after the channels.

Sizes round up (low = ceil(high / 2)). The default is the paper's (Chen et al. 2019, arXiv 1904.05049): height
and width, (2, 2) for images and (1, 2, 2) for clips, whose time is kept; (2,) for signals. The time octave,
(2, 2, 2), stores low channels at half the frame rate as well.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

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
