"""Between the two resolutions: average pooling down, and repeating pixels up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from octvideo.octave.factor import as_factor, low_size
from octvideo.octave.kernel.layout import clips_stay_unfolded, fold_frames, is_channels_last, unfold_frames

# Maps of fewer numbers stay in a cache of some 8 MiB between two operations.
_CACHED_NUMBERS = 2_000_000


def _fold_time(x: Tensor) -> tuple[Tensor, tuple[int, ...] | None]:
    """A view of (N,C,T,H,W) as 4-D, in either memory format, so that 2-D kernels do the work.

    On a 192x8x56x56 map, 1x2x2 pooling took 8.2 ms (contiguous) and 24.8 ms (channels_last_3d) as avg_pool3d
    but 0.85 ms as avg_pool2d on folded channels-last frames; nearest upsampling 6.0 against 1.1 ms
    (one thread of an AMD EPYC with AVX-512, torch 2.15).
    """
    if x.dim() != 5:
        return x, None
    n, c, t, h, w = x.shape
    if is_channels_last(x) or (x.is_contiguous(memory_format=torch.channels_last_3d) and not x.is_contiguous()):
        return fold_frames(x), (n, t)  # (N·T,C,H,W), channels last
    return x.reshape(n, c * t, h, w), (n, c, t)  # (N,C·T,H,W)


def _unfold_time(x: Tensor, folded: tuple[int, ...] | None) -> Tensor:
    if folded is None:
        return x
    h, w = x.shape[-2:]
    if len(folded) == 2:
        return unfold_frames(x, folded[0])  # (N,C,T,H,W), channels_last_3d
    return x.reshape(*folded, h, w)


def _pool_time(x: Tensor) -> Tensor:
    """Mean of each two frames of (N,C,T,H,W); a last one without a partner stays as it is.

    A sum of slices: on a 192x8x28x28 map .7 ms (contiguous) and .3 ms (channels_last_3d), where avg_pool3d
    took 6.2 and 9.9 ms (one thread of an AMD EPYC with AVX-512, torch 2.14).
    """
    pairs = x.shape[2] // 2
    pooled = (x[:, :, 0 : 2 * pairs : 2] + x[:, :, 1 : 2 * pairs : 2]) * 0.5  # (N,C,T//2,H,W)
    return pooled if x.shape[2] % 2 == 0 else torch.cat([pooled, x[:, :, 2 * pairs :]], dim=2)


def _repeat_time(x: Tensor) -> Tensor:
    """Each frame of (N,C,T,H,W) twice, in one copy that keeps the memory format."""
    n, c, t, h, w = x.shape
    if x.is_contiguous(memory_format=torch.channels_last_3d) and not x.is_contiguous():
        frames = x.permute(0, 2, 3, 4, 1).unsqueeze(2).expand(n, t, 2, h, w, c)
        return frames.reshape(n, 2 * t, h, w, c).permute(0, 4, 1, 2, 3)
    return x.unsqueeze(3).expand(n, c, t, 2, h, w).reshape(n, c, 2 * t, h, w)


def pool_down(x: Tensor, factor: Sequence[int] | None = None) -> Tensor:
    """Average the two (four, eight) neighbours that share a low pixel; at odd borders, those there are.

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
    if factor[-2:] != (1, 1):  # space first: it leaves a quarter to the pass over time
        if x.dim() == 5 and clips_stay_unfolded():
            x = F.avg_pool3d(x, (1, *factor[-2:]), ceil_mode=True, count_include_pad=False)
        else:
            x, folded = _fold_time(x)
            x = _unfold_time(pool_images(x, factor[-2:]), folded)
    return _pool_time(x) if len(factor) == 3 and factor[0] == 2 else x


