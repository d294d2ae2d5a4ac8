"""Channels-last maps, (N, C, T, H, W) in torch.channels_last_3d or (N, C, H, W) in torch.channels_last, and views.

Such a map is a matrix of pixels by channels, so clips are images too: of their frames, or of their pixels over time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from octvideo.octave.export_form import is_exporting

LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}


def is_channels_last(x: Tensor) -> bool:
    """Whether octvideo/octave/arrange.py arranges `x`: on the CPU, channels last, not recorded for another engine."""
    if x.device.type != "cpu":
        return False
    axes = x.dim()
    if torch.compiler.is_compiling():
        # Layouts are inductor's choice then, and what torch predicts of them does not hold.
        return axes in (4, 5) and not is_exporting()
    if axes not in (4, 5) or torch.jit.is_tracing():
        return False
    return x.is_contiguous(memory_format=LAYOUTS[axes]) and not x.is_contiguous()


# The views below are single calls of as_strided, since a prepared network makes hundreds (three calls for each cost
# Oct-I3D-50 about 1 % of its time). They also keep regular strides where N is 1; those of other views may not be, and
# torch then takes them for maps of another layout. Graphs get the same by permuting.


def fold_frames(x: Tensor) -> Tensor:
    """Channels-last clips (N, C, T, H, W) as images (N·T, C, H, W), a view."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled():
        return x.permute(0, 2, 3, 4, 1).flatten(0, 1).permute(0, 3, 1, 2)
    n, c, t, h, w = x.shape
    x = x.contiguous(memory_format=torch.channels_last_3d)  # a cropped map is not
    return x.as_strided((n * t, c, h, w), (h * w * c, 1, w * c, c))


def unfold_frames(x: Tensor, num_clips: int) -> Tensor:
    """Channels-last images (N·T, C, H, W) as clips (N, C, T, H, W), a view."""
    frames = x.shape[0] // num_clips if num_clips else 0
    if torch.compiler.is_compiling() or torch.is_grad_enabled():
        return x.permute(0, 2, 3, 1).unflatten(0, (num_clips, frames)).permute(0, 4, 1, 2, 3)
    c, h, w = x.shape[1:]
    x = x.contiguous(memory_format=torch.channels_last)
    return x.as_strided((num_clips, c, frames, h, w), (frames * h * w * c, 1, h * w * c, w * c, c))


def fold_space(x: Tensor) -> Tensor:
    """Channels-last clips (N, C, T, H, W) as images (N, C, T, H·W), a view."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled():
        return x.permute(0, 2, 3, 4, 1).flatten(2, 3).permute(0, 3, 1, 2)
    n, c, t, h, w = x.shape
    x = x.contiguous(memory_format=torch.channels_last_3d)
    return x.as_strided((n, c, t, h * w), (t * h * w * c, 1, h * w * c, c))


def unfold_space(x: Tensor, size: Sequence[int]) -> Tensor:
    """Channels-last images (N, C, T, H·W) as clips (N, C, T, H, W) of that height and width, a view."""
    height, width = size
    if torch.compiler.is_compiling() or torch.is_grad_enabled():
        return x.permute(0, 2, 3, 1).unflatten(2, (height, width)).permute(0, 4, 1, 2, 3)
    n, c, t, pixels = x.shape
    x = x.contiguous(memory_format=torch.channels_last)
    return x.as_strided((n, c, t, height, width), (t * pixels * c, 1, pixels * c, width * c, c))
