"""Channels-last maps, (N, C, T, H, W) in torch.channels_last_3d or (N, C, H, W) in torch.channels_last, and views.

Such a map is a matrix of pixels by channels, so clips are images too: of their frames, or of their pixels over time.
In a graph that is exported, pooling and upsampling of clips have one of two forms, since engines differ: OpenVINO
computes 3-D maps with channels last, and reorders a map wherever a graph folds its frames away; ONNX Runtime is fast on
folded frames only (docs/speed.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}


def channels_last(x: Tensor) -> Tensor:
    """(N, C, [T,] H, W) in the layout of such a map."""
    return x.contiguous(memory_format=LAYOUTS[x.dim()])


_device: str | None = None  # not a ContextVar, which torch.compile does not read


def forms_device(x: Tensor) -> str:
    """The type of device whose forms an operation on `x` takes: the tensor's, or what `forms_of` says."""
    return x.device.type if _device is None else _device


@contextmanager
def forms_of(device: str) -> Iterator[None]:
    """Within it, operations take the forms of that type of device on any: for tests, and graphs of it traced elsewhere.

    Autograd runs on no tensor of a device that is not there, not even on a fake one.
    """
    global _device
    before, _device = _device, device
    try:
        yield
    finally:
        _device = before


def is_channels_last(x: Tensor) -> bool:
    """Whether `x` is channels last on the CPU, not recorded for another engine: `convolve` has faster forms then."""
    if forms_device(x) != "cpu":
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


ExportForm = Literal["folded", "unfolded"]
_form: ExportForm = "folded"  # not a ContextVar, which torch.compile does not read


@contextmanager
def export_form(form: ExportForm) -> Iterator[None]:
    """Within it, torch.export records clips in that form.

    Args:
        form: "folded" folds the frames into the channels around pooling and upsampling (ONNX Runtime, and what is
            recorded without asking); "unfolded" has torch's 3-D operations (OpenVINO, AOTInductor).
    """
    global _form
    before, _form = _form, form
    try:
        yield
    finally:
        _form = before


def clips_stay_unfolded() -> bool:
    """Whether graphs are recorded with 3-D operations."""
    return _form == "unfolded"


def is_exporting() -> bool:
    """Whether torch.export records a graph: for engines that want torch's own operations.

    Before torch 2.7 nothing tells; graphs then have the forms of `convolve` (octvideo/octave/layer.py): right, and
    slower there.
    """
    asked = getattr(torch.compiler, "is_exporting", None)
    return asked is not None and bool(asked())


def may_be_exporting() -> bool:
    """Likewise, for graphs that must hold for any size: before torch 2.7 every graph that is compiled may be one."""
    return torch.compiler.is_compiling() and (is_exporting() or not hasattr(torch.compiler, "is_exporting"))
