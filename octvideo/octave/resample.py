"""Between the two resolutions: average pooling down, and nearest upsampling."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from octvideo.octave.factor import Factor, as_factor, low_size
from octvideo.octave.kernel.layout import (
    clips_stay_unfolded,
    fold_frames,
    forms_device,
    is_channels_last,
    unfold_frames,
)


def _in_space(x: Tensor, images: Callable[[Tensor], Tensor], clips: Callable[[Tensor], Tensor]) -> Tensor:
    """By `images`, of a view of (N,C,T,H,W) as 4-D: torch's 2-D kernels are several times as fast as its 3-D ones.

    By `clips` in graphs that are exported for an engine with fast 3-D ones.
    """
    if x.dim() != 5:
        return images(x)
    if clips_stay_unfolded():
        return clips(x)
    n, c, t, h, w = x.shape
    if is_channels_last(x) or (x.is_contiguous(memory_format=torch.channels_last_3d) and not x.is_contiguous()):
        return unfold_frames(images(fold_frames(x)), n)
    y = images(x.reshape(n, c * t, h, w))
    return y.reshape(n, c, t, *y.shape[2:])


def _pool_time(x: Tensor) -> Tensor:
    """Mean of each two frames of (N,C,T,H,W); a last one without a partner stays as it is.

    A sum of slices takes a tenth of avg_pool3d's time.
    """
    pairs = x.shape[2] // 2
    pooled = (x[:, :, 0 : 2 * pairs : 2] + x[:, :, 1 : 2 * pairs : 2]) * 0.5  # (N,C,T//2,H,W)
    return pooled if x.shape[2] % 2 == 0 else torch.cat([pooled, x[:, :, 2 * pairs :]], dim=2)


def _upsample_time(x: Tensor) -> Tensor:
    """Each frame of (N,C,T,H,W) twice, in one copy that keeps the memory format."""
    n, c, t, h, w = x.shape
    if x.is_contiguous(memory_format=torch.channels_last_3d) and not x.is_contiguous():
        frames = x.permute(0, 2, 3, 4, 1).unsqueeze(2).expand(n, t, 2, h, w, c)
        return frames.reshape(n, 2 * t, h, w, c).permute(0, 4, 1, 2, 3)
    return x.unsqueeze(3).expand(n, c, t, 2, h, w).reshape(n, c, 2 * t, h, w)


def pool_down(x: Tensor, factor: Sequence[int] | None = None) -> Tensor:
    """Average the two (four, eight) neighbours that share a low pixel; at odd edges, those there are.

    The kernel averages by itself (kernel/pooling.h). What is pooled otherwise here must be refused by the two that give
    a layer to it: `TrainedConv.of` (kernel/training.py) and `PreparedOctConv.as_fused` (fused/conv.py).

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
    if (space := factor[-2:]) != (1, 1):  # space first: it leaves a quarter to the pass over time
        means: dict[str, Any] = {"ceil_mode": True, "count_include_pad": False}
        x = _in_space(x, lambda y: F.avg_pool2d(y, space, **means), lambda y: F.avg_pool3d(y, (1, *space), **means))
    return _pool_time(x) if len(factor) == 3 and factor[0] == 2 else x


def upsample(x: Tensor, size: Sequence[int], factor: Sequence[int] | None = None) -> Tensor:
    """Nearest upsampling along the halved axes, cropped to `size`: an inverse of `pool_down` on constant maps.

    Args:
        x: (N, C, l), (N, C, h, w) or (N, C, t, h, w).
        size: the wanted size of the last axes, as many as are given: (H, W) or (T, H, W) for a clip.
        factor: which axes are halved in `x`.

    Raises:
        ValueError: if the factor does not fit the number of axes.
    """
    factor = as_factor(factor, x.dim() - 2)
    if len(factor) == 3 and factor[0] == 2:
        x = _upsample_time(x)  # time first, on the smaller map
    if factor[-2:] != (1, 1):
        scale = [float(f) for f in factor[-2:]]
        x = _in_space(
            x,
            lambda y: F.interpolate(y, scale_factor=scale, mode="nearest"),
            lambda y: F.interpolate(y, scale_factor=[1.0, *scale], mode="nearest"),
        )
    return crop(x, size)  # last: a cropped map folds into no view