def pool_images(x: Tensor, factor: Sequence[int]) -> Tensor:
    """(N, C, H, W) pooled; halving both axes of an even map is what bilinear interpolation does, vectorised better.

    192 channels on 4x14x14 .024 ms as a pool and .017 as an interpolation, 48 on 8x56x56 .26 and .13; where maps no
    longer fit the cache (192 on 8x56x56), 1.3 and 1.6.
    """
    height, width = x.shape[2:]
    halves = tuple(factor) == (2, 2) and height % 2 == width % 2 == 0 and not x.requires_grad
    if halves and is_channels_last(x) and not torch.compiler.is_compiling() and x.numel() < _CACHED_NUMBERS:
        return F.interpolate(x, size=(height // 2, width // 2), mode="bilinear", align_corners=False)
    return F.avg_pool2d(x, tuple(factor), ceil_mode=True, count_include_pad=False)


def max_pool(
    x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...], padding: tuple[int, ...], *, ceil_mode: bool = False
) -> Tensor:
    """F.max_pool3d of clips (N, C, T, H, W); of pairs of frames as one maximum, where no gradient is wanted.

    Pairs of 256x8x56x56: 5.9 as a pool and 1.6 as a maximum.
    """
    t = x.shape[2]
    pairs = kernel == stride == (2, 1, 1) and not any(padding) and not (ceil_mode and t % 2)
    if pairs and is_channels_last(x) and not x.requires_grad:
        return torch.maximum(x[:, :, 0 : t - t % 2 : 2], x[:, :, 1::2])  # (N,C,T//2,H,W)
    return F.max_pool3d(x, kernel, stride, padding, ceil_mode=ceil_mode)


def upsample(x: Tensor, size: Sequence[int], factor: Sequence[int] | None = None) -> Tensor:
    """Repeat pixels along the halved axes and crop to `size`: an inverse of `pool_down` on constant maps.

    Args:
        x: (N, C, l), (N, C, h, w) or (N, C, t, h, w).
        size: the wanted size of the last axes, as many as are given: (H, W) or (T, H, W) for a clip.
        factor: which axes are halved in `x`.

    Raises:
        ValueError: if the factor does not fit the number of axes.
    """
    factor = as_factor(factor, x.dim() - 2)
    if len(factor) == 3 and factor[0] == 2:
        x = _repeat_time(x)  # time first, on the smaller map
    if factor[-2:] != (1, 1):
        scale = tuple([float(f) for f in factor[-2:]])
        if x.dim() == 5 and clips_stay_unfolded():
            x = F.interpolate(x, scale_factor=(1.0, *scale), mode="nearest")
        else:
            x, folded = _fold_time(x)
            x = _unfold_time(F.interpolate(x, scale_factor=scale, mode="nearest"), folded)
    return crop(x, size)  # last: a cropped map folds into no view


def crop(x: Tensor, size: Sequence[int]) -> Tensor:
    """The leading part of `x` that has `size` in its last axes; `x` itself where nothing is cut."""
    for axis, length in enumerate(size, start=x.dim() - len(size)):
        if x.shape[axis] != length:
            x = x.narrow(axis, 0, length)
    return x


def add_upsampled(y: Tensor, low: Tensor, factor: Sequence[int] | None = None) -> Tensor:
    """`y` plus `low` with its pixels repeated along the halved axes.

    On channels-last maps it is one pass over y, where an upsampled copy makes three: 192 channels on 8x56x56,
    2.1 against 4.4 ms (one thread of an AMD EPYC with AVX2, torch 2.14).

    Args:
        y: (N, C, [T,] H, W); it may be changed, so nobody else may need it.
        low: (N, C, [t,] h, w), half of y's size, rounded up, along the halved axes; what is more is cropped.
        factor: which axes are halved.
    """
    factor = as_factor(factor, y.dim() - 2)
    size = y.shape[2:]
    fits = all([n == m * f for n, m, f in zip(size, low.shape[2:], factor, strict=True)])  # else the border is cropped
    if not fits or not is_channels_last(y):
        return y + upsample(low, size, factor)
    if torch.compiler.is_compiling():
        return _add_repeated(y, low, factor)
    if torch.is_grad_enabled() and (y.requires_grad or low.requires_grad):
        return _AddRepeated.apply(y, low, factor)  # type: ignore[no-any-return, no-untyped-call]
    return _add_repeated_(y, low, factor)


def _blocks(y: Tensor, low: Tensor, factor: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Both maps, channels last, with one axis for the pixels of a block, of which `low` has one: they broadcast."""
    blocks, repeated = [y.shape[0]], [y.shape[0]]
    for size, f in zip(low.shape[2:], factor, strict=True):
        blocks += [size, f]
        repeated += [size, 1]
    last = [0, *range(2, y.dim()), 1]
    return y.permute(last).reshape(*blocks, y.shape[1]), low.permute(last).reshape(*repeated, y.shape[1])


def _add_repeated(y: Tensor, low: Tensor, factor: Sequence[int]) -> Tensor:
    """A new tensor; inductor makes one loop of it, where it looks up every index of an upsampled copy."""
    y_blocks, low_blocks = _blocks(y, low, factor)
    last = (y_blocks + low_blocks).reshape(y.shape[0], *y.shape[2:], y.shape[1])
    return last.permute(0, y.dim() - 1, *range(1, y.dim() - 1))


def _add_repeated_(y: Tensor, low: Tensor, factor: Sequence[int]) -> Tensor:
    y_blocks, low_blocks = _blocks(y, low, factor)
    y_blocks.add_(low_blocks)  # a view of y, which is channels last
    return y


class _AddRepeated(torch.autograd.Function):
    """Its own gradient, since that of a broadcast is a slow sum: the pooled gradient, times the block's size."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, low: Tensor, factor: tuple[int, ...]) -> Tensor:
        ctx.factor, ctx.dtype = factor, low.dtype
        # Not in place: y is a view of what conv2d made, whose gradient autograd would copy piece by piece.
        return _add_repeated(y, low, factor)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        block = 1
        for f in ctx.factor:
            block *= f
        return grad, (pool_down(grad, ctx.factor) * block).to(ctx.dtype), None