def crop(x: Tensor, size: Sequence[int]) -> Tensor:
    """The leading part of `x` that has `size` in its last axes; `x` itself where nothing is cut."""
    for axis, length in enumerate(size, start=x.dim() - len(size)):
        if x.shape[axis] != length:
            x = x.narrow(axis, 0, length)
    return x


def add_upsampled(y: Tensor, low: Tensor, factor: Sequence[int] | None = None) -> Tensor:
    """`y` plus `low`, upsampled.

    On CUDA, and of channels-last maps without a gradient on CPUs, it is one pass over y, where an upsampled copy makes
    three.

    Args:
        y: (N, C, [T,] H, W); it may be changed, so nobody else may need it.
        low: (N, C, [t,] h, w), half of y's size, rounded up, along the halved axes; what is more is cropped.
        factor: which axes are halved.
    """
    factor = as_factor(factor, y.dim() - 2)
    # A compiler fuses the steps by itself, and torch.func would have to be told how to transform a change in place.
    records = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or torch.jit.is_tracing()
    wants_gradient = torch.is_grad_enabled() and (y.requires_grad or low.requires_grad)
    if not records and forms_device(y) == "cuda" and y.dtype == low.dtype:
        if not wants_gradient:
            return _add_to_blocks(y, low, factor)
        if not y.is_leaf:
            return _AddUpsampled.apply(y, low, factor)  # type: ignore[no-any-return,no-untyped-call]
    if wants_gradient or records or not is_channels_last(y):
        return y + upsample(low, y.shape[2:], factor)
    for first in itertools.product(*map(range, factor)):  # of the pixels that share a low one
        steps = [slice(n, None, f) for n, f in zip(first, factor, strict=True)]
        share = y[tuple([slice(None)] * 2 + steps)]
        share += crop(low, share.shape[2:])
    return y


def _add_to_blocks(y: Tensor, low: Tensor, factor: Factor) -> Tensor:
    """Adds each pixel of `low` to the pixels of `y` that share it, in place.

    By broadcasting: one kernel where sizes are even, and one for each odd edge.
    """
    axes = range(2, y.dim())
    for edges in itertools.product(
        *[(False, True) if n % f else (False,) for n, f in zip(y.shape[2:], factor, strict=True)]
    ):
        part, own = y, low
        for axis, f, at_edge in zip(axes, factor, edges, strict=True):
            whole = y.shape[axis] // f
            part = part.narrow(axis, f * whole, 1) if at_edge else part.narrow(axis, 0, f * whole)
            own = own.narrow(axis, whole, 1) if at_edge else own.narrow(axis, 0, whole)
        for axis, f, at_edge in reversed(list(zip(axes, factor, edges, strict=True))):
            if f == 2 and not at_edge:
                part, own = part.unflatten(axis, (-1, 2)), own.unsqueeze(axis + 1)
        if part.numel():
            part += own
    return y


def _sum_blocks(x: Tensor, size: Sequence[int], factor: Factor) -> Tensor:
    """What comes back to `low` of `size` from `add_upsampled`: the sum of the pixels that share each one of it."""
    if len(factor) == 3 and factor[0] == 2:
        pairs = x.shape[2] // 2
        even = x[:, :, 0 : 2 * pairs : 2] + x[:, :, 1 : 2 * pairs : 2]
        x = even if x.shape[2] % 2 == 0 else torch.cat([even, x[:, :, 2 * pairs :]], dim=2)
    if len(factor) == 1:
        x = F.avg_pool2d(x.unsqueeze(2), (1, 2), ceil_mode=True, divisor_override=1).squeeze(2)
    elif (space := factor[-2:]) != (1, 1):
        sums: dict[str, Any] = {"ceil_mode": True, "divisor_override": 1}
        x = _in_space(x, lambda y: F.avg_pool2d(y, space, **sums), lambda y: F.avg_pool3d(y, (1, *space), **sums))
    extra = [n - own for n, own in zip(size, x.shape[2:], strict=True)]  # what was cropped of `low` gets nothing
    return F.pad(x, [n for own in reversed(extra) for n in (0, own)]) if any(extra) else x


class _AddUpsampled(torch.autograd.Function):
    """`add_upsampled` in place."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, low: Tensor, factor: Factor) -> Tensor:
        ctx.mark_dirty(y)
        ctx.size, ctx.factor = low.shape[2:], factor
        return _add_to_blocks(y, low, factor)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        return grad, _sum_blocks(grad, ctx.size, ctx.factor) if ctx.needs_input_grad[1] else None, None
